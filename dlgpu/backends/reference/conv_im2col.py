"""Convolution as im2col and a matrix product, a few images at a time ("auto", "im2col" and "implicit_gemm").

The column matrix exists, but never whole: what is made at once stays in the cache, the workspace stays small, and the
shares go to several threads.
"""

from __future__ import annotations

import numpy as np

from dlgpu.backends.reference.windows import padded, taps, windows
from dlgpu.backends.shapes import Conv2d
from dlgpu.threads import parallel, slices

# Bytes of column matrix made at once: it is written, then read by the product, so it should stay in a core's cache.
COLUMN_BYTES = 1 << 20
# Partial weight gradients, added in order at the end. A fixed number, so that results do not depend on the threads.
PARTIAL_SUMS = 4


def forward(x: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    y = np.empty((g.N, g.G, g.K // g.G, g.P * g.Q), x.dtype)
    filters = weight.reshape(g.G, g.K // g.G, -1)  # (G, K/G, CRS/G)
    shares = slices(g.N, _images(g, x.itemsize))

    def share(index: int) -> None:
        images = shares[index]
        np.matmul(filters, _columns(x[images], g), out=y[images])

    parallel(share, len(shares))
    return y.reshape(g.output_shape)


def grad_input(grad_output: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    """Columns of gradients, then col2im with the images as innermost axis: its additions run over long rows then,
    which makes them about twice as fast as over the (often short) rows of an image."""
    dx = np.empty(g.input_shape, grad_output.dtype)
    filters = np.ascontiguousarray(weight.reshape(g.G, g.K // g.G, -1).swapaxes(1, 2))  # (G, CRS/G, K/G)
    dy = grad_output.reshape(g.N, g.G, g.K // g.G, g.P * g.Q)
    shares = slices(g.N, max(8, _images(g, dx.itemsize)))

    def share(index: int) -> None:
        images = shares[index]
        innermost = np.ascontiguousarray(dy[images].transpose(1, 2, 3, 0))  # (G, K/G, PQ, n)
        n = innermost.shape[-1]
        columns = np.matmul(filters, innermost.reshape(g.G, g.K // g.G, -1))  # (G, CRS/G, PQ * n)
        # An image here has one more axis, so it is folded as (n, C, H, W) seen through transposed strides.
        parts = columns.reshape(g.C, g.R * g.S, g.P, g.Q, n).transpose(1, 4, 0, 2, 3)  # (RS, n, C, P, Q)
        (top, bottom), (left, right) = g.padding
        whole = np.zeros((g.C, top + g.H + bottom, left + g.W + right, n), dx.dtype).transpose(3, 0, 1, 2)
        for part, tap in zip(parts, taps(whole, g), strict=True):
            tap += part
        dx[images] = whole[:, :, top : top + g.H, left : left + g.W]

    parallel(share, len(shares))
    return dx


def grad_weight(grad_output: np.ndarray, x: np.ndarray, g: Conv2d) -> np.ndarray:
    partial = np.zeros((PARTIAL_SUMS, g.G, g.K // g.G, g.C // g.G * g.R * g.S), x.dtype)
    dy = grad_output.reshape(g.N, g.G, g.K // g.G, g.P * g.Q)
    shares = slices(g.N, _images(g, x.itemsize))

    def share(index: int) -> None:
        for images in shares[index::PARTIAL_SUMS]:
            # (n, G, K/G, PQ) @ (n, G, PQ, CRS/G), then the sum over the images in order
            partial[index] += np.matmul(dy[images], _columns(x[images], g).swapaxes(2, 3)).sum(axis=0)

    parallel(share, PARTIAL_SUMS)
    return partial.sum(axis=0).reshape(g.weight_shape)


def _columns(x: np.ndarray, g: Conv2d) -> np.ndarray:
    """(n, C, H, W) -> (n, G, CRS/G, PQ)."""
    return windows(padded(x, g), g).reshape(len(x), g.G, g.C // g.G * g.R * g.S, g.P * g.Q)


def _images(g: Conv2d, itemsize: int) -> int:
    """How many images make about COLUMN_BYTES of columns."""
    per_image = g.C * g.R * g.S * g.P * g.Q * itemsize
    return max(1, COLUMN_BYTES // max(1, per_image))
