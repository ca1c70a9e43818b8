"""The layers: each holds its parameters and settings and calls one function of `dlgpu.functional`.

Weights start uniform in ±1/sqrt(fan_in), as PyTorch's do, biases at zero; models choose their own initialisers where
it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlgpu import functional as F
from dlgpu.backends.contract import Activation, Algorithm, Epilogue
from dlgpu.backends.shapes import Padding2d, Size2d, check_probability, pair
from dlgpu.errors import ShapeError
from dlgpu.nn import init
from dlgpu.nn.module import Module, Parameter, check_positive
from dlgpu.tensor import Tensor, ones, zeros


def _weight(*shape: int) -> Parameter:
    bound = 1 / np.sqrt(np.prod(shape[1:]))
    weight = Parameter(np.empty(shape, np.float32))
    init.uniform_(weight, -bound, bound)
    return weight


def _vector(size: int, value: float, wanted: bool = True) -> Parameter | None:
    return Parameter(np.full(size, value, np.float32)) if wanted else None


class Linear(Module):
    """x (..., in_features) @ weight (out_features, in_features)ᵀ + bias (out_features,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_positive("Linear", in_features=in_features, out_features=out_features)
        self.weight = _weight(out_features, in_features)
        self.bias = _vector(out_features, 0, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out, inputs = self.weight.shape
        return f"{inputs}, {out}" + _no_bias(self.bias)


class Conv2d(Module):
    """Convolution of (N, in_channels, H, W) to (N, out_channels, P, Q); see `dlgpu.functional.conv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        algorithm: Algorithm = "auto",
    ) -> None:
        super().__init__()
        check_positive("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        _check_groups("Conv2d", in_channels, out_channels, groups)
        self.stride, self.dilation = pair("Conv2d", "stride", stride, 1), pair("Conv2d", "dilation", dilation, 1)
        self.padding, self.groups, self.algorithm = padding, groups, algorithm
        self.weight = _weight(out_channels, in_channels // groups, *pair("Conv2d", "kernel_size", kernel_size, 1))
        self.bias = _vector(out_channels, 0, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        out, inputs, *kernel = self.weight.shape
        return _conv_repr(inputs * self.groups, out, kernel, self)


class ConvTranspose2d(Module):
    """Transposed convolution: (N, in_channels, H, W) to (N, out_channels, H', W'); weights (in, out/groups, R, S)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        output_padding: Size2d = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size2d = 1,
    ) -> None:
        super().__init__()
        where = "ConvTranspose2d"
        check_positive(where, in_channels=in_channels, out_channels=out_channels, groups=groups)
        _check_groups(where, in_channels, out_channels, groups)
        self.stride, self.dilation = pair(where, "stride", stride, 1), pair(where, "dilation", dilation, 1)
        self.padding, self.output_padding, self.groups = padding, output_padding, groups
        self.weight = _weight(in_channels, out_channels // groups, *pair(where, "kernel_size", kernel_size, 1))
        self.bias = _vector(out_channels, 0, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def extra_repr(self) -> str:
        inputs, out, *kernel = self.weight.shape
        return _conv_repr(inputs, out * self.groups, kernel, self)


def _check_groups(where: str, inputs: int, outputs: int, groups: int) -> None:
    if inputs % groups or outputs % groups:
        raise ShapeError(
            f"[{where}] groups must divide in_channels and out_channels; got {groups}, {inputs}, {outputs}"
        )


def _conv_repr(inputs: int, out: int, kernel: Sequence[int], layer: Any) -> str:
    parts = [f"{inputs}, {out}, kernel_size={tuple(kernel)}"]
    defaults = {"stride": (1, 1), "padding": 0, "output_padding": 0, "dilation": (1, 1), "groups": 1}
    parts += [f"{k}={getattr(layer, k)}" for k, v in defaults.items() if getattr(layer, k, v) != v]
    return ", ".join(parts) + _no_bias(layer.bias)


def _no_bias(bias: Parameter | None) -> str:
    return ", bias=False" if bias is None else ""


class _Pool(Module):
    def __init__(self, kernel_size: Size2d, stride: Size2d | None, padding: Padding2d, ceil_mode: bool) -> None:
        super().__init__()
        where = type(self).__name__
        self.kernel_size = pair(where, "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair(where, "stride", stride, 1)
        self.padding, self.ceil_mode = padding, ceil_mode

    def extra_repr(self) -> str:
        padding = f", padding={self.padding}" if self.padding else ""
        return f"kernel_size={self.kernel_size}, stride={self.stride}{padding}"


class MaxPool2d(_Pool):
    """Greatest element of each window; `stride` defaults to the kernel size."""

    def __init__(
        self,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = pair("MaxPool2d", "dilation", dilation, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class AvgPool2d(_Pool):
    """Mean of each window; `stride` defaults to the kernel size."""

    def __init__(
        self,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class _AdaptivePool(Module):
    def __init__(self, output_size: Size2d) -> None:
        super().__init__()
        self.output_size = pair(type(self).__name__, "output_size", output_size, 1)

    def extra_repr(self) -> str:
        return f"{self.output_size}"


class AdaptiveAvgPool2d(_AdaptivePool):
    """Mean pooling to a given output size; 1 is global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)


class AdaptiveMaxPool2d(_AdaptivePool):
    """Max pooling to a given output size."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, self.output_size)


# --- activations --------------------------------------------------------------------------------------------------


class _Activation(Module):
    kind: Activation

    def __init__(self, alpha: float = 0.01) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.activation(x, self.kind, self.alpha)


class ReLU(_Activation):
    """max(x, 0)."""

    kind = "relu"


class ReLU6(_Activation):
    """min(max(x, 0), 6)."""

    kind = "relu6"


class LeakyReLU(_Activation):
    """x, or alpha * x below 0."""

    kind = "leaky_relu"


class ELU(_Activation):
    """x, or alpha * (exp(x) - 1) below 0."""

    kind = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    kind = "sigmoid"


class Tanh(_Activation):
    """Hyperbolic tangent."""

    kind = "tanh"


class GELU(_Activation):
    """x * Phi(x), exact."""

    kind = "gelu"


class SiLU(_Activation):
    """x * sigmoid(x)."""

    kind = "silu"


class Softplus(_Activation):
    """log(1 + exp(x))."""

    kind = "softplus"


class Softmax(Module):
    """exp(x) / sum(exp(x)) along an axis."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)


class LogSoftmax(Softmax):
    """log(softmax(x))."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, self.dim)


# --- regularisation and normalisation -----------------------------------------------------------------------------


class Dropout(Module):
    """In training zero elements with probability p and scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("Dropout", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class BatchNorm2d(Module):
    """Normalise each channel of (N, C, H, W) over the batch in training, with running statistics in evaluation."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        check_positive("BatchNorm2d", num_features=num_features)
        self.eps, self.momentum, self.num_features = eps, momentum, num_features
        self.weight = _vector(num_features, 1, affine)
        self.bias = _vector(num_features, 0, affine)
        self.register_buffer("running_mean", zeros(num_features))
        self.register_buffer("running_var", ones(num_features))

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: Epilogue | None = None) -> Tensor:
        """activation(normalised x + residual), both optional and at no extra pass: `self.bn2(y, x, "relu")`."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
            residual=residual,
            activation=activation,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class GroupNorm(Module):
    """Normalise each sample over groups of channels."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        check_positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups:
            raise ShapeError(f"[GroupNorm] num_groups must divide num_channels; got {num_groups}, {num_channels}")
        self.num_groups, self.eps = num_groups, eps
        self.weight = _vector(num_channels, 1, affine)
        self.bias = _vector(num_channels, 0, affine)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, eps={self.eps}"


class InstanceNorm2d(Module):
    """Normalise each channel of each sample over its pixels."""

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__()
        check_positive("InstanceNorm2d", num_features=num_features)
        self.eps, self.num_features = eps, num_features
        self.weight = _vector(num_features, 1, affine)
        self.bias = _vector(num_features, 0, affine)

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class LayerNorm(Module):
    """Normalise over the last axes, whose sizes are `normalized_shape`."""

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        check_positive("LayerNorm", **{f"normalized_shape[{i}]": size for i, size in enumerate(shape)})
        self.normalized_shape, self.eps = shape, eps
        self.weight = Parameter(np.ones(shape, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class LocalResponseNorm(Module):
    """Divide by a power of the energy of neighbouring channels (AlexNet)."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        check_positive("LocalResponseNorm", size=size)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


# --- shape --------------------------------------------------------------------------------------------------------


class Flatten(Module):
    """Merge the axes from `start_dim` on, in logical (N, C, H, W) order."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class Identity(Module):
    """Its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x
