"""Activations: plans and ops."""

from __future__ import annotations

from typing import Any

from dlgpu import memory_format
from dlgpu.backends.contract import SAVES_INPUT, SAVES_OUTPUT, Activation, Array, check_activation
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, elementwise, vector
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import check_shape
from dlgpu.dtypes import check_floats

# kind -> its name in kernels/activation.cuh
KINDS: dict[str, str] = {kind: "dl::k" + kind.title().replace("_", "") for kind in SAVES_OUTPUT + SAVES_INPUT}


def plan(op: str, kind: str, dtype: Any, count: int, alpha: float) -> Plan:
    """A vector of elements per thread."""
    check_activation(op, kind, alpha)
    kernel = f"dl::{op}<{storage(op, dtype)}, {KINDS[kind]}>"
    return elementwise(op, kernel, -(-count // vector(dtype)), count, float(alpha))


class ActivationOps(Launching):
    """The activations of the contract."""

    def activation(self, x: Array, *, kind: Activation, alpha: float = 0.01) -> Array:
        check_floats("activation", input=x)
        chosen = plan("activation", kind, x.dtype, x.size, alpha)
        x = self.dense(x, memory_format.of(x))
        y = memory_format.empty(self.xp, x.shape, x.dtype, memory_format.of(x))
        self.run(chosen, x, y)
        return y

    def activation_grad(self, grad_output: Array, saved: Array, *, kind: Activation, alpha: float = 0.01) -> Array:
        op = "activation_grad"
        check_floats(op, grad_output=grad_output, saved=saved)
        check_shape(op, "grad_output", grad_output.shape, saved.shape)
        chosen, layout = plan(op, kind, saved.dtype, saved.size, alpha), memory_format.of(saved)
        dx = memory_format.empty(self.xp, saved.shape, saved.dtype, layout)
        self.run(chosen, self.dense(grad_output, layout), self.dense(saved, layout), dx)
        return dx
