"""Implicit-GEMM convolution: the three products and the fused epilogues, at the edges of tiles and geometry."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import DTYPES, LAYOUTS, kernels, rounding, values  # noqa: F401  # a fixture

from dlgpu import memory_format
from dlgpu.backends import precision, reference
from dlgpu.backends.kernels import conv_implicit, tiles
from dlgpu.backends.shapes import Conv2d

# dtype, precision, what rounding a factor loses, relatively
KINDS = {
    "float32": (np.float32, "float32", 0.0),
    "float16": (np.float16, "float32", 0.0),
    "bfloat16": (ml_dtypes.bfloat16, "float32", 0.0),
    "tf32": (np.float32, "tf32", 2.0**-11),
    "float32x3": (np.float32, "float32x3", 2.0**-22),
}


def check(got: np.ndarray, truth: np.ndarray, size: np.ndarray, terms: int, loss: float) -> None:
    """As `check_product` of test_kernels_gemm: `size` is the same op on the sizes of the factors."""
    assert got.shape == truth.shape
    bound = size * (2.1 * loss + (terms + 3) * 2.0**-23) + rounding(truth, got.dtype)
    difference = np.abs(got.astype(np.float64) - truth)
    assert (difference <= bound).all(), f"{np.nanmax(difference / np.maximum(bound, 1e-300))} times the bound"


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


# input shape, K, filter, stride, padding, dilation, groups
GEOMETRIES = [
    ((2, 8, 9, 7), 16, 3, 1, 1, 1, 1),
    ((2, 16, 9, 10), 24, (3, 2), (2, 1), ((1, 0), (0, 2)), 1, 1),
    ((1, 32, 7, 7), 64, 3, 1, 1, 1, 2),
    ((2, 8, 11, 11), 8, 3, 2, 2, 2, 1),
    ((1, 8, 12, 13), 72, 3, 3, 1, (1, 2), 1),
    ((3, 72, 4, 4), 136, 1, 1, 0, 1, 1),
    ((1, 64, 6, 6), 64, 1, 2, 0, 1, 1),  # taps that reach only one phase of the gradient
    ((1, 8, 9, 9), 8, 2, 4, 0, 1, 1),  # pixels that no tap reaches
    ((2, 3, 9, 7), 5, 3, 1, 1, 1, 1),  # element by element
    ((1, 6, 7, 7), 6, 3, 2, 1, 1, 6),
    ((1, 8, 5, 5), 8, 5, 1, 4, 1, 1),
    ((0, 8, 5, 5), 8, 3, 1, 1, 1, 1),
    ((2, 4, 9, 8), 12, 3, 1, 1, 1, 1),  # vectors of four, of channels fewer than a step of the depth
    ((1, 24, 7, 6), 36, (2, 3), 2, ((0, 1), (2, 0)), (2, 1), 3),
    ((2, 4, 3, 3), 4, 3, 1, 6, 1, 1),  # windows that see nothing but padding
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "padding", "dilation", "groups"), GEOMETRIES)
def test_the_three_products(
    kernels: Any,  # noqa: F811
    kind: str,
    layout: Any,
    shape: Any,
    out: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> None:
    dtype, chosen, loss = KINDS[kind]
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    fast: dict[str, Any] = dict(how, algorithm="implicit_gemm")
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, w = values(1, shape, dtype, layout), values(2, (out, shape[1] // groups, r, s), dtype, layout)
    b = values(3, (out,), dtype)
    y, size = (reference.conv2d(*wide(*arrays), **how) for arrays in ((x, w, b), (abs(x), abs(w), abs(b))))
    dy = values(4, y.shape, dtype, layout)
    with precision.use(chosen):
        got = kernels.conv2d(x, w, b, **fast)
        assert memory_format.of(got) == layout or not got.size  # no images, no strides
        check(got, y, size, w[0].size, loss)

        truth, size = (
            reference.conv2d_grad_input(*wide(*a), input_shape=shape, **how) for a in ((dy, w), (abs(dy), abs(w)))
        )
        check(kernels.conv2d_grad_input(dy, w, input_shape=shape, **fast), truth, size, w.size // groups, loss)

        dw, db = kernels.conv2d_grad_weight_bias(dy, x, weight_shape=w.shape, **fast)
        terms = dy.size // max(1, out)
        truth, size = (
            reference.conv2d_grad_weight(*wide(*a), weight_shape=w.shape, **how) for a in ((dy, x), (abs(dy), abs(x)))
        )
        check(dw, truth, size, terms, loss)
        check(db, *(reference.grad_bias(a.astype(np.float64)) for a in (dy, abs(dy))), terms, 0.0)
        np.testing.assert_array_equal(kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **fast), dw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "filters", "groups"), [(8, 16, 1), (3, 5, 1), (16, 32, 2)])
@pytest.mark.parametrize("size", [(6, 6), (9, 7), (13, 21)])
def test_fused_epilogues(
    kernels: Any,  # noqa: F811
    kind: str,
    channels: int,
    filters: int,
    groups: int,
    size: tuple[int, int],
) -> None:
    dtype, chosen, loss = KINDS[kind]
    x = values(1, (2, channels, *size), dtype, "channels_last")
    w = values(2, (filters, channels // groups, 3, 3), dtype)
    b, added = values(3, (filters,), dtype), values(4, (2, filters, *size), dtype)
    how: dict[str, Any] = dict(padding=1, groups=groups)
    truth = reference.conv2d(*wide(x, w, b, added), activation="relu", **how)
    sizes = reference.conv2d(*wide(abs(x), abs(w), abs(b), abs(added)), **how)
    with precision.use(chosen):
        got = kernels.conv2d(x, w, b, added, activation="relu", algorithm="implicit_gemm", **how)
        check(got, truth, sizes, w[0].size + 1, loss)
        # The pooled kernel makes the same sums, so its maxima are those of the unpooled one, to the bit.
        single = kernels.conv2d(x, w, b, activation="relu", algorithm="implicit_gemm", **how)
        expected = reference.max_pool2d(single, kernel_size=2)
        pooled = kernels.conv2d_relu_max_pool2d(x, w, b, algorithm="implicit_gemm", **how)
    for mine, theirs in zip(pooled, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert memory_format.of(mine) == "channels_last"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pooled_ties_and_nan(kernels: Any, dtype: Any) -> None:  # noqa: F811
    """The first maximum wins, the first NaN wins over everything, as in max_pool2d."""
    x = np.zeros((1, 8, 4, 6), dtype)
    x[0, 0] = [[1, 1, 2, np.nan, 0, 0], [1, 1, np.nan, 3, 0, 5], [-1, -2, 4, 4, np.inf, 1], [-3, -4, 1, 4, 1, np.inf]]
    w = np.zeros((8, 8, 1, 1), dtype)
    w[0, 0] = 1
    y, argmax = kernels.conv2d_relu_max_pool2d(x, w, algorithm="implicit_gemm")
    # Other channels of x are 0: 0 * weight 0 adds nothing, but inf * 0 and NaN * 0 would; filter 0 sees x[0, 0] only.
    expected = reference.max_pool2d(np.maximum(x[:, :1], 0), kernel_size=2)
    np.testing.assert_array_equal(y[:, :1], expected[0])
    np.testing.assert_array_equal(argmax[:, :1], expected[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_padding_is_zero_whatever_lies_beside_it(kernels: Any, dtype: Any) -> None:  # noqa: F811
    """A NaN reaches exactly the outputs whose windows hold it, also across rows and images."""
    x = np.ones((2, 8, 5, 6), dtype)
    x[0, 0, 4, 5] = np.nan  # the last pixel: in memory the next image follows
    w = np.ones((8, 8, 3, 3), dtype)
    got = np.isnan(kernels.conv2d(x, w, padding=1, algorithm="implicit_gemm"))
    expected = np.zeros_like(got)
    expected[0, :, 3:5, 4:6] = True
    np.testing.assert_array_equal(got, expected)
    dx = kernels.conv2d_grad_input(x, w, input_shape=x.shape, padding=1, algorithm="implicit_gemm")
    np.testing.assert_array_equal(np.isnan(dx), expected)


@pytest.mark.parametrize(("dtype", "name", "terms"), [(np.float32, "float", 0), (np.float16, "__half", 1)])
def test_large_tiles(
    kernels: Any,  # noqa: F811
    dtype: Any,
    name: str,
    terms: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The 128 x 128 tiles, in all three products."""
    monkeypatch.setattr(tiles.Product, "edges", lambda self: (128,))
    x, w = values(1, (9, 72, 43, 44), dtype, "channels_last"), values(2, (136, 72, 1, 1), dtype)
    g = Conv2d.of("conv2d", x.shape, w.shape, None, 1, 0, 1, 1)
    plans = [
        conv_implicit.forward_plan(g, name, terms, relu=False, pooled=False, aligned=True),
        conv_implicit.grad_input_plan(g, name, terms, aligned=True),
        conv_implicit.grad_weight_plan(g, name, terms, aligned=True)[0],
    ]
    assert all("128, 128" in plan.kernel for plan in plans)
    fast: dict[str, Any] = dict(algorithm="implicit_gemm")
    truth, size = (reference.conv2d(*wide(*a)) for a in ((x, w), (abs(x), abs(w))))
    check(kernels.conv2d(x, w, **fast), truth, size, 72, 0.0)
    dy = values(3, truth.shape, dtype, "channels_last")
    truth, size = (reference.conv2d_grad_input(*wide(*a), input_shape=x.shape) for a in ((dy, w), (abs(dy), abs(w))))
    check(kernels.conv2d_grad_input(dy, w, input_shape=x.shape, **fast), truth, size, 136, 0.0)
    dw, db = kernels.conv2d_grad_weight_bias(dy, x, weight_shape=w.shape, **fast)
    truth, size = (reference.conv2d_grad_weight(*wide(*a), weight_shape=w.shape) for a in ((dy, x), (abs(dy), abs(x))))
    check(dw, truth, size, 9 * 43 * 44, 0.0)
    check(db, *(reference.grad_bias(a.astype(np.float64)) for a in (dy, abs(dy))), 9 * 43 * 44, 0.0)


@pytest.mark.parametrize(("dtype", "name", "terms"), [(np.float32, "float", 0), (np.float16, "__half", 1)])
def test_weight_gradients_are_the_same_every_time(kernels: Any, dtype: Any, name: str, terms: int) -> None:  # noqa: F811
    x, dy = values(1, (8, 8, 20, 20), dtype), values(2, (8, 16, 20, 20), dtype)
    how: dict[str, Any] = dict(weight_shape=(16, 8, 3, 3), padding=1, algorithm="implicit_gemm")
    g = Conv2d.of("conv2d", x.shape, (16, 8, 3, 3), None, 1, 1, 1, 1)
    assert conv_implicit.grad_weight_plan(g, name, terms, aligned=True)[1] > 1  # in parts
    first = kernels.conv2d_grad_weight_bias(dy, x, **how)
    for _ in range(2):
        for mine, again in zip(first, kernels.conv2d_grad_weight_bias(dy, x, **how), strict=True):
            np.testing.assert_array_equal(mine, again)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_random_geometry(kernels: Any, dtype: Any, data: st.DataObject) -> None:  # noqa: F811
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, unit = draw(1, 2), data.draw(st.sampled_from([1, 4, 8]))
    kernel, stride, dilation = [(draw(1, top), draw(1, top)) for top in (4, 3, 2)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((draw(0, r), draw(0, r)) for r in reach)
    channels, out = groups * unit * draw(1, 3), groups * unit * draw(1, 3)
    shape = draw(1, 2), channels, draw(reach[0], reach[0] + 7), draw(reach[1], reach[1] + 7)
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x, w = values(1, shape, dtype), values(2, (out, channels // groups, *kernel), dtype)
    y, size = (reference.conv2d(*wide(*a), **how) for a in ((x, w), (abs(x), abs(w))))
    fast: dict[str, Any] = dict(how, algorithm="implicit_gemm")
    check(kernels.conv2d(x, w, **fast), y, size, w[0].size, 0.0)
    dy = values(3, y.shape, dtype)
    truth, size = (
        reference.conv2d_grad_input(*wide(*a), input_shape=shape, **how) for a in ((dy, w), (abs(dy), abs(w)))
    )
    check(kernels.conv2d_grad_input(dy, w, input_shape=shape, **fast), truth, size, w.size // groups, 0.0)
    truth, size = (
        reference.conv2d_grad_weight(*wide(*a), weight_shape=w.shape, **how) for a in ((dy, x), (abs(dy), abs(x)))
    )
    check(kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **fast), truth, size, dy.size // out, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_past_the_last_tap_is_not_read(kernels: Any, dtype: Any) -> None:  # noqa: F811
    """Steps of the depth that end past it would meet the pixels below, and 0 * inf is NaN."""
    channels = 40 if np.dtype(dtype).itemsize == 2 else 12  # more than one step, and not a whole number
    x = values(60, (1, channels, 4, 4), dtype, "channels_last")
    x[:, :, 3] = np.inf
    y = kernels.conv2d(x, values(61, (8, channels, 1, 1), dtype), algorithm="implicit_gemm")
    assert np.isfinite(y[:, :, :3]).all()
