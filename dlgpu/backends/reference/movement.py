"""Casts, layouts and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dlgpu import dtypes, memory_format
from dlgpu.backends.contract import Reduction
from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.shapes import axes
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError, UnknownName


def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    target = dtypes.parse(dtype)
    check_floats("cast", input=x)
    check_floats("cast", dtype=np.empty(0, target))
    # `finish` copies only where something changes; an op's result is always new memory.
    return finish(x.copy(order="K") if x.dtype == target else x, target, memory_format.of(x))


def to_memory_format(x: np.ndarray, format: str) -> np.ndarray:
    return memory_format.convert(np, x, memory_format.parse(format))


_REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "mean": np.mean, "max": np.max}


def reduce(
    x: np.ndarray, *, kind: Reduction, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> np.ndarray:
    check_floats("reduce", input=x)
    if kind not in _REDUCTIONS:
        raise UnknownName("reduce", "reduction", kind, _REDUCTIONS)
    over = axes("reduce", x.shape, axis)
    if kind != "sum" and any(x.shape[a] == 0 for a in over):
        raise ShapeError(f"[reduce] the {kind} of nothing is not defined; got shape {x.shape}, axis {axis}")
    return finish(np.asarray(_REDUCTIONS[kind](widen(x), axis=over, keepdims=keepdims)), x.dtype, memory_format.of(x))
