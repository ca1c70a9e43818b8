"""Casts and layouts by kernels; reductions by the array library."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import dtypes, memory_format
from dlgpu.backends.contract import Array, Reduction
from dlgpu.backends.kernels.geometry import four_axes, strides
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import axes
from dlgpu.dtypes import check_floats
from dlgpu.errors import UnknownName

_REDUCTIONS = ("sum", "mean", "max")


def plan(op: str, x: Array, y: Array) -> Plan:
    """One thread per element, in the memory order of what is written."""
    kernel = f"dl::copy<{storage(op, x.dtype)}, {storage(op, y.dtype)}>"
    return elementwise(op, kernel, x.size, *x.shape[1:], x.size, strides(x), strides(y))


class MovementOps(Launching):
    """Movement of the contract."""

    def cast(self, x: Array, dtype: Any) -> Array:
        target = dtypes.parse(dtype)
        check_floats("cast", input=x)
        check_floats("cast", dtype=np.empty(0, target))
        layout = memory_format.of(x)
        return self._copy("cast", self.dense(x, layout), target, layout)

    def to_memory_format(self, x: Array, format: str) -> Array:
        layout = memory_format.parse(format)
        if x.ndim != 4 or memory_format.of(x) == layout:
            return memory_format.convert(self.xp, x, layout)  # itself, or the error
        return self._copy("to_memory_format", x, x.dtype, layout)

    def _copy(self, op: str, x: Array, dtype: np.dtype, layout: memory_format.MemoryFormat) -> Array:
        y = memory_format.empty(self.xp, x.shape, dtype, layout)
        source, target = four_axes(x), four_axes(y)
        self.run(plan(op, source, target), source, target)
        return y

    def reduce(
        self, x: Array, *, kind: Reduction, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        check_floats("reduce", input=x)
        if kind not in _REDUCTIONS:
            raise UnknownName("reduce", "reduction", kind, _REDUCTIONS)
        wide = x.astype(dtypes.accumulator(x.dtype), copy=False)
        out = getattr(self.xp, kind)(wide, axis=axes("reduce", x.shape, axis), keepdims=keepdims)
        return self.xp.asarray(out).astype(x.dtype, copy=False)
