"""The geometry of the ops: output sizes by counting, every spelling of a padding, every refusal in its words."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dlgpu.backends.shapes import Conv2d, Pool2d, Window2d, axes, conv_transpose, pair, sides, window_output
from dlgpu.errors import ShapeError

small = st.integers(0, 4)
positive = st.integers(1, 4)


@given(size=st.integers(1, 12), kernel=positive, stride=positive, before=small, after=small, dilation=positive,
       ceil_mode=st.booleans())  # fmt: skip
def test_output_size_counts_the_windows(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool
) -> None:
    reach = dilation * (kernel - 1) + 1
    assume(reach <= size + before + after)
    assume(not ceil_mode or 2 * max(before, after) <= reach)  # only pooling knows ceil_mode, and it limits the padding
    expected = len(naive.starts(size, kernel, stride, (before, after), dilation, ceil_mode))
    assert window_output("op", "height", size, (before, after), kernel, stride, dilation, ceil_mode) == expected


@given(size=positive, kernel=positive, stride=positive, padding=st.tuples(small, small), dilation=positive, extra=small)
def test_transposed_sizes_are_the_way_back(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, extra: int
) -> None:
    """The convolution of the transposed op's output has the size of its input."""
    assume(extra < stride)
    out = (size - 1) * stride + dilation * (kernel - 1) + 1 + extra - sum(padding)
    assume(out >= 1)
    geometry = (stride, (padding, padding))
    g = conv_transpose("op", (1, 2, size, size), (2, 3, kernel, kernel), None, *geometry, extra, dilation, 1)
    assert (1, 3, out, out) == (g.N, g.C, g.H, g.W)
    assert g.output_shape == (1, 2, size, size)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        (0, ((0, 0), (0, 0))),
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ([[1, 2], (3, 4)], ((1, 2), (3, 4))),
        (np.int64(2), ((2, 2), (2, 2))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 2), (4, 4))),  # reaches 3 and 8: the odd pixel goes behind
    ],
    ids=str,
)
def test_spellings_of_padding(padding: Any, expected: naive.Sides) -> None:
    assert sides("op", padding, (4, 5), (1, 1), (1, 2)) == expected


@pytest.mark.parametrize("padding", [-1, (1, -1), (1, 2, 3), ((1, 2), 3), ((1, 2), (3, -4)), 1.5, True, None, "full"])
def test_other_paddings_are_refused(padding: Any) -> None:
    with pytest.raises(ShapeError, match=r"^\[op\] padding"):
        sides("op", padding, (3, 3), (1, 1), (1, 1))


def test_same_needs_stride_one() -> None:
    with pytest.raises(ShapeError, match=r"^\[op\] padding='same' needs stride 1; got stride \(2, 1\)"):
        sides("op", "same", (3, 3), (2, 1), (1, 1))


@pytest.mark.parametrize("value", [0, -1, (1, 0), (1,), (1, 2, 3), 1.0, "3", True, None])
def test_pairs(value: Any) -> None:
    assert pair("op", "stride", 3, 1) == pair("op", "stride", (3, np.int32(3)), 1) == (3, 3)
    with pytest.raises(ShapeError, match=r"^\[op\] stride must be an int or a pair of ints, each >= 1; got"):
        pair("op", "stride", value, 1)


def test_axes() -> None:
    assert axes("op", (2, 3, 4), None) == (0, 1, 2)
    assert axes("op", (2, 3, 4), -1) == (2,)
    assert axes("op", (2, 3, 4), (-3, 1)) == (0, 1)
    assert axes("op", (), None) == ()


@pytest.mark.parametrize("axis", [3, -4, (0, 3), (0, -3), 1.0])
def test_other_axes_are_refused(axis: Any) -> None:
    with pytest.raises(ShapeError, match=r"^\[op\] axis must name different axes"):
        axes("op", (2, 3, 4), axis)


def test_windows_are_normalised() -> None:
    w = Window2d.make("op", (2, 3, 9, 8), 3, (2, 1), "valid", [1, 2])
    assert (w.R, w.S, w.P, w.Q) == (3, 3, 4, 4)
    assert w.input_shape == (2, 3, 9, 8)
    assert (w.stride, w.padding, w.dilation) == ((2, 1), ((0, 0), (0, 0)), (1, 2))


def test_convolutions_count_their_work() -> None:
    g = Conv2d.of("op", (2, 6, 5, 5), (4, 3, 3, 3), (4,), 2, 1, 1, 2)
    assert g.weight_shape == (4, 3, 3, 3)
    assert g.output_shape == (2, 4, 3, 3)
    assert g.macs == 2 * 4 * 3 * 3 * 3 * 3 * 3


def test_pools_step_by_their_kernel() -> None:
    assert Pool2d.of("op", (1, 2, 7, 9), (2, 3), None, 0, 1, False).output_shape == (1, 2, 3, 3)
    assert Pool2d.of("op", (1, 2, 7, 9), (2, 3), None, 0, 1, True).output_shape == (1, 2, 4, 3)


WRONG = [
    ((1, 3, 8), (4, 3, 3, 3), {}, r"input must have shape \(N, C, H, W\); got 3 axes"),
    ((1, 3, 8, 8), (4, 3, 3), {}, r"weight must have shape \(K, C, R, S\)"),
    ((1, 3, 8, 8), (4, 2, 3, 3), {}, "weight must have C/groups = 3 input channels"),
    ((1, 3, 8, 8), (4, 3, 3, 3), {"groups": 2}, "groups must divide input and output channels; got groups=2, C=3, K=4"),
    ((1, 4, 8, 8), (4, 4, 3, 3), {"groups": 0}, "groups must divide"),
    ((1, 4, 8, 8), (4, 4, 3, 3), {"groups": 1.0}, "groups must divide"),
    ((1, 3, 8, 8), (4, 3, 9, 3), {}, r"the kernel must fit into the padded input; got height: kernel 9"),
    ((1, 3, 8, 8), (4, 3, 3, 3), {"dilation": (1, 4)}, r".*width: kernel 3 \(dilation 4, reach 9\) > 8 \+ "),
    ((1, 3, 8, 8), (4, 3, 3, 3), {"bias": (3,)}, r"bias must have shape \(4,\); got \(3,\)"),
]


@pytest.mark.parametrize(("input", "weight", "changes", "words"), WRONG, ids=[w[-1][:30] for w in WRONG])
def test_convolution_refusals(input: Any, weight: Any, changes: dict[str, Any], words: str) -> None:
    options = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | changes
    with pytest.raises(ShapeError, match=rf"^\[conv2d\] {words}"):
        Conv2d.of("conv2d", input, weight, *options.values())
