"""The convolution ops of the contract: checks, the choice of an algorithm, memory formats."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import ALGORITHMS, Algorithm, Array, Epilogue, check_epilogue
from dlgpu.backends.kernels.activation import ActivationOps
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.kernels.conv_direct import Direct
from dlgpu.backends.kernels.conv_im2col import Im2col
from dlgpu.backends.kernels.conv_implicit import ImplicitGemm
from dlgpu.backends.kernels.conv_winograd import Winograd
from dlgpu.backends.kernels.gemm import GemmOps
from dlgpu.backends.kernels.im2col import Im2colOps
from dlgpu.backends.kernels.norm import NormOps
from dlgpu.backends.kernels.pool import PoolOps
from dlgpu.backends.shapes import Conv2d, Padding2d, Size2d, check_pooled, check_shape, conv_transpose
from dlgpu.dtypes import check_floats
from dlgpu.errors import BackendUnavailable, ShapeError, UnknownName

# What algorithm= names; "auto" takes the first that is good at the geometry and can do it.
_ALGORITHMS: dict[str, ConvAlgorithm] = {
    "direct": Direct(),
    "implicit_gemm": ImplicitGemm(),
    "winograd2": Winograd(2),
    "winograd4": Winograd(4),
    "im2col": Im2col(),
}


def choose(op: str, algorithm: str, g: Conv2d, dtype: np.dtype, capability: int) -> ConvAlgorithm:
    """The algorithm asked for, or the best for this geometry and device.

    Raises:
        UnknownName: no such algorithm.
        BackendUnavailable: it has no kernel yet.
        ShapeError: it cannot do this geometry.
    """
    if algorithm not in ALGORITHMS:
        raise UnknownName(op, "algorithm", algorithm, ALGORITHMS)
    if algorithm == "auto":
        every = _ALGORITHMS.values()
        return next(a for a in every if a.preferred(op, g) and a.unsupported(op, g, dtype, capability) is None)
    if algorithm not in _ALGORITHMS:
        known = ", ".join(("auto", *_ALGORITHMS))
        raise BackendUnavailable(f"[{op}] {algorithm!r} has no kernel yet; got it asked for: use one of {known}")
    chosen = _ALGORITHMS[algorithm]
    reason = chosen.unsupported(op, g, dtype, capability)
    if reason is not None:
        raise ShapeError(f"[{op} {algorithm}] {reason}")
    return chosen


class ConvOps(GemmOps, Im2colOps, ActivationOps, PoolOps, NormOps):
    """The convolutions of the contract."""

    def conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        residual: Array | None = None,
        *,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        activation: Epilogue | None = None,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv2d"
        check_floats(op, input=x, weight=weight, bias=bias, residual=residual)
        check_epilogue(op, activation)
        bias_shape = None if bias is None else bias.shape
        g = Conv2d.of(op, x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
        if residual is not None:
            check_shape(op, "residual", residual.shape, g.output_shape)
        chosen = self._choose(op, algorithm, g, x.dtype)
        return self.dense(chosen.forward(self, x, weight, bias, residual, g, activation), memory_format.of(x, weight))

    def conv2d_relu_max_pool2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> tuple[Array, Array]:
        op = "conv2d_relu_max_pool2d"
        check_floats(op, input=x, weight=weight, bias=bias)
        bias_shape = None if bias is None else bias.shape
        g = Conv2d.of(op, x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
        check_pooled(op, g)
        y, argmax = self._choose("conv2d", algorithm, g, x.dtype).forward_pooled(self, x, weight, bias, g)
        layout = memory_format.of(x, weight)
        return self.dense(y, layout), memory_format.convert(self.xp, argmax, layout)

    def conv2d_grad_input(
        self,
        grad_output: Array,
        weight: Array,
        *,
        input_shape: tuple[int, ...],
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv2d_grad_input"
        check_floats(op, grad_output=grad_output, weight=weight)
        g = Conv2d.of(op, input_shape, weight.shape, None, stride, padding, dilation, groups)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        dx = self._choose(op, algorithm, g, grad_output.dtype).grad_input(self, grad_output, weight, g)
        return self.dense(dx, memory_format.of(grad_output, weight))

    def conv2d_grad_weight(
        self,
        grad_output: Array,
        x: Array,
        *,
        weight_shape: tuple[int, ...],
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
        op = "conv2d_grad_weight"
        return self._grad_weight(op, grad_output, x, weight_shape, how, algorithm, with_bias=False)[0]

    def conv2d_grad_weight_bias(
        self,
        grad_output: Array,
        x: Array,
        *,
        weight_shape: tuple[int, ...],
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> tuple[Array, Array]:
        how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
        op = "conv2d_grad_weight_bias"
        dw, db = self._grad_weight(op, grad_output, x, weight_shape, how, algorithm, with_bias=True)
        assert db is not None
        return dw, db

    def _grad_weight(
        self,
        op: str,
        grad_output: Array,
        x: Array,
        weight_shape: tuple[int, ...],
        how: dict[str, Any],
        algorithm: str,
        *,
        with_bias: bool,
    ) -> tuple[Array, Array | None]:
        check_floats(op, grad_output=grad_output, input=x)
        g = Conv2d.of(op, x.shape, weight_shape, None, **how)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        chosen = self._choose("conv2d_grad_weight", algorithm, g, x.dtype)
        dw, db = chosen.grad_weight(self, grad_output, x, g, with_bias=with_bias)
        return self.dense(dw, memory_format.of(grad_output, x)), db

    def conv_transpose2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        output_padding: Size2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv_transpose2d"
        check_floats(op, input=x, weight=weight, bias=bias)
        bias_shape = None if bias is None else bias.shape
        g = conv_transpose(op, x.shape, weight.shape, bias_shape, stride, padding, output_padding, dilation, groups)
        y = self._choose("conv2d_grad_input", algorithm, g, x.dtype).grad_input(self, x, weight, g)
        if bias is not None:
            y += bias[:, None, None]
        return self.dense(y, memory_format.of(x, weight))

    def _choose(self, op: str, algorithm: str, g: Conv2d, dtype: np.dtype) -> ConvAlgorithm:
        return choose(op, algorithm, g, dtype, self.launcher.capability)
