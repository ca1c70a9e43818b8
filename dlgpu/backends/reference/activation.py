"""Elementwise activations and their gradients, one pair of lines each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Activation, check_activation
from dlgpu.backends.reference.common import by_images, masked, widen
from dlgpu.backends.shapes import check_shape
from dlgpu.dtypes import accumulator, check_floats


def activation(x: np.ndarray, *, kind: Activation, alpha: float = 0.01) -> np.ndarray:
    check_floats("activation", input=x)
    forward, _ = _pair("activation", kind, alpha)
    return _elementwise(lambda out, part: forward(part, alpha, out), x)


def activation_grad(grad_output: np.ndarray, saved: np.ndarray, *, kind: Activation, alpha: float = 0.01) -> np.ndarray:
    op = "activation_grad"
    check_floats(op, grad_output=grad_output, saved=saved)
    check_shape(op, "grad_output", grad_output.shape, saved.shape)
    _, backward = _pair(op, kind, alpha)
    return _elementwise(lambda out, part, grad: backward(grad, part, alpha, out), saved, grad_output)


def _elementwise(compute: Callable[..., np.ndarray], x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`compute(out, *parts)` on widened parts of arrays of one shape; the result is stored like `x`.

    `out` is where the result may be written at once (None if it still has to be rounded).
    """
    if x.ndim == 0:
        return _elementwise(compute, *(a[None] for a in (x, *others)))[0:1].reshape(())
    out = memory_format.empty(np, x.shape, x.dtype, memory_format.of(x))

    def share(rows: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN pass through quietly, as on the GPU
            target = out[rows] if out.dtype == accumulator(out.dtype) else None
            result = compute(target, *(widen(a[rows]) for a in (x, *others)))
            if result is not target:
                out[rows] = result.astype(out.dtype, copy=False)

    by_images(share, x)
    return out


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), written so that exp never overflows."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _elu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)))


_erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none; exact, and slow


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return (0.5 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    return _normal_cdf(x) + x * np.exp(-x * x / 2) * x.dtype.type(1 / math.sqrt(2 * math.pi))


def _silu_slope(x: np.ndarray) -> np.ndarray:
    s = _sigmoid(x)
    return s * (1 + x * (1 - s))


Forward = Callable[[np.ndarray, float, Any], np.ndarray]
Backward = Callable[[np.ndarray, np.ndarray, float, Any], np.ndarray]

# kind: (y from x, grad_input from grad_output and what was saved)
# d grad_output, y output, x input, a alpha, o where the result may go (used where it saves a pass that shows: ReLU)
_TABLE: dict[str, tuple[Forward, Backward]] = {
    "relu": (lambda x, a, o: np.maximum(x, 0, out=o), lambda d, y, a, o: masked(d, y > 0, o)),
    "relu6": (lambda x, a, o: np.clip(x, 0, 6), lambda d, y, a, o: masked(d, (y > 0) & (y < 6))),
    "leaky_relu": (
        lambda x, a, o: np.where(x > 0, x, x.dtype.type(a) * x),
        lambda d, y, a, o: np.where(y > 0, d, d.dtype.type(a) * d),
    ),
    "elu": (lambda x, a, o: _elu(x, a), lambda d, y, a, o: np.where(y > 0, d, d * (y + d.dtype.type(a)))),
    "sigmoid": (lambda x, a, o: _sigmoid(x), lambda d, y, a, o: d * y * (1 - y)),
    "tanh": (lambda x, a, o: np.tanh(x), lambda d, y, a, o: d * (1 - y * y)),
    "gelu": (lambda x, a, o: x * _normal_cdf(x), lambda d, x, a, o: d * _gelu_slope(x)),
    "silu": (lambda x, a, o: x * _sigmoid(x), lambda d, x, a, o: d * _silu_slope(x)),
    "softplus": (lambda x, a, o: np.logaddexp(x, x.dtype.type(0)), lambda d, x, a, o: d * _sigmoid(x)),
}


def _pair(op: str, kind: str, alpha: float) -> tuple[Forward, Backward]:
    check_activation(op, kind, alpha)
    return _TABLE[kind]
