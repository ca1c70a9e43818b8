"""The reference's matrix products, casts, layouts and reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu import dtypes, memory_format
from dlgpu.backends import reference
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.testing import assert_close

Make = Callable[..., np.ndarray]

matrices = pytest.mark.parametrize("layout", ["contiguous"])  # only images have another

# (M, N, K): ones, primes, long sums, and nothing at all
SIZES = [(1, 13, 1), (17, 1, 5), (2, 7, 4), (5, 7, 11), (3, 4, 65), (0, 3, 4), (3, 0, 4), (3, 4, 0)]


@matrices
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, None), (1.0, 1.0), (-0.5, 2.0)])
def test_gemm(
    ops: Any, make: Make, sizes: tuple[int, ...], transpose_a: bool, transpose_b: bool, alpha: float, beta: float | None
) -> None:
    M, N, K = sizes
    a, b = make(*(K, M) if transpose_a else (M, K)), make(*(N, K) if transpose_b else (K, N))
    c = None if beta is None else make(M, N)
    options = dict(alpha=alpha, beta=beta or 0.0, transpose_a=transpose_a, transpose_b=transpose_b)
    naive.assert_matches(ops.gemm(a, b, c, **options), naive.gemm, a, b, c, **options)


@matrices
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_batched_gemm_is_gemm_for_each_matrix(ops: Any, make: Make, batch: int, transposed: bool) -> None:
    a, b = make(batch, *(5, 3) if transposed else (3, 5)), make(batch, *(4, 5) if transposed else (5, 4))
    c = make(batch, 3, 4)
    options = dict(alpha=0.5, beta=-1.0, transpose_a=transposed, transpose_b=transposed)
    y = ops.batched_gemm(a, b, c, **options)
    assert y.shape == (batch, 3, 4)
    for matrices in zip(y, a, b, c, strict=True):
        naive.assert_matches(matrices[0], naive.gemm, *matrices[1:], **options)


@matrices
@pytest.mark.parametrize("leading", [(6,), (2, 5), (2, 1, 1, 3), (0,)], ids=str)
def test_linear_and_its_gradients(ops: Any, make: Make, leading: tuple[int, ...]) -> None:
    x, weight, bias, grad = make(*leading, 5), make(7, 5), make(7), make(*leading, 7)
    rows, grad_rows = x.reshape(-1, 5), grad.reshape(-1, 7)

    def truth(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        c = np.stack([bias] * len(x)) if len(x) else np.zeros((0, len(bias)), x.dtype)
        return naive.gemm(x, weight, c, transpose_b=True)

    y = ops.linear(x, weight, bias)
    assert y.shape == (*leading, 7)
    naive.assert_matches(y.reshape(-1, 7), truth, rows, weight, bias)

    dx = ops.linear_grad_input(grad, weight)
    assert dx.shape == x.shape
    naive.assert_matches(dx.reshape(-1, 5), naive.gemm, grad_rows, weight)
    naive.assert_matches(ops.linear_grad_weight(grad, x), naive.gemm, grad_rows, rows, transpose_a=True)


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 7, 4, 5), 1), ((6, 7), -1), ((6, 7), 1), ((2, 3, 5), -1), ((0, 3, 2, 2), 1)], ids=str
)
def test_grad_bias(ops: Any, make: Make, shape: tuple[int, ...], axis: int) -> None:
    grad = make(*shape)
    naive.assert_matches(ops.grad_bias(grad, axis=axis), naive.grad_bias, grad, axis=axis)


# --- casts, layouts, reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4, 5), (2, 1, 4, 5), (0, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("target", dtypes.FLOATS.values(), ids=str)
def test_cast_rounds_to_nearest(ops: Any, make: Make, shape: tuple[int, ...], target: np.dtype) -> None:
    x = make(*shape)
    y = ops.cast(x, dtype=target)
    assert y.shape == shape
    assert y.dtype == target
    # The nearest value is at most half a unit in the last place away; a cast to a wider type is exact.
    unit = dtypes_eps(target) / 2
    exact = dtypes_eps(target) <= dtypes_eps(x.dtype) and (x.dtype, target) != (dtypes.bfloat16, dtypes.float16)
    assert_close(y.astype(np.float64), x.astype(np.float64), rtol=0 if exact else unit)


def dtypes_eps(dtype: np.dtype) -> float:
    """The spacing of the numbers just above 1."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[str(dtype)]


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (1 + 2.0**-11, "float16", 1.0),  # halfway: to the even neighbour below
        (1 + 3 * 2.0**-11, "float16", 1 + 2.0**-9),  # halfway: to the even neighbour above
        (1 + 2.0**-8, "bfloat16", 1.0),
        (1 + 3 * 2.0**-8, "bfloat16", 1 + 2.0**-6),
        (65504.0, "float16", 65504.0),
        (1e5, "float16", np.inf),  # beyond the greatest float16
        (2.0**-24, "float16", 2.0**-24),  # the least subnormal
        (-0.0, "bfloat16", -0.0),
        (np.nan, "bfloat16", np.nan),
        (-np.inf, "float16", -np.inf),
    ],
)
def test_cast_to_half_precision(ops: Any, value: float, target: str, expected: float) -> None:
    y = ops.cast(np.array([value], np.float32), dtype=target).astype(np.float64)
    assert_close(y, np.array([expected]))
    assert np.signbit(y[0]) == np.signbit(expected)


@pytest.mark.parametrize("source", memory_format.FORMATS)
def test_to_memory_format(dtype: np.dtype, layout: str, source: Any, rng: np.random.Generator) -> None:
    x = memory_format.convert(np, rng.standard_normal((2, 3, 4, 5)).astype(dtype), source)
    y = reference.to_memory_format(x, layout)
    assert memory_format.of(y) == layout
    assert_close(y, x)
    assert (y is x) == (source == layout)  # as documented: nothing is copied without need


@pytest.mark.parametrize("kind", ["sum", "mean", "max"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (1,), (0, 2), (2, 3), (0, 2, 3), (-1, 0)], ids=str)
def test_reduce(ops: Any, make: Make, kind: str, axis: Any, keepdims: bool) -> None:
    x = make(2, 3, 5, 4)
    x += x.dtype.type(1)  # sums that do not cancel

    def reduced(x: np.ndarray) -> np.ndarray:
        axes = range(x.ndim) if axis is None else [i % x.ndim for i in np.atleast_1d(axis)]
        sets: dict[tuple[int, ...], list[Any]] = {}
        for index in naive.everywhere(x.shape):
            sets.setdefault(tuple(0 if i in axes else at for i, at in enumerate(index)), []).append(x[index])
        out = np.empty([1 if i in axes else size for i, size in enumerate(x.shape)], x.dtype)
        for key, values in sets.items():
            count = x.dtype.type(len(values) if kind == "mean" else 1)
            out[key] = max(values) if kind == "max" else sum(values) / count
        return out if keepdims else out.reshape([size for i, size in enumerate(x.shape) if i not in axes])

    naive.assert_matches(ops.reduce(x, kind=kind, axis=axis, keepdims=keepdims), reduced, x)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_long_sums_of_halves_are_kept_wide(ops: Any, name: str, axis: int) -> None:
    """In its own dtype the sum of ones would stop growing at 2048 (float16) or 256 (bfloat16)."""
    shape = (5000, 2) if axis == 0 else (2, 5000)
    ones = np.ones(shape, dtypes.FLOATS[name])
    exact = np.full(2, 5000.0)
    rounded = exact.astype(ones.dtype)
    assert_close(ops.reduce(ones, kind="sum", axis=axis), rounded)
    assert_close(ops.grad_bias(ones, axis=1 - axis), rounded)
    column = ones if axis == 0 else ones.T
    assert_close(ops.gemm(column, column, transpose_a=True), np.full((2, 2), 5000.0).astype(ones.dtype))


def test_nan_wins_every_reduction(ops: Any) -> None:
    x = np.array([[1, np.nan], [3, 2]], np.float32)
    for kind in ("sum", "mean", "max"):
        assert_close(np.isnan(ops.reduce(x, kind=kind, axis=1)), np.array([True, False]), what=kind)


@pytest.mark.parametrize("options", [dict(axis=4), dict(axis=(0, 0)), dict(axis=-5)], ids=str)
def test_reduce_refuses_wrong_axes(ops: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=r"^\[reduce\] "):
        ops.reduce(np.zeros((2, 3, 4, 5), np.float32), kind="sum", **options)


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_reduce_of_nothing_is_refused(ops: Any, kind: str) -> None:
    with pytest.raises(ShapeError, match=r"^\[reduce\] "):
        ops.reduce(np.zeros((0, 3), np.float32), kind=kind, axis=0)
    assert_close(ops.reduce(np.zeros((0, 3), np.float32), kind="sum", axis=0), np.zeros(3, np.float32))


def test_unknown_names_get_a_suggestion(ops: Any) -> None:
    x = np.zeros((2, 2), np.float32)
    with pytest.raises(UnknownName, match="Did you mean 'mean'"):
        ops.reduce(x, kind="meen")
    with pytest.raises(UnknownName, match="Did you mean 'channels_last'"):
        ops.to_memory_format(x, format="channel_last")
    with pytest.raises(UnknownName, match="Did you mean 'float16'"):
        ops.cast(x, dtype="flaot16")
