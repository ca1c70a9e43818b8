"""The kernels of convolution, normalisation, activations, losses, dropout, optimizers and casts against the reference.

As in test_kernels.py, which has the fixture and the check.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_kernels import DTYPES, LAYOUTS, check, kernels, values

from dlgpu import memory_format
from dlgpu.backends import reference, tuning
from dlgpu.backends.contract import SAVES_INPUT, SAVES_OUTPUT
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError

__all__ = ["kernels"]  # the fixture

# (input shape, K, kernel, stride, padding, dilation, groups)
CONVOLUTIONS = [
    ((1, 1, 1, 1), 1, 1, 1, 0, 1, 1),
    ((2, 3, 9, 7), 5, 3, 1, 1, 1, 1),
    ((2, 4, 8, 9), 6, (3, 2), (2, 1), ((1, 0), (0, 2)), 1, 2),
    ((1, 6, 7, 7), 6, 3, 1, 1, 1, 6),
    ((2, 2, 11, 11), 3, 3, 2, 2, 2, 1),
    ((3, 70, 4, 4), 65, 1, 1, 0, 1, 1),
    ((0, 3, 5, 5), 4, 3, 1, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "padding", "dilation", "groups"), CONVOLUTIONS)
def test_conv2d_and_gradients(
    kernels: Any,
    dtype: Any,
    layout: Any,
    shape: Any,
    out: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: int,
    groups: int,
) -> None:
    how = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    x = values(1, shape, dtype, layout)
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    w = values(2, (out, shape[1] // groups, r, s), dtype, layout)
    b = values(3, (out,), dtype)
    y = reference.conv2d(x, w, b, **how)
    terms = w[0].size
    check(kernels.conv2d(x, w, b, **how), y, terms, 3)
    check(kernels.conv2d(x, w, **how), reference.conv2d(x, w, **how), terms, 3)
    dy = values(4, y.shape, dtype, layout)
    dx = reference.conv2d_grad_input(dy, w, input_shape=shape, **how)
    got = kernels.conv2d_grad_input(dy, w, input_shape=shape, **how)
    check_stored(got, dx, r * s, out // groups * r * s)
    pixels = max(1, y.shape[0] * y.shape[2] * y.shape[3])
    dw = reference.conv2d_grad_weight(dy, x, weight_shape=w.shape, **how)
    check(kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **how), dw, pixels, 3)
    check(kernels.grad_bias(dy), reference.grad_bias(dy), pixels, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_fused_epilogues(kernels: Any, dtype: Any, layout: Any, activation: Any) -> None:
    x, w = values(1, (2, 8, 7, 9), dtype, layout), values(2, (24, 8, 3, 3), dtype, layout)
    b, added = values(3, (24,), dtype), values(4, (2, 24, 7, 9), dtype, layout)
    x[0, 0, 3, 3] = np.nan
    how = dict(padding=1, activation=activation)
    check(kernels.conv2d(x, w, b, added, **how), reference.conv2d(x, w, b, added, **how), 72, 3)
    check(kernels.conv2d(x, w, b, **how), reference.conv2d(x, w, b, **how), 72, 3)
    y, argmax = reference.conv2d_relu_max_pool2d(x, w, b, padding=1)
    got, got_argmax = kernels.conv2d_relu_max_pool2d(x, w, b, padding=1)
    check(got, y, 72, 3)
    assert got_argmax.shape == argmax.shape
    assert memory_format.of(got_argmax) == memory_format.of(argmax)
    # Rounding may turn a near tie: where the places differ, the values at both are equal within rounding.
    before = reference.conv2d(x, w, b, padding=1, activation="relu").astype(np.float32)
    windows = before[:, :, :6, :8].reshape(2, 24, 3, 2, 4, 2).transpose(0, 1, 2, 4, 3, 5).reshape(*y.shape, 4)
    chosen, best = (np.take_along_axis(windows, a[..., None].astype(int), -1) for a in (got_argmax, argmax))
    np.testing.assert_allclose(chosen, best, rtol=4 * float(ml_dtypes.finfo(dtype).eps), atol=1e-4)
    rows, weight = values(5, (5, 33), dtype), values(6, (18, 33), dtype)
    bias, c = values(7, (18,), dtype), values(8, (5, 18), dtype)
    check(
        kernels.linear(rows, weight, bias, activation=activation),
        reference.linear(rows, weight, bias, activation=activation),
        33,
    )
    how = dict(transpose_b=True, beta=0.5, activation=activation)
    check(kernels.gemm(rows, weight, c, bias, **how), reference.gemm(rows, weight, c, bias, **how), 33)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grad_weight_with_bias(kernels: Any, dtype: Any) -> None:
    x, dy = values(1, (2, 8, 7, 9), dtype), values(2, (2, 24, 7, 9), dtype)
    how = dict(weight_shape=(24, 8, 3, 3), padding=1)
    dw, db = kernels.conv2d_grad_weight_bias(dy, x, **how)
    expected = reference.conv2d_grad_weight_bias(dy, x, **how)
    check(dw, expected[0], 126, 3)
    check(db, expected[1], 126, 3)


def check_stored(actual: np.ndarray, expected: np.ndarray, adds: int, terms: int) -> None:
    """Like `check`, for col2im: each of `adds` summands is rounded to the storage type before they are added."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert memory_format.of(actual) == memory_format.of(expected)
    unit = float(ml_dtypes.finfo(actual.dtype).eps)
    wide, truth = actual.astype(np.float64), expected.astype(np.float64)
    size = np.abs(truth).max(initial=1.0)
    bound = unit * (adds + 1) * size + terms**1.5 * 2.0**-21
    assert (np.abs(wide - truth) <= bound).all(), np.abs(wide - truth).max() / bound


def test_convolution_in_rounds(kernels: Any) -> None:
    """A workspace for one image at a time gives the same."""
    x, w = values(5, (3, 4, 8, 8), np.float32), values(6, (5, 4, 3, 3), np.float32)
    dy = values(7, (3, 5, 8, 8), np.float32)
    how: dict[str, Any] = dict(padding=1, algorithm="im2col")
    whole = kernels.conv2d(x, w, **how), kernels.conv2d_grad_input(dy, w, input_shape=x.shape, **how)
    with tuning.workspace_limit(1):
        np.testing.assert_array_equal(kernels.conv2d(x, w, **how), whole[0])
        np.testing.assert_array_equal(kernels.conv2d_grad_input(dy, w, input_shape=x.shape, **how), whole[1])
        got = kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **how)
    check(got, reference.conv2d_grad_weight(dy, x, weight_shape=w.shape, padding=1), 192, 3)


def test_algorithms_without_a_kernel_say_so(kernels: Any) -> None:
    x, w = values(5, (1, 1, 4, 4), np.float32), values(6, (1, 1, 3, 3), np.float32)
    with pytest.raises(BackendUnavailable, match=r"\[conv2d\] 'fft' has no kernel yet"):
        kernels.conv2d(x, w, algorithm="fft")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose2d(kernels: Any, layout: Any, groups: int) -> None:
    x, w = values(8, (2, 4, 5, 6), np.float32, layout), values(9, (4, 3, 3, 3), np.float32)
    how = dict(stride=2, padding=1, output_padding=1, groups=groups)
    b = values(10, (3 * groups,), np.float32)
    check(kernels.conv_transpose2d(x, w, b, **how), reference.conv_transpose2d(x, w, b, **how), 36, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SAVES_OUTPUT + SAVES_INPUT)
def test_activations(kernels: Any, dtype: Any, layout: Any, kind: Any) -> None:
    x = values(11, (2, 3, 5, 7), dtype, layout) * dtype(3)
    x[0, 0, 0, :4] = [0, np.nan, 40, -40]
    y = reference.activation(x, kind=kind, alpha=0.3)
    check(kernels.activation(x, kind=kind, alpha=0.3), y, 4, 40)
    saved = y if kind in SAVES_OUTPUT else x
    dy = values(12, x.shape, dtype, layout)
    expected = reference.activation_grad(dy, saved, kind=kind, alpha=0.3)
    check(kernels.activation_grad(dy, saved, kind=kind, alpha=0.3), expected, 4, 4)


# Rows that a thread, a warp and a block share, and the numbers of rows that leave threads over.
SOFTMAXES = [
    ((7, 10), -1),
    ((33, 3), 1),
    ((3, 1025), 1),
    ((2, 5, 3, 4), 1),
    ((3, 5, 6, 7), 1),
    ((2, 3, 5, 4), 2),
    ((1025, 2), 0),
    ((3, 40), 0),
    ((0, 5), 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "axis"), SOFTMAXES)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax(kernels: Any, dtype: Any, layout: Any, shape: Any, axis: int, op: str) -> None:
    x = values(13, shape, dtype, layout) * dtype(4)
    y = getattr(reference, op)(x, axis=axis)
    check(getattr(kernels, op)(x, axis=axis), y, 300, 0.1)
    dy = values(14, shape, dtype, layout)
    expected = getattr(reference, op + "_grad")(dy, y, axis=axis)
    check(getattr(kernels, op + "_grad")(dy, y, axis=axis), expected, 300, 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(9, 10), (2, 300), (2, 1025), (2, 5, 3, 4), (2, 5, 6, 7)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(kernels: Any, dtype: Any, layout: Any, shape: Any, smoothing: float) -> None:
    x = values(15, shape, dtype, layout) * dtype(5)
    target = np.random.default_rng(16).integers(0, shape[1], (shape[0], *shape[2:]))
    target.flat[0] = -100
    how = dict(label_smoothing=smoothing)
    loss, lse = reference.cross_entropy(x, target, **how)
    got_loss, got_lse = kernels.cross_entropy(x, target, **how)
    check(got_loss, loss, 300, 0.1)
    check(got_lse, lse, 300, 0.1)
    weights = np.random.default_rng(17).random(target.shape).astype(np.float32)
    expected = reference.cross_entropy_grad(weights, x, target, lse, **how)
    check(kernels.cross_entropy_grad(weights, x, target, lse, **how), expected, 300, 0.1)
    for a, e in zip(
        kernels.cross_entropy_with_grad(x, target, **how),
        reference.cross_entropy_with_grad(x, target, **how),
        strict=True,
    ):
        check(a, e, 300, 0.1)


def test_cross_entropy_of_extreme_logits_and_unknown_classes(kernels: Any) -> None:
    x = np.array([[1e4, -1e4, 0], [-np.inf, 0, 0], [0, 0, 0]], np.float32)
    loss, lse = kernels.cross_entropy(x, np.array([0, 1, 7]))
    np.testing.assert_allclose(loss[:2], [0, np.log(2)], atol=1e-6)
    assert np.isnan(loss[2])
    assert np.isnan(kernels.cross_entropy_grad(np.ones(3, np.float32), x, np.array([0, 1, 7]), lse)[2]).all()
    both = kernels.cross_entropy_with_grad(x, np.array([0, 1, 7]))
    np.testing.assert_array_equal(both[0], loss)
    assert np.isnan(both[1][2]).all()
    np.testing.assert_allclose(both[1][:2], [[0, 0, 0], [0, -0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1001,), (3, 4)])
def test_dropout_has_the_references_mask(kernels: Any, dtype: Any, shape: Any) -> None:
    seed, offset = (0xDEADBEEF << 32) + 77, (1 << 32) - 3  # the counter's carry is crossed
    for layout in LAYOUTS if len(shape) == 4 else LAYOUTS[:1]:
        x = values(18, shape, dtype, layout) if len(shape) == 4 else values(18, shape, dtype)
        expected = reference.dropout(x, p=0.3, seed=seed, offset=offset)
        got = kernels.dropout(x, p=0.3, seed=seed, offset=offset)
        np.testing.assert_array_equal(got == 0, expected == 0)
        check(got, expected)
        check(kernels.dropout_grad(x, p=0.3, seed=seed, offset=offset), expected)
    np.testing.assert_array_equal(kernels.dropout(x, p=1.0, seed=0, offset=0).astype(np.float32), 0)


STEPS = {
    "sgd_step": [dict(), dict(momentum=0.9), dict(momentum=0.9, nesterov=True, weight_decay=0.1)],
    "adagrad_step": [dict(), dict(weight_decay=0.1)],
    "rmsprop_step": [dict(), dict(alpha=0.9, weight_decay=0.1)],
    "adam_step": [dict(step=1), dict(step=7, weight_decay=0.1), dict(step=3, weight_decay=0.1, decoupled=True)],
}


@pytest.mark.parametrize(("op", "settings"), [(op, s) for op, cases in STEPS.items() for s in cases])
@pytest.mark.parametrize("size", [0, 1, 255, 1000])
def test_optimizer_steps(kernels: Any, op: str, settings: dict[str, Any], size: int) -> None:
    states = {"sgd_step": 1 if settings.get("momentum") else 0, "adam_step": 2}.get(op, 1)
    rng = np.random.default_rng(19)
    mine = [rng.standard_normal(size).astype(np.float32) for _ in range(2)]
    mine += [rng.random(size).astype(np.float32) for _ in range(states)]
    theirs = [a.copy() for a in mine]
    gradient = mine[1].copy()
    fill = [None] if op == "sgd_step" and not states else []
    getattr(kernels, op)(*mine, *fill, lr=0.1, **settings)
    getattr(reference, op)(*theirs, *fill, lr=0.1, **settings)
    for a, b in zip(mine, theirs, strict=True):
        check(a, b, 8)
    np.testing.assert_array_equal(mine[1], gradient)


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_scaled_optimizer_steps(kernels: Any, op: str, half: Any) -> None:
    """Gradients 64 times too large, two skipped steps before, and a half-precision copy; offsets break alignment."""
    settings = dict(STEPS[op][-1], lr=0.1) | ({"step": 9} if op == "adam_step" else {})
    rng = np.random.default_rng(23)
    for offset in (0, 1):
        arenas = [rng.random(1030).astype(np.float32)[offset:] for _ in range(4 if op == "adam_step" else 3)]
        theirs, copies = [a.copy() for a in arenas], [np.zeros(arenas[0].size, half) for _ in range(2)]
        for state in (np.array([64, 0, 5, 2], np.float32), np.array([64, 1, 5, 2], np.float32)):
            getattr(kernels, op)(*arenas, scaler=state, half=copies[0], **settings)
            getattr(reference, op)(*theirs, scaler=state, half=copies[1], **settings)
            for a, b in zip([*arenas, copies[0]], [*theirs, copies[1]], strict=True):
                check(a, b, 8)
            np.testing.assert_array_equal(copies[0], arenas[0].astype(half))


@pytest.mark.parametrize("size", [0, 1, 3, 1000, 1025])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_check_finite(kernels: Any, size: int, bad: float) -> None:
    grad = np.full(size, 3e38, np.float32)
    for at in {None, 0, size // 2, size - 1} if size else {None}:
        state = np.array([8, 0, 1, 2], np.float32)
        if at is not None:
            grad[at] = bad
        kernels.check_finite(grad, state)
        np.testing.assert_array_equal(state, [8, at is not None, 1, 2])
        if at is not None:
            grad[at] = -3e38
    state[1] = 1
    kernels.check_finite(grad, state)
    assert state[1] == 1, "an earlier finding stays"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 0, 1, 2), (8, 0, 2, 2)),
        ((8, 0, 2, 2), (32, 0, 0, 2)),
        ((8, 1, 2, 2), (2, 0, 0, 3)),
        ((2.0**-23, 1, 0, 7), (2.0**-24, 0, 0, 8)),
        ((2.0**127, 0, 2, 0), (2.0**127, 0, 0, 0)),
    ],
)
def test_update_scaler(kernels: Any, before: Any, after: Any) -> None:
    for ops in (kernels, reference):
        state = np.array(before, np.float32)
        ops.update_scaler(state, growth_factor=4, backoff_factor=0.25, growth_interval=3)
        np.testing.assert_array_equal(state, np.array(after, np.float32))


def test_scalers_are_checked(kernels: Any) -> None:
    x, state = np.zeros(4, np.float32), np.zeros(4, np.float32)
    for ops in (kernels, reference):
        with pytest.raises(ShapeError, match=r"\[check_finite\] scaler must have shape \(4,\); got \(3,\)"):
            ops.check_finite(x, state[:3])
        with pytest.raises(DtypeError, match=r"\[sgd_step\] half must be float16 or bfloat16; got float32"):
            ops.sgd_step(x, x.copy(), None, lr=1, half=x.copy())
        with pytest.raises(ShapeError, match=r"\[sgd_step\] arena must have shape \(4,\); got \(3,\)"):
            ops.sgd_step(x, x.copy(), None, lr=1, half=np.zeros(3, np.float16))
        with pytest.raises(ShapeError, match=r"\[update_scaler\] growth_factor must be >= 1, .*; got 0.5, 0.5, 2000"):
            ops.update_scaler(state, growth_factor=0.5)


def test_optimizer_steps_refuse_other_dtypes(kernels: Any) -> None:
    with pytest.raises(DtypeError, match=r"\[sgd_step\] kernels take float32"):
        kernels.sgd_step(np.zeros(3), np.zeros(3), None, lr=0.1)


# The last two: vectors of channels in channels_last and of pixels in contiguous; of channels only.
NORM_SHAPES = [(2, 3, 5, 7), (4, 6), (4, 24), (1, 4, 3, 3), (3, 2, 1, 1), (2, 16, 4, 6), (2, 24, 3, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(kernels: Any, dtype: Any, layout: Any, shape: Any, affine: bool) -> None:
    x = values(20, shape, dtype, layout) + dtype(2)
    dy = values(21, shape, dtype, layout)
    w, b = (values(i, shape[1:2], np.float32) if affine else None for i in (22, 23))
    running = [np.ones(shape[1], np.float32), np.full(shape[1], 2, np.float32)]
    theirs = [a.copy() for a in running]
    y, mean, rstd = reference.batch_norm_train(x, w, b, *theirs, momentum=0.3)
    got = kernels.batch_norm_train(x, w, b, *running, momentum=0.3)
    for a, e in zip((*got, *running), (y, mean, rstd, *theirs), strict=True):
        check(a, e, 80, 2 * max(1.0, float(rstd.max())))
    for training in (True, False):
        expected = reference.batch_norm_grad(dy, x, w, mean, rstd, training=training)
        actual = kernels.batch_norm_grad(dy, x, w, mean, rstd, training=training)
        for a, e in zip(actual, expected, strict=True):
            check(a, e, 80, 2 * max(1.0, float(rstd.max())))
    var = np.abs(mean) + 0.5
    check(kernels.batch_norm_infer(x, w, b, mean, var), reference.batch_norm_infer(x, w, b, mean, var), 8, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 16, 4, 6)])
def test_fused_normalisation(
    kernels: Any, dtype: Any, layout: Any, activation: Any, with_residual: bool, shape: Any
) -> None:
    x, dy, added = (values(i, shape, dtype, layout) for i in (40, 41, 42))
    w, b = values(43, shape[1:2], np.float32), values(44, shape[1:2], np.float32)
    residual = added if with_residual else None
    y, mean, rstd = reference.batch_norm_train(x, w, b, None, None, residual, activation=activation)
    check(kernels.batch_norm_train(x, w, b, None, None, residual, activation=activation)[0], y, 105, 3)
    var = np.abs(mean) + 0.5
    expected = reference.batch_norm_infer(x, w, b, mean, var, residual, activation=activation)
    check(kernels.batch_norm_infer(x, w, b, mean, var, residual, activation=activation), expected, 8, 3)
    saved = y if activation else None
    grads = reference.batch_norm_grad(dy, x, w, mean, rstd, saved)
    for a, e in zip(kernels.batch_norm_grad(dy, x, w, mean, rstd, saved), grads, strict=True):
        check(a, e, 105, 3)
    y, mean, rstd = reference.group_norm(x, w, b, residual, num_groups=2, activation=activation)
    check(kernels.group_norm(x, w, b, residual, num_groups=2, activation=activation)[0], y, 192, 3)
    saved = y if activation else None
    grads = reference.group_norm_grad(dy, x, w, mean, rstd, saved, num_groups=2)
    for a, e in zip(kernels.group_norm_grad(dy, x, w, mean, rstd, saved, num_groups=2), grads, strict=True):
        check(a, e, 105, 3)


def test_statistics_keep_their_digits_far_from_zero(kernels: Any) -> None:
    """Mean 10,000, spread 1: the naive formula E[x^2] - mean^2 would lose everything."""
    x = values(45, (4, 3, 16, 16), np.float32) + np.float32(1e4)
    truth = x.astype(np.float64)
    _, mean, rstd = kernels.batch_norm_train(x, None, None, None, None)
    np.testing.assert_allclose(mean, truth.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(truth.var((0, 2, 3)) + 1e-5), rtol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (2, 48, 2, 4)])
def test_group_norm(kernels: Any, dtype: Any, layout: Any, groups: int, affine: bool, shape: Any) -> None:
    x, dy = values(24, shape, dtype, layout), values(25, shape, dtype, layout)
    w, b = (values(i, shape[1:2], np.float32) if affine else None for i in (26, 27))
    y, mean, rstd = reference.group_norm(x, w, b, num_groups=groups)
    for a, e in zip(kernels.group_norm(x, w, b, num_groups=groups), (y, mean, rstd), strict=True):
        check(a, e, 90, 2)
    expected = reference.group_norm_grad(dy, x, w, mean, rstd, num_groups=groups)
    for a, e in zip(kernels.group_norm_grad(dy, x, w, mean, rstd, num_groups=groups), expected, strict=True):
        check(a, e, 90, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), [((3, 35, 9, 63), 5), ((2, 264, 16, 18), 33), ((3, 5, 40, 48), 5)])
def test_channels_are_added_in_parts(kernels: Any, dtype: Any, layout: Any, shape: Any, groups: int) -> None:
    """More positions than a block adds, and more channels than lie side by side in one; alone and in vectors."""
    x, dy = values(28, shape, dtype, layout), values(29, shape, dtype, layout)
    positions = x.size // shape[1]
    w = values(30, shape[1:2], np.float32)
    y, mean, rstd = reference.batch_norm_train(x, w, w, None, None)
    for a, e in zip(kernels.batch_norm_train(x, w, w, None, None), (y, mean, rstd), strict=True):
        check(a, e, positions, 2)
    expected = reference.batch_norm_grad(dy, x, w, mean, rstd)
    for a, e in zip(kernels.batch_norm_grad(dy, x, w, mean, rstd), expected, strict=True):
        check(a, e, positions, 2)
    y, mean, rstd = reference.group_norm(x, w, w, num_groups=groups)
    expected = reference.group_norm_grad(dy, x, w, mean, rstd, num_groups=groups)
    for a, e in zip(kernels.group_norm_grad(dy, x, w, mean, rstd, num_groups=groups), expected, strict=True):
        check(a, e, positions, 2)
    check(kernels.grad_bias(dy), reference.grad_bias(dy), positions)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_local_response_norm(kernels: Any, dtype: Any, layout: Any, size: int) -> None:
    shape = (2, 7, 3, 4)
    x, dy = values(28, shape, dtype, layout), values(29, shape, dtype, layout)
    how = dict(size=size, alpha=0.5, beta=0.75)
    y, scale = reference.local_response_norm(x, k=2.0, **how)
    for a, e in zip(kernels.local_response_norm(x, k=2.0, **how), (y, scale), strict=True):
        check(a, e, 16, 2)
    expected = reference.local_response_norm_grad(dy, x, scale, **how)
    check(kernels.local_response_norm_grad(dy, x, scale, **how), expected, 16, 2)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cast_and_layout(kernels: Any, source: Any, target: Any, layout: Any) -> None:
    x = values(30, (2, 5, 3, 4), source, layout)
    x[0, 0, 0, :3] = [np.nan, np.inf, 1e4]
    expected = reference.cast(x, target)
    np.testing.assert_array_equal(kernels.cast(x, target).astype(np.float32), expected.astype(np.float32))
    assert memory_format.of(kernels.cast(x, target)) == layout
    part = values(32, (3, 5, 4, 7), source, layout)[1:, 1:4, :, 1:]  # dense in no format
    for other in LAYOUTS:
        for array in (x, part):
            moved = kernels.to_memory_format(array, other)
            assert memory_format.of(moved) == other
            np.testing.assert_array_equal(moved.astype(np.float32), array.astype(np.float32))
    flat = values(31, (7,), source)
    np.testing.assert_array_equal(
        kernels.cast(flat, target).astype(np.float32), reference.cast(flat, target).astype(np.float32)
    )


@pytest.mark.parametrize("kind", ["sum", "mean", "max"])
@pytest.mark.parametrize("axis", [None, 1, (0, 2)])
def test_reduce(kernels: Any, kind: Any, axis: Any) -> None:
    x = values(32, (3, 4, 5), np.float16)
    np.testing.assert_array_equal(kernels.reduce(x, kind=kind, axis=axis), reference.reduce(x, kind=kind, axis=axis))


def test_errors_are_the_references(kernels: Any) -> None:
    x = values(33, (1, 2, 3, 3), np.float32)
    for ops in (kernels, reference):
        with pytest.raises(ShapeError, match=r"\[conv2d\] weight must have C/groups = 2"):
            ops.conv2d(x, values(34, (1, 3, 3, 3), np.float32))
        with pytest.raises(ShapeError, match=r"\[dropout\] p must be in \[0, 1\]; got 2"):
            ops.dropout(x, p=2, seed=0, offset=0)
        with pytest.raises(ShapeError, match=r"\[local_response_norm\] size must be"):
            ops.local_response_norm(x, size=0)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_batch_norm_grad_of_nothing_is_zero(
    kernels: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels write them: memory that held something else before must not shine through."""
    ops = KernelOps(kernels.backend.launcher)
    x, v = ops.xp.zeros(shape, np.float32), ops.xp.ones(3, np.float32)
    monkeypatch.setattr(ops.xp, "empty", lambda shape, dtype: ops.xp.full(shape, np.nan, dtype))
    for gradient in ops.batch_norm_grad(x, x, v, v, v)[1:]:
        assert gradient.tolist() == [0, 0, 0]
