"""The reference's convolutions and im2col against loops over the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu.backends import reference
from dlgpu.testing import assert_close

Make = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Case:
    """One geometry; padding is ((top, bottom), (left, right))."""

    N: int = 2
    C: int = 3
    H: int = 5
    W: int = 7
    K: int = 4
    R: int = 3
    S: int = 3
    stride: naive.Pair = (1, 1)
    padding: naive.Sides = ((0, 0), (0, 0))
    dilation: naive.Pair = (1, 1)
    groups: int = 1

    @property
    def window(self) -> dict[str, Any]:
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation)

    @property
    def options(self) -> dict[str, Any]:
        return self.window | {"groups": self.groups}

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.N, self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.K, self.C // self.groups, self.R, self.S

    @property
    def output_shape(self) -> tuple[int, ...]:
        axes = zip((self.H, self.W), (self.R, self.S), self.stride, self.padding, self.dilation, strict=True)
        return self.N, self.K, *(len(naive.starts(*axis)) for axis in axes)


ONE, TWO = ((1, 1), (1, 1)), ((2, 2), (2, 2))
CASES = {
    "plain": Case(),
    "same": Case(padding=ONE),
    "pointwise": Case(R=1, S=1),
    "one pixel": Case(H=1, W=1, K=7, padding=ONE),
    "one of everything": Case(N=1, C=1, H=7, W=7, K=1, padding=ONE),
    "kernel fills the image": Case(H=3, W=4, R=3, S=4, K=13),
    "row": Case(H=1, W=11, R=1, S=5, padding=((0, 0), (2, 2))),
    "even kernel": Case(R=2, S=4, padding=((1, 0), (2, 1))),
    "asymmetric": Case(padding=((2, 0), (0, 3))),
    "strided": Case(H=7, W=8, stride=(2, 3), padding=((1, 0), (0, 2))),
    "stride > kernel": Case(H=8, W=7, R=2, S=1, stride=(3, 2)),
    "stride leaves a rest": Case(H=8, W=9, stride=(3, 4), padding=ONE),
    "dilated": Case(H=7, W=9, dilation=(2, 3), padding=TWO),
    "dilated, strided": Case(H=9, W=8, S=2, dilation=(3, 2), stride=(2, 2), padding=((0, 1), (2, 0))),
    "groups": Case(C=6, K=4, groups=2, padding=ONE),
    "depthwise": Case(C=5, K=5, groups=5, padding=ONE),
    "depthwise x2": Case(C=3, K=6, groups=3, stride=(2, 1), padding=((0, 1), (1, 1))),
    "padding > kernel": Case(H=2, W=3, R=2, S=2, padding=((3, 2), (2, 3))),
    "primes": Case(N=3, C=2, H=11, W=7, K=3, R=5, S=3, stride=(2, 1), padding=TWO),
    "empty batch": Case(N=0, padding=ONE),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_conv2d(ops: Any, make: Make, case: Case) -> None:
    x, weight, bias = make(*case.input_shape), make(*case.weight_shape), make(case.K)
    y = ops.conv2d(x, weight, bias, **case.options)
    assert y.shape == case.output_shape
    naive.assert_matches(y, naive.conv2d, x, weight, bias, **case.options)


@each_case
def test_conv2d_grad_input(ops: Any, make: Make, case: Case) -> None:
    grad, weight = make(*case.output_shape), make(*case.weight_shape)
    options = case.options | {"input_shape": case.input_shape}
    dx = ops.conv2d_grad_input(grad, weight, **options)
    naive.assert_matches(dx, naive.conv2d_grad_input, grad, weight, **options)


@each_case
def test_conv2d_grad_weight(ops: Any, make: Make, case: Case) -> None:
    grad, x = make(*case.output_shape), make(*case.input_shape)
    options = case.options | {"weight_shape": case.weight_shape}
    dw = ops.conv2d_grad_weight(grad, x, **options)
    naive.assert_matches(dw, naive.conv2d_grad_weight, grad, x, **options)


@each_case
def test_im2col_and_col2im(ops: Any, make: Make, case: Case) -> None:
    options = case.window | {"kernel_size": (case.R, case.S)}
    x = make(*case.input_shape)
    columns = ops.im2col(x, **options)
    assert_close(columns, naive.im2col(x, **options))  # copies: not a bit may change

    grad = make(*columns.shape)
    options["input_shape"] = case.input_shape
    naive.assert_matches(ops.col2im(grad, **options), naive.col2im, grad, **options)


TRANSPOSED = {
    "plain": (Case(C=3, K=4), (0, 0)),
    "up 2": (Case(C=4, K=3, H=3, W=4, R=2, S=2, stride=(2, 2)), (0, 0)),
    "up 2, sizes restored": (Case(C=2, K=3, H=3, W=4, stride=(2, 2), padding=ONE), (1, 1)),
    "output padding on one side": (Case(H=2, W=3, stride=(3, 2), padding=((0, 1), (1, 0))), (2, 0)),
    "stride > kernel": (Case(H=3, W=2, R=1, S=2, stride=(3, 4)), (1, 3)),
    "dilated": (Case(H=3, W=4, dilation=(2, 3), padding=((1, 2), (0, 1))), (0, 0)),
    "groups": (Case(C=4, K=6, groups=2, stride=(2, 1), padding=ONE), (1, 0)),
    "one pixel": (Case(C=5, K=2, H=1, W=1, R=4, S=4), (0, 0)),
    "empty batch": (Case(N=0, stride=(2, 2)), (1, 1)),
}


@pytest.mark.parametrize(("case", "output_padding"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_conv_transpose2d(ops: Any, make: Make, case: Case, output_padding: naive.Pair) -> None:
    x, weight, bias = make(*case.input_shape), make(case.C, case.K // case.groups, case.R, case.S), make(case.K)
    options = case.options | {"output_padding": output_padding}
    y = ops.conv_transpose2d(x, weight, bias, **options)
    naive.assert_matches(y, naive.conv_transpose2d, x, weight, bias, **options)


def test_conv_transpose2d_is_the_adjoint_of_conv2d(rng: np.random.Generator) -> None:
    """<conv(x), y> = <x, transposed(y)>: the definition of the word, tied to no loop of ours."""
    options = dict(stride=(2, 3), padding=((1, 0), (2, 1)), dilation=(2, 1), groups=2)
    x, weight = rng.standard_normal((2, 4, 9, 8)), rng.standard_normal((6, 2, 3, 3))
    forward = reference.conv2d(x, weight, **options)
    y = rng.standard_normal(forward.shape)
    # What the strides leave over at the end of each axis comes back as output padding.
    back = reference.conv_transpose2d(y, weight, output_padding=((9 + 1 - 5) % 2, (8 + 3 - 3) % 3), **options)
    assert back.shape == x.shape
    products = np.vdot(forward, y), np.vdot(x, back)
    # Two sums of the same products in another order: at most one rounding unit of the absolute sum for each term.
    terms = forward.size * 18
    bound = terms * np.finfo(float).eps * np.vdot(np.abs(forward), np.abs(y))
    assert abs(products[0] - products[1]) <= bound


# --- the worked examples of the source documents -------------------------------------------------------------------

IMAGE = [[1, 1, 2, 0], [0, 2, 1, 3], [2, 0, 1, 2], [3, 2, 0, 1]]
FILTER = [[2, 0, 1], [0, 2, 1], [1, 0, 1]]


def as_image(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.float32)[None, None]


@pytest.mark.parametrize(("bias", "expected"), [(None, [[12, 9], [5, 14]]), (3, [[15, 12], [8, 17]])])
def test_worked_convolution(ops: Any, bias: int | None, expected: list[list[int]]) -> None:
    b = None if bias is None else np.array([bias], np.float32)
    assert_close(ops.conv2d(as_image(IMAGE), as_image(FILTER), b), as_image(expected))


@pytest.mark.parametrize("images", [1, 10])
def test_worked_im2col(ops: Any, rng: np.random.Generator, images: int) -> None:
    x = rng.standard_normal((images, 3, 7, 7)).astype(np.float32)
    columns = ops.im2col(x, kernel_size=5)
    assert columns.shape == (9 * images, 75)
    assert_close(columns[4], x[0, :, 1:6, 1:6].reshape(-1))  # the middle window of the first image


@pytest.mark.parametrize(
    ("image", "kernel", "padding", "stride", "expected"),
    [((4, 4), 3, 1, 1, (4, 4)), ((7, 7), 3, 0, 2, (3, 3)), ((28, 31), 5, 2, 3, (10, 11))],
)
def test_worked_output_sizes(
    ops: Any, image: naive.Pair, kernel: int, padding: int, stride: int, expected: naive.Pair
) -> None:
    x, weight = np.zeros((1, 1, *image), np.float32), np.zeros((1, 1, kernel, kernel), np.float32)
    assert ops.conv2d(x, weight, padding=padding, stride=stride).shape == (1, 1, *expected)


def test_same_padding_puts_the_odd_pixel_behind(ops: Any) -> None:
    """As PyTorch: an even kernel with "same" pads one more at the bottom and right."""
    weight = np.zeros((1, 1, 2, 2), np.float32)
    weight[0, 0, 1, 1] = 1  # y[p, q] = x[p + 1, q + 1], zero beyond the end
    y = ops.conv2d(as_image([[1, 2], [3, 4]]), weight, padding="same")
    assert_close(y, as_image([[4, 0], [0, 0]]))


def test_nan_reaches_only_the_windows_that_see_it(ops: Any) -> None:
    x, weight = np.zeros((1, 1, 4, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)
    x[0, 0, 0, 0] = np.nan
    expected = np.zeros((1, 1, 3, 3), np.float32)
    expected[0, 0, 0, 0] = np.nan
    assert_close(ops.conv2d(x, weight), expected)
