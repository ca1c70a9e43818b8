"""Direct convolution: first layers, depthwise layers, and any groups, against the reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import DTYPES, LAYOUTS, kernels, values  # noqa: F401  # a fixture
from test_kernels_conv_implicit import check, wide

from dlgpu import memory_format
from dlgpu.backends import reference
from dlgpu.backends.kernels import conv_direct
from dlgpu.backends.kernels.recorder import Recorder
from dlgpu.backends.shapes import Conv2d

# input shape, K, filter, stride, padding, dilation, groups
GEOMETRIES = [
    ((2, 1, 9, 8), 6, 5, 1, 2, 1, 1),  # LeNet's first layer
    ((2, 3, 11, 13), 32, 3, 1, 1, 1, 1),  # VGG's
    ((1, 3, 17, 15), 7, 7, 2, 3, 1, 1),  # ResNet's, K not a multiple of 4
    ((1, 3, 23, 27), 9, 11, 4, ((2, 1), (2, 1)), 1, 1),  # AlexNet's
    ((2, 8, 7, 9), 8, 3, 1, 1, 1, 8),  # depthwise
    ((2, 7, 8, 9), 7, 3, 2, 1, 1, 7),
    ((1, 33, 6, 6), 33, 5, 1, 4, 2, 33),
    ((1, 6, 9, 7), 12, 3, 1, 1, 1, 6),  # two filters a channel
    ((1, 6, 9, 7), 24, 3, (1, 3), (0, 2), (2, 1), 6),  # four
    ((2, 8, 5, 5), 12, (2, 3), 1, 1, 1, 4),
    ((2, 6, 5, 5), 4, 1, 1, 0, 1, 2),
    ((0, 3, 5, 5), 8, 3, 1, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "padding", "dilation", "groups"), GEOMETRIES)
def test_the_three_products(
    kernels: Any,  # noqa: F811
    dtype: Any,
    layout: Any,
    shape: Any,
    out: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> None:
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    fast: dict[str, Any] = dict(how, algorithm="direct")
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, w = values(1, shape, dtype, layout), values(2, (out, shape[1] // groups, r, s), dtype, layout)
    b = values(3, (out,), dtype)
    y, size = (reference.conv2d(*wide(*a), **how) for a in ((x, w, b), (abs(x), abs(w), abs(b))))
    got = kernels.conv2d(x, w, b, **fast)
    check(got, y, size, w[0].size, 0.0)
    assert memory_format.of(got) == layout or not got.size

    dy, added = values(4, y.shape, dtype, layout), values(5, y.shape, dtype, layout)
    truth = reference.conv2d(*wide(x, w, b, added), activation="relu", **how)
    check(kernels.conv2d(x, w, b, added, activation="relu", **fast), truth, size + abs(added), w[0].size + 1, 0.0)

    truth, size = (
        reference.conv2d_grad_input(*wide(*a), input_shape=shape, **how) for a in ((dy, w), (abs(dy), abs(w)))
    )
    check(kernels.conv2d_grad_input(dy, w, input_shape=shape, **fast), truth, size, w.size // groups, 0.0)

    dw, db = kernels.conv2d_grad_weight_bias(dy, x, weight_shape=w.shape, **fast)
    truth, size = (
        reference.conv2d_grad_weight(*wide(*a), weight_shape=w.shape, **how) for a in ((dy, x), (abs(dy), abs(x)))
    )
    terms = dy.size // out
    check(dw, truth, size, terms, 0.0)
    check(db, *(reference.grad_bias(a.astype(np.float64)) for a in (dy, abs(dy))), terms, 0.0)
    again = kernels.conv2d_grad_weight_bias(dy, x, weight_shape=w.shape, **fast)
    np.testing.assert_array_equal(again[0], dw)
    np.testing.assert_array_equal(again[1], db)


def test_nan_stays_in_its_window_and_channel(kernels: Any) -> None:  # noqa: F811
    x = np.ones((2, 4, 5, 6), np.float32)
    x[0, 1, 4, 5] = np.nan
    got = np.isnan(kernels.conv2d(x, np.ones((4, 1, 3, 3), np.float32), padding=1, groups=4, algorithm="direct"))
    expected = np.zeros_like(got)
    expected[0, 1, 3:5, 4:6] = True
    np.testing.assert_array_equal(got, expected)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_random_geometry(kernels: Any, data: st.DataObject) -> None:  # noqa: F811
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = draw(1, 5)
    kernel, stride, dilation = [(draw(1, top), draw(1, top)) for top in (4, 3, 2)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple((draw(0, r), draw(0, r)) for r in reach)
    channels, out = groups * draw(1, 3), groups * draw(1, 5)
    shape = draw(1, 2), channels, draw(reach[0], reach[0] + 7), draw(reach[1], reach[1] + 7)
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x, w = values(1, shape, np.float32), values(2, (out, channels // groups, *kernel), np.float32)
    y, size = (reference.conv2d(*wide(*a), **how) for a in ((x, w), (abs(x), abs(w))))
    fast: dict[str, Any] = dict(how, algorithm="direct")
    check(kernels.conv2d(x, w, **fast), y, size, w[0].size, 0.0)
    dy = values(3, y.shape, np.float32)
    truth, size = (
        reference.conv2d_grad_input(*wide(*a), input_shape=shape, **how) for a in ((dy, w), (abs(dy), abs(w)))
    )
    check(kernels.conv2d_grad_input(dy, w, input_shape=shape, **fast), truth, size, w.size // groups, 0.0)


# --- plans --------------------------------------------------------------------------------------------------------


def geometry(channels: int, filters: int, groups: int) -> Conv2d:
    return Conv2d.of("conv2d", (2, channels, 9, 9), (filters, channels // groups, 3, 3), None, 1, 1, 1, groups)


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "sees"),
    [(3, 7, 1, "same"), (8, 8, 8, "own"), (4, 16, 4, "same"), (4, 8, 4, "any"), (6, 4, 2, "any"), (1, 1, 1, "own")],
)
def test_how_a_thread_sees_the_input(channels: int, filters: int, groups: int, sees: str) -> None:
    plan = conv_direct.forward_plan(geometry(channels, filters, groups), "float", relu=False)
    assert plan.kernel == f"dl::direct<float, dl::Sees::{sees}>"


def test_weight_gradients_are_split_into_whole_rows() -> None:
    plan, splits = conv_direct.grad_weight_plan(geometry(3, 8, 1), "float")
    assert plan.grid == (1, 18, 1)  # 216 weights, and there are 18 rows
    assert splits == 18


@pytest.mark.parametrize(
    ("op", "shape", "weight", "groups", "kernel"),
    [
        ("conv2d", (8, 3, 9, 9), (64, 3, 3, 3), 1, "direct<__half"),
        ("conv2d", (8, 32, 9, 9), (32, 1, 3, 3), 32, "direct<__half"),
        ("conv2d", (8, 32, 9, 9), (64, 32, 3, 3), 1, "conv2d_tc"),
        ("conv2d_grad_input", (8, 3, 9, 9), (64, 3, 3, 3), 1, "conv2d_grad_input_tc"),
        ("conv2d_grad_input", (8, 32, 9, 9), (32, 1, 3, 3), 32, "direct_grad_input"),
        ("conv2d_grad_weight", (8, 3, 9, 9), (64, 3, 3, 3), 1, "direct_grad_weight"),
    ],
)
def test_auto_takes_it_where_a_product_has_little_to_reuse(
    op: str, shape: Any, weight: Any, groups: int, kernel: str
) -> None:
    ops = Recorder()
    x, w = ops.xp.empty(shape, np.float16), ops.xp.empty(weight, np.float16)
    y = ops.xp.empty((shape[0], weight[0], *shape[2:]), np.float16)
    how: dict[str, Any] = dict(padding=1, groups=groups)
    if op == "conv2d":
        ops.conv2d(x, w, **how)
    elif op == "conv2d_grad_input":
        ops.conv2d_grad_input(y, w, input_shape=shape, **how)
    else:
        ops.conv2d_grad_weight(y, x, weight_shape=weight, **how)
    assert any(kernel in plan.kernel for plan in ops.plans)
