"""Batch, group (layer, instance) and local response normalisation."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Epilogue, check_fused
from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.shapes import Norm, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError


def batch_norm_train(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    residual: np.ndarray | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Epilogue | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    op = "batch_norm_train"
    check_fused(op, x, residual, activation)
    g = Norm.of(op, x.shape, None, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    count = g.N * g.spatial
    if count == 1:
        raise ShapeError(f"[{op}] needs more than one value per channel; got input {x.shape}")
    wide = widen(x)
    if count == 0:  # an empty batch has no statistics, and leaves the running ones alone
        return x.copy(), np.zeros(g.C, wide.dtype), np.ones(g.C, wide.dtype)
    mean = _channel_sum(wide, g) / wide.dtype.type(count)
    centred = wide - _per_channel(mean, x)
    var = _channel_sum(np.square(centred), g) / wide.dtype.type(count)
    rstd = 1 / np.sqrt(var + wide.dtype.type(eps))
    if running_mean is not None:
        running_mean += (momentum * (mean - running_mean)).astype(running_mean.dtype)
    if running_var is not None:
        running_var += (momentum * (var * (count / (count - 1)) - running_var)).astype(running_var.dtype)
    y = _fused(_affine(centred, rstd, weight, bias, x), residual, activation)
    return finish(y, x.dtype, memory_format.of(x)), mean, rstd


def _fused(y: np.ndarray, residual: np.ndarray | None, activation: Epilogue | None) -> np.ndarray:
    if residual is not None:
        y = y + widen(residual)
    return np.maximum(y, 0) if activation == "relu" else y


def _passed(op: str, grad_output: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """The gradient before a fused ReLU with output `y`, widened."""
    dy = widen(grad_output)
    if y is None:
        return dy
    check_shape(op, "y", y.shape, grad_output.shape)
    return np.where(y > 0, dy, dy.dtype.type(0))


def batch_norm_infer(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    residual: np.ndarray | None = None,
    *,
    eps: float = 1e-5,
    activation: Epilogue | None = None,
) -> np.ndarray:
    check_fused("batch_norm_infer", x, residual, activation)
    Norm.of("batch_norm_infer", x.shape, None, weight=weight, bias=bias, mean=mean, var=var)
    wide = widen(x)
    rstd = 1 / np.sqrt(var.astype(wide.dtype) + wide.dtype.type(eps))
    y = _affine(wide - _per_channel(mean.astype(wide.dtype), x), rstd, weight, bias, x)
    y = _fused(y, residual, activation)
    return finish(y, x.dtype, memory_format.of(x))


def batch_norm_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    y: np.ndarray | None = None,
    *,
    training: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    op = "batch_norm_grad"
    check_floats(op, grad_output=grad_output, input=x, output=y)
    g = Norm.of(op, x.shape, None, weight=weight, mean=mean, rstd=rstd)
    check_shape(op, "grad_output", grad_output.shape, x.shape)
    dy = _passed(op, grad_output, y)
    normalised = (widen(x) - _per_channel(mean, x)) * _per_channel(rstd, x)
    grad_weight, grad_bias = _channel_sum(dy * normalised, g), _channel_sum(dy, g)
    scale = rstd if weight is None else rstd * weight.astype(rstd.dtype)
    dx = dy
    if training and g.N * g.spatial:
        # The parts of dy along the constant and along the normalised input are what mean and rstd absorb.
        count = dy.dtype.type(g.N * g.spatial)
        dx = dy - _per_channel(grad_bias / count, x) - normalised * _per_channel(grad_weight / count, x)
    dx = dx * _per_channel(scale, x)
    vector = x.dtype if weight is None else weight.dtype
    return finish(dx, x.dtype, memory_format.of(x)), finish(grad_weight, vector), finish(grad_bias, vector)


def group_norm(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    residual: np.ndarray | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    activation: Epilogue | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    check_fused("group_norm", x, residual, activation)
    g = Norm.of("group_norm", x.shape, num_groups, weight=weight, bias=bias)
    grouped = widen(x).reshape(g.N, g.G, g.C // g.G * g.spatial)
    mean = grouped.mean(axis=2)
    centred = grouped - mean[..., None]
    rstd = 1 / np.sqrt(np.square(centred).mean(axis=2) + grouped.dtype.type(eps))
    y = (centred * rstd[..., None]).reshape(x.shape)
    y = _fused(_affine(y, None, weight, bias, x), residual, activation)
    return finish(y, x.dtype, memory_format.of(x)), mean, rstd


def group_norm_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    y: np.ndarray | None = None,
    *,
    num_groups: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    op = "group_norm_grad"
    check_floats(op, grad_output=grad_output, input=x, output=y)
    g = Norm.of(op, x.shape, num_groups, weight=weight)
    check_shape(op, "grad_output", grad_output.shape, x.shape)
    dy = _passed(op, grad_output, y)
    grouped = (g.N, g.G, g.C // g.G * g.spatial)
    normalised = (widen(x).reshape(grouped) - mean[..., None]) * rstd[..., None]
    grad_weight = _channel_sum(dy * normalised.reshape(x.shape), g)
    grad_bias = _channel_sum(dy, g)
    scaled = dy if weight is None else dy * _per_channel(weight.astype(dy.dtype), x)
    scaled = scaled.reshape(grouped)
    along_mean = scaled.mean(axis=2, keepdims=True)
    along_input = (scaled * normalised).mean(axis=2, keepdims=True)
    dx = ((scaled - along_mean - normalised * along_input) * rstd[..., None]).reshape(x.shape)
    vector = x.dtype if weight is None else weight.dtype
    return finish(dx, x.dtype, memory_format.of(x)), finish(grad_weight, vector), finish(grad_bias, vector)


def local_response_norm(
    x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    check_floats("local_response_norm", input=x)
    Norm.of_window("local_response_norm", x.shape, size)
    wide = widen(x)
    scale = _channel_window_sum(np.square(wide), size, size // 2)
    scale *= wide.dtype.type(alpha / size)
    scale += wide.dtype.type(k)
    layout = memory_format.of(x)
    return finish(wide * scale**-beta, x.dtype, layout), finish(scale, scale.dtype, layout)


def local_response_norm_grad(
    grad_output: np.ndarray, x: np.ndarray, scale: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75
) -> np.ndarray:
    op = "local_response_norm_grad"
    check_floats(op, grad_output=grad_output, input=x)
    Norm.of_window(op, x.shape, size)
    check_shape(op, "grad_output", grad_output.shape, x.shape)
    check_shape(op, "scale", scale.shape, x.shape)
    wide, dy = widen(x), widen(grad_output)
    shares = dy * wide * scale ** (-beta - 1)
    # Channel c took part in the windows of the channels that see it: the mirrored window.
    dx = dy * scale**-beta - wide.dtype.type(2 * alpha * beta / size) * wide * _channel_window_sum(
        shares, size, (size - 1) // 2
    )
    return finish(dx, x.dtype, memory_format.of(x))


def _channel_window_sum(x: np.ndarray, size: int, before: int) -> np.ndarray:
    """out[:, c] = sum of x[:, c - before : c - before + size], channels outside counting as zero."""
    out = np.zeros_like(x)
    channels = x.shape[1]
    for offset in range(-before, size - before):
        low, high = max(0, -offset), min(channels, channels - offset)
        if low < high:
            out[:, low:high] += x[:, low + offset : high + offset]
    return out


def _channel_sum(x: np.ndarray, g: Norm) -> np.ndarray:
    """Sum over the batch and the pixels -> (C,). Pixels first: NumPy adds those pairwise."""
    return x.reshape(g.N, g.C, g.spatial).sum(axis=2).sum(axis=0)


def _per_channel(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(C,) -> (C, 1, ...), which broadcasts against (N, C, ...)."""
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


def _affine(
    y: np.ndarray, rstd: np.ndarray | None, weight: np.ndarray | None, bias: np.ndarray | None, x: np.ndarray
) -> np.ndarray:
    """y * rstd * weight + bias per channel, in place on `y`."""
    if rstd is not None:
        y *= _per_channel(rstd if weight is None else rstd * weight.astype(y.dtype), x)
    elif weight is not None:
        y *= _per_channel(weight.astype(y.dtype), x)
    if bias is not None:
        y += _per_channel(bias.astype(y.dtype), x)
    return y
