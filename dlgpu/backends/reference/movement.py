"""Casts, layouts and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import dtypes, memory_format
from dlgpu.backends.contract import Reduction
from dlgpu.backends.reference.common import finish, widen
from dlgpu.dtypes import check_floats
from dlgpu.errors import UnknownName


def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    target = dtypes.parse(dtype)
    check_floats("cast", input=x)
    check_floats("cast", dtype=np.empty(0, target))
    with np.errstate(over="ignore"):  # float32 values beyond float16's range become inf, as on the GPU
        return finish(x.astype(target), target, memory_format.of(x))


def to_memory_format(x: np.ndarray, format: str) -> np.ndarray:
    return memory_format.convert(np, x, memory_format.parse(format))


_REDUCTIONS = {"sum": np.sum, "mean": np.mean, "max": np.max}


def reduce(
    x: np.ndarray, *, kind: Reduction, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> np.ndarray:
    check_floats("reduce", input=x)
    if kind not in _REDUCTIONS:
        raise UnknownName("reduce", "reduction", kind, _REDUCTIONS)
    out = np.asarray(_REDUCTIONS[kind](widen(x), axis=axis, keepdims=keepdims))
    return finish(out, x.dtype, memory_format.of(x)) if out.ndim else out.astype(x.dtype)
