"""Convolution by Winograd's minimal filtering, F(m x m, 3 x 3), not fused ("winograd2" and "winograd4").

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. A tile of m x m outputs sees a
tile d of (m+2) x (m+2) inputs; with g one 3 x 3 filter,

    Y = A^T [(G g G^T) * (B^T d B)] A,

where * multiplies place by place, so that the sum over channels is one matrix product per place: (m+2)^2 / m^2
multiplications per output instead of 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dlgpu.backends.reference.windows import padded, windows
from dlgpu.backends.shapes import Conv2d, Window2d
from dlgpu.errors import ShapeError

# Bytes of tiles made at once: enough columns for the matrix products, and little to fall out of the cache.
WORKSPACE_BYTES = 16 << 20

# A^T, B^T and G of the paper's section 4; one row of B^T and G per interpolation point.
_TRANSFORMS: dict[int, tuple[list[list[float]], list[list[float]], list[list[float]]]] = {
    2: (  # points 0, 1, -1, infinity
        [[1, 1, 1, 0], [0, 1, -1, -1]],
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    ),
    4: (  # points 0, 1, -1, 2, -2, infinity
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
    ),
}


class Winograd:
    """F(m x m, 3 x 3) for m = 2 or 4: larger tiles multiply less and round more."""

    def __init__(self, m: int):
        self.m = m
        self.AT, self.BT, self.G = (np.array(matrix) for matrix in _TRANSFORMS[m])

    def forward(self, x: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
        self._check(g)
        tiles = self._input_tiles(g)
        U = _transform(self.G, weight.transpose(2, 3, 0, 1))  # (m+2, m+2, K * C/G)
        U = U.reshape(-1, g.G, g.K // g.G, g.C // g.G)  # (places, G, K/G, C/G)
        y = np.empty(g.output_shape, x.dtype)
        for images in self._batches(tiles, g.K, x.itemsize):
            V = self._input_transform(x[images], tiles, g.G)  # (places, G, C/G, nT)
            M = np.matmul(U, V).reshape(self.m + 2, self.m + 2, -1)  # (m+2, m+2, KnT)
            Y = _transform(self.AT, M).reshape(self.m, self.m, g.K, len(x[images]), tiles.P, tiles.Q)
            whole = Y.transpose(3, 2, 4, 0, 5, 1)  # (n, K, tile rows, m, tile columns, m)
            whole = whole.reshape(*whole.shape[:2], tiles.P * self.m, tiles.Q * self.m)
            y[images] = whole[:, :, : g.P, : g.Q]
        return y

    def grad_input(self, grad_output: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
        """`forward` of the gradient with every filter turned by 180 degrees, K and C swapped, and padding 2 - p."""
        self._check(g)
        filters = weight.reshape(g.G, g.K // g.G, g.C // g.G, 3, 3)[..., ::-1, ::-1]
        turned = filters.swapaxes(1, 2).reshape(g.C, g.K // g.G, 3, 3)
        (top, bottom), (left, right) = g.padding
        # Where p exceeds 2, the first outputs saw nothing but padding. (So did the last ones: no tile reaches them.)
        dy = grad_output[:, :, max(0, top - 2) :, max(0, left - 2) :]
        padding = (max(0, 2 - top), max(0, 2 - bottom)), (max(0, 2 - left), max(0, 2 - right))
        back = replace(g, C=g.K, H=dy.shape[2], W=dy.shape[3], K=g.C, P=g.H, Q=g.W, padding=padding)
        return self.forward(dy, turned, back)

    def grad_weight(self, grad_output: np.ndarray, x: np.ndarray, g: Conv2d) -> np.ndarray:
        """The adjoint of `forward` in g: dW = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G."""
        self._check(g)
        tiles = self._input_tiles(g)
        outputs = replace(tiles, C=g.K, H=g.P, W=g.Q, R=self.m, S=self.m, padding=((0, 0), (0, 0)))
        dU = np.zeros(((self.m + 2) ** 2, g.G, g.K // g.G, g.C // g.G), x.dtype)
        for images in self._batches(tiles, g.K, x.itemsize):
            V = self._input_transform(x[images], tiles, g.G)  # (places, G, C/G, nT)
            dM = _transform(self.AT.T, _gather(grad_output[images], outputs))  # (m+2, m+2, KnT)
            dU += np.matmul(dM.reshape(*dU.shape[:3], V.shape[3]), V.swapaxes(2, 3))
        dW = _transform(self.G.T, dU.reshape(self.m + 2, self.m + 2, -1))  # (3, 3, K * C/G)
        return np.ascontiguousarray(dW.reshape(9, -1).T).reshape(g.weight_shape)

    def _check(self, g: Conv2d) -> None:
        if (g.R, g.S, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
            raise ShapeError(
                f"[conv2d winograd{self.m}] needs a 3x3 filter with stride 1 and dilation 1; "
                f"got filter {g.R}x{g.S}, stride {g.stride}, dilation {g.dilation}"
            )

    def _input_tiles(self, g: Conv2d) -> Window2d:
        """The input tiles as a window of m+2 moved by m: `padded` then fills up the last tile of a row or column."""
        m = self.m
        return Window2d(g.N, g.C, g.H, g.W, m + 2, m + 2, -(-g.P // m), -(-g.Q // m), (m, m), g.padding, (1, 1))

    def _input_transform(self, x: np.ndarray, tiles: Window2d, groups: int) -> np.ndarray:
        """(n, C, H, W) -> (places, G, C/G, nT), T tiles per image."""
        V = _transform(self.BT, _gather(x, tiles))  # (m+2, m+2, CnT)
        return V.reshape((self.m + 2) ** 2, groups, tiles.C // groups, len(x) * tiles.P * tiles.Q)

    def _batches(self, tiles: Window2d, K: int, itemsize: int) -> Iterator[slice]:
        # Each transform holds its tiles before and after.
        per_image = 2 * (self.m + 2) ** 2 * tiles.P * tiles.Q * (tiles.C + K) * itemsize
        step = max(1, WORKSPACE_BYTES // max(1, per_image))
        return (slice(start, start + step) for start in range(0, tiles.N, step))


def _gather(x: np.ndarray, tiles: Window2d) -> np.ndarray:
    """(n, C, H, W) -> (R, S, C, n, P, Q): the tiles, each place apart."""
    return windows(padded(x, tiles), tiles).transpose(2, 3, 1, 0, 4, 5)


def _transform(matrix: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """X t X^T for each tile t of (i, i, ...) with X (o, i) -> (o, o, size of the rest)."""
    o, i = matrix.shape
    matrix = matrix.astype(tiles.dtype)
    rest = tiles[0, 0].size
    rows = matrix @ tiles.reshape(i, i * rest)  # (o, i * rest)
    return np.matmul(matrix, rows.reshape(o, i, rest))
