"""What every reference op does at its two ends: widen the inputs, then round and lay out the result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlgpu import memory_format
from dlgpu.dtypes import accumulator
from dlgpu.threads import parallel, slices

SHARE_BYTES = 1 << 20  # measured: half of it costs Python calls, twice as much falls out of the cache


def widen(x: np.ndarray) -> np.ndarray:
    """`x` in its accumulation type (float32, or float64 for float64); no copy where it already is."""
    return x.astype(accumulator(x.dtype), copy=False)


def finish(y: np.ndarray, dtype: np.dtype, layout: memory_format.MemoryFormat = "contiguous") -> np.ndarray:
    """Round `y` to `dtype` and store it in the memory format `layout` (ignored unless 4-D)."""
    with np.errstate(over="ignore"):  # beyond float16's range is inf, as on the GPU
        y = y.astype(dtype, copy=False)
    return memory_format.convert(np, y, layout) if y.ndim == 4 else np.asarray(y, order="C")


def masked(values: np.ndarray, mask: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """`values` where the boolean `mask` holds, +0 elsewhere, exactly (0 * inf and 0 * NaN would be NaN).

    Multiplies the bit patterns as integers: several times faster than `np.where`, which branches on every element.
    """
    bits = np.dtype(f"u{values.itemsize}")
    if out is None:
        return np.multiply(values.view(bits), mask, dtype=bits).view(values.dtype)
    np.multiply(values.view(bits), mask, out=out.view(bits), dtype=bits)
    return out


def by_images(work: Callable[[slice], None], x: np.ndarray) -> None:
    """Call `work(images)` for slices that cover the first axis of `x`, on several threads.

    For ops that treat images (or rows) independently. A share stays in the cache while an op passes over it again.
    """
    per_image = max(1, x.nbytes // max(1, len(x)))
    shares = slices(len(x), max(1, SHARE_BYTES // per_image))
    parallel(lambda index: work(shares[index]), len(shares))
