"""The geometry of each op, computed and checked in one place.

Every backend starts an op by building one of these shapes, so a wrong argument meets the same rule and the same words
whether it comes through `dlgpu.functional` or straight through a backend, and no kernel ever sees it. Letters are
those of the design: N C H W batch, channels, height, width; K output channels; R S filter height, width; P Q output
height, width; G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlgpu.dtypes import bfloat16, float16
from dlgpu.errors import DtypeError, ShapeError

Size2d = int | Sequence[int]
# int, (vertical, horizontal), ((top, bottom), (left, right)), "same" or "valid"
Padding2d = int | Sequence[Any] | Literal["same", "valid"]
Sides = tuple[tuple[int, int], tuple[int, int]]


def pair(op: str, name: str, value: Size2d, least: int) -> tuple[int, int]:
    """`3` or `(3, 5)` -> a pair of ints, each at least `least`."""
    values: Any = (value, value) if _is_int(value) else value
    if not isinstance(values, Sequence) or len(values) != 2 or not all(_is_int(v) and v >= least for v in values):
        raise ShapeError(f"[{op}] {name} must be an int or a pair of ints, each >= {least}; got {value!r}")
    return int(values[0]), int(values[1])


def _is_int(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__")


def sides(
    op: str, padding: Padding2d, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Sides:
    """Any spelling of a padding -> ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise ShapeError(f"[{op}] padding must be ints, 'same' or 'valid'; got {padding!r}")
        if stride != (1, 1):
            raise ShapeError(f"[{op}] padding='same' needs stride 1; got stride {stride}")
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    each: Any = padding  # not "same" or "valid"
    if isinstance(each, Sequence) and len(each) == 2 and all(isinstance(side, Sequence) for side in each):
        return pair(op, "padding (top, bottom)", each[0], 0), pair(op, "padding (left, right)", each[1], 0)
    vertical, horizontal = pair(op, "padding", each, 0)
    return (vertical, vertical), (horizontal, horizontal)


def check_rank(op: str, name: str, shape: Sequence[int], letters: str) -> None:
    """Require one axis per letter: `check_rank("conv2d", "input", x.shape, "NCHW")`."""
    if len(shape) != len(letters):
        axes = ", ".join(letters)
        raise ShapeError(f"[{op}] {name} must have shape ({axes}); got {len(shape)} axes: {tuple(shape)}")


def check_shape(op: str, name: str, got: Sequence[int], expected: Sequence[int]) -> None:
    """Require an exact shape."""
    if tuple(got) != tuple(expected):
        raise ShapeError(f"[{op}] {name} must have shape {tuple(expected)}; got {tuple(got)}")


def axes(op: str, shape: Sequence[int], axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """An axis, several, or None for all of them -> the axes counted from the front, each once."""
    ndim = len(shape)
    given: tuple[Any, ...]
    given = tuple(range(ndim)) if axis is None else tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if not all(_is_int(a) and -ndim <= a < ndim for a in given) or len({a % ndim for a in given}) != len(given):
        raise ShapeError(f"[{op}] axis must name different axes of an array of shape {tuple(shape)}; got {axis!r}")
    return tuple(a % ndim for a in given)


def window_output(
    op: str,
    axis: str,
    size: int,
    padding: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    ceil_mode: bool = False,
) -> int:
    """Number of window positions along one axis: (size + padding - dilation * (kernel - 1) - 1) / stride + 1.

    Rounded down, or up with `ceil_mode`; then, as in PyTorch, a last window that would start beyond the input and its
    leading padding is dropped.
    """
    padded, reach = size + sum(padding), dilation * (kernel - 1) + 1
    if reach > padded:
        raise ShapeError(
            f"[{op}] the kernel must fit into the padded input; got {axis}: kernel {kernel} (dilation {dilation}, "
            f"reach {reach}) > {size} + padding {padding}"
        )
    steps = padded - reach
    out = (steps + stride - 1 if ceil_mode else steps) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding[0]:
        out -= 1
    return out


@dataclass(frozen=True)
class Window2d:
    """A window that slides over an (N, C, H, W) input: what im2col, pooling and convolution share."""

    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    P: int
    Q: int
    stride: tuple[int, int]
    padding: Sides
    dilation: tuple[int, int]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @staticmethod
    def make(
        op: str,
        input_shape: Sequence[int],
        kernel_size: Size2d,
        stride: Size2d,
        padding: Padding2d,
        dilation: Size2d,
        ceil_mode: bool = False,
    ) -> Window2d:
        """Normalise and check the arguments; raises `ShapeError` naming `op`."""
        check_rank(op, "input", input_shape, "NCHW")
        N, C, H, W = (int(size) for size in input_shape)
        R, S = pair(op, "kernel_size", kernel_size, 1)
        strides, dilations = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
        pads = sides(op, padding, (R, S), strides, dilations)
        P = window_output(op, "height", H, pads[0], R, strides[0], dilations[0], ceil_mode)
        Q = window_output(op, "width", W, pads[1], S, strides[1], dilations[1], ceil_mode)
        return Window2d(N, C, H, W, R, S, P, Q, strides, pads, dilations)


@dataclass(frozen=True)
class Conv2d(Window2d):
    """A convolution of an (N, C, H, W) input with (K, C/G, R, S) weights to an (N, K, P, Q) output."""

    K: int
    G: int

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.G, self.R, self.S

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.K, self.P, self.Q

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the forward pass."""
        return self.N * self.P * self.Q * self.K * (self.C // self.G) * self.R * self.S

    @staticmethod
    def of(
        op: str,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        bias_shape: Sequence[int] | None,
        stride: Size2d,
        padding: Padding2d,
        dilation: Size2d,
        groups: int,
    ) -> Conv2d:
        """Normalise and check the arguments of a convolution; raises `ShapeError` naming `op`."""
        check_rank(op, "input", input_shape, "NCHW")
        check_rank(op, "weight", weight_shape, "KCRS")
        C, (K, per_group) = input_shape[1], weight_shape[:2]
        if not _is_int(groups) or groups < 1 or C % groups or K % groups:
            raise ShapeError(
                f"[{op}] groups must divide input and output channels; got groups={groups!r}, C={C}, K={K}"
            )
        if per_group * groups != C:
            raise ShapeError(
                f"[{op}] weight must have C/groups = {C // groups} input channels; got weight {tuple(weight_shape)} "
                f"for input {tuple(input_shape)}, groups={groups}"
            )
        if bias_shape is not None:
            check_shape(op, "bias", bias_shape, (K,))
        window = Window2d.make(op, input_shape, weight_shape[2:], stride, padding, dilation)
        return Conv2d(**vars(window), K=int(K), G=int(groups))


def check_pooled(op: str, g: Conv2d) -> None:
    """The output of a convolution must hold at least one 2x2 window."""
    if g.P < 2 or g.Q < 2:
        raise ShapeError(f"[{op}] the convolution must give at least 2x2 pixels to pool; got {g.P}x{g.Q}")


def conv_transpose(
    op: str,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Size2d,
    padding: Padding2d,
    output_padding: Size2d,
    dilation: Size2d,
    groups: int,
) -> Conv2d:
    """The convolution whose input gradient a transposed convolution is.

    The transposed op maps (N, C, H, W) with weights (C, K/G, R, S) to (N, K, H', W'), where
    H' = (H - 1) * stride - padding + dilation * (R - 1) + output_padding + 1. The returned `Conv2d` is the forward
    convolution from (N, K, H', W') to (N, C, H, W) with the same weights: its C is the transposed op's K.
    """
    check_rank(op, "input", input_shape, "NCHW")
    check_rank(op, "weight", weight_shape, "CKRS")
    N, C, H, W = input_shape
    if weight_shape[0] != C:
        raise ShapeError(
            f"[{op}] weight must have {C} input channels (its first axis); got weight {tuple(weight_shape)} for "
            f"input {tuple(input_shape)}"
        )
    if not _is_int(groups) or groups < 1 or C % groups:
        raise ShapeError(f"[{op}] groups must divide the input channels; got groups={groups!r}, C={C}")
    strides, dilations = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    extra = pair(op, "output_padding", output_padding, 0)
    pads = sides(op, padding, (weight_shape[2], weight_shape[3]), strides, dilations)
    sizes = []
    for axis, size in enumerate((H, W)):
        if extra[axis] >= strides[axis]:  # else the forward convolution of that output would give more than H x W
            raise ShapeError(f"[{op}] output_padding must be smaller than the stride; got {extra}, stride {strides}")
        out = (
            (size - 1) * strides[axis]
            - sum(pads[axis])
            + dilations[axis] * (weight_shape[2 + axis] - 1)
            + extra[axis]
            + 1
        )
        if out < 1:
            raise ShapeError(
                f"[{op}] the output must have at least one pixel; got size {out} from input {tuple(input_shape)}, "
                f"padding {padding!r}"
            )
        sizes.append(out)
    K = weight_shape[1] * groups
    if bias_shape is not None:
        check_shape(op, "bias", bias_shape, (K,))
    return Conv2d.of(op, (N, K, *sizes), weight_shape, None, strides, pads, dilations, groups)


@dataclass(frozen=True)
class Pool2d(Window2d):
    """A pooling window over (N, C, H, W) giving (N, C, P, Q)."""

    @property
    def argmax_dtype(self) -> np.dtype:
        """One byte holds the offset in any window of at most 256 places."""
        return np.dtype(np.uint8 if self.R * self.S <= 256 else np.uint16)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.P, self.Q

    @staticmethod
    def of(
        op: str,
        input_shape: Sequence[int],
        kernel_size: Size2d,
        stride: Size2d | None,
        padding: Padding2d,
        dilation: Size2d,
        ceil_mode: bool,
    ) -> Pool2d:
        """Normalise and check the arguments of a pooling op; `stride=None` means the kernel size.

        Padding is at most half the kernel's reach, so that no window lies wholly in the padding (but for a kernel with
        holes, which may: see the contract).
        """
        window = Window2d.make(
            op, input_shape, kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode
        )
        for kernel, pads, dil in zip((window.R, window.S), window.padding, window.dilation, strict=True):
            reach = dil * (kernel - 1) + 1
            if 2 * max(pads) > reach:
                raise ShapeError(
                    f"[{op}] padding must be at most half the kernel; got padding {padding!r}, kernel {kernel_size!r}"
                )
        return Pool2d(**vars(window))


@dataclass(frozen=True)
class Gemm:
    """out (B, M, N) = op(a) (B, M, K) @ op(b) (B, K, N); B is 1 for the plain product."""

    B: int
    M: int
    N: int
    K: int

    @staticmethod
    def of(op: str, a_shape: Sequence[int], b_shape: Sequence[int], transpose_a: bool, transpose_b: bool) -> Gemm:
        """Check two matrices (or two batches of them); raises `ShapeError` naming `op`."""
        if len(a_shape) != len(b_shape) or len(a_shape) not in (2, 3):
            raise ShapeError(
                f"[{op}] a and b must both be matrices, or both batches of them; "
                f"got {tuple(a_shape)} and {tuple(b_shape)}"
            )
        batches = [tuple(shape[:-2]) for shape in (a_shape, b_shape)]
        M, K = (a_shape[-1], a_shape[-2]) if transpose_a else a_shape[-2:]
        L, N = (b_shape[-1], b_shape[-2]) if transpose_b else b_shape[-2:]
        if K != L or batches[0] != batches[1]:
            raise ShapeError(
                f"[{op}] inner sizes and batches must agree; got a {tuple(a_shape)}{'ᵀ' if transpose_a else ''} and "
                f"b {tuple(b_shape)}{'ᵀ' if transpose_b else ''}"
            )
        return Gemm(batches[0][0] if batches[0] else 1, M, N, K)


@dataclass(frozen=True)
class Linear:
    """out (..., K) = x (..., C) @ weight (K, C)ᵀ + bias (K,), with the leading axes flattened to `rows`."""

    rows: int
    C: int
    K: int

    @staticmethod
    def of(
        op: str, input_shape: Sequence[int], weight_shape: Sequence[int], bias_shape: Sequence[int] | None
    ) -> Linear:
        """Check a dense layer's arguments; raises `ShapeError` naming `op`."""
        check_rank(op, "weight", weight_shape, "KC")
        K, C = weight_shape
        if not input_shape or input_shape[-1] != C:
            raise ShapeError(
                f"[{op}] the last axis of the input must have {C} features, as the weight; "
                f"got input {tuple(input_shape)}, "
                f"weight {tuple(weight_shape)}"
            )
        if bias_shape is not None:
            check_shape(op, "bias", bias_shape, (K,))
        rows = 1
        for size in input_shape[:-1]:
            rows *= size
        return Linear(rows, C, K)


@dataclass(frozen=True)
class Norm:
    """A normalisation over (N, C, *spatial): C channels in G groups (batch norm has no groups: G = C)."""

    N: int
    C: int
    G: int
    spatial: int

    @staticmethod
    def of(op: str, input_shape: Sequence[int], groups: int | None, **per_channel: Any) -> Norm:
        """Check the input and the per-channel vectors (weight, bias, running statistics; None is allowed)."""
        if len(input_shape) < 2:
            raise ShapeError(f"[{op}] input must have shape (N, C, ...); got {tuple(input_shape)}")
        N, C = input_shape[:2]
        if groups is not None and (not _is_int(groups) or groups < 1 or C % groups):
            raise ShapeError(f"[{op}] num_groups must divide the channels; got num_groups={groups!r}, C={C}")
        for name, vector in per_channel.items():
            if vector is not None:
                check_shape(op, name, vector.shape, (C,))
        spatial = 1
        for size in input_shape[2:]:
            spatial *= size
        return Norm(N, C, C if groups is None else groups, spatial)

    @staticmethod
    def of_window(op: str, input_shape: Sequence[int], size: int) -> Norm:
        """Check a normalisation over a window of `size` neighbouring channels."""
        if not _is_int(size) or size < 1:
            raise ShapeError(f"[{op}] size must be an int >= 1; got {size!r}")
        return Norm.of(op, input_shape, None)


def check_target(op: str, logits_shape: Sequence[int], target: Any, label_smoothing: float) -> None:
    """Integer classes (N, ...) for logits (N, classes, ...); values are not looked at."""
    if target.dtype.kind not in "iu":
        raise DtypeError(f"[{op}] target must hold integer class indices; got {target.dtype}")
    if len(logits_shape) < 2 or logits_shape[1] < 1:
        raise ShapeError(f"[{op}] logits must have shape (N, classes, ...); got {tuple(logits_shape)}")
    check_shape(op, "target", target.shape, (logits_shape[0], *logits_shape[2:]))
    if not 0 <= label_smoothing <= 1:
        raise ShapeError(f"[{op}] label_smoothing must be in [0, 1]; got {label_smoothing}")


def check_probability(op: str, p: float) -> None:
    """0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise ShapeError(f"[{op}] p must be in [0, 1]; got {p}")


def check_arenas(op: str, scaler: Any, half: Any, param: Any, *others: Any) -> None:
    """Flat arrays of one length; `half`, if given, of a half-precision dtype, and `scaler` as `check_scaler` has it."""
    for a in (param, *others, *(() if half is None else (half,))):
        check_shape(op, "arena", a.shape, (param.size,))
    if half is not None and half.dtype not in (float16, bfloat16):
        raise DtypeError(f"[{op}] half must be float16 or bfloat16; got {half.dtype}")
    if scaler is not None:
        check_scaler(op, scaler)


def check_scaler(
    op: str, scaler: Any, growth_factor: float = 2.0, backoff_factor: float = 0.5, growth_interval: int = 1
) -> None:
    """The state of a loss scaler, float32 (4,), and how it moves."""
    check_shape(op, "scaler", scaler.shape, (4,))
    if scaler.dtype != np.float32:
        raise DtypeError(f"[{op}] scaler must be float32; got {scaler.dtype}")
    if not (growth_factor >= 1 and 0 < backoff_factor <= 1 and _is_int(growth_interval) and growth_interval >= 1):
        raise ShapeError(
            f"[{op}] growth_factor must be >= 1, backoff_factor in (0, 1], growth_interval an int >= 1; "
            f"got {growth_factor}, {backoff_factor}, {growth_interval}"
        )
