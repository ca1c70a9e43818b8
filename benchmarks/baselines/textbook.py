"""SimpleConvNet as textbooks write it: float64, im2col and col2im by loops over filter places, layers by hand, Adam
with a dictionary per state. It is what a reader of such a book has before they find a library.
"""

from __future__ import annotations

import numpy as np


def im2col(x: np.ndarray, r: int, s: int) -> np.ndarray:
    """(N, C, H, W) -> (N*P*Q, C*r*s), stride 1, no padding."""
    n, c, h, w = x.shape
    p, q = h - r + 1, w - s + 1
    columns = np.zeros((n, c, r, s, p, q))
    for i in range(r):
        for j in range(s):
            columns[:, :, i, j] = x[:, :, i : i + p, j : j + q]
    return columns.transpose(0, 4, 5, 1, 2, 3).reshape(n * p * q, -1)


def col2im(columns: np.ndarray, shape: tuple[int, ...], r: int, s: int, stride: int = 1) -> np.ndarray:
    """The adjoint of `im2col` (with a stride, for pooling windows)."""
    n, c, h, w = shape
    p, q = (h - r) // stride + 1, (w - s) // stride + 1
    parts = columns.reshape(n, p, q, c, r, s).transpose(0, 3, 4, 5, 1, 2)
    x = np.zeros(shape)
    for i in range(r):
        for j in range(s):
            x[:, :, i : i + stride * p : stride, j : j + stride * q : stride] += parts[:, :, i, j]
    return x


class Convolution:
    """5x5 or any other filters, with the input's gradient computed even for the first layer."""

    def __init__(self, filters: np.ndarray, bias: np.ndarray) -> None:
        self.filters, self.bias = filters, bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        k, _, r, s = self.filters.shape
        self.shape, self.columns = x.shape, im2col(x, r, s)
        y = self.columns @ self.filters.reshape(k, -1).T + self.bias
        return y.reshape(len(x), x.shape[2] - r + 1, x.shape[3] - s + 1, k).transpose(0, 3, 1, 2)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        k, _, r, s = self.filters.shape
        rows = dy.transpose(0, 2, 3, 1).reshape(-1, k)
        self.grads = ((rows.T @ self.columns).reshape(self.filters.shape), rows.sum(axis=0))
        return col2im(rows @ self.filters.reshape(k, -1), self.shape, r, s)


class Affine:
    """Dense layer on flattened images."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.shape, self.rows = x.shape, x.reshape(len(x), -1)
        return self.rows @ self.weight + self.bias

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.grads = (self.rows.T @ dy, dy.sum(axis=0))
        return (dy @ self.weight.T).reshape(self.shape)


class Relu:
    """max(x, 0)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.off = x <= 0
        y = x.copy()
        y[self.off] = 0
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dy[self.off] = 0
        return dy


class MaxPool:
    """2x2 windows, through the column matrix of windows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        n, c, h, w = x.shape
        self.shape = x.shape
        windows = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 4)
        self.places = windows.argmax(axis=1)
        return windows.max(axis=1).reshape(n, h // 2, w // 2, c).transpose(0, 3, 1, 2)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        windows = np.zeros((dy.size, 4))
        windows[np.arange(dy.size), self.places] = dy.transpose(0, 2, 3, 1).ravel()
        return col2im(windows, self.shape, 2, 2, stride=2)


class SimpleConvNet:
    """conv 30@5x5 - ReLU - pool 2x2 - affine 100 - ReLU - affine 10 - softmax loss, trained by Adam."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.conv = Convolution(0.01 * rng.standard_normal((30, 1, 5, 5)), np.zeros(30))
        self.hidden = Affine(0.01 * rng.standard_normal((4320, 100)), np.zeros(100))
        self.output = Affine(0.01 * rng.standard_normal((100, 10)), np.zeros(10))
        self.layers = (self.conv, Relu(), MaxPool(), self.hidden, Relu(), self.output)
        self.trained = (self.conv, self.hidden, self.output)
        self.params = [p for layer in self.trained for p in (_weights(layer), layer.bias)]
        self.averages = [np.zeros_like(p) for p in self.params]
        self.squares = [np.zeros_like(p) for p in self.params]
        self.steps = 0

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One update on a batch; returns the loss before it."""
        x = images
        for layer in self.layers:
            x = layer.forward(x)
        x = np.exp(x - x.max(axis=1, keepdims=True))
        x /= x.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = -np.log(x[rows, labels] + 1e-7).mean()
        x[rows, labels] -= 1
        x /= len(labels)
        for layer in reversed(self.layers):
            x = layer.backward(x)
        self._adam([g for layer in self.trained for g in layer.grads])
        return float(loss)

    def _adam(self, grads: list[np.ndarray]) -> None:
        self.steps += 1
        rate = 0.001 * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for p, g, m, v in zip(self.params, grads, self.averages, self.squares, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= rate * m / (np.sqrt(v) + 1e-7)


def _weights(layer: Convolution | Affine) -> np.ndarray:
    return layer.filters if isinstance(layer, Convolution) else layer.weight
