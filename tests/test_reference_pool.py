"""The reference's pooling: geometry, ties, NaN, padding, and both ways of counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu.errors import ShapeError
from dlgpu.testing import assert_close

Make = Callable[..., np.ndarray]
NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


def geometry(
    shape: tuple[int, ...],
    kernel_size: naive.Pair,
    stride: naive.Pair,
    padding: naive.Sides = NONE,
    dilation: naive.Pair = (1, 1),
    ceil_mode: bool = False,
) -> dict[str, Any]:
    return locals()


CASES = {
    "2x2": geometry((2, 3, 6, 8), (2, 2), (2, 2)),
    "overlapping": geometry((2, 3, 7, 6), (3, 3), (2, 2)),
    "overlapping in one axis": geometry((2, 2, 7, 6), (3, 2), (2, 2)),
    "padded": geometry((2, 3, 6, 7), (3, 3), (2, 2), ONE),
    "every pixel": geometry((1, 5, 5, 5), (1, 1), (1, 1)),
    "global": geometry((3, 7, 3, 5), (3, 5), (3, 5)),
    "one pixel": geometry((4, 5, 1, 1), (1, 1), (1, 1)),
    "one padded pixel": geometry((3, 5, 1, 1), (3, 3), (2, 2), ONE),
    "stride > kernel": geometry((2, 3, 8, 7), (2, 1), (3, 2)),
    "stride leaves a rest": geometry((2, 3, 7, 9), (2, 2), (2, 4)),
    "asymmetric": geometry((2, 3, 5, 6), (3, 4), (2, 1), ((1, 0), (0, 2))),
    "ceil": geometry((2, 3, 7, 6), (2, 3), (2, 2), ceil_mode=True),
    "ceil, padded": geometry((2, 3, 6, 8), (3, 3), (2, 2), ONE, ceil_mode=True),
    "ceil, window dropped": geometry((2, 3, 5, 5), (2, 2), (3, 3), ONE, ceil_mode=True),
    "ceil, stride > kernel": geometry((2, 3, 6, 8), (2, 2), (3, 5), ceil_mode=True),
    "dilated": geometry((2, 3, 7, 8), (2, 3), (2, 1), ((1, 0), (2, 1)), (3, 2)),
    "dilated, ceil": geometry((2, 3, 8, 7), (3, 2), (2, 2), ONE, (2, 2), ceil_mode=True),
    "dilated, some windows see padding only": geometry((2, 3, 1, 2), (2, 2), (1, 1), ONE, (2, 2)),
    "17x17: two-byte offsets": geometry((1, 3, 19, 18), (17, 17), (1, 1)),
    "empty batch": geometry((0, 3, 5, 5), (3, 3), (2, 2), ONE),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def split(case: dict[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    return case["shape"], {name: value for name, value in case.items() if name != "shape"}


@each_case
def test_max_pool2d(ops: Any, make: Make, case: dict[str, Any]) -> None:
    shape, options = split(case)
    x = make(*shape)
    y, argmax = ops.max_pool2d(x, **options)
    expected, offsets = naive.max_pool2d(x, **options)
    assert_close(y, expected)  # a choice, not a sum: exact
    assert_close(argmax, offsets)

    grad = make(*y.shape)
    options["input_shape"] = shape
    naive.assert_matches(ops.max_pool2d_grad(grad, argmax, **options), naive.max_pool2d_grad, grad, argmax, **options)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c["dilation"] == (1, 1)], ids=[n for n in CASES if "dilated" not in n]
)
def test_avg_pool2d(ops: Any, make: Make, case: dict[str, Any], count_include_pad: bool) -> None:
    shape, options = split(case)
    options["count_include_pad"] = count_include_pad
    del options["dilation"]
    x = make(*shape)
    y = ops.avg_pool2d(x, **options)
    naive.assert_matches(y, naive.avg_pool2d, x, **options)

    grad = make(*y.shape)
    options["input_shape"] = shape
    naive.assert_matches(ops.avg_pool2d_grad(grad, **options), naive.avg_pool2d_grad, grad, **options)


@pytest.mark.parametrize("values", [(0.0, 1.0), (-np.inf, 0.0, np.nan), (-np.inf,)], ids=str)
@each_case
def test_ties_nan_and_infinities(
    ops: Any, make: Make, rng: np.random.Generator, case: dict[str, Any], values: tuple[float, ...]
) -> None:
    """Few different values, so that nearly every window holds several of the greatest."""
    shape, options = split(case)
    x = make(*shape)
    x[...] = rng.choice(values, shape).astype(x.dtype)
    y, argmax = ops.max_pool2d(x, **options)
    expected, offsets = naive.max_pool2d(x, **options)
    assert_close(y, expected)
    assert_close(argmax, offsets)


def image(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)[None, None]


def test_worked_example(ops: Any) -> None:
    y, argmax = ops.max_pool2d(image([1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]), kernel_size=2)
    assert_close(y, image([2, 3], [3, 2]))
    assert argmax[0, 0].tolist() == [[3, 3], [2, 1]]


nan, inf = np.nan, np.inf


@pytest.mark.parametrize(
    ("row", "expected", "offset"),
    [
        ([5, 5, 5], 5, 0),  # the first of equal values
        ([1, 7, 7], 7, 1),
        ([nan, 9, 9], nan, 0),  # NaN first
        ([9, 9, nan], nan, 2),  # NaN last
        ([1, nan, nan], nan, 1),  # the first of several
        ([inf, nan, inf], nan, 1),  # NaN wins over infinity
        ([-inf, -inf, -inf], -inf, 0),
        ([-inf, -inf, -3], -3, 2),
        ([-0.0, 0.0, 0.0], 0, 0),  # equal, whatever the sign
    ],
    ids=str,
)
def test_which_element_wins(ops: Any, row: list[float], expected: float, offset: int) -> None:
    y, argmax = ops.max_pool2d(image(row), kernel_size=(1, 3))
    assert_close(y, image([expected]))
    assert argmax.item() == offset


def test_padding_never_wins(ops: Any) -> None:
    """A real -inf counts before the padding in front of it, in the value and in the place."""
    y, argmax = ops.max_pool2d(image([-inf, -1]), kernel_size=(1, 2), stride=(1, 1), padding=(0, 1))
    assert_close(y, image([-inf, -1, -1]))
    assert argmax[0, 0].tolist() == [[1, 1, 0]]


def test_windows_that_see_padding_only(ops: Any) -> None:
    """Possible with holes in the kernel: -inf and offset 0, and the gradient goes nowhere."""
    options = dict(kernel_size=(1, 2), stride=(1, 1), padding=(0, 1), dilation=(1, 2))
    y, argmax = ops.max_pool2d(image([7]), **options)  # the one window sees the borders left and right of the pixel
    assert_close(y, image([-inf]))
    assert argmax.item() == 0
    assert_close(ops.max_pool2d_grad(image([3]), argmax, input_shape=(1, 1, 1, 1), **options), image([0]))


@pytest.mark.parametrize(
    ("kernel", "expected"), [((16, 16), np.uint8), ((1, 256), np.uint8), ((1, 257), np.uint16), ((17, 16), np.uint16)]
)
def test_offsets_take_as_few_bytes_as_they_can(ops: Any, kernel: naive.Pair, expected: type) -> None:
    x = np.zeros((1, 1, *kernel), np.float32)
    x[0, 0, -1, -1] = 1
    _, argmax = ops.max_pool2d(x, kernel_size=kernel)
    assert argmax.dtype == expected
    assert argmax.item() == kernel[0] * kernel[1] - 1


def test_gradients_of_overlapping_windows_add(ops: Any) -> None:
    options = dict(kernel_size=(1, 2), stride=(1, 1))
    _, argmax = ops.max_pool2d(image([1, 5, 2]), **options)
    dx = ops.max_pool2d_grad(image([10, 20]), argmax, input_shape=(1, 1, 1, 3), **options)
    assert_close(dx, image([0, 30, 0]))


def test_an_infinite_gradient_stays_in_its_place(ops: Any) -> None:
    """0 * inf would put NaN beside it."""
    options = dict(kernel_size=(1, 2), stride=(1, 1))
    _, argmax = ops.max_pool2d(image([1, 5, 2]), **options)
    dx = ops.max_pool2d_grad(image([inf, 1]), argmax, input_shape=(1, 1, 1, 3), **options)
    assert_close(dx, image([0, inf, 0]))


@pytest.mark.parametrize(
    ("count_include_pad", "expected"), [(True, [0.5, 2.5, 2.5]), (False, [1, 2.5, 5])], ids=["with", "without"]
)
def test_what_the_divisor_counts(ops: Any, count_include_pad: bool, expected: list[float]) -> None:
    """[0 1 2 3 | 5 0] in windows of 2: the zeros are padding. Padding counts or not; what sticks out never does."""
    x = image([1, 2, 3, 5])
    y = ops.avg_pool2d(x, kernel_size=(1, 2), padding=((0, 0), (1, 1)), count_include_pad=count_include_pad)
    assert_close(y, image(expected))


def test_ceil_mode_does_not_count_what_sticks_out(ops: Any) -> None:
    y = ops.avg_pool2d(image([1, 2, 3, 4, 6]), kernel_size=(1, 2), ceil_mode=True)
    assert_close(y, image([1.5, 3.5, 6]))


@pytest.mark.parametrize("padding", [2, (0, 2), ((0, 2), (0, 0))], ids=str)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_padding_beyond_half_the_kernel_is_refused(ops: Any, op: str, padding: Any) -> None:
    with pytest.raises(ShapeError, match=rf"^\[{op}\] padding must be at most half"):
        getattr(ops, op)(np.zeros((1, 1, 5, 5), np.float32), kernel_size=3, padding=padding)
