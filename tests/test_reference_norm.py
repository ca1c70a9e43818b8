"""The reference's normalisations against loops over the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu import dtypes
from dlgpu.errors import ShapeError
from dlgpu.testing import assert_close

Make = Callable[..., np.ndarray]

SHAPES = [(4, 3), (2, 5, 3, 4), (1, 3, 2, 2), (3, 1, 5, 4), (2, 4, 7), (2, 2, 3, 2, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
affine = pytest.mark.parametrize("affine", ["weight and bias", "weight", "none", "float32 weight and bias"])


def parameters(make: Make, affine: str, channels: int) -> tuple[Any, Any]:
    weight, bias = (make(channels) if name in affine else None for name in ("weight", "bias"))
    if "float32" in affine and weight.dtype != dtypes.float64:
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    return weight, bias


@affine
@each_shape
def test_batch_norm_train(ops: Any, make: Make, shape: tuple[int, ...], affine: str) -> None:
    x, eps = make(*shape), 1e-3
    weight, bias = parameters(make, affine, shape[1])
    acc = dtypes.accumulator(x.dtype)
    means, variances = np.full(shape[1], 2, acc), np.full(shape[1], 3, acc)
    y, mean, rstd = ops.batch_norm_train(x, weight, bias, means, variances, momentum=0.25, eps=eps)
    assert mean.dtype == rstd.dtype == acc

    def truth(x: np.ndarray, weight: Any, bias: Any) -> tuple[np.ndarray, ...]:
        f = x.dtype.type
        y, mean, rstd, unbiased = naive.norm(x, weight, bias, groups=None, eps=eps)
        return y, mean, rstd, f(0.75) * f(2) + f(0.25) * mean, f(0.75) * f(3) + f(0.25) * unbiased

    naive.assert_matches((y, mean, rstd, means, variances), truth, x, weight, bias)


@affine
@each_shape
def test_batch_norm_infer(ops: Any, make: Make, shape: tuple[int, ...], affine: str) -> None:
    x, eps = make(*shape), 1e-3
    weight, bias = parameters(make, affine, shape[1])
    acc = dtypes.accumulator(x.dtype)
    mean, var = make(shape[1]).astype(acc), np.square(make(shape[1]).astype(acc))

    def truth(x: np.ndarray, weight: Any, bias: Any, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        y = np.empty(x.shape, x.dtype)
        for i in naive.everywhere(x.shape):
            c = i[1]
            scale = (x.dtype.type(1) if weight is None else weight[c]) / np.sqrt(var[c] + x.dtype.type(eps))
            y[i] = (x[i] - mean[c]) * scale + (x.dtype.type(0) if bias is None else bias[c])
        return y

    naive.assert_matches(ops.batch_norm_infer(x, weight, bias, mean, var, eps=eps), truth, x, weight, bias, mean, var)


@pytest.mark.parametrize("training", [True, False])
@affine
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1], ids=str)  # one sum alone may cancel to any error
def test_batch_norm_grad(ops: Any, make: Make, shape: tuple[int, ...], affine: str, training: bool) -> None:
    x, grad = make(*shape), make(*shape)
    weight, _ = parameters(make, affine, shape[1])
    acc = dtypes.accumulator(x.dtype)
    if training:
        _, mean, rstd = ops.batch_norm_train(x, weight, None, None, None)
    else:
        mean, rstd = make(shape[1]).astype(acc), np.square(make(shape[1]).astype(acc))
    grads = ops.batch_norm_grad(grad, x, weight, mean, rstd, training=training)
    assert grads[1].dtype == grads[2].dtype == (x if weight is None else weight).dtype
    options = dict(groups=None, constant=not training)
    naive.assert_matches(grads, naive.norm_grad, grad, x, weight, mean, rstd, **options)


GROUPED = [((2, 6, 3, 4), 1), ((2, 6, 3, 4), 2), ((3, 6, 2, 3), 6), ((4, 8), 2), ((1, 4, 1, 5), 4), ((2, 4, 3), 2)]


@affine
@pytest.mark.parametrize(("shape", "groups"), GROUPED, ids=str)
def test_group_norm_and_its_gradient(ops: Any, make: Make, shape: tuple[int, ...], groups: int, affine: str) -> None:
    x, grad, eps = make(*shape), make(*shape), 1e-3
    weight, bias = parameters(make, affine, shape[1])

    def truth(x: np.ndarray, weight: Any, bias: Any) -> tuple[np.ndarray, ...]:
        return naive.norm(x, weight, bias, groups=groups, eps=eps)[:3]

    y, mean, rstd = ops.group_norm(x, weight, bias, num_groups=groups, eps=eps)
    assert mean.dtype == rstd.dtype == dtypes.accumulator(x.dtype)
    naive.assert_matches((y, mean, rstd), truth, x, weight, bias)
    grads = ops.group_norm_grad(grad, x, weight, mean, rstd, num_groups=groups)
    assert grads[1].dtype == grads[2].dtype == (x if weight is None else weight).dtype
    naive.assert_matches(grads, naive.norm_grad, grad, x, weight, mean, rstd, groups=groups)


def test_a_far_mean_does_not_spoil_the_variance(ops: Any, rng: np.random.Generator) -> None:
    """E[x²] - E[x]² would lose every digit of it in float32."""
    noise = rng.standard_normal((64, 2)).astype(np.float32)
    far = noise + np.float32(4096)
    near = far - np.float32(4096)  # exact: what is left of the noise
    for op, *args in ((ops.batch_norm_train, None, None, None, None), (ops.group_norm, None, None)):
        options = dict(num_groups=1) if op.args[0] == "group_norm" else {}
        rows = (far, near) if not options else (far.T.copy(), near.T.copy())
        (y, *_), (expected, *_) = (op(x, *args, **options) for x in rows)
        # The sum of 64 rounds by at most 2**-6 (half the spacing at 64 * 4096) for each term, the mean by as much.
        assert_close(y, expected, atol=2.0**-6)


def test_running_variance_is_unbiased(ops: Any) -> None:
    """Values 0, 0, 6: mean 2, biased variance 8, unbiased 12."""
    x = np.array([[0], [0], [6]], np.float32)
    mean, var = np.zeros(1, np.float32), np.zeros(1, np.float32)
    y, batch_mean, rstd = ops.batch_norm_train(x, None, None, mean, var, momentum=0.5, eps=1.0)
    assert_close(mean, np.float32([1]))
    assert_close(var, np.float32([6]))
    assert_close(batch_mean, np.float32([2]))
    assert_close(rstd, np.float32([1 / 3]), rtol=2.0**-23)  # 1 / sqrt(8 + 1)
    assert_close(y, np.float32([[-2 / 3], [-2 / 3], [4 / 3]]), rtol=2.0**-22)


def test_one_value_per_channel_cannot_be_normalised(ops: Any) -> None:
    for shape in ((1, 3), (1, 3, 1, 1)):
        with pytest.raises(ShapeError, match=r"^\[batch_norm_train\] needs more than one value"):
            ops.batch_norm_train(np.zeros(shape, np.float32), None, None, None, None)


def test_an_empty_batch_leaves_the_running_statistics_alone(ops: Any) -> None:
    x, mean, var = np.zeros((0, 3, 2, 2), np.float32), np.ones(3, np.float32), np.ones(3, np.float32)
    y, batch_mean, rstd = ops.batch_norm_train(x, None, None, mean, var)
    assert y.shape == x.shape
    assert_close(mean, np.ones(3, np.float32))
    assert_close(var, np.ones(3, np.float32))
    for grad in ops.batch_norm_grad(y, x, None, batch_mean, rstd)[1:]:
        assert_close(grad, np.zeros(3, np.float32))


LRN = [dict(size=s, alpha=a, beta=b, k=k) for s in (1, 2, 3, 5, 9) for a, b, k in ((0.5, 0.75, 1.0), (1.0, 0.5, 2.0))]


@pytest.mark.parametrize("options", LRN, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 3, 2), (3, 1, 2, 2), (4, 5)], ids=str)
def test_local_response_norm(ops: Any, make: Make, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x = make(*shape)
    y, scale = ops.local_response_norm(x, **options)
    assert scale.dtype == dtypes.accumulator(x.dtype)
    naive.assert_matches((y, scale), naive.local_response_norm, x, **options)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_local_response_norm_grad(ops: Any, make: Make, size: int) -> None:
    """y_c = x_c * scale_c**-beta, differentiated term by term."""
    x, grad, beta, alpha = make(2, 4, 2, 3), make(2, 4, 2, 3), 0.75, 0.5
    _, scale = ops.local_response_norm(x, size=size, alpha=alpha, beta=beta)

    def truth(grad: np.ndarray, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        f = x.dtype.type
        dx = np.zeros(x.shape, x.dtype)
        for n, c, h, w in naive.everywhere(x.shape):
            dx[n, c, h, w] += grad[n, c, h, w] * scale[n, c, h, w] ** f(-beta)
            share = grad[n, c, h, w] * x[n, c, h, w] * f(-beta) * scale[n, c, h, w] ** f(-beta - 1)
            for other in range(c - size // 2, c + (size - 1) // 2 + 1):
                if 0 <= other < x.shape[1]:
                    dx[n, other, h, w] += share * f(2 * alpha / size) * x[n, other, h, w]
        return dx

    dx = ops.local_response_norm_grad(grad, x, scale, size=size, alpha=alpha, beta=beta)
    naive.assert_matches(dx, truth, grad, x, scale)


def test_local_response_norm_window(ops: Any) -> None:
    """Channel c of an even window sees one more channel before it than behind."""
    x = np.array([[1, 2, 4]], np.float32)
    _, scale = ops.local_response_norm(x, size=2, alpha=2.0, beta=1.0, k=0.0)
    assert_close(scale, np.float32([[1, 1 + 4, 4 + 16]]))


def test_nan_stays_in_its_channel(ops: Any) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x[1, 2] = np.nan
    y, mean, _ = ops.batch_norm_train(x, None, None, None, None)
    assert np.isnan(mean).tolist() == [False, False, True, False]
    assert np.isnan(y).all(axis=0).tolist() == [False, False, True, False]
