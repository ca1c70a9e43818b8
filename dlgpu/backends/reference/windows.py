"""Sliding windows over (N, C, H, W) arrays as strided views: the one idea behind im2col, convolution and pooling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dlgpu.backends.shapes import Window2d


def padded(x: np.ndarray, window: Window2d, value: float = 0.0) -> np.ndarray:
    """`x` with its borders filled so that it covers exactly what the windows read.

    At the bottom and right that may be less than the padding asked for (a rest that no window reaches), or more (with
    ceil_mode the last window sticks out). No copy is made where nothing has to be filled.
    """
    H, W = x.shape[2:]
    (top, _), (left, _) = window.padding
    height = (window.P - 1) * window.stride[0] + window.dilation[0] * (window.R - 1) + 1
    width = (window.Q - 1) * window.stride[1] + window.dilation[1] * (window.S - 1) + 1
    bottom, right = max(0, height - top - H), max(0, width - left - W)
    if not (top or left or bottom or right):
        return x[:, :, :height, :width]
    out = np.full((*x.shape[:2], top + H + bottom, left + W + right), value, x.dtype)
    out[:, :, top : top + H, left : left + W] = x
    return out[:, :, :height, :width]


def unpadded(x: np.ndarray, window: Window2d) -> np.ndarray:
    """The adjoint of `padded` with zeros: cut the borders off, or add zeros where no window read the input."""
    (top, _), (left, _) = window.padding
    inside = x[:, :, top : top + window.H, left : left + window.W]
    if inside.shape[2:] == (window.H, window.W):
        return inside
    out = np.zeros((*x.shape[:2], window.H, window.W), x.dtype)
    out[:, :, : inside.shape[2], : inside.shape[3]] = inside
    return out


def taps(x: np.ndarray, window: Window2d) -> Iterator[np.ndarray]:
    """For each place (r, s) of the window in row order, the (N, C, P, Q) view of what it sees in the padded `x`."""
    (sh, sw), (dh, dw) = window.stride, window.dilation
    for r in range(window.R):
        for s in range(window.S):
            yield x[
                :, :, r * dh : r * dh + (window.P - 1) * sh + 1 : sh, s * dw : s * dw + (window.Q - 1) * sw + 1 : sw
            ]


def windows(x: np.ndarray, window: Window2d) -> np.ndarray:
    """A read-only view of the padded `x` of shape (N, C, R, S, P, Q)."""
    n, c, h, w = x.strides
    (sh, sw), (dh, dw) = window.stride, window.dilation
    shape = (*x.shape[:2], window.R, window.S, window.P, window.Q)
    return as_strided(x, shape, (n, c, h * dh, w * dw, h * sh, w * sw), writeable=False)
