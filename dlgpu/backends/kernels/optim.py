"""Optimizer steps: plans and ops."""

from __future__ import annotations

import numpy as np

from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import elementwise
from dlgpu.backends.shapes import check_shape
from dlgpu.errors import DtypeError, ShapeError


class OptimOps(Launching):
    """Optimizer steps of the contract, in place on float32 arenas."""

    def sgd_step(
        self,
        param: Array,
        grad: Array,
        velocity: Array | None,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if (velocity is None) != (momentum == 0):
            raise ShapeError(f"[sgd_step] velocity is needed iff momentum is not 0; got momentum={momentum}")
        self._step("sgd_step", (param, grad, velocity), lr, momentum, int(nesterov), weight_decay)

    def adagrad_step(
        self,
        param: Array,
        grad: Array,
        square_sum: Array,
        *,
        lr: float,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        self._step("adagrad_step", (param, grad, square_sum), lr, eps, weight_decay)

    def rmsprop_step(
        self,
        param: Array,
        grad: Array,
        square_avg: Array,
        *,
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._step("rmsprop_step", (param, grad, square_avg), lr, 1 - alpha, eps, weight_decay)

    def adam_step(
        self,
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        if step < 1:
            raise ShapeError(f"[adam_step] step counts from 1; got {step}")
        rate, root = lr / (1 - beta1**step), 1 / (1 - beta2**step) ** 0.5
        keep, inside = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
        arrays = (param, grad, exp_avg, exp_avg_sq)
        self._step("adam_step", arrays, rate, root, 1 - beta1, 1 - beta2, eps, inside, keep)

    def _step(self, op: str, arenas: tuple[Array | None, ...], *scalars: float) -> None:
        param, given = arenas[0], [a for a in arenas if a is not None]
        if any(a.dtype != np.float32 for a in given):
            raise DtypeError(f"[{op}] kernels take float32 arenas; got {', '.join(str(a.dtype) for a in given)}")
        assert param is not None
        for a in given:
            check_shape(op, "arena", a.shape, (param.size,))
        numbers = (scalar if isinstance(scalar, int) else float(scalar) for scalar in scalars)
        self.run(elementwise(op, f"dl::{op}", param.size, param.size, *numbers), *arenas)
