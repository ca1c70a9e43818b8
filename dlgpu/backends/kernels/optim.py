"""Optimizer steps: plans and ops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import check_arenas, check_scaler
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
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        if (velocity is None) != (momentum == 0):
            raise ShapeError(f"[sgd_step] velocity is needed iff momentum is not 0; got momentum={momentum}")
        self._step("sgd_step", (param, grad, velocity), scaler, half, lr, momentum, int(nesterov), weight_decay)

    def adagrad_step(
        self,
        param: Array,
        grad: Array,
        square_sum: Array,
        *,
        lr: float,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        self._step("adagrad_step", (param, grad, square_sum), scaler, half, lr, eps, weight_decay)

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
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        self._step("rmsprop_step", (param, grad, square_avg), scaler, half, lr, 1 - alpha, eps, weight_decay)

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
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
        keep = self.each_call(lambda lr: 1 - lr * weight_decay, lr) if decoupled else 1.0
        numbers = (lr, *logs, 1 - beta1, 1 - beta2, eps, 0.0 if decoupled else weight_decay, keep)
        arenas = param, grad, exp_avg, exp_avg_sq
        self._step("adam_step", arenas, scaler, half, self.each_call(_counted, step), *numbers)

    def check_finite(self, grad: Array, scaler: Array) -> None:
        _check("check_finite", scaler, None, grad)
        self.run(_plan("check_finite", "dl::check_finite", grad.size), grad, scaler)

    def update_scaler(
        self, scaler: Array, *, growth_factor: float = 2.0, backoff_factor: float = 0.5, growth_interval: int = 2000
    ) -> None:
        check_scaler("update_scaler", scaler, growth_factor, backoff_factor, growth_interval)
        numbers = float(growth_factor), float(backoff_factor), float(growth_interval)
        self.run(Plan("dl::update_scaler", (1, 1, 1), (1, 1, 1), numbers), scaler)

    def _step(
        self, op: str, arenas: tuple[Array | None, ...], scaler: Array | None, half: Array | None, *numbers: float
    ) -> None:
        given = [a for a in arenas if a is not None]
        _check(op, scaler, half, *given)
        kernel = f"dl::{op}<{'float' if half is None else storage(op, half.dtype)}>"
        self.run(_plan(op, kernel, given[0].size, *numbers), *arenas, scaler, half)


def _counted(step: int) -> int:
    if step < 1:
        raise ShapeError(f"[adam_step] step counts from 1; got {step}")
    return step


def _plan(op: str, kernel: str, count: int, *numbers: float) -> Plan:
    """Four elements per thread and round."""
    plan = elementwise(op, kernel, -(-count // 4), count, *numbers)
    return replace(plan, why=f"{count} elements, four per thread and round")


def _check(op: str, scaler: Array | None, half: Array | None, *arenas: Array) -> None:
    if any(a.dtype != np.float32 for a in arenas):
        raise DtypeError(f"[{op}] kernels take float32 arenas; got {', '.join(str(a.dtype) for a in arenas)}")
    check_arenas(op, scaler, half, *arenas)
