"""Max and average pooling, one place of the window at a time over all windows at once."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.reference.common import by_images, finish, masked, widen
from dlgpu.backends.reference.windows import padded, taps, unpadded
from dlgpu.backends.shapes import Padding2d, Pool2d, Size2d, check_shape
from dlgpu.dtypes import check_floats


def max_pool2d(
    x: np.ndarray,
    *,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    check_floats("max_pool2d", input=x)
    g = Pool2d.of("max_pool2d", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    layout = memory_format.of(x)
    y = memory_format.empty(np, g.output_shape, x.dtype, layout)
    argmax = memory_format.empty(np, g.output_shape, g.argmax_dtype, layout)
    inside = _inside(g)

    def share(images: slice) -> None:
        values, argmax[images] = _max_and_place(padded(widen(x[images]), g, -np.inf), g, inside)
        y[images] = finish(values, y.dtype)

    by_images(share, x)
    return y, argmax


def _max_and_place(x: np.ndarray, g: Pool2d, inside: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of each window of the padded `x`, and the first place where it stands.

    The place comes in Horner's form: misses[0] * (1 + misses[1] * (1 + ...)), where a miss is 1 as long as the maximum
    was not met. A place in the padding never counts as met; a window that never meets (padding only) gets 0.
    """
    seen = list(taps(x, g))
    if g.stride[1] > 1:  # read again and again below: gather once, since NumPy is slow on elements that lie apart
        seen = [np.ascontiguousarray(tap) for tap in seen]
    y = seen[0].copy()
    for tap in seen[1:]:
        np.maximum(y, tap, out=y)
    has_nan = bool(np.isnan(y).any())
    place = np.zeros(y.shape, g.argmax_dtype)
    met = None if all(real.all() for real in inside) else np.zeros(y.shape, bool)
    places = list(zip(seen, inside, strict=True))
    # Where every place is real, a window that met its maximum nowhere before has it in the last place: no need to look.
    for tap, real in reversed(places if met is not None else places[:-1]):
        miss = tap != y
        if has_nan:
            miss &= ~np.isnan(tap)
        if met is not None:
            miss |= ~real
            met |= ~miss
        place += 1
        place *= miss
    if met is not None:
        place *= met
    return y, place


def max_pool2d_grad(
    grad_output: np.ndarray,
    argmax: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    dilation: Size2d = 1,
    ceil_mode: bool = False,
    layout: memory_format.MemoryFormat | None = None,
) -> np.ndarray:
    op = "max_pool2d_grad"
    check_floats(op, grad_output=grad_output)
    g = Pool2d.of(op, input_shape, kernel_size, stride, padding, dilation, ceil_mode)
    check_shape(op, "grad_output", grad_output.shape, g.output_shape)
    check_shape(op, "argmax", argmax.shape, g.output_shape)
    reach = [dil * (k - 1) + 1 for dil, k in zip(g.dilation, (g.R, g.S), strict=True)]
    overlapping = any(stride < r for stride, r in zip(g.stride, reach, strict=True))
    dx = memory_format.empty(np, g.input_shape, grad_output.dtype, layout or memory_format.of(grad_output))

    def share(images: slice) -> None:
        dy = memory_format.convert(np, widen(grad_output[images]), "contiguous")
        whole = padded(np.zeros((len(dy), *g.input_shape[1:]), dy.dtype), g)
        for index, tap in enumerate(taps(whole, g)):
            if overlapping:
                tap += masked(dy, argmax[images] == index)
            else:
                masked(dy, argmax[images] == index, out=tap)
        dx[images] = finish(unpadded(whole, g), dx.dtype)

    by_images(share, dx)
    return dx


def avg_pool2d(
    x: np.ndarray,
    *,
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    check_floats("avg_pool2d", input=x)
    g = Pool2d.of("avg_pool2d", x.shape, kernel_size, stride, padding, 1, ceil_mode)
    wide = padded(widen(x), g)
    y = np.zeros(g.output_shape, wide.dtype)
    for tap in taps(wide, g):
        y += tap
    y /= _window_sizes(g, count_include_pad).astype(y.dtype)
    return finish(y, x.dtype, memory_format.of(x))


def avg_pool2d_grad(
    grad_output: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    kernel_size: Size2d,
    stride: Size2d | None = None,
    padding: Padding2d = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: memory_format.MemoryFormat | None = None,
) -> np.ndarray:
    op = "avg_pool2d_grad"
    check_floats(op, grad_output=grad_output)
    g = Pool2d.of(op, input_shape, kernel_size, stride, padding, 1, ceil_mode)
    check_shape(op, "grad_output", grad_output.shape, g.output_shape)
    dy = widen(grad_output)
    share = dy / _window_sizes(g, count_include_pad).astype(dy.dtype)
    whole = padded(np.zeros(g.input_shape, dy.dtype), g)
    for tap in taps(whole, g):
        tap += share
    return finish(unpadded(whole, g), grad_output.dtype, layout or memory_format.of(grad_output))


def _inside(g: Pool2d) -> list[np.ndarray]:
    """For each place of the window, which of the P x Q windows see a real pixel there: (P, Q) booleans."""
    rows = [_axis(g.P, g.stride[0], g.padding[0][0], r * g.dilation[0], g.H) for r in range(g.R)]
    cols = [_axis(g.Q, g.stride[1], g.padding[1][0], s * g.dilation[1], g.W) for s in range(g.S)]
    return [row[:, None] & col for row in rows for col in cols]


def _axis(count: int, stride: int, before: int, offset: int, size: int) -> np.ndarray:
    at = np.arange(count) * stride - before + offset
    return (at >= 0) & (at < size)


def _window_sizes(g: Pool2d, count_include_pad: bool) -> np.ndarray:
    """The divisor of each average, (P, Q)."""
    sizes = []
    for count, stride, (before, after), kernel, size in (
        (g.P, g.stride[0], g.padding[0], g.R, g.H),
        (g.Q, g.stride[1], g.padding[1], g.S, g.W),
    ):
        start = np.arange(count) * stride - before
        low, high = (-before, size + after) if count_include_pad else (0, size)
        sizes.append(np.minimum(start + kernel, high) - np.maximum(start, low))
    return np.outer(*sizes)
