"""Casts and layouts by kernels; reductions by the array library."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import dtypes, memory_format
from dlgpu.backends.contract import Array, Reduction
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.shapes import axes
from dlgpu.dtypes import check_floats
from dlgpu.errors import UnknownName

_REDUCTIONS = ("sum", "mean", "max")


class MovementOps(Launching):
    """Movement of the contract."""

    def cast(self, x: Array, dtype: Any) -> Array:
        target = dtypes.parse(dtype)
        check_floats("cast", input=x)
        check_floats("cast", dtype=np.empty(0, target))
        layout = memory_format.of(x)
        return self.copied("cast", self.dense(x, layout), target, layout)

    def to_memory_format(self, x: Array, format: str) -> Array:
        layout = memory_format.parse(format)
        if memory_format.is_stored(x, layout):
            return x
        return self.copied("to_memory_format", x, x.dtype, layout) if x.ndim == 4 else self.xp.ascontiguousarray(x)

    def reduce(
        self, x: Array, *, kind: Reduction, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        check_floats("reduce", input=x)
        if kind not in _REDUCTIONS:
            raise UnknownName("reduce", "reduction", kind, _REDUCTIONS)
        wide = x.astype(dtypes.accumulator(x.dtype), copy=False)
        out = getattr(self.xp, kind)(wide, axis=axes("reduce", x.shape, axis), keepdims=keepdims)
        return self.xp.asarray(out).astype(x.dtype, copy=False)
