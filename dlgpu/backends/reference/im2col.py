"""im2col and its adjoint col2im."""

from __future__ import annotations

import numpy as np

from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.reference.windows import padded, taps, unpadded, windows
from dlgpu.backends.shapes import Padding2d, Size2d, Window2d, check_shape
from dlgpu.dtypes import check_floats


def im2col(
    x: np.ndarray, *, kernel_size: Size2d, stride: Size2d = 1, padding: Padding2d = 0, dilation: Size2d = 1
) -> np.ndarray:
    check_floats("im2col", input=x)
    w = Window2d.make("im2col", x.shape, kernel_size, stride, padding, dilation)
    col = np.empty((w.N, w.P, w.Q, w.C, w.R, w.S), x.dtype)
    col[...] = windows(padded(x, w), w).transpose(0, 4, 5, 1, 2, 3)
    return col.reshape(w.N * w.P * w.Q, w.C * w.R * w.S)


def col2im(
    col: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    kernel_size: Size2d,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
) -> np.ndarray:
    check_floats("col2im", col=col)
    w = Window2d.make("col2im", input_shape, kernel_size, stride, padding, dilation)
    check_shape("col2im", "col", col.shape, (w.N * w.P * w.Q, w.C * w.R * w.S))
    parts = widen(col).reshape(w.N, w.P, w.Q, w.C, w.R, w.S).transpose(0, 3, 4, 5, 1, 2)  # (N, C, R, S, P, Q)
    return finish(fold(parts, w), col.dtype)


def fold(parts: np.ndarray, w: Window2d) -> np.ndarray:
    """Add (N, C, R, S, P, Q) window contents back into an (N, C, H, W) image."""
    whole = padded(np.zeros((*parts.shape[:2], w.H, w.W), parts.dtype), w)
    for index, tap in enumerate(taps(whole, w)):
        tap += parts[:, :, index // w.S, index % w.S]
    return unpadded(whole, w)
