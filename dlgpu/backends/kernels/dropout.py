"""Dropout: plan and ops."""

from __future__ import annotations

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.geometry import four_axes, strides
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import check_probability
from dlgpu.dtypes import check_floats


def plan(op: str, x: Array, y: Array, p: float, seed: int, offset: int) -> Plan:
    """One thread per element, in logical order: the mask belongs to the logical index."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    args = (*x.shape[1:], x.size, strides(x), strides(y), float(p), scale, seed, offset)
    return elementwise(op, f"dl::dropout<{storage(op, x.dtype)}>", x.size, *args)


class DropoutOps(Launching):
    """Dropout of the contract."""

    def dropout(self, x: Array, *, p: float, seed: int, offset: int) -> Array:
        return self._dropout("dropout", x, p, seed, offset)

    def dropout_grad(self, grad_output: Array, *, p: float, seed: int, offset: int) -> Array:
        return self._dropout("dropout_grad", grad_output, p, seed, offset)

    def _dropout(self, op: str, x: Array, p: float, seed: int, offset: int) -> Array:
        check_floats(op, input=x)
        check_probability(op, p)
        y = memory_format.empty(self.xp, x.shape, x.dtype, memory_format.of(x))
        source, target = four_axes(x), four_axes(y)
        self.run(plan(op, source, target, p, seed, offset), source, target)
        return y
