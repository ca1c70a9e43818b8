"""Differentiable neural-network ops on Tensors, under torch.nn.functional's names and argument orders.

Each function calls the backend's op (`dlgpu.backends.contract`), which checks shapes, and says how to go back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from dlgpu import amp, dtypes, memory_format, random
from dlgpu.backends.contract import SAVES_OUTPUT, Activation, Algorithm, Epilogue
from dlgpu.backends.shapes import Conv2d, Padding2d, Size2d, Window2d, check_probability, check_rank, check_shape, pair
from dlgpu.errors import DtypeError, ShapeError, UnknownName
from dlgpu.tensor import Scalar, Tensor, as_tensor

LossReduction = Literal["mean", "sum", "none"]


def _arrays(op: str, first: Tensor, *others: Tensor | None) -> list[Any]:
    """The raw arrays of tensors that must live on one device; None stays None."""
    for other in others:
        if other is not None and other.backend is not first.backend:
            raise ShapeError(f"[{op}] tensors must live on one device; got {first.device!r} and {other.device!r}")
    return [None if t is None else t.data for t in (first, *others)]


def _present(*tensors: Tensor | None) -> list[Tensor]:
    return [t for t in tensors if t is not None]


# --- matrix products and convolution ------------------------------------------------------------------------------


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Epilogue | None = None) -> Tensor:
    """activation(input (..., C) @ weight (K, C)ᵀ + bias (K,)) -> (..., K); `activation="relu"` costs no extra pass."""
    input, weight, bias = amp.narrow(input, weight, bias)
    ops = input.backend
    x, w, b = _arrays("linear", input, weight, bias)
    needs = input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    y = ops.linear(x, w, b, activation=activation)

    def backward(g: Any) -> Sequence[Any]:
        g = _before(ops, g, y, activation)
        grads = (
            ops.linear_grad_input(g, w) if needs[0] else None,
            ops.linear_grad_weight(g, x) if needs[1] else None,
            ops.grad_bias(g, axis=-1) if needs[2] else None,
        )
        return grads[: len(inputs)]

    inputs = _present(input, weight, bias)
    return Tensor.from_op("linear", y, inputs, backward, _saved_products(input, weight))


def _saved_products(input: Tensor, weight: Tensor) -> list[Tensor]:
    """Each factor of a product is needed for the gradient of the other."""
    return [input] * weight.requires_grad + [weight] * input.requires_grad


def _before(ops: Any, g: Any, y: Any, activation: Epilogue | None) -> Any:
    """The gradient before a fused activation, from the output's."""
    return g if activation is None else ops.activation_grad(g, y, kind=activation)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: Epilogue | None = None,
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Cross-correlation of (N, C, H, W) with weights (K, C/groups, R, S), plus bias (K,) -> (N, K, P, Q).

    P = (H + padding - dilation * (R - 1) - 1) // stride + 1, likewise Q.

    Args:
        padding: zeros at the borders: an int, (vertical, horizontal), ((top, bottom), (left, right)), "same", "valid".
        residual: (N, K, P, Q), added to the result; like `activation`, at no extra pass over memory.
        activation: "relu", or None.
        algorithm: how to compute it (`dlgpu.backends.contract.ALGORITHMS`); the result is the same within rounding.

    Raises:
        ShapeError: ranks, channels, groups or sizes do not fit.
        DtypeError: the tensors do not share one floating-point dtype.
    """
    input, weight, bias, residual = amp.narrow(input, weight, bias, residual)
    ops = input.backend
    x, w, b, added = _arrays("conv2d", input, weight, bias, residual)
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, algorithm=algorithm)
    y = ops.conv2d(x, w, b, added, activation=activation, **how)
    products = _conv2d_grads(ops, input, weight, bias, how)

    def backward(g: Any) -> Sequence[Any]:
        g = _before(ops, g, y, activation)
        return products(g) if residual is None else (*products(g), g)

    inputs = _present(input, weight, bias, residual)
    return Tensor.from_op("conv2d", y, inputs, backward, _saved_products(input, weight))


def conv2d_relu_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    groups: int = 1,
    *,
    algorithm: Algorithm = "auto",
) -> Tensor:
    """max_pool2d(relu(conv2d(input, weight, bias)), 2) in one op -> (N, K, P // 2, Q // 2).

    What lies between is not kept for the backward pass, which saves its memory.
    """
    input, weight, bias = amp.narrow(input, weight, bias)
    ops = input.backend
    x, w, b = _arrays("conv2d", input, weight, bias)
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, algorithm=algorithm)
    y, argmax = ops.conv2d_relu_max_pool2d(x, w, b, **how)
    products = _conv2d_grads(ops, input, weight, bias, how)
    g = Conv2d.of("conv2d", x.shape, w.shape, None, stride, padding, dilation, groups)

    def backward(grad: Any) -> Sequence[Any]:
        passed = ops.activation_grad(grad, y, kind="relu")
        return products(ops.max_pool2d_grad(passed, argmax, input_shape=g.output_shape, kernel_size=2))

    inputs = _present(input, weight, bias)
    return Tensor.from_op("conv2d_relu_max_pool2d", y, inputs, backward, _saved_products(input, weight))


def _conv2d_grads(
    ops: Any, input: Tensor, weight: Tensor, bias: Tensor | None, how: dict[str, Any]
) -> Callable[[Any], tuple[Any, ...]]:
    """From the gradient of the convolution's output to those of input, weight and (if there is one) bias."""
    x, w = input.data, weight.data
    needs_input, needs_weight = input.requires_grad, weight.requires_grad
    needs_bias = bias is not None and bias.requires_grad

    def grads(g: Any) -> tuple[Any, ...]:
        dx = ops.conv2d_grad_input(g, w, input_shape=x.shape, **how) if needs_input else None
        dw = db = None
        if needs_weight and needs_bias:
            dw, db = ops.conv2d_grad_weight_bias(g, x, weight_shape=w.shape, **how)
        elif needs_weight:
            dw = ops.conv2d_grad_weight(g, x, weight_shape=w.shape, **how)
        elif needs_bias:
            db = ops.grad_bias(g)
        return (dx, dw) if bias is None else (dx, dw, db)

    return grads


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    output_padding: Size2d = 0,
    groups: int = 1,
    dilation: Size2d = 1,
) -> Tensor:
    """The adjoint of `conv2d`: (N, C, H, W) with weights (C, K/groups, R, S) -> (N, K, H', W').

    H' = (H - 1) * stride - padding + dilation * (R - 1) + output_padding + 1, likewise W'.
    """
    input, weight, bias = amp.narrow(input, weight, bias)
    ops = input.backend
    x, w, b = _arrays("conv_transpose2d", input, weight, bias)
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    needs = input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad

    def backward(g: Any) -> Sequence[Any]:
        grads = (
            ops.conv2d(g, w, **how) if needs[0] else None,
            ops.conv2d_grad_weight(x, g, weight_shape=w.shape, **how) if needs[1] else None,
            ops.grad_bias(g) if needs[2] else None,
        )
        return grads[: len(inputs)]

    inputs = _present(input, weight, bias)
    y = ops.conv_transpose2d(x, w, b, output_padding=output_padding, **how)
    return Tensor.from_op("conv_transpose2d", y, inputs, backward, _saved_products(input, weight))


def unfold(
    input: Tensor, kernel_size: Size2d, dilation: Size2d = 1, padding: Padding2d = 0, stride: Size2d = 1
) -> Tensor:
    """im2col in PyTorch's arrangement: (N, C, H, W) -> (N, C*R*S, P*Q). See `im2col` for the matrix itself."""
    window = Window2d.make("unfold", input.shape, kernel_size, stride, padding, dilation)
    columns = im2col(input, kernel_size, stride, padding, dilation)  # (N*P*Q, C*R*S)
    return columns.reshape(window.N, window.P * window.Q, columns.shape[1]).transpose(1, 2)


def im2col(
    input: Tensor, kernel_size: Size2d, stride: Size2d = 1, padding: Padding2d = 0, dilation: Size2d = 1
) -> Tensor:
    """One row per window: (N, C, H, W) -> (N*P*Q, C*R*S).

    A convolution is `im2col(x) @ weight.reshape(K, -1).T`.
    """
    ops, shape = input.backend, input.shape
    how: dict[str, Any] = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    y = ops.im2col(input.data, **how)
    return Tensor.from_op("im2col", y, [input], lambda g: [ops.col2im(g, input_shape=shape, **how)])


def col2im(
    input: Tensor,
    input_shape: tuple[int, ...],
    kernel_size: Size2d,
    stride: Size2d = 1,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
) -> Tensor:
    """The adjoint of `im2col`: (N*P*Q, C*R*S) -> `input_shape` (N, C, H, W), adding where windows overlap."""
    ops = input.backend
    how: dict[str, Any] = dict(kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    y = ops.col2im(input.data, input_shape=input_shape, **how)
    return Tensor.from_op("col2im", y, [input], lambda g: [ops.im2col(g, **how)])


# --- pooling ------------------------------------------------------------------------------------------------------


def max_pool2d(
    input: Tensor,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Greatest element of each window; `stride` defaults to the kernel size. The first of equal elements counts."""
    ops, shape = input.backend, input.shape
    how: dict[str, Any] = dict(
        kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    y, argmax = ops.max_pool2d(input.data, **how)
    back = dict(input_shape=shape, layout=memory_format.of(input.data), **how)
    return Tensor.from_op("max_pool2d", y, [input], lambda g: [ops.max_pool2d_grad(g, argmax, **back)])


def avg_pool2d(
    input: Tensor,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window; `stride` defaults to the kernel size."""
    ops, shape = input.backend, input.shape
    how: dict[str, Any] = dict(
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )
    y = ops.avg_pool2d(input.data, **how)
    back = dict(input_shape=shape, layout=memory_format.of(input.data), **how)
    return Tensor.from_op("avg_pool2d", y, [input], lambda g: [ops.avg_pool2d_grad(g, **back)])


def adaptive_avg_pool2d(input: Tensor, output_size: Size2d) -> Tensor:
    """Average pooling to a given (P, Q) that divides (H, W); (1, 1) is global average pooling."""
    return avg_pool2d(input, _adaptive_window("adaptive_avg_pool2d", input, output_size))


def adaptive_max_pool2d(input: Tensor, output_size: Size2d) -> Tensor:
    """Max pooling to a given (P, Q) that divides (H, W)."""
    return max_pool2d(input, _adaptive_window("adaptive_max_pool2d", input, output_size))


def _adaptive_window(op: str, input: Tensor, output_size: Size2d) -> tuple[int, int]:
    check_rank(op, "input", input.shape, "NCHW")
    (P, Q), (H, W) = pair(op, "output_size", output_size, 1), input.shape[2:]
    if H % P or W % Q:
        raise ShapeError(f"[{op}] output_size must divide the input's height and width; got {(P, Q)} for {(H, W)}")
    return H // P, W // Q


# --- activations --------------------------------------------------------------------------------------------------


def activation(input: Tensor, kind: Activation, alpha: float = 0.01) -> Tensor:
    """Any elementwise activation of the contract by its name."""
    ops = input.backend
    y = ops.activation(input.data, kind=kind, alpha=alpha)
    from_output = kind in SAVES_OUTPUT
    saved = y if from_output else input.data
    return Tensor.from_op(
        kind,
        y,
        [input],
        lambda g: [ops.activation_grad(g, saved, kind=kind, alpha=alpha)],
        saved=[] if from_output else [input],
        saves_output=from_output,
    )


def relu(input: Tensor) -> Tensor:
    """max(x, 0); the slope at 0 is 0."""
    return activation(input, "relu")


def relu6(input: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return activation(input, "relu6")


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x, or negative_slope * x below 0."""
    return activation(input, "leaky_relu", negative_slope)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x, or alpha * (exp(x) - 1) below 0."""
    return activation(input, "elu", alpha)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return activation(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return activation(input, "tanh")


def gelu(input: Tensor) -> Tensor:
    """x * Phi(x), the exact form (Hendrycks and Gimpel 2016)."""
    return activation(input, "gelu")


def silu(input: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return activation(input, "silu")


def softplus(input: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return activation(input, "softplus")


def softmax(input: Tensor, dim: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis."""
    input = amp.widen(input)
    (axis,), ops = input._axes("softmax", dim), input.backend
    y = ops.softmax(input.data, axis=axis)
    return Tensor.from_op("softmax", y, [input], lambda g: [ops.softmax_grad(g, y, axis=axis)], saves_output=True)


def log_softmax(input: Tensor, dim: int = -1) -> Tensor:
    """log(softmax(x)) without overflow."""
    input = amp.widen(input)
    (axis,), ops = input._axes("log_softmax", dim), input.backend
    y = ops.log_softmax(input.data, axis=axis)
    return Tensor.from_op(
        "log_softmax", y, [input], lambda g: [ops.log_softmax_grad(g, y, axis=axis)], saves_output=True
    )


# --- normalisation and dropout ------------------------------------------------------------------------------------


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Epilogue | None = None,
) -> Tensor:
    """Normalise each channel of (N, C, ...): with the batch's statistics in training, else with the running ones.

    `residual` (of the input's shape) is added to the result, then `activation` ("relu") applied, at no extra pass.

    In training the running statistics are updated in place: running += momentum * (batch - running), with the
    unbiased variance. Ioffe and Szegedy 2015.
    """
    ops = input.backend
    x, mean, var, w, b, added = _arrays("batch_norm", input, running_mean, running_var, weight, bias, residual)
    if training:
        how: dict[str, Any] = dict(momentum=momentum, eps=eps, activation=activation)
        y, saved_mean, rstd = ops.batch_norm_train(x, w, b, mean, var, added, **how)
        for statistic in _present(running_mean, running_var):
            statistic.version.count += 1
    elif mean is None or var is None:
        raise ShapeError("[batch_norm] needs running_mean and running_var when not training; got None")
    else:
        y = ops.batch_norm_infer(x, w, b, mean, var, added, eps=eps, activation=activation)
        saved_mean, rstd = mean, 1 / ops.xp.sqrt(var + eps)

    def backward(g: Any) -> Sequence[Any]:
        output = None if activation is None else y
        dx, dw, db = ops.batch_norm_grad(g, x, w, saved_mean, rstd, output, training=training)
        return [dx] + [dw] * (w is not None) + [db] * (b is not None) + _residual(ops, g, y, residual, activation)

    inputs = _present(input, weight, bias, residual)
    saved = _present(input, weight, None if training else running_mean)
    return Tensor.from_op("batch_norm", y, inputs, backward, saved)


def _residual(ops: Any, g: Any, y: Any, residual: Tensor | None, activation: Epilogue | None) -> list[Any]:
    """The gradient of a fused residual, if there is one."""
    return [] if residual is None else [_before(ops, g, y, activation)]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Epilogue | None = None,
) -> Tensor:
    """Normalise each sample over groups of channels of (N, C, ...). Wu and He 2018.

    `residual` and `activation` as in `batch_norm`.
    """
    ops = input.backend
    x, w, b, added = _arrays("group_norm", input, weight, bias, residual)
    y, mean, rstd = ops.group_norm(x, w, b, added, num_groups=num_groups, eps=eps, activation=activation)

    def backward(g: Any) -> Sequence[Any]:
        output = None if activation is None else y
        dx, dw, db = ops.group_norm_grad(g, x, w, mean, rstd, output, num_groups=num_groups)
        return [dx] + [dw] * (w is not None) + [db] * (b is not None) + _residual(ops, g, y, residual, activation)

    inputs = _present(input, weight, bias, residual)
    return Tensor.from_op("group_norm", y, inputs, backward, saved=_present(input, weight))


def instance_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise each channel of each sample over its pixels. Ulyanov et al. 2016."""
    check_rank("instance_norm", "input", input.shape, "NCHW")
    return group_norm(input, input.shape[1], weight, bias, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last axes; weight and bias have `normalized_shape`. Ba et al. 2016."""
    shape, own = tuple(normalized_shape), input.shape
    if not shape or own[-len(shape) :] != shape:
        raise ShapeError(f"[layer_norm] the input's last axes must be {shape}; got {own}")
    features = 1
    for size in shape:
        features *= size
    # One group whose "channels" are all normalised elements.
    rows = input.reshape(input.size // max(features, 1), features)
    scale, shift = (None if p is None else p.reshape(features) for p in (weight, bias))
    return group_norm(rows, 1, scale, shift, eps).reshape(*own)


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta. Krizhevsky et al. 2012."""
    ops, x = input.backend, input.data
    y, scale = ops.local_response_norm(x, size=size, alpha=alpha, beta=beta, k=k)
    return Tensor.from_op(
        "local_response_norm",
        y,
        [input],
        lambda g: [ops.local_response_norm_grad(g, x, scale, size=size, alpha=alpha, beta=beta)],
        saved=[input],
    )


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero elements with probability p and scale the rest by 1 / (1 - p); nothing when not training.

    The mask follows `dlgpu.manual_seed`. Srivastava et al. 2014.
    """
    check_probability("dropout", p)
    if not training or p == 0:
        return input
    ops = input.backend
    seed, offset = random.reserve(-(-input.size // 4))
    y = ops.dropout(input.data, p=p, seed=seed, offset=offset)
    return Tensor.from_op("dropout", y, [input], lambda g: [ops.dropout_grad(g, p=p, seed=seed, offset=offset)])


# --- shape --------------------------------------------------------------------------------------------------------


def pad(input: Tensor, pad: Sequence[int], value: Scalar = 0) -> Tensor:
    """Constant borders; `pad` = (left, right, top, bottom, ...) from the last axis on, each >= 0, as in PyTorch."""
    if len(pad) % 2 or len(pad) > 2 * input.ndim or any(p < 0 for p in pad):
        raise ShapeError(
            f"[pad] needs pairs of sizes >= 0, at most one pair per axis; got {tuple(pad)} for {input.shape}"
        )
    widths = [(0, 0)] * (input.ndim - len(pad) // 2) + [tuple(pad[i : i + 2]) for i in range(len(pad) - 2, -1, -2)]
    shape = tuple(before + size + after for (before, after), size in zip(widths, input.shape, strict=True))
    inner = tuple(slice(before, before + size) for (before, _), size in zip(widths, input.shape, strict=True))
    y = memory_format.empty(input.backend.xp, shape, input.dtype, memory_format.of(input.data))
    y[...] = value
    y[inner] = input.data
    return Tensor.from_op("pad", y, [input], lambda g: [g[inner]])


def one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Integer classes (...) -> float32 (..., num_classes)."""
    xp = target.backend.xp
    return Tensor((target.data[..., None] == xp.arange(num_classes)).astype(dtypes.float32), target.backend)


# --- losses -------------------------------------------------------------------------------------------------------


def cross_entropy(
    input: Tensor,
    target: Any,
    ignore_index: int = -100,
    reduction: LossReduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax and negative log-likelihood in one: logits (N, C) or (N, C, H, W), integer classes (N,) or (N, H, W).

    "mean" divides by the number of targets that are not `ignore_index`. The loss is float32 (or float64) whatever the
    dtype of the logits.
    """
    ops = input.backend
    # Labels mostly come from the CPU: counted there, nothing waits for a device.
    counted = int((np.asarray(target) != ignore_index).sum()) if not isinstance(target, Tensor) else None
    target = as_tensor(target, input)
    logits, classes = input.data, target.data
    how: dict[str, Any] = dict(label_smoothing=label_smoothing, ignore_index=ignore_index)
    # Rows in memory: the gradient costs little while they are at hand. (In half precision it would lose small numbers,
    # as it does not know yet by what it will be multiplied.)
    if input.requires_grad and input.ndim == 2 and input.dtype not in amp.HALVES.values():
        loss, grad = ops.cross_entropy_with_grad(logits, classes, **how)
        losses = Tensor.from_op("cross_entropy", loss, [input], lambda g: [grad * g[:, None]])
    else:
        loss, lse = ops.cross_entropy(logits, classes, **how)
        losses = Tensor.from_op(
            "cross_entropy",
            loss,
            [input],
            lambda g: [ops.cross_entropy_grad(g, logits, classes, lse, **how)],
            saved=[input, target],
        )
    if reduction == "mean":
        counted = int((classes != ignore_index).sum()) if counted is None else counted
        return losses.sum() / _at_least_one("cross_entropy", counted)
    return _reduced("cross_entropy", losses, reduction)


def nll_loss(input: Tensor, target: Any, ignore_index: int = -100, reduction: LossReduction = "mean") -> Tensor:
    """Minus the log-probability (from `log_softmax`) of each target class: (N, C), integer classes (N,)."""
    check_rank("nll_loss", "input", input.shape, "NC")
    classes = as_tensor(target, input)
    if classes.dtype.kind not in "iu":
        raise DtypeError(f"[nll_loss] target must hold integer class indices; got {classes.dtype}")
    check_shape("nll_loss", "target", classes.shape, input.shape[:1])
    xp, at = input.backend.xp, classes.data
    valid = at != ignore_index
    if ((at < 0) | (at >= input.shape[1]))[valid].any():
        raise ShapeError(f"[nll_loss] targets must be in [0, {input.shape[1]}) or {ignore_index}; got one outside")
    rows = xp.arange(len(at)), xp.where(valid, at, 0)
    shape, dtype = input.shape, input.dtype

    def backward(g: Any) -> Sequence[Any]:
        grad = xp.zeros(shape, dtype)
        grad[rows] = xp.where(valid, -g, 0)
        return [grad]

    # Chosen, not multiplied by zero: an ignored row may hold infinities.
    picked = Tensor.from_op("nll_loss", xp.where(valid, -input.data[rows], 0).astype(dtype), [input], backward)
    if reduction == "mean":
        return picked.sum() / _at_least_one("nll_loss", int(valid.sum()))
    return _reduced("nll_loss", picked, reduction)


def mse_loss(input: Tensor, target: Any, reduction: LossReduction = "mean") -> Tensor:
    """(input - target)²."""
    difference = _difference("mse_loss", input, target)
    return _reduced("mse_loss", difference * difference, reduction)


def l1_loss(input: Tensor, target: Any, reduction: LossReduction = "mean") -> Tensor:
    """|input - target|."""
    return _reduced("l1_loss", _difference("l1_loss", input, target).abs(), reduction)


def smooth_l1_loss(input: Tensor, target: Any, reduction: LossReduction = "mean", beta: float = 1.0) -> Tensor:
    """d² / (2 * beta) for |d| < beta, else |d| - beta / 2, where d = input - target."""
    if beta <= 0:
        raise ShapeError(f"[smooth_l1_loss] beta must be positive; got {beta}")
    size = _difference("smooth_l1_loss", input, target).abs()
    inner = size.clamp(max=beta)  # the quadratic part, then the linear rest
    return _reduced("smooth_l1_loss", inner * inner / (2 * beta) + (size - inner), reduction)


def binary_cross_entropy_with_logits(input: Tensor, target: Any, reduction: LossReduction = "mean") -> Tensor:
    """-t * log(sigmoid(x)) - (1 - t) * log(1 - sigmoid(x)), without overflow: softplus(x) - t * x."""
    target = as_tensor(target, input)
    check_shape("binary_cross_entropy_with_logits", "target", target.shape, input.shape)
    input = amp.widen(input)
    return _reduced("binary_cross_entropy_with_logits", softplus(input) - input * target, reduction)


def _difference(op: str, input: Tensor, target: Any) -> Tensor:
    target = as_tensor(target, input)
    check_shape(op, "target", target.shape, input.shape)  # broadcasting here is nearly always a mistake
    return amp.widen(input) - target


def _reduced(op: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / _at_least_one(op, losses.size)
    raise UnknownName(op, "reduction", reduction, ("mean", "sum", "none"))


def _at_least_one(op: str, count: int) -> int:
    if count == 0:
        raise ShapeError(f"[{op}] the mean of no losses is not defined; got an empty batch (or only ignored targets)")
    return count
