"""The op contract: one signature per op, on raw arrays, the same for every backend.

A backend is anything with these names: the NumPy reference is a module, the kernel backends are objects. No autograd
here. General arithmetic (broadcast add, indexing, reductions that no kernel is written for) is the array library
itself: `backend.xp` is numpy or cupy.

What holds for every op:

* **Shapes** are logical: images (N, C, H, W), weights (K, C/groups, R, S). Layout is strides (`dlgpu.memory_format`):
  outputs have the memory format of the op's first array (for a convolution: channels_last if input or weight is; for
  the gradient of an elementwise op, a normalisation or a loss: that of the input or of what was saved).
* **dtypes**: float16, bfloat16, float32 storage (the reference also float64), one dtype for all floating arrays of a
  call unless the op says otherwise. Sums, statistics and normalisers are kept in float32 or wider ("acc" below:
  float64 for float64, else float32). Other dtypes raise `DtypeError`.
* **Checks**: geometry is normalised and checked by `dlgpu.backends.shapes` before anything runs; a broken rule raises
  `ShapeError`. Sizes are ints or (vertical, horizontal) pairs; padding may also be ((top, bottom), (left, right)), or
  "same" | "valid" where PyTorch has them.
* **Memory**: every op allocates its outputs and changes no argument, but for the optimizer steps and the running
  statistics of `batch_norm_train`, which say so.
* **Empty** batches give empty outputs; gradients of weights are then zero.
* **NaN** propagates: through max-pooling and ReLU too.
* **Deterministic**: the same inputs give the same bits on every run of the same device. Nothing adds with atomics.
* **Saved for backward**: what a `_grad` op needs is in its argument list; whatever else the forward returned for it is
  named there.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from dlgpu.backends.shapes import Padding2d, Size2d, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.memory_format import MemoryFormat

Array = Any  # numpy.ndarray or cupy.ndarray

Algorithm = Literal["auto", "im2col", "implicit_gemm", "winograd2", "winograd4", "fft", "direct"]
ALGORITHMS: tuple[Algorithm, ...] = ("auto", "im2col", "implicit_gemm", "winograd2", "winograd4", "fft", "direct")

Activation = Literal["relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "gelu", "silu", "softplus"]
# Which array `activation_grad` takes as `saved`: the output where that is enough (x can then be freed), else the input.
SAVES_OUTPUT: tuple[Activation, ...] = ("relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh")
SAVES_INPUT: tuple[Activation, ...] = ("gelu", "silu", "softplus")


def check_activation(op: str, kind: str, alpha: float) -> None:
    """A known kind, and an alpha with which the gradient can be told from the output's sign."""
    if kind not in SAVES_OUTPUT + SAVES_INPUT:
        raise UnknownName(op, "activation", kind, SAVES_OUTPUT + SAVES_INPUT)
    if kind in ("leaky_relu", "elu") and not alpha >= 0:
        raise ShapeError(f"[{op}] alpha must not be negative; got {alpha}")


# What a product can apply to its output before it is stored, at no extra pass over memory.
Epilogue = Literal["relu"]


def check_epilogue(op: str, activation: str | None) -> None:
    """None or an activation that the products fuse."""
    if activation not in (None, "relu"):
        raise UnknownName(op, "fused activation", str(activation), ["relu"])


def check_fused(op: str, x: Array, residual: Array | None, activation: str | None) -> None:
    """What a normalisation may take with it: a residual like its input, and a fused activation."""
    check_floats(op, input=x, residual=residual)
    check_epilogue(op, activation)
    if residual is not None:
        check_shape(op, "residual", residual.shape, x.shape)


Reduction = Literal["sum", "mean", "max"]


class Contract(Protocol):
    """Every op of a backend. See the module's text for what holds for all of them."""

    name: str  # "numpy", "cuda:cupy", "cuda:native" or "host"
    device: str  # where its arrays live, as a Tensor says it: "cpu", "cuda" or "host-kernels"
    xp: Any  # the array library: numpy or cupy

    # --- im2col and matrix products -------------------------------------------------------------------------------

    def im2col(
        self, x: Array, *, kernel_size: Size2d, stride: Size2d = 1, padding: Padding2d = 0, dilation: Size2d = 1
    ) -> Array:
        """Unfold (N, C, H, W) into one row per window: (N*P*Q, C*R*S), zeros where the window lies in the padding."""
        ...

    def col2im(
        self,
        col: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
    ) -> Array:
        """The adjoint of `im2col`: (N*P*Q, C*R*S) -> (N, C, H, W), adding where windows overlap."""
        ...

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        bias: Array | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transpose_a: bool = False,
        transpose_b: bool = False,
        activation: Epilogue | None = None,
    ) -> Array:
        """activation(alpha * op(a) @ op(b) + beta * c + bias) for matrices; op transposes where asked.

        Without c, or with beta 0 (c is not read then), there is no second term. bias (N,) is added to every row.
        """
        ...

    def batched_gemm(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> Array:
        """alpha * op(a) @ op(b) + beta * c for each matrix of a batch: (B, M, K) @ (B, K, N) -> (B, M, N)."""
        ...

    def linear(
        self, x: Array, weight: Array, bias: Array | None = None, *, activation: Epilogue | None = None
    ) -> Array:
        """activation(x (..., C) @ weight (K, C)ᵀ + bias (K,)) -> (..., K)."""
        ...

    def linear_grad_input(self, grad_output: Array, weight: Array) -> Array:
        """grad_output (..., K) @ weight (K, C) -> (..., C)."""
        ...

    def linear_grad_weight(self, grad_output: Array, x: Array) -> Array:
        """grad_outputᵀ (K, rows) @ x (rows, C) -> (K, C)."""
        ...

    def grad_bias(self, grad_output: Array, *, axis: int = 1) -> Array:
        """Sum over every axis but `axis` (1 for images, -1 for a dense layer) -> (K,)."""
        ...

    # --- convolution ----------------------------------------------------------------------------------------------
    # `algorithm` says how, never what: results agree within rounding. "auto" lets the plan choose. An algorithm that
    # cannot do a geometry (Winograd: 3x3, stride 1, dilation 1) raises ShapeError; none is silently replaced.

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
        """Cross-correlation (N, C, H, W) with (K, C/G, R, S) -> activation(conv + bias + residual), (N, K, P, Q).

        P = (H + padding - dilation * (R - 1) - 1) / stride + 1, likewise Q. bias (K,), residual (N, K, P, Q).
        """
        ...

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
        """relu(conv2d) pooled by 2x2 windows with stride 2 -> (y, argmax), both (N, K, P // 2, Q // 2).

        y and argmax are those of `max_pool2d`; what the convolution gave need not be kept: where y > 0, ReLU let the
        maximum pass.
        """
        ...

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
        """(N, K, P, Q) and the weights -> the gradient of the (N, C, H, W) input."""
        ...

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
        """(N, K, P, Q) and the input -> the gradient of the (K, C/G, R, S) weights. The bias has `grad_bias`."""
        ...

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
        """`conv2d_grad_weight` and `grad_bias` in one: grad_output is read once -> (grad_weight, grad_bias)."""
        ...

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
        """The adjoint of `conv2d` as a layer: (N, C, H, W) with (C, K/G, R, S) -> (N, K, H', W').

        H' = (H - 1) * stride - padding + dilation * (R - 1) + output_padding + 1, output_padding < stride.
        Its own gradients are `conv2d` (input) and `conv2d_grad_weight` (weights, with the two arrays swapped).
        """
        ...

    # --- pooling --------------------------------------------------------------------------------------------------

    def max_pool2d(
        self,
        x: Array,
        *,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        ceil_mode: bool = False,
    ) -> tuple[Array, Array]:
        """-> (y, argmax), both (N, C, P, Q).

        argmax is the offset r * S + s inside the window: uint8, or uint16 when the window has more than 256 places.
        The first maximum in row order wins; the first NaN wins over everything; padding is never chosen. A window
        that sees padding only (possible for dilated kernels) gives -inf and argmax 0, and its gradient goes nowhere.
        """
        ...

    def max_pool2d_grad(
        self,
        grad_output: Array,
        argmax: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        ceil_mode: bool = False,
        layout: MemoryFormat | None = None,
    ) -> Array:
        """Send each output's gradient to the place its maximum came from; overlapping windows add.

        `layout` is the memory format of the result, where grad_output's own (None) does not tell: 1x1 images have none.
        """
        ...

    def avg_pool2d(
        self,
        x: Array,
        *,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Array:
        """Mean of each window -> (N, C, P, Q).

        The divisor counts the padding (but not what `ceil_mode` lets a window stick out beyond it), or, without
        `count_include_pad`, only real pixels.
        """
        ...

    def avg_pool2d_grad(
        self,
        grad_output: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        layout: MemoryFormat | None = None,
    ) -> Array:
        """Spread each output's gradient evenly over its window.

        `layout` is the memory format of the result, where grad_output's own (None) does not tell: 1x1 images have none.
        """
        ...

    # --- normalisation --------------------------------------------------------------------------------------------
    # weight and bias are (C,) in the array's dtype or float32, or None; statistics are (C,) or (N, G) in acc.
    # y = activation(normalised * weight + bias + residual). The gradients of a fused ReLU want its output `y`: they
    # pass where it is positive. The gradient of the residual is then `activation_grad(grad_output, y)`.

    def batch_norm_train(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        residual: Array | None = None,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> tuple[Array, Array, Array]:
        """Normalise each channel of (N, C, ...) over the batch -> (y, mean, rstd); rstd = 1 / sqrt(biased var + eps).

        Changes the running statistics in place: running += momentum * (batch - running), with the unbiased variance.
        One value per channel (nothing to normalise over) raises `ShapeError`.
        """
        ...

    def batch_norm_infer(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array,
        var: Array,
        residual: Array | None = None,
        *,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> Array:
        """(x - mean) / sqrt(var + eps) * weight + bias with given statistics."""
        ...

    def batch_norm_grad(
        self,
        grad_output: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        y: Array | None = None,
        *,
        training: bool = True,
    ) -> tuple[Array, Array, Array]:
        """-> (grad_input, grad_weight, grad_bias). With `training=False` mean and rstd are constants."""
        ...

    def group_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None = None,
        *,
        num_groups: int,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> tuple[Array, Array, Array]:
        """Normalise each sample's groups of channels -> (y, mean (N, G), rstd (N, G)).

        One group is layer norm, C groups are instance norm.
        """
        ...

    def group_norm_grad(
        self,
        grad_output: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        y: Array | None = None,
        *,
        num_groups: int,
    ) -> tuple[Array, Array, Array]:
        """-> (grad_input, grad_weight, grad_bias)."""
        ...

    def local_response_norm(
        self, x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> tuple[Array, Array]:
        """x / scale^beta -> (y, scale in acc); scale = k + alpha / size * sum of squares over `size` channels.

        Krizhevsky et al. 2012, section 3.3, with PyTorch's division of alpha by size. Channel c sees
        [c - size // 2, c + (size - 1) // 2].
        """
        ...

    def local_response_norm_grad(
        self, grad_output: Array, x: Array, scale: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75
    ) -> Array:
        """-> grad_input."""
        ...

    # --- activations, softmax, loss, dropout ----------------------------------------------------------------------

    def activation(self, x: Array, *, kind: Activation, alpha: float = 0.01) -> Array:
        """Elementwise. `alpha` >= 0: the negative slope of leaky_relu, the scale of elu. gelu is the exact (erf) form.

        A negative `alpha` raises `ShapeError`: the gradient is told from the output's sign.
        """
        ...

    def activation_grad(self, grad_output: Array, saved: Array, *, kind: Activation, alpha: float = 0.01) -> Array:
        """`saved` is the output for kinds in SAVES_OUTPUT, the input for those in SAVES_INPUT. relu'(0) = 0."""
        ...

    def softmax(self, x: Array, *, axis: int = -1) -> Array:
        """exp(x - max) / sum along `axis`."""
        ...

    def softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        """y * (grad - sum(grad * y))."""
        ...

    def log_softmax(self, x: Array, *, axis: int = -1) -> Array:
        """x - max - log(sum(exp(x - max))) along `axis`."""
        ...

    def log_softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        """grad - exp(y) * sum(grad)."""
        ...

    def cross_entropy(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        """Softmax and negative log-likelihood in one -> (loss per sample, log-sum-exp per sample), both in acc.

        logits (N, C) with integer target (N,), or (N, C, H, W) with (N, H, W). A target equal to `ignore_index` has
        loss 0; any other outside [0, C) raises `ShapeError` in the reference (kernels cannot look at values without a
        device sync: they return NaN). With label smoothing s: (1 - s) * nll + s * mean over classes.
        """
        ...

    def cross_entropy_with_grad(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        """-> (loss per sample in acc, gradient of each sample's loss by its logits), in one pass."""
        ...

    def cross_entropy_grad(
        self,
        grad_loss: Array,
        logits: Array,
        target: Array,
        lse: Array,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> Array:
        """grad_loss (per sample, acc) * (softmax(logits) - target distribution); `lse` from `cross_entropy`."""
        ...

    def dropout(self, x: Array, *, p: float, seed: int, offset: int) -> Array:
        """Zero each element with probability p and divide the others by 1 - p.

        Element i (logical row-major index) takes word i % 4 of Philox4x32-10 with key `seed` (64 bits) and counter
        (offset + i // 4) (64 bits, then zeros); it is kept iff (word >> 8) * 2**-24 >= p. So the mask depends neither
        on the backend nor on the layout.
        """
        ...

    def dropout_grad(self, grad_output: Array, *, p: float, seed: int, offset: int) -> Array:
        """The same mask and scale applied to the gradient; nothing had to be saved."""
        ...

    # --- optimizer steps: in place on flat float32 (or float64) arenas, one call for all parameters -----------------
    # `grad` is never changed. weight_decay adds weight_decay * param to the gradient, but for adam_step(decoupled).
    # `half`, a float16 or bfloat16 array, receives the new parameters rounded. `scaler` is float32 (4,), the state of a
    # loss scaler (dlgpu.amp): the scale by which gradients are too large, and which divides them; not 0 if any of them
    # was not finite: then nothing changes; good updates since the scale changed; updates skipped so far.

    def sgd_step(
        self,
        param: Array,
        grad: Array,
        velocity: Array | None,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        """v = momentum * v - lr * g; param += v. Nesterov: param += momentum * v_new - lr * g (the change of variables
        -momentum * v_old + (1 + momentum) * v_new). `velocity` is None iff momentum is 0."""
        ...

    def adagrad_step(
        self,
        param: Array,
        grad: Array,
        square_sum: Array,
        *,
        lr: float,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        """r += g²; param -= lr * g / (sqrt(r) + eps). Duchi et al. 2011."""
        ...

    def rmsprop_step(
        self,
        param: Array,
        grad: Array,
        square_avg: Array,
        *,
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        """r = alpha * r + (1 - alpha) * g²; param -= lr * g / (sqrt(r) + eps). Tieleman and Hinton 2012."""
        ...

    def adam_step(
        self,
        param: Array,
        grad: Array,
        exp_avg: Array,
        exp_avg_sq: Array,
        *,
        step: int,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        scaler: Array | None = None,
        half: Array | None = None,
    ) -> None:
        """Kingma and Ba 2015, with bias correction; `step` counts from 1, with those that the scaler skipped.

        `decoupled` is AdamW (Loshchilov and Hutter 2019): param -= lr * weight_decay * param beside the step, instead
        of the decay inside the gradient.
        """
        ...

    def check_finite(self, grad: Array, scaler: Array) -> None:
        """scaler[1] = 1 if any element of `grad` is infinite or NaN; else it stays as it is."""
        ...

    def update_scaler(
        self, scaler: Array, *, growth_factor: float = 2.0, backoff_factor: float = 0.5, growth_interval: int = 2000
    ) -> None:
        """After the steps of an update: the scale grows after `growth_interval` good ones, and shrinks after a bad one.

        It stays finite and at least 2^-24. Micikevicius et al. 2018, section 3.2; the policy is PyTorch's GradScaler's.
        """
        ...

    # --- movement -------------------------------------------------------------------------------------------------

    def cast(self, x: Array, dtype: Any) -> Array:
        """Round to another floating dtype (nearest even), keeping the memory format."""
        ...

    def to_memory_format(self, x: Array, format: str) -> Array:
        """The same (N, C, H, W) values stored as "contiguous" or "channels_last"; x itself if it already is."""
        ...

    def reduce(
        self, x: Array, *, kind: Reduction, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
    ) -> Array:
        """Sum, mean or max over axes (None: all), accumulated in acc and rounded once to the dtype of x."""
        ...


OPS: tuple[str, ...] = tuple(
    name for name, value in vars(Contract).items() if callable(value) and not name.startswith("_")
)
