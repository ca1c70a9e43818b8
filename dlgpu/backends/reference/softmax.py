"""Softmax, log-softmax, and the cross-entropy loss on top of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.shapes import axes, check_shape, check_target
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError


def softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("softmax", input=x)
    axes("softmax", x.shape, axis)
    return finish(_Line.of(widen(x), axis).probabilities(), x.dtype, memory_format.of(x))


def softmax_grad(grad_output: np.ndarray, y: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("softmax_grad", grad_output=grad_output, output=y)
    axes("softmax_grad", y.shape, axis)
    check_shape("softmax_grad", "grad_output", grad_output.shape, y.shape)
    d, p = widen(grad_output), widen(y)
    return finish(p * (d - (d * p).sum(axis=axis, keepdims=True)), y.dtype, memory_format.of(y))


def log_softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("log_softmax", input=x)
    axes("log_softmax", x.shape, axis)
    return finish(_Line.of(widen(x), axis).log_probabilities(), x.dtype, memory_format.of(x))


def log_softmax_grad(grad_output: np.ndarray, y: np.ndarray, *, axis: int = -1) -> np.ndarray:
    check_floats("log_softmax_grad", grad_output=grad_output, output=y)
    axes("log_softmax_grad", y.shape, axis)
    check_shape("log_softmax_grad", "grad_output", grad_output.shape, y.shape)
    d = widen(grad_output)
    return finish(d - np.exp(widen(y)) * d.sum(axis=axis, keepdims=True), y.dtype, memory_format.of(y))


def cross_entropy(
    logits: np.ndarray, target: np.ndarray, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[np.ndarray, np.ndarray]:
    valid, at = _check_target("cross_entropy", logits, target, label_smoothing, ignore_index)
    line = _Line.of(widen(logits), 1)
    log_sum = line.log_sum()  # (N, 1, ...)
    # -log p = log_sum - shifted logit, for the target's class and for the mean over classes
    loss = log_sum - np.take_along_axis(line.shifted, at, axis=1)
    if label_smoothing:
        s = loss.dtype.type(label_smoothing)
        loss = (1 - s) * loss + s * (log_sum - line.shifted.mean(axis=1, keepdims=True))
    return np.where(valid, loss[:, 0], loss.dtype.type(0)), (log_sum + line.peak)[:, 0]


def cross_entropy_with_grad(
    logits: np.ndarray, target: np.ndarray, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[np.ndarray, np.ndarray]:
    op = "cross_entropy_with_grad"
    _check_target(op, logits, target, label_smoothing, ignore_index)
    how: dict[str, Any] = dict(label_smoothing=label_smoothing, ignore_index=ignore_index)
    loss, lse = cross_entropy(logits, target, **how)
    return loss, cross_entropy_grad(np.ones_like(loss), logits, target, lse, **how)


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
    check_target(op, logits.shape, target, label_smoothing)
    valid = target != ignore_index
    wrong = valid & ((target < 0) | (target >= logits.shape[1]))
    if wrong.any():
        raise ShapeError(
            f"[{op}] targets must be in [0, {logits.shape[1]}) or {ignore_index}; got {int(target[wrong].flat[0])}"
        )
    return valid, np.where(valid, target, 0)[:, None].astype(np.int64)


@dataclass(frozen=True)
class _Line:
    """Lines along an axis, each moved so that its greatest element is 0: what all of softmax is made of.

    Infinities and NaN pass through quietly, as on the GPU.
    """

    shifted: np.ndarray
    peak: np.ndarray
    axis: int

    @staticmethod
    def of(x: np.ndarray, axis: int) -> _Line:
        peak = x.max(axis=axis, keepdims=True) if x.size else np.zeros_like(x.sum(axis=axis, keepdims=True))
        peak = np.where(np.isfinite(peak), peak, 0)  # -inf throughout: else inf - inf
        with np.errstate(over="ignore"):
            return _Line(x - peak, peak, axis)

    def probabilities(self) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            exponentials = np.exp(self.shifted)
            return exponentials / exponentials.sum(axis=self.axis, keepdims=True)

    def log_sum(self) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore"):
            return np.log(np.exp(self.shifted).sum(axis=self.axis, keepdims=True))

    def log_probabilities(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return self.shifted - self.log_sum()
