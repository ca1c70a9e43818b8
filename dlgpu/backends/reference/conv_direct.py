"""Convolution by its definition, one filter place at a time: y += weight[:, :, r, s] @ (x shifted by r, s)."""

from __future__ import annotations

import numpy as np

from dlgpu.backends.reference.windows import padded, taps, unpadded
from dlgpu.backends.shapes import Conv2d


def forward(x: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    y = np.zeros((g.N, g.G, g.K // g.G, g.P * g.Q), x.dtype)
    for w, tap in zip(_places(weight, g), taps(padded(x, g), g), strict=True):
        y += np.matmul(w, tap.reshape(g.N, g.G, g.C // g.G, g.P * g.Q))
    return y.reshape(g.output_shape)


def grad_input(grad_output: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    dy = grad_output.reshape(g.N, g.G, g.K // g.G, g.P * g.Q)
    whole = padded(np.zeros(g.input_shape, dy.dtype), g)
    for w, tap in zip(_places(weight, g), taps(whole, g), strict=True):
        tap += np.matmul(w.swapaxes(1, 2), dy).reshape(tap.shape)
    return unpadded(whole, g)


def grad_weight(grad_output: np.ndarray, x: np.ndarray, g: Conv2d) -> np.ndarray:
    dy = grad_output.reshape(g.N, g.G, g.K // g.G, g.P * g.Q)
    dw = np.empty((g.R * g.S, g.G, g.K // g.G, g.C // g.G), x.dtype)
    for w, tap in zip(dw, taps(padded(x, g), g), strict=True):
        seen = tap.reshape(g.N, g.G, g.C // g.G, g.P * g.Q)
        w[...] = np.matmul(dy, seen.swapaxes(2, 3)).sum(axis=0)
    return np.ascontiguousarray(dw.transpose(1, 2, 3, 0)).reshape(g.weight_shape)


def _places(weight: np.ndarray, g: Conv2d) -> np.ndarray:
    """(K, C/G, R, S) -> (R*S, G, K/G, C/G)."""
    return weight.transpose(2, 3, 0, 1).reshape(g.R * g.S, g.G, g.K // g.G, g.C // g.G)
