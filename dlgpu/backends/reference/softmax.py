"""Softmax, log-softmax, and the cross-entropy loss on top of them."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.shapes import check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import DtypeError, ShapeError


def softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("softmax", input=x)
    return finish(np.exp(_log_softmax(widen(x), axis)), x.dtype, memory_format.of(x))


def softmax_grad(grad_output: np.ndarray, y: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("softmax_grad", grad_output=grad_output, output=y)
    d, p = widen(grad_output), widen(y)
    return finish(p * (d - (d * p).sum(axis=axis, keepdims=True)), y.dtype, memory_format.of(y))


def log_softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("log_softmax", input=x)
    return finish(_log_softmax(widen(x), axis), x.dtype, memory_format.of(x))


def log_softmax_grad(grad_output: np.ndarray, y: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("log_softmax_grad", grad_output=grad_output, output=y)
    d = widen(grad_output)
    return finish(d - np.exp(widen(y)) * d.sum(axis=axis, keepdims=True), y.dtype, memory_format.of(y))


def cross_entropy(
    logits: np.ndarray, target: np.ndarray, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[np.ndarray, np.ndarray]:
    valid, at = _check_target("cross_entropy", logits, target, label_smoothing, ignore_index)
    x = widen(logits)
    lse = _log_sum_exp(x, 1)  # (N, 1, ...)
    # -log p = lse - logit, for the target's class and for the mean over classes
    loss = lse - np.take_along_axis(x, at, axis=1)
    if label_smoothing:
        s = x.dtype.type(label_smoothing)
        loss = (1 - s) * loss + s * (lse - x.mean(axis=1, keepdims=True))
    return np.where(valid, loss[:, 0], x.dtype.type(0)), lse[:, 0]


def cross_entropy_grad(
    grad_loss: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    lse: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    op = "cross_entropy_grad"
    valid, at = _check_target(op, logits, target, label_smoothing, ignore_index)
    check_shape(op, "grad_loss", grad_loss.shape, target.shape)
    x = widen(logits)
    s = x.dtype.type(label_smoothing)
    dx = np.exp(x - lse[:, None])
    dx -= s / x.dtype.type(x.shape[1])
    np.put_along_axis(dx, at, np.take_along_axis(dx, at, axis=1) - (1 - s), axis=1)
    weight = np.where(valid, grad_loss.astype(x.dtype, copy=False), x.dtype.type(0))[:, None]
    return finish(np.where(valid[:, None], dx * weight, x.dtype.type(0)), logits.dtype, memory_format.of(logits))


def _check_target(
    op: str, logits: np.ndarray, target: np.ndarray, label_smoothing: float, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> (which targets count, their class index with a class axis; ignored ones point at class 0)."""
    check_floats(op, logits=logits)
    if target.dtype.kind not in "iu":
        raise DtypeError(f"[{op}] target must hold integer class indices; got {target.dtype}")
    if logits.ndim < 2 or logits.shape[1] < 1:
        raise ShapeError(f"[{op}] logits must have shape (N, classes, ...); got {logits.shape}")
    check_shape(op, "target", target.shape, (logits.shape[0], *logits.shape[2:]))
    if not 0 <= label_smoothing <= 1:
        raise ShapeError(f"[{op}] label_smoothing must be in [0, 1]; got {label_smoothing}")
    valid = target != ignore_index
    wrong = valid & ((target < 0) | (target >= logits.shape[1]))
    if wrong.any():
        raise ShapeError(
            f"[{op}] targets must be in [0, {logits.shape[1]}) or {ignore_index}; got {int(target[wrong].flat[0])}"
        )
    return valid, np.where(valid, target, 0)[:, None].astype(np.int64)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    peak = x.max(axis=axis, keepdims=True) if x.size else np.zeros_like(x.sum(axis=axis, keepdims=True))
    # A row that is -inf throughout (or holds +inf) must not become inf - inf inside the exponential.
    safe = np.where(np.isfinite(peak), peak, 0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(np.exp(x - safe).sum(axis=axis, keepdims=True)) + safe


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return x - _log_sum_exp(x, axis)
