"""Optimizer steps, in place on flat arenas.

An arena is walked in blocks that fit a core's cache, so that the passes of one update read memory once. One thread does
it: these passes are so short that two would mostly wait for the interpreter's lock (measured: slower).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlgpu.backends.shapes import check_arenas, check_scaler
from dlgpu.errors import DtypeError, ShapeError
from dlgpu.threads import slices

LEAST_SCALE = np.float32(2.0**-24)
BLOCK = 1 << 15  # elements: four arrays of them fit into a core's cache


def sgd_step(
    param: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    scaler: np.ndarray | None = None,
    half: np.ndarray | None = None,
) -> None:
    if (velocity is None) != (momentum == 0):
        raise ShapeError(f"[sgd_step] velocity is needed iff momentum is not 0; got momentum={momentum}")
    state = () if velocity is None else (velocity,)

    def update(p: np.ndarray, g: np.ndarray, *rest: np.ndarray) -> None:
        step = _decayed(g, p, weight_decay) * p.dtype.type(-lr)
        if rest:
            (v,) = rest
            v *= p.dtype.type(momentum)
            v += step
            step = step + p.dtype.type(momentum) * v if nesterov else v
        p += step

    _each_block("sgd_step", update, scaler, half, param, grad, *state)


def adagrad_step(
    param: np.ndarray,
    grad: np.ndarray,
    square_sum: np.ndarray,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scaler: np.ndarray | None = None,
    half: np.ndarray | None = None,
) -> None:
    def update(p: np.ndarray, g: np.ndarray, r: np.ndarray) -> None:
        d = _decayed(g, p, weight_decay)
        r += d * d
        p -= p.dtype.type(lr) * d / (np.sqrt(r) + p.dtype.type(eps))

    _each_block("adagrad_step", update, scaler, half, param, grad, square_sum)


def rmsprop_step(
    param: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scaler: np.ndarray | None = None,
    half: np.ndarray | None = None,
) -> None:
    def update(p: np.ndarray, g: np.ndarray, r: np.ndarray) -> None:
        d = _decayed(g, p, weight_decay)
        r += p.dtype.type(1 - alpha) * (d * d - r)
        p -= p.dtype.type(lr) * d / (np.sqrt(r) + p.dtype.type(eps))

    _each_block("rmsprop_step", update, scaler, half, param, grad, square_avg)


def adam_step(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scaler: np.ndarray | None = None,
    half: np.ndarray | None = None,
) -> None:
    if step < 1:
        raise ShapeError(f"[adam_step] step counts from 1; got {step}")
    if scaler is not None:
        step -= int(scaler[3])
    # Bias corrections as scalars: m / (1 - beta1^t), sqrt(v / (1 - beta2^t)).
    rate, root = lr / (1 - beta1**step), 1 / (1 - beta2**step) ** 0.5

    def update(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
        f = p.dtype.type
        if decoupled and weight_decay:
            p *= f(1 - lr * weight_decay)
        d = g if decoupled else _decayed(g, p, weight_decay)
        m += f(1 - beta1) * (d - m)
        v += f(1 - beta2) * (d * d - v)
        below = np.sqrt(v)
        below *= f(root)
        below += f(eps)
        np.divide(m, below, out=below)
        below *= f(rate)
        p -= below

    _each_block("adam_step", update, scaler, half, param, grad, exp_avg, exp_avg_sq)


def _decayed(grad: np.ndarray, param: np.ndarray, weight_decay: float) -> np.ndarray:
    return grad + param.dtype.type(weight_decay) * param if weight_decay else grad


def _each_block(
    op: str, update: Callable[..., None], scaler: np.ndarray | None, half: np.ndarray | None, *arenas: np.ndarray
) -> None:
    """Check the arenas, then call `update` on each block of them, with the gradient unscaled, and fill `half`."""
    param = arenas[0]
    if param.dtype not in (np.float32, np.float64) or any(a.dtype != param.dtype for a in arenas):
        got = ", ".join(str(a.dtype) for a in arenas)
        raise DtypeError(f"[{op}] arenas must all be float32 or all float64; got {got}")
    check_arenas(op, scaler, half, *arenas)
    if scaler is not None and scaler[1]:
        return
    for block in slices(param.size, BLOCK):
        p, g, *state = (a[block] for a in arenas)
        update(p, g if scaler is None else g * (1 / scaler[0]), *state)
        if half is not None:
            half[block] = p


def check_finite(grad: np.ndarray, scaler: np.ndarray) -> None:
    check_arenas("check_finite", scaler, None, grad)
    if not np.isfinite(grad).all():
        scaler[1] = 1


def update_scaler(
    scaler: np.ndarray, *, growth_factor: float = 2.0, backoff_factor: float = 0.5, growth_interval: int = 2000
) -> None:
    check_scaler("update_scaler", scaler, growth_factor, backoff_factor, growth_interval)
    scale, found, good, skipped = scaler
    if found:
        scaler[:] = max(scale * np.float32(backoff_factor), LEAST_SCALE), 0, 0, skipped + 1
        return
    good += 1
    if good >= growth_interval:
        with np.errstate(over="ignore"):
            grown = scale * np.float32(growth_factor)
        scale, good = grown if np.isfinite(grown) else scale, 0
    scaler[:] = scale, 0, good, skipped
