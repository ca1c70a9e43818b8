"""Elementwise activations and their gradients, one pair of lines each."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Activation, check_activation
from dlgpu.backends.reference.common import by_images, finish, masked, widen
from dlgpu.backends.shapes import check_shape
from dlgpu.dtypes import check_floats


def activation(x: np.ndarray, *, kind: Activation, alpha: float = 0.01) -> np.ndarray:
    check_floats("activation", input=x)
    forward, _ = _pair("activation", kind, alpha)
    return _elementwise(lambda part: forward(part, alpha), x)


def activation_grad(grad_output: np.ndarray, saved: np.ndarray, *, kind: Activation, alpha: float = 0.01) -> np.ndarray:
    op = "activation_grad"
    check_floats(op, grad_output=grad_output, saved=saved)
    check_shape(op, "grad_output", grad_output.shape, saved.shape)
    _, backward = _pair(op, kind, alpha)
    return _elementwise(lambda part, grad: backward(grad, part, alpha), saved, grad_output)


def _elementwise(compute: Callable[..., np.ndarray], x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """`compute` on widened parts of arrays of one shape; the result is stored like `x`."""
    if x.ndim == 0:
        return _elementwise(compute, *(a[None] for a in (x, *others)))[0:1].reshape(())
    out = memory_format.empty(np, x.shape, x.dtype, memory_format.of(x))

    def share(rows: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN pass through quietly, as on the GPU
            out[rows] = finish(compute(*(widen(a[rows]) for a in (x, *others))), out.dtype)

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


Forward = Callable[[np.ndarray, float], np.ndarray]
Backward = Callable[[np.ndarray, np.ndarray, float], np.ndarray]

# kind: (y from x, grad_input from grad_output and what was saved); d grad_output, y output, x input, a alpha
_TABLE: dict[str, tuple[Forward, Backward]] = {
    "relu": (lambda x, a: np.maximum(x, 0), lambda d, y, a: masked(d, y > 0)),
    "relu6": (lambda x, a: np.clip(x, 0, 6), lambda d, y, a: masked(d, (y > 0) & (y < 6))),
    "leaky_relu": (
        lambda x, a: np.where(x > 0, x, x.dtype.type(a) * x),
        lambda d, y, a: np.where(y > 0, d, d.dtype.type(a) * d),
    ),
    "elu": (_elu, lambda d, y, a: np.where(y > 0, d, d * (y + d.dtype.type(a)))),
    "sigmoid": (lambda x, a: _sigmoid(x), lambda d, y, a: d * y * (1 - y)),
    "tanh": (lambda x, a: np.tanh(x), lambda d, y, a: d * (1 - y * y)),
    "gelu": (lambda x, a: x * _normal_cdf(x), lambda d, x, a: d * _gelu_slope(x)),
    "silu": (lambda x, a: x * _sigmoid(x), lambda d, x, a: d * _silu_slope(x)),
    "softplus": (lambda x, a: np.logaddexp(x, x.dtype.type(0)), lambda d, x, a: d * _sigmoid(x)),
}


def _pair(op: str, kind: str, alpha: float) -> tuple[Forward, Backward]:
    check_activation(op, kind, alpha)
    return _TABLE[kind]
