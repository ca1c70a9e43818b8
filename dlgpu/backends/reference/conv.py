"""The convolution ops: checks, bias, layout. How the sums are computed is the algorithms' business.

An algorithm is a module (or object) with three functions on widened arrays, `forward(x, weight, g)`,
`grad_input(grad_output, weight, g)` and `grad_weight(grad_output, x, g)`, where g is the `Conv2d` geometry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import ALGORITHMS, Algorithm, Epilogue, check_epilogue
from dlgpu.backends.reference import conv_direct, conv_fft, conv_im2col
from dlgpu.backends.reference.common import by_images, finish, widen
from dlgpu.backends.reference.conv_winograd import Winograd
from dlgpu.backends.reference.gemm import grad_bias
from dlgpu.backends.reference.pool import max_pool2d
from dlgpu.backends.shapes import Conv2d, Padding2d, Size2d, check_pooled, check_shape, conv_transpose
from dlgpu.dtypes import check_floats
from dlgpu.errors import UnknownName


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    *,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    activation: Epilogue | None = None,
    algorithm: Algorithm = "auto",
) -> np.ndarray:
    op = "conv2d"
    g = _geometry(op, x, weight, bias, residual, stride, padding, dilation, groups)
    return _forward(op, x, weight, bias, residual, g, activation, algorithm)


def _geometry(
    op: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None, *how: Any
) -> Conv2d:
    check_floats(op, input=x, weight=weight, bias=bias, residual=residual)
    return Conv2d.of(op, x.shape, weight.shape, None if bias is None else bias.shape, *how)


def _forward(
    op: str,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    g: Conv2d,
    activation: Epilogue | None,
    algorithm: str,
) -> np.ndarray:
    check_epilogue(op, activation)
    y = _algorithm(op, algorithm).forward(widen(x), widen(weight), g)
    if bias is not None:
        shift = widen(bias)[:, None, None]
        by_images(lambda images: np.add(y[images], shift, out=y[images]), y)
    if residual is not None:
        check_shape(op, "residual", residual.shape, g.output_shape)
        y += widen(residual)
    if activation == "relu":
        np.maximum(y, 0, out=y)
    return finish(y, x.dtype, memory_format.of(x, weight))


def conv2d_relu_max_pool2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    op = "conv2d_relu_max_pool2d"
    g = _geometry(op, x, weight, bias, None, stride, padding, dilation, groups)
    check_pooled(op, g)
    return max_pool2d(_forward(op, x, weight, bias, None, g, "relu", algorithm), kernel_size=2)


def conv2d_grad_input(
    grad_output: np.ndarray,
    weight: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
) -> np.ndarray:
    op = "conv2d_grad_input"
    check_floats(op, grad_output=grad_output, weight=weight)
    g = Conv2d.of(op, input_shape, weight.shape, None, stride, padding, dilation, groups)
    check_shape(op, "grad_output", grad_output.shape, g.output_shape)
    dx = _algorithm(op, algorithm).grad_input(widen(grad_output), widen(weight), g)
    return finish(dx, grad_output.dtype, memory_format.of(grad_output, weight))


def conv2d_grad_weight(
    grad_output: np.ndarray,
    x: np.ndarray,
    *,
    weight_shape: tuple[int, ...],
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
) -> np.ndarray:
    op = "conv2d_grad_weight"
    return _grad_weight(op, grad_output, x, weight_shape, (stride, padding, dilation, groups), algorithm)


def conv2d_grad_weight_bias(
    grad_output: np.ndarray,
    x: np.ndarray,
    *,
    weight_shape: tuple[int, ...],
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    op = "conv2d_grad_weight_bias"
    dw = _grad_weight(op, grad_output, x, weight_shape, (stride, padding, dilation, groups), algorithm)
    return dw, grad_bias(grad_output)


def _grad_weight(
    op: str,
    grad_output: np.ndarray,
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    how: tuple[Any, ...],
    algorithm: str,
) -> np.ndarray:
    check_floats(op, grad_output=grad_output, input=x)
    g = Conv2d.of(op, x.shape, weight_shape, None, *how)
    check_shape(op, "grad_output", grad_output.shape, g.output_shape)
    dw = _algorithm(op, algorithm).grad_weight(widen(grad_output), widen(x), g)
    return finish(dw, grad_output.dtype, memory_format.of(grad_output, x))


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    output_padding: Size2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    algorithm: Algorithm = "auto",
) -> np.ndarray:
    op = "conv_transpose2d"
    check_floats(op, input=x, weight=weight, bias=bias)
    bias_shape = None if bias is None else bias.shape
    g = conv_transpose(op, x.shape, weight.shape, bias_shape, stride, padding, output_padding, dilation, groups)
    y = _algorithm(op, algorithm).grad_input(widen(x), widen(weight), g)
    if bias is not None:
        y = y + widen(bias)[:, None, None]
    return finish(y, x.dtype, memory_format.of(x, weight))


_ALGORITHMS: dict[str, Any] = {
    "auto": conv_im2col,
    "im2col": conv_im2col,
    "implicit_gemm": conv_im2col,
    "winograd2": Winograd(2),
    "winograd4": Winograd(4),
    "fft": conv_fft,
    "direct": conv_direct,
}


def _algorithm(op: str, name: str) -> Any:
    if name not in _ALGORITHMS:
        raise UnknownName(op, "algorithm", name, ALGORITHMS)
    return _ALGORITHMS[name]
