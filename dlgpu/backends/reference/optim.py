"""Optimizer steps, in place on flat arenas.

An arena is walked in blocks that fit a core's cache, so that the passes of one update read memory once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlgpu.backends.shapes import check_shape
from dlgpu.errors import DtypeError, ShapeError

BLOCK = 1 << 14  # elements


def sgd_step(
    param: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    if (velocity is None) != (momentum == 0):
        raise ShapeError(f"[sgd_step] velocity is needed iff momentum is not 0; got momentum={momentum}")
    state = () if velocity is None else (velocity,)
    for p, g, *rest in _blocks("sgd_step", param, grad, *state):
        step = _decayed(g, p, weight_decay) * p.dtype.type(-lr)
        if rest:
            (v,) = rest
            v *= p.dtype.type(momentum)
            v += step
            step = step + p.dtype.type(momentum) * v if nesterov else v
        p += step


def adagrad_step(
    param: np.ndarray,
    grad: np.ndarray,
    square_sum: np.ndarray,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
) -> None:
    for p, g, r in _blocks("adagrad_step", param, grad, square_sum):
        d = _decayed(g, p, weight_decay)
        r += d * d
        p -= p.dtype.type(lr) * d / (np.sqrt(r) + p.dtype.type(eps))


def rmsprop_step(
    param: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    for p, g, r in _blocks("rmsprop_step", param, grad, square_avg):
        d = _decayed(g, p, weight_decay)
        r += p.dtype.type(1 - alpha) * (d * d - r)
        p -= p.dtype.type(lr) * d / (np.sqrt(r) + p.dtype.type(eps))


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
) -> None:
    if step < 1:
        raise ShapeError(f"[adam_step] step counts from 1; got {step}")
    # Bias corrections as scalars: m / (1 - beta1^t), sqrt(v / (1 - beta2^t)).
    rate, root = lr / (1 - beta1**step), 1 / (1 - beta2**step) ** 0.5
    for p, g, m, v in _blocks("adam_step", param, grad, exp_avg, exp_avg_sq):
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


def _decayed(grad: np.ndarray, param: np.ndarray, weight_decay: float) -> np.ndarray:
    return grad + param.dtype.type(weight_decay) * param if weight_decay else grad


def _blocks(op: str, param: np.ndarray, *others: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    if param.dtype not in (np.float32, np.float64) or any(a.dtype != param.dtype for a in others):
        got = ", ".join(str(a.dtype) for a in (param, *others))
        raise DtypeError(f"[{op}] arenas must all be float32 or all float64; got {got}")
    for a in others:
        check_shape(op, "arena", a.shape, (param.size,))
    for start in range(0, param.size, BLOCK):
        yield tuple(a[start : start + BLOCK] for a in (param, *others))
