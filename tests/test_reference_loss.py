"""The reference's activations, softmax, cross-entropy and dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu import dtypes, memory_format
from dlgpu.backends.contract import SAVES_INPUT, SAVES_OUTPUT
from dlgpu.backends.reference.dropout import philox4x32, philox_uniform
from dlgpu.errors import DtypeError, ShapeError, UnknownName
from dlgpu.testing import assert_as_accurate, assert_close

Make = Callable[..., np.ndarray]

KINDS = SAVES_OUTPUT + SAVES_INPUT
ALPHAS = {"leaky_relu": 0.25, "elu": 1.5}


def unit(dtype: np.dtype) -> float:
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[str(dtype)]


def spread(make: Make, *shape: int) -> np.ndarray:
    """Numbers on both sides of every kink (0 and 6), with the kinks themselves."""
    x = make(*shape)
    x *= x.dtype.type(3)
    x.reshape(-1)[:4] = [0, 6, -1, 7]
    return x


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (2, 1, 3, 3), (0, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activation(ops: Any, make: Make, kind: str, shape: tuple[int, ...]) -> None:
    x = spread(make, *shape) if math.prod(shape) else make(*shape)
    options = dict(kind=kind, alpha=ALPHAS.get(kind, 0.01))
    y, exact = ops.activation(x, **options), naive.activation(x, **options)
    assert y.dtype == x.dtype
    # Half a dozen roundings of values no greater than the greatest one, in acc, and the rounding to the dtype.
    acc = 6 * unit(dtypes.accumulator(x.dtype))
    scale = float(np.abs(exact).max()) if exact.size else 0
    assert_close(y.astype(np.float64), exact, rtol=unit(x.dtype) / 2, atol=acc * scale)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (0, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_activation_grad(ops: Any, make: Make, kind: str, shape: tuple[int, ...]) -> None:
    """From the rounded output, where that is what is saved: then the slope is known to that rounding only."""
    x = spread(make, *shape) if math.prod(shape) else make(*shape)
    grad, options = make(*shape), dict(kind=kind, alpha=ALPHAS.get(kind, 0.01))
    saved = x if kind in SAVES_INPUT else ops.activation(x, **options)
    dx = ops.activation_grad(grad, saved, **options)
    exact = grad.astype(np.float64) * naive.slope(x, **options)
    # |d slope / d y| <= 2 for all of them (tanh: 2 |y|), with |y| <= 1 wherever the slope depends on y.
    inexact = {"sigmoid", "tanh", "elu"} & {kind}
    scale = np.abs(grad.astype(np.float64)).max(initial=0)
    atol = scale * (2 * unit(x.dtype) if inexact else 8 * unit(dtypes.accumulator(x.dtype)))
    assert dx.dtype == x.dtype
    assert_close(dx.astype(np.float64), exact, rtol=unit(x.dtype) / 2, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_far_out(ops: Any, kind: str) -> None:
    """No overflow, no NaN, no warning at the ends of float32."""
    x = np.array([-3e38, -1e4, -100, 100, 1e4, 3e38], np.float32)
    y = ops.activation(x, kind=kind, alpha=0.5)
    dx = ops.activation_grad(np.full_like(x, 2), y if kind in SAVES_OUTPUT else x, kind=kind, alpha=0.5)
    above, below = {"relu6": (6, 0), "sigmoid": (1, 0), "tanh": (1, -1), "elu": (x[-1], -0.5)}.get(kind, (x[-1], 0))
    below = x[0] / 2 if kind == "leaky_relu" else below
    assert_close(y[[0, -1]], np.float32([below, above]))
    slopes = {"relu6": (0, 0), "sigmoid": (0, 0), "tanh": (0, 0), "leaky_relu": (0.5, 1)}.get(kind, (0, 1))
    assert_close(dx[[0, -1]], 2 * np.float32(slopes))


@pytest.mark.parametrize("kind", KINDS)
def test_activation_keeps_nan(ops: Any, kind: str) -> None:
    x = np.array([1, np.nan, -1], np.float32)
    assert np.isnan(ops.activation(x, kind=kind)).tolist() == [False, True, False]


@pytest.mark.parametrize(("kind", "expected"), [("relu", 0.0), ("relu6", 0.0), ("leaky_relu", 0.25)])
def test_slope_at_zero(ops: Any, kind: str, expected: float) -> None:
    zero, three = np.zeros(1, np.float32), np.full(1, 3, np.float32)
    assert_close(ops.activation_grad(three, zero, kind=kind, alpha=0.25), 3 * np.float32([expected]))


@pytest.mark.parametrize("kind", ["leaky_relu", "elu"])
def test_a_negative_alpha_is_refused(ops: Any, kind: str) -> None:
    """The gradient is told from the output's sign, which a negative slope would turn."""
    x = np.ones(2, np.float32)
    for op, *arrays in (("activation", x), ("activation_grad", x, x)):
        with pytest.raises(ShapeError, match=rf"^\[{op}\] alpha must not be negative; got -0.5"):
            getattr(ops, op)(*arrays, kind=kind, alpha=-0.5)


def test_unknown_activation(ops: Any) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'sigmoid'"):
        ops.activation(np.zeros(1, np.float32), kind="sigmod")


# --- softmax ------------------------------------------------------------------------------------------------------

SOFTMAX = [((4, 5), -1), ((4, 5), 0), ((2, 7, 2, 3), 1), ((2, 3, 1, 4), -1), ((3, 1), 1), ((13,), 0)]
each_softmax = pytest.mark.parametrize(("shape", "axis"), SOFTMAX, ids=str)


@each_softmax
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(ops: Any, make: Make, name: str, shape: tuple[int, ...], axis: int) -> None:
    x = make(*shape)
    naive.assert_matches(getattr(ops, name)(x, axis=axis), getattr(naive, name), x, axis=axis)


@each_softmax
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_grad(ops: Any, make: Make, name: str, shape: tuple[int, ...], axis: int) -> None:
    """The product with the Jacobian p_j (δ_ij - p_i), or δ_ij - p_j for the logarithm, one line at a time."""
    y, grad = getattr(ops, name)(make(*shape), axis=axis), make(*shape)

    def truth(grad: np.ndarray, y: np.ndarray) -> np.ndarray:
        grads, outputs = np.moveaxis(grad, axis, -1), np.moveaxis(y, axis, -1)
        dx = np.zeros(grads.shape, y.dtype)
        for line in naive.everywhere(grads.shape[:-1]):
            pairs = list(zip(grads[line], outputs[line], strict=True))
            if name == "softmax":
                total = sum(g * p for g, p in pairs)
                dx[line] = [p * (g - total) for g, p in pairs]
            else:
                total = sum(g for g, _ in pairs)
                dx[line] = [g - np.exp(log_p) * total for g, log_p in pairs]
        return np.moveaxis(dx, -1, axis)

    naive.assert_matches(getattr(ops, name + "_grad")(grad, y, axis=axis), truth, grad, y)


def test_softmax_of_huge_and_masked_logits(ops: Any) -> None:
    x = np.array([[3e38, 3e38, -3e38], [-np.inf, 0, 0], [-np.inf, -np.inf, -1e30]], np.float32)
    assert_close(ops.softmax(x), np.float32([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]), rtol=2.0**-22)
    log2 = -math.log(2)
    expected = np.float32([[log2, log2, -np.inf], [-np.inf, log2, log2], [-np.inf, -np.inf, 0]])
    assert_close(ops.log_softmax(x)[1:], expected[1:], rtol=2.0**-22)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("row", [[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]], ids=str)
def test_softmax_without_a_value_is_nan(ops: Any, name: str, row: list[float]) -> None:
    """Quietly: a warning would be an error here."""
    y = getattr(ops, name)(np.float32([row, [1, 1]]))
    assert np.isnan(y).any(axis=1).tolist() == [True, False]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_refuses_wrong_axes(ops: Any, name: str, axis: int) -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError, match=rf"^\[{name}\] axis"):
        getattr(ops, name)(x, axis=axis)
    with pytest.raises(ShapeError, match=rf"^\[{name}_grad\] axis"):
        getattr(ops, name + "_grad")(x, x, axis=axis)


# --- cross-entropy ------------------------------------------------------------------------------------------------

LOGITS = [(5, 4), (3, 1), (2, 5, 3, 2), (1, 7), (0, 3), (2, 3, 4)]


@pytest.mark.parametrize("shape", LOGITS, ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 0])
def test_cross_entropy(
    ops: Any,
    make: Make,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    label_smoothing: float,
    ignore_index: int,
) -> None:
    logits, options = make(*shape), dict(label_smoothing=label_smoothing, ignore_index=ignore_index)
    target = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    target.reshape(-1)[1::3] = ignore_index
    loss, lse = ops.cross_entropy(logits, target, **options)
    acc = dtypes.accumulator(logits.dtype)
    assert loss.dtype == lse.dtype == acc

    def total(x: np.ndarray) -> np.ndarray:
        samples = (x[(n, slice(None), *pixel)] for n, *pixel in naive.everywhere(lse.shape))
        return np.array([np.log(sum(np.exp(v) for v in sample)) for sample in samples], x.dtype)

    naive.assert_matches(loss, naive.cross_entropy, logits, target, **options)
    naive.assert_matches(lse.reshape(-1), total, logits)

    grad = make(*target.shape).astype(acc)
    dx = ops.cross_entropy_grad(grad, logits, target, lse, **options)
    assert dx.dtype == logits.dtype
    expected = [naive.cross_entropy_grad(grad, logits.astype(d), target, **options) for d in (acc, naive.WIDE)]
    assert_as_accurate(dx, expected[0].astype(dx.dtype), expected[1])


def test_cross_entropy_by_hand(ops: Any) -> None:
    """Probabilities 1/4, 3/4: -log(1/4) smoothed by 0.2 is 0.9 * log(4) + 0.1 * log(4/3)."""
    logits = np.float32([[0, math.log(3)], [5, 5]])
    loss, lse = ops.cross_entropy(logits, np.array([0, -100]), label_smoothing=0.2)
    assert_close(loss, np.float32([0.9 * math.log(4) + 0.1 * math.log(4 / 3), 0]), rtol=2.0**-22)
    dx = ops.cross_entropy_grad(np.float32([2, 2]), logits, np.array([0, -100]), lse, label_smoothing=0.2)
    assert_close(dx, np.float32([[2 * (0.25 - 0.9), 2 * (0.75 - 0.1)], [0, 0]]), rtol=2.0**-21)


def test_cross_entropy_does_not_overflow(ops: Any) -> None:
    logits = np.float32([[1e30, -1e30], [88.8, 0], [1e4, 1e4]])
    target = np.array([1, 0, 1])
    loss, lse = ops.cross_entropy(logits, target)
    assert_close(loss, np.float32([2e30, 0, math.log(2)]), rtol=2.0**-22, atol=1e4 * 2.0**-23)  # lse rounds at 1e4
    dx = ops.cross_entropy_grad(np.ones(3, np.float32), logits, target, lse)
    assert_close(dx, np.float32([[1, -1], [0, 0], [0.5, -0.5]]), atol=1e4 * 2.0**-23)


def test_ignored_samples_may_hold_nan(ops: Any) -> None:
    logits, target = np.float32([[np.nan, np.nan], [1, 1]]), np.array([-1, 0])
    loss, lse = ops.cross_entropy(logits, target, ignore_index=-1)
    assert_close(loss, np.float32([0, math.log(2)]), rtol=2.0**-22)
    dx = ops.cross_entropy_grad(np.ones(2, np.float32), logits, target, lse, ignore_index=-1)
    assert_close(dx, np.float32([[0, 0], [-0.5, 0.5]]), atol=2.0**-23)


@pytest.mark.parametrize("dtype_", [np.int8, np.uint8, np.int32, np.int64], ids=lambda d: d.__name__)
def test_targets_of_any_integer_type(ops: Any, dtype_: type) -> None:
    logits = np.float32([[0, 1], [2, 0]])
    expected, _ = ops.cross_entropy(logits, np.array([1, 0]))
    assert_close(ops.cross_entropy(logits, np.array([1, 0], dtype_))[0], expected)


@pytest.mark.parametrize(
    ("target", "options", "error", "words"),
    [
        (np.array([0, 3]), {}, ShapeError, r"targets must be in \[0, 3\) or -100; got 3"),
        (np.array([0, -1]), {}, ShapeError, r"targets must be in \[0, 3\) or -100; got -1"),
        (np.array([0]), {}, ShapeError, "target must have shape"),
        (np.array([[0], [1]]), {}, ShapeError, "target must have shape"),
        (np.array([0.0, 1.0]), {}, DtypeError, "integer class indices; got float64"),
        (np.array([0, 1]), {"label_smoothing": 1.5}, ShapeError, "label_smoothing must be in"),
    ],
)
def test_cross_entropy_refusals(ops: Any, target: np.ndarray, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=rf"^\[cross_entropy\] .*{words}"):
        ops.cross_entropy(np.zeros((2, 3), np.float32), target, **options)


# --- dropout ------------------------------------------------------------------------------------------------------

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_scalar_philox_gives_the_published_words(counter: Any, key: Any, expected: Any) -> None:
    """The known-answer vectors of Random123: they make the scalar Philox a truth for the other one."""
    assert naive.philox4x32_10(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x243F6A8885A308D3])
@pytest.mark.parametrize("offset", [0, 5, 2**32 - 2, 2**63, 2**64 - 2])
def test_philox_matches_the_scalar_one(seed: int, offset: int) -> None:
    words = philox4x32(seed, offset, 4)
    for block in range(4):
        at = (offset + block) % 2**64
        expected = naive.philox4x32_10((at % 2**32, at >> 32, 0, 0), (seed % 2**32, seed >> 32))
        assert tuple(words[block].tolist()) == expected


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7,), (1,), (0, 3)], ids=str)
def test_dropout(ops: Any, make: Make, p: float, shape: tuple[int, ...]) -> None:
    """The mask is that of the definition, in row-major order whatever layout and dtype; the gradient uses the same."""
    x, state = make(*shape), dict(seed=7, offset=11)
    mask = np.array([naive.kept(i, p=p, **state) for i in range(x.size)], bool).reshape(shape)
    scaled = x.astype(np.float64) / (1 - p) if p < 1 else np.zeros(shape)
    for op in (ops.dropout, ops.dropout_grad):
        y = op(x, p=p, **state)
        assert y.dtype == x.dtype
        # 1 / (1 - p), the product and the result are rounded once each.
        assert_close(y.astype(np.float64), np.where(mask, scaled, 0), rtol=2 * unit(x.dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_rate_and_mean(ops: Any, p: float) -> None:
    count = 100_000
    y = ops.dropout(np.ones(count, np.float32), p=p, seed=3, offset=0)
    sigma = math.sqrt(p * (1 - p) / count)
    assert abs(np.count_nonzero(y) / count - (1 - p)) <= 4 * sigma
    assert abs(float(y.mean()) - 1) <= 4 * sigma / (1 - p)


def test_dropout_streams_differ() -> None:
    """Another seed or offset gives other numbers; the next offset the same ones, four further on."""
    base = philox_uniform(1000, 1, 0)
    assert not np.array_equal(base, philox_uniform(1000, 2, 0))
    assert_close(philox_uniform(996, 1, 1), base[4:])
    assert base.min() >= 0
    assert base.max() < 1


def test_dropped_infinities_are_zero(ops: Any) -> None:
    y = ops.dropout(np.full(64, np.inf, np.float32), p=0.5, seed=0, offset=0)
    assert set(y.tolist()) == {0.0, math.inf}


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_refuses_other_rates(ops: Any, p: float) -> None:
    with pytest.raises(ShapeError, match=r"^\[dropout\] p must be in \[0, 1\]"):
        ops.dropout(np.zeros(3, np.float32), p=p, seed=0, offset=0)


def test_layouts_of_logits(ops: Any, rng: np.random.Generator) -> None:
    """The same bits from channels_last logits."""
    logits = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    target = rng.integers(0, 5, (2, 3, 4))
    other = memory_format.convert(np, logits, "channels_last")
    for a, b in zip(ops.cross_entropy(logits, target), ops.cross_entropy(other, target), strict=True):
        assert_close(a, b, rtol=2.0**-22)
