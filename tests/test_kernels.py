"""The kernels of im2col, matrix products and pooling against the reference, on the CPU and on a GPU if there is one.

The reference itself is checked against float64 loops elsewhere. Results may differ from it by the rounding of sums in
another order: the bounds below say how much that is, and grow with the length of the sums.
"""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlgpu import backends, memory_format
from dlgpu.backends import reference
from dlgpu.errors import BackendUnavailable

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
LAYOUTS = memory_format.FORMATS


class OnDevice:
    """A kernel backend that takes and returns NumPy arrays, so that one test serves the CPU and the GPU.

    On the host launcher every call runs threads and blocks in another order: results must not depend on it.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.orders = itertools.cycle(("forward", "reverse", "random"))

    def __getattr__(self, op: str) -> Any:
        if op.startswith("_"):  # what Python and its tools ask any object for
            raise AttributeError(op)

        def call(*args: Any, **options: Any) -> Any:
            if self.backend.name == "host":
                order = next(self.orders)
                self.backend.launcher.configure(order=order, block_order=order)
            given = [*args, *options.values()]
            moved = [self._to(a) if isinstance(a, np.ndarray) else a for a in given]
            named = dict(zip(options, moved[len(args) :], strict=True))
            result = getattr(self.backend, op)(*moved[: len(args)], **named)
            for mine, theirs in zip(given, moved, strict=True):  # optimizer steps and running statistics work in place
                if isinstance(mine, np.ndarray):
                    mine[...] = self._from(theirs)
            return tuple(map(self._from, result)) if isinstance(result, tuple) else self._from(result)

        return call

    def _to(self, a: np.ndarray) -> Any:
        xp = self.backend.xp
        if a.ndim == 4 and a.size and not any(memory_format.is_stored(a, layout) for layout in LAYOUTS):
            reach = sum((size - 1) * step // a.itemsize for size, step in zip(a.shape, a.strides, strict=True))
            out = xp.lib.stride_tricks.as_strided(xp.zeros(reach + 1, a.dtype), a.shape, a.strides)  # with its gaps
        else:
            out = memory_format.empty(xp, a.shape, a.dtype, memory_format.of(a))
        out[...] = xp.asarray(a)
        return out

    def _from(self, a: Any) -> Any:
        if a is None or isinstance(a, np.ndarray):
            return a
        out = memory_format.empty(np, a.shape, a.dtype, memory_format.of(a))
        out[...] = a.get()
        return out


def rounding(truth: np.ndarray, dtype: Any) -> np.ndarray:
    """What storing `truth` as `dtype` may move it by: one place, or the step of subnormal numbers if that is more."""
    limits = ml_dtypes.finfo(dtype)
    return np.maximum(float(limits.eps) * np.abs(truth), float(limits.smallest_subnormal))


GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda:cupy", "cuda:native")]


@pytest.fixture(scope="session", params=["host", *GPU])
def kernels(request: pytest.FixtureRequest) -> Any:
    """Every way to run the kernels that this machine has."""
    try:
        return OnDevice(backends.get(request.param))
    except BackendUnavailable as error:
        pytest.skip(str(error))


def values(
    seed: int, shape: tuple[int, ...], dtype: Any, layout: memory_format.MemoryFormat = "contiguous"
) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return memory_format.convert(np, x, layout) if len(shape) == 4 else x


def check(actual: np.ndarray, expected: np.ndarray, terms: int = 1, scale: float = 1.0) -> None:
    """Equal to within the rounding of sums of `terms` products of size about `scale`, and one final rounding."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert memory_format.of(actual) == memory_format.of(expected)
    unit = float(ml_dtypes.finfo(actual.dtype).eps)
    wide, truth = actual.astype(np.float64), expected.astype(np.float64)
    # Two sums of `terms` products: each addition rounds by 2^-24 of a partial sum, at most terms * scale, and roundings
    # of random sign grow with the root of their number; four times that covers every element. Then both are stored.
    bound = 2 * terms * 2.0**-24 * scale * terms**0.5 * 4 + unit * np.abs(truth)
    wrong = ~(np.abs(wide - truth) <= bound) & ~((wide == truth) | (np.isnan(wide) & np.isnan(truth)))
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0]}"


# (input shape, kernel, stride, padding, dilation)
WINDOWS = [
    ((1, 1, 1, 1), 1, 1, 0, 1),
    ((2, 3, 7, 7), 3, 1, 1, 1),
    ((1, 2, 9, 11), (2, 3), (2, 1), ((1, 0), (0, 2)), 1),
    ((3, 5, 8, 8), 2, 2, 0, 1),
    ((2, 4, 13, 6), 3, 3, 1, 2),
    ((0, 3, 5, 5), 3, 1, 1, 1),
    ((2, 17, 5, 5), 5, 1, 2, 1),
    ((2, 16, 6, 7), 3, 2, 1, 1),  # vectors of channels
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), WINDOWS)
def test_im2col(
    kernels: Any, dtype: Any, layout: Any, shape: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    how = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    x = values(1, shape, dtype, layout)
    col = reference.im2col(x, **how)
    np.testing.assert_array_equal(kernels.im2col(x, **how), col)  # a copy: exact
    parts = values(2, col.shape, dtype)
    check(kernels.col2im(parts, input_shape=shape, **how), reference.col2im(parts, input_shape=shape, **how), 25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation"), WINDOWS)
def test_max_pool(
    kernels: Any,
    dtype: Any,
    layout: Any,
    ceil_mode: bool,
    shape: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> None:
    padding = padding if isinstance(padding, int) else ((1, 0), (0, 1))
    how = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    if kernel == 1:
        how["padding"] = 0
    x = values(3, shape, dtype, layout)
    x[..., ::2] = np.round(x[..., ::2])  # ties
    if x.size > 10:
        x.flat[7:9] = np.nan
        x[0, 0, :2] = -np.inf
    y, argmax = reference.max_pool2d(x, **how)
    got_y, got_argmax = kernels.max_pool2d(x, **how)
    np.testing.assert_array_equal(got_argmax, argmax)
    np.testing.assert_array_equal(got_y.astype(np.float32), y.astype(np.float32))
    assert memory_format.of(got_y) == memory_format.of(y)
    dy = values(4, y.shape, dtype, layout)
    expected = reference.max_pool2d_grad(dy, argmax, input_shape=shape, **how)
    check(kernels.max_pool2d_grad(dy, argmax, input_shape=shape, **how), expected, 9)


def test_pooling_of_misaligned_images(kernels: Any) -> None:
    """An image that does not begin at a multiple of 16 bytes is read element by element."""
    flat = values(6, (2 * 6 * 6 * 16 + 1,), np.float16)
    x = flat[1:].reshape(2, 6, 6, 16).transpose(0, 3, 1, 2)
    ops = kernels.backend if kernels.backend.name == "host" else kernels  # which would move the array
    for got, expected in zip(ops.max_pool2d(x, kernel_size=2), reference.max_pool2d(x, kernel_size=2), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 70, 9, 8), (1, 64, 8, 8), (3, 5, 13, 11), (2, 3, 1, 65)])
def test_layouts_are_turned_tile_by_tile(kernels: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    x = values(7, shape, dtype)
    turned = kernels.to_memory_format(x, "channels_last")
    assert memory_format.is_stored(turned, "channels_last")
    np.testing.assert_array_equal(turned, x)
    back = kernels.to_memory_format(turned, "contiguous")
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, x)


def test_max_pool_of_large_windows(kernels: Any) -> None:
    x = values(5, (1, 2, 19, 19), np.float32)
    expected = reference.max_pool2d(x, kernel_size=17, stride=1)
    got = kernels.max_pool2d(x, kernel_size=17, stride=1)
    assert got[1].dtype == np.uint16
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), [w[:4] for w in WINDOWS if w[1] != 1 and w[4] == 1])
def test_avg_pool(
    kernels: Any,
    dtype: Any,
    layout: Any,
    count_include_pad: bool,
    ceil_mode: bool,
    shape: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
) -> None:
    padding = padding if isinstance(padding, int) else ((1, 0), (0, 1))
    how = dict(
        kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad
    )
    x = values(6, shape, dtype, layout)
    y = reference.avg_pool2d(x, **how)
    check(kernels.avg_pool2d(x, **how), y, 25)
    dy = values(7, y.shape, dtype, layout)
    expected = reference.avg_pool2d_grad(dy, input_shape=shape, **how)
    check(kernels.avg_pool2d_grad(dy, input_shape=shape, **how), expected, 25)


# Around the edges of the 64 and 128 tiles, of the tile depths 8 and 16, and of the groups of four.
SIZES = [(1, 1, 1), (3, 5, 7), (63, 64, 8), (64, 65, 9), (65, 63, 16), (4, 130, 17), (127, 12, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_gemm(kernels: Any, dtype: Any, transpose_a: bool, transpose_b: bool, m: int, n: int, k: int) -> None:
    how = dict(transpose_a=transpose_a, transpose_b=transpose_b)
    a, b = values(8, (k, m) if transpose_a else (m, k), dtype), values(9, (n, k) if transpose_b else (k, n), dtype)
    check(kernels.gemm(a, b, **how), reference.gemm(a, b, **how), k)
    c = values(10, (m, n), dtype)
    how |= dict(alpha=0.5, beta=-2.0)
    check(kernels.gemm(a, b, c, **how), reference.gemm(a, b, c, **how), k, 3)


@pytest.mark.parametrize(("m", "n"), [(1408, 1500), (1409, 1537)])
def test_gemm_large_tiles(kernels: Any, m: int, n: int) -> None:
    a, b = values(11, (m, 19), np.float32), values(12, (19, n), np.float32)
    check(kernels.gemm(a, b), reference.gemm(a, b), 19)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (36, 9, 7, 10), (0, 3, 4, 5)])
def test_batched_gemm(kernels: Any, shape: tuple[int, int, int, int]) -> None:
    batch, m, n, k = shape
    a, b = values(13, (batch, m, k), np.float32), values(14, (batch, n, k), np.float32)
    got = kernels.batched_gemm(a, b, transpose_b=True)
    check(got, reference.batched_gemm(a, b, transpose_b=True), k)


def test_gemm_without_inner_size_is_zero(kernels: Any) -> None:
    a, b = np.zeros((3, 0), np.float32), np.zeros((0, 5), np.float32)
    np.testing.assert_array_equal(kernels.gemm(a, b), np.zeros((3, 5), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_gradients(kernels: Any, dtype: Any) -> None:
    x, w, b, dy = (values(i, s, dtype) for i, s in enumerate([(5, 3, 33), (18, 33), (18,), (5, 3, 18)]))
    check(kernels.linear(x, w, b), reference.linear(x, w, b), 33)
    check(kernels.linear(x, w), reference.linear(x, w), 33)
    check(kernels.linear_grad_input(dy, w), reference.linear_grad_input(dy, w), 18)
    check(kernels.linear_grad_weight(dy, x), reference.linear_grad_weight(dy, x), 15)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_random_geometry(kernels: Any, data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel, stride, dilation = (draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((draw(0, r // 2), draw(0, r // 2)) for r in reach)
    shape = (draw(1, 2), draw(1, 5), draw(reach[0], reach[0] + 6), draw(reach[1], reach[1] + 6))
    how = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    x = values(draw(0, 99), shape, np.float32, data.draw(st.sampled_from(LAYOUTS)))
    np.testing.assert_array_equal(kernels.im2col(x, **how), reference.im2col(x, **how))
    y, argmax = reference.max_pool2d(x, **how)
    np.testing.assert_array_equal(kernels.max_pool2d(x, **how)[1], argmax)
    dy = values(1, y.shape, np.float32, memory_format.of(x))
    expected = reference.max_pool2d_grad(dy, argmax, input_shape=shape, **how)
    check(kernels.max_pool2d_grad(dy, argmax, input_shape=shape, **how), expected, 16)
