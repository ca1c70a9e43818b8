"""Convolution as a product of spectra ("fft").

Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs", arXiv:1312.5851. Cross-correlation
in space is a product with the conjugate spectrum, so the sum over channels is one matrix product per frequency. The
transforms have the size (h, w) of the padded input: nothing wraps around, because no window reaches beyond it.
Dilation puts zeros between the taps of the filter. Stride keeps every stride-th output of the convolution with
stride 1; its adjoint puts zeros between the pixels of the gradient.
"""

from __future__ import annotations

import numpy as np

from dlgpu.backends.reference.windows import padded, unpadded
from dlgpu.backends.shapes import Conv2d


def forward(x: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    X = _spectrum(padded(x, g).swapaxes(0, 1), g)  # (F, G, C/G, N)
    W = _spectrum(_spread(weight, g.dilation), g)  # (F, G, K/G, C/G)
    y = _inverse(np.matmul(W.conj(), X), g, x.dtype).swapaxes(0, 1)  # (N, K, h, w)
    return y[:, :, :: g.stride[0], :: g.stride[1]][:, :, : g.P, : g.Q]


def grad_input(grad_output: np.ndarray, weight: np.ndarray, g: Conv2d) -> np.ndarray:
    dY = _spectrum(_spread(grad_output, g.stride).swapaxes(0, 1), g)  # (F, G, K/G, N)
    W = _spectrum(_spread(weight, g.dilation), g)  # (F, G, K/G, C/G)
    dx = _inverse(np.matmul(W.swapaxes(2, 3), dY), g, grad_output.dtype).swapaxes(0, 1)  # (N, C, h, w)
    return unpadded(dx, g)


def grad_weight(grad_output: np.ndarray, x: np.ndarray, g: Conv2d) -> np.ndarray:
    X = _spectrum(padded(x, g).swapaxes(0, 1), g)  # (F, G, C/G, N)
    dY = _spectrum(_spread(grad_output, g.stride).swapaxes(0, 1), g)  # (F, G, K/G, N)
    dw = _inverse(np.matmul(dY.conj(), X.swapaxes(2, 3)), g, x.dtype)  # (K, C/G, h, w)
    return dw[:, :, :: g.dilation[0], :: g.dilation[1]][:, :, : g.R, : g.S]


def _size(g: Conv2d) -> tuple[int, int]:
    """(h, w): what the windows read of the padded input."""
    height = (g.P - 1) * g.stride[0] + (g.R - 1) * g.dilation[0] + 1
    width = (g.Q - 1) * g.stride[1] + (g.S - 1) * g.dilation[1] + 1
    return height, width


def _spread(a: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """Put step - 1 zeros between the pixels of (A, B, H, W)."""
    H, W = a.shape[2:]
    out = np.zeros((*a.shape[:2], (H - 1) * step[0] + 1, (W - 1) * step[1] + 1), a.dtype)
    out[:, :, :: step[0], :: step[1]] = a
    return out


def _spectrum(a: np.ndarray, g: Conv2d) -> np.ndarray:
    """(A, B, H, W) -> (F, G, A/G, B): the F frequencies of `a`, filled with zeros to (h, w)."""
    spectrum = np.fft.rfft2(a, s=_size(g)).transpose(2, 3, 0, 1)  # (h, w // 2 + 1, A, B)
    h, w, A, B = spectrum.shape
    # Contiguous, because BLAS cannot read matrices whose inner axis has a stride.
    return np.ascontiguousarray(spectrum).reshape(h * w, g.G, A // g.G, B)


def _inverse(product: np.ndarray, g: Conv2d, dtype: np.dtype) -> np.ndarray:
    """(F, G, A/G, B) -> (A, B, h, w)."""
    h, w = _size(g)
    _, G, A, B = product.shape
    spectrum = product.reshape(h, w // 2 + 1, G * A, B).transpose(2, 3, 0, 1)  # (A, B, h, w // 2 + 1)
    # NumPy before 2.0 computes every transform in float64.
    return np.fft.irfft2(spectrum, s=(h, w)).astype(dtype, copy=False)
