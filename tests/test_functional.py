"""Every function of `dlgpu.functional`: gradients by numerical differentiation, values by hand and by PyTorch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import Tensor, dtypes
from dlgpu.errors import DlgpuError, DtypeError, ShapeError, UnknownName
from dlgpu.testing import assert_as_accurate, assert_close, gradcheck

rng = np.random.default_rng(0)


def normal(*shape: int) -> Tensor:
    return dlgpu.tensor(rng.standard_normal(shape))


def apart(*shape: int, offset: float = 0.25) -> Tensor:
    """Numbers in random order, half a unit apart and a quarter off the integers: far from ties and from kinks at 0."""
    count = math.prod(shape)
    return dlgpu.tensor((rng.permutation(count) - count // 2) * 0.5 + offset).reshape(*shape)


def dropped(x: Tensor) -> Tensor:
    dlgpu.manual_seed(5)
    return F.dropout(x, 0.4)


CLASSES = np.array([2, 0, 1, 2])
PIXELS = np.array([[[0, 2], [1, -100]], [[2, 2], [0, 1]]])
IMAGE, LOGITS, TARGET = (2, 4, 5, 6), normal(4, 3), normal(4, 3)
MEAN, VAR = normal(4), dlgpu.tensor(rng.random(4) + 0.5)

Case = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
GRADIENTS: dict[str, Case] = {
    "linear": (F.linear, (normal(3, 4), normal(5, 4), normal(5))),
    "linear, no bias, three axes": (F.linear, (normal(2, 3, 4), normal(5, 4))),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, ((1, 0), (0, 2))), (normal(*IMAGE), normal(3, 4, 3, 2), normal(3))),
    "conv2d, grouped, dilated": (
        lambda x, w: F.conv2d(x, w, padding="same", dilation=2, groups=2),
        (normal(*IMAGE), normal(6, 2, 3, 3)),
    ),
    "conv2d, fused residual and relu": (
        lambda x, w, b, r: F.conv2d(x, w, b, padding=1, residual=r, activation="relu"),
        (normal(*IMAGE), normal(3, 4, 3, 3), normal(3), normal(2, 3, *IMAGE[2:])),
    ),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: F.conv2d_relu_max_pool2d(x, w, b, padding=1),
        (normal(*IMAGE), normal(3, 4, 3, 3), normal(3)),
    ),
    "linear, fused relu": (
        lambda x, w, b: F.linear(x, w, b, activation="relu"),
        (normal(3, 4), normal(5, 4), normal(5)),
    ),
    "batch_norm, fused residual and relu": (
        lambda x, w, b, r: F.batch_norm(x, None, None, w, b, training=True, residual=r, activation="relu"),
        (normal(*IMAGE), normal(4), normal(4), normal(*IMAGE)),
    ),
    "batch_norm, evaluation with relu": (
        lambda x, w, b, r: F.batch_norm(
            x, dlgpu.zeros(4, dtype="float64"), dlgpu.ones(4, dtype="float64"), w, b, residual=r, activation="relu"
        ),
        (normal(*IMAGE), normal(4), normal(4), normal(*IMAGE)),
    ),
    "group_norm, fused residual and relu": (
        lambda x, w, b, r: F.group_norm(x, 2, w, b, residual=r, activation="relu"),
        (normal(*IMAGE), normal(4), normal(4), normal(*IMAGE)),
    ),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), 1, (1, 2)),
        (normal(2, 4, 3, 2), normal(4, 3, 3, 3), normal(3)),
    ),
    "conv_transpose2d, grouped, dilated": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2, dilation=(2, 1), padding=((1, 0), (0, 1))),
        (normal(2, 4, 3, 2), normal(4, 3, 2, 3)),
    ),
    "unfold": (lambda x: F.unfold(x, (2, 3), 1, 1, 2), (normal(*IMAGE),)),
    "im2col": (lambda x: F.im2col(x, 3, 2, ((1, 0), (0, 2)), (1, 2)), (normal(*IMAGE),)),
    "col2im": (lambda c: F.col2im(c, IMAGE, 3, 2, 1), (normal(18, 36),)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (apart(*IMAGE),)),
    "max_pool2d, dilated": (lambda x: F.max_pool2d(x, 2, 1, 0, (2, 3)), (apart(*IMAGE),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (normal(*IMAGE),)),
    "avg_pool2d, real pixels": (
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 1), count_include_pad=False),
        (normal(*IMAGE),),
    ),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (1, 3)), (normal(*IMAGE),)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (5, 2)), (apart(*IMAGE),)),
    "activation": (lambda x: F.activation(x, "silu"), (normal(4, 5),)),
    "relu": (F.relu, (apart(4, 5),)),
    "relu6": (F.relu6, (apart(6, 7),)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), (apart(4, 5),)),
    "elu": (lambda x: F.elu(x, 1.5), (apart(4, 5),)),
    "sigmoid": (F.sigmoid, (normal(4, 5),)),
    "tanh": (F.tanh, (normal(4, 5),)),
    "gelu": (F.gelu, (normal(4, 5),)),
    "silu": (F.silu, (normal(4, 5),)),
    "softplus": (F.softplus, (normal(4, 5),)),
    "softmax": (F.softmax, (normal(4, 5),)),
    "softmax over channels": (lambda x: F.softmax(x, 1), (normal(2, 3, 2, 2),)),
    "log_softmax": (lambda x: F.log_softmax(x, 0), (normal(4, 5),)),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=1e-2),
        (normal(*IMAGE), normal(4), normal(4)),
    ),
    "batch_norm, one channel": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (normal(3, 1, 2, 3), normal(1), normal(1)),
    ),
    "batch_norm, evaluation": (
        lambda x, w, b: F.batch_norm(x, MEAN, VAR, w, b),
        (normal(*IMAGE), normal(4), normal(4)),
    ),
    "batch_norm, bias only": (
        lambda x, b: F.batch_norm(x, None, None, None, b, training=True),
        (normal(3, 4), normal(4)),
    ),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (normal(*IMAGE), normal(4), normal(4))),
    "instance_norm": (F.instance_norm, (normal(*IMAGE), normal(4), normal(4))),
    "layer_norm": (
        lambda x, w, b: F.layer_norm(x, (5, 6), w, b),
        (normal(*IMAGE), normal(5, 6), normal(5, 6)),
    ),
    "local_response_norm": (lambda x: F.local_response_norm(x, 3, 0.5), (normal(*IMAGE),)),
    "local_response_norm, even": (lambda x: F.local_response_norm(x, 2, 0.5, 0.6, 2.0), (normal(*IMAGE),)),
    "dropout": (dropped, (normal(4, 5),)),
    "pad": (lambda x: F.pad(x, (1, 0, 2, 3), 4.0), (normal(2, 3),)),
    "cross_entropy": (lambda x: F.cross_entropy(x, CLASSES), (LOGITS,)),
    "cross_entropy, smoothed, ignoring": (
        lambda x: F.cross_entropy(x, CLASSES, ignore_index=0, label_smoothing=0.2),
        (LOGITS,),
    ),
    "cross_entropy of pixels": (lambda x: F.cross_entropy(x, PIXELS, reduction="none"), (normal(2, 3, 2, 2),)),
    "nll_loss": (lambda x: F.nll_loss(x, CLASSES, ignore_index=1, reduction="none"), (LOGITS,)),
    "mse_loss": (F.mse_loss, (LOGITS, TARGET)),
    "l1_loss": (lambda x, t: F.l1_loss(x, t, "sum"), (LOGITS, TARGET)),
    "smooth_l1_loss": (lambda x, t: F.smooth_l1_loss(x, t, "none", 0.75), (LOGITS, TARGET)),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, (LOGITS, TARGET)),
}


@pytest.mark.parametrize("format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients(case: str, format: str) -> None:
    fn, inputs = GRADIENTS[case]
    if format == "channels_last" and not any(t.ndim == 4 for t in inputs):
        format = "contiguous"
    gradcheck(fn, *(t.contiguous(format) if t.ndim == 4 else t for t in inputs))


def test_every_function_has_a_gradient_check() -> None:
    public = {
        name
        for name, f in inspect.getmembers(F, inspect.isfunction)
        if f.__module__ == F.__name__ and not name.startswith("_")
    }
    assert public - {"one_hot"} == {case.split(",")[0].split(" ")[0] for case in GRADIENTS}


# --- PyTorch, an implementation of other people --------------------------------------------------------------------

PYTORCH: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    # called with (module, *inputs), where the module is ours or torch.nn.functional
    "linear": (lambda F, *a: F.linear(*a), (normal(3, 4), normal(5, 4), normal(5))),
    "conv2d": (lambda F, *a: F.conv2d(*a, 2, (1, 2), (2, 1), 2), (normal(*IMAGE), normal(6, 2, 2, 3), normal(6))),
    "conv2d same": (lambda F, *a: F.conv2d(*a, padding="same"), (normal(*IMAGE), normal(3, 4, 2, 4), normal(3))),
    "conv_transpose2d": (
        lambda F, *a: F.conv_transpose2d(*a, (2, 3), (1, 0), (1, 2), 2, (2, 1)),
        (normal(2, 4, 3, 2), normal(4, 3, 3, 2), normal(6)),
    ),
    "unfold": (lambda F, x: F.unfold(x, (2, 3), (2, 1), 1, (1, 2)), (normal(*IMAGE),)),
    "max_pool2d": (lambda F, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (apart(*IMAGE),)),
    "max_pool2d dilated": (lambda F, x: F.max_pool2d(x, (2, 3), 1, (1, 0), 2), (apart(*IMAGE),)),
    "avg_pool2d": (lambda F, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (normal(*IMAGE),)),
    "avg_pool2d ceil 2": (lambda F, x: F.avg_pool2d(x, (2, 4), (3, 3), (1, 2), True), (normal(2, 3, 7, 9),)),
    "avg_pool2d real": (lambda F, x: F.avg_pool2d(x, 3, 2, 1, True, count_include_pad=False), (normal(*IMAGE),)),
    "adaptive_avg_pool2d": (lambda F, x: F.adaptive_avg_pool2d(x, (1, 3)), (normal(*IMAGE),)),
    "adaptive_max_pool2d": (lambda F, x: F.adaptive_max_pool2d(x, (5, 2)), (apart(*IMAGE),)),
    "relu": (lambda F, x: F.relu(x), (apart(4, 5, offset=0.0),)),
    "relu6": (lambda F, x: F.relu6(x), (apart(6, 7, offset=0.0),)),
    "leaky_relu": (lambda F, x: F.leaky_relu(x, 0.2), (apart(4, 5, offset=0.0),)),
    "elu": (lambda F, x: F.elu(x, 1.5), (normal(4, 5),)),
    "gelu": (lambda F, x: F.gelu(x), (normal(4, 5),)),
    "silu": (lambda F, x: F.silu(x), (normal(4, 5),)),
    "softplus": (lambda F, x: F.softplus(x), (normal(4, 5),)),
    "softmax": (lambda F, x: F.softmax(x, 1), (normal(2, 3, 4),)),
    "log_softmax": (lambda F, x: F.log_softmax(x, -1), (normal(2, 3, 4),)),
    "batch_norm": (
        lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True),
        (normal(*IMAGE), normal(4), normal(4)),
    ),
    "group_norm": (lambda F, x, w, b: F.group_norm(x, 2, w, b), (normal(*IMAGE), normal(4), normal(4))),
    "layer_norm": (lambda F, x, w, b: F.layer_norm(x, (6,), w, b), (normal(*IMAGE), normal(6), normal(6))),
    "local_response_norm": (lambda F, x: F.local_response_norm(x, 3, 0.5, 0.75, 2.0), (normal(*IMAGE),)),
    "local_response_norm even": (lambda F, x: F.local_response_norm(x, 4, 0.5), (normal(*IMAGE),)),
    "pad": (lambda F, x: F.pad(x, (1, 0, 2, 3), value=4.0), (normal(2, 3, 4),)),
    "mse_loss": (lambda F, x, t: F.mse_loss(x, t), (LOGITS, TARGET)),
    "l1_loss": (lambda F, x, t: F.l1_loss(x, t), (LOGITS, TARGET)),
    "smooth_l1_loss": (lambda F, x, t: F.smooth_l1_loss(x, t, beta=0.75), (LOGITS, TARGET)),
    "binary_cross_entropy_with_logits": (
        lambda F, x, t: F.binary_cross_entropy_with_logits(x, t),
        (LOGITS, TARGET),
    ),
}


def assert_same_as_torch(fn: Callable[..., Any], inputs: tuple[Tensor, ...], *targets: np.ndarray) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the other implementation, is not installed")
    ours = [Tensor(t.data.copy(), t.backend, requires_grad=True) for t in inputs]
    theirs = [torch.tensor(t.data, requires_grad=True) for t in inputs]
    y = fn(F, *ours, *targets)
    expected = fn(torch.nn.functional, *theirs, *map(torch.tensor, targets))
    # float64 on both sides; sums of at most a few hundred products of order 1 in another order.
    close = dict(rtol=1e-12, atol=1e-12)
    assert_close(y, expected.detach().numpy(), what="values", **close)
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert_close(a.grad, b.grad.numpy(), what=f"gradient {index}", **close)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", PYTORCH)
def test_values_and_gradients_of_pytorch(case: str) -> None:
    assert_same_as_torch(*PYTORCH[case])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("logits", "target"), [(LOGITS, CLASSES), (normal(2, 3, 2, 2), PIXELS)], ids=["N", "NHW"])
def test_cross_entropy_of_pytorch(
    logits: Tensor, target: np.ndarray, label_smoothing: float, ignore_index: int, reduction: Any
) -> None:
    target = np.where(target == -100, ignore_index, target)
    options = dict(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    assert_same_as_torch(lambda F, x, t: F.cross_entropy(x, t, **options), (logits,), target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll_loss_of_pytorch(reduction: Any) -> None:
    options = dict(ignore_index=0, reduction=reduction)
    assert_same_as_torch(lambda F, x, t: F.nll_loss(x, t, **options), (LOGITS,), CLASSES)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_that_pytorch_moved_elsewhere(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, the other implementation, is not installed")
    x = normal(3, 4)
    assert_close(getattr(F, name)(x), getattr(torch, name)(torch.tensor(x.data)).numpy(), rtol=1e-12)


# --- what only the functions do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "direct", "fft"])
def test_the_algorithm_reaches_all_three_convolutions(algorithm: Any) -> None:
    gradcheck(lambda x, w: F.conv2d(x, w, padding=1, algorithm=algorithm), normal(1, 2, 5, 4), normal(3, 2, 3, 3))


def test_fused_activations_and_residuals() -> None:
    x, w, b, added = normal(2, 2, 6, 4), normal(3, 2, 3, 3), normal(3), normal(2, 3, 6, 4)
    expected = F.relu(F.conv2d(x, w, b, padding=1) + added)
    assert_close(F.conv2d(x, w, b, padding=1, residual=added, activation="relu"), expected, rtol=1e-12)
    expected = F.max_pool2d(F.relu(F.conv2d(x, w, b, padding=1)), 2)
    assert_close(F.conv2d_relu_max_pool2d(x, w, b, padding=1), expected, rtol=1e-12)


def test_batch_norm_updates_what_evaluation_uses() -> None:
    x, mean, var = normal(*IMAGE), dlgpu.zeros(4, dtype="float64"), dlgpu.ones(4, dtype="float64")
    F.batch_norm(x, mean, var, training=True, momentum=1.0)
    assert (mean.version.count, var.version.count) == (1, 1)
    evaluated = F.batch_norm(x, mean, var)
    exact = naive.norm(x.numpy().astype(naive.WIDE), None, None, groups=None)
    count = x.size // 4
    scale = 1 / np.sqrt(exact[3] + 1e-5)
    assert_close(mean.numpy(), exact[1].astype(np.float64), atol=1e-15)
    expected = (x.numpy() - exact[1].reshape(-1, 1, 1)) * scale.reshape(-1, 1, 1)
    assert_close(evaluated, expected.astype(np.float64), atol=count * 2.0**-52)
    with pytest.raises(ShapeError, match=r"^\[batch_norm\] needs running_mean and running_var"):
        F.batch_norm(x, None, var)


def test_dropout_is_scaled_and_its_gradient_follows_the_mask() -> None:
    x = dlgpu.ones(1000, requires_grad=True)
    y = F.dropout(x, 0.75)
    assert set(y.numpy().tolist()) == {0.0, 4.0}
    y.backward(np.full(1000, 3.0))
    assert_close(x.grad, 3 * y.numpy())


def test_layer_norm_by_hand() -> None:
    """1, 3 | mean 2, variance 1."""
    y = F.layer_norm(dlgpu.tensor([[1.0, 3.0]]), (2,), dlgpu.tensor([2.0, 4.0]), dlgpu.tensor([0.5, 0.25]), eps=0.0)
    assert_close(y, np.float32([[-1.5, 4.25]]))


def test_one_hot() -> None:
    y = F.one_hot(dlgpu.tensor([[0, 2], [1, 1]]), 3)
    assert_close(y, np.eye(3, dtype=np.float32)[[[0, 2], [1, 1]]])


def test_ignored_rows_of_nll_loss_may_hold_infinities() -> None:
    x = dlgpu.tensor([[-np.inf, 0.0], [-1.0, -2.0]], requires_grad=True)
    loss = F.nll_loss(x, np.array([-100, 1]))
    loss.backward()
    assert loss.item() == 2
    assert_close(x.grad, np.float32([[0, 0], [0, -1]]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_loss_of_halves_is_float32(dtype: str) -> None:
    logits = dlgpu.randn(5, 3, dtype=dtype, requires_grad=True)
    target = np.array([0, 1, 2, 0, 1])
    loss = F.cross_entropy(logits, target, reduction="none")
    assert loss.dtype == dtypes.float32
    wide = logits.numpy().astype(naive.WIDE)
    plain = naive.cross_entropy(logits.numpy().astype(np.float32), target)
    assert_as_accurate(loss, plain, naive.cross_entropy(wide, target))
    loss.sum().backward()
    assert logits.grad.dtype == logits.dtype


EMPTY: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: F.conv2d(x, dlgpu.ones(2, 4, 3, 3)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, dlgpu.ones(4, 2, 3, 3)),
    "unfold": lambda x: F.unfold(x, 3),
    "im2col": lambda x: F.im2col(x, 3),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "relu": F.relu,
    "softmax": lambda x: F.softmax(x, 1),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: F.group_norm(x, 2),
    "layer_norm": lambda x: F.layer_norm(x, (5, 6)),
    "local_response_norm": lambda x: F.local_response_norm(x, 3),
    "dropout": F.dropout,
    "pad": lambda x: F.pad(x, (1, 1)),
    "linear": lambda x: F.linear(x.flatten(1), dlgpu.ones(3, 120)),
    "cross_entropy": lambda x: F.cross_entropy(x, np.zeros((0, 5, 6), int), reduction="sum"),
}


@pytest.mark.parametrize("op", EMPTY)
def test_empty_batches(op: str) -> None:
    """The shapes are those of one image, but for the batch; gradients have the input's shape."""
    x = dlgpu.zeros(0, 4, 5, 6, requires_grad=True)
    y = EMPTY[op](x)
    if op not in ("cross_entropy", "im2col"):
        assert y.shape == (0, *EMPTY[op](dlgpu.randn(2, 4, 5, 6)).shape[1:])
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_gradients_of_weights_are_zero_for_empty_batches() -> None:
    weight, bias = dlgpu.ones(2, 4, 3, 3, requires_grad=True), dlgpu.ones(2, requires_grad=True)
    F.conv2d(dlgpu.zeros(0, 4, 5, 6), weight, bias).sum().backward()
    assert_close(weight.grad, np.zeros((2, 4, 3, 3), np.float32))
    assert_close(bias.grad, np.zeros(2, np.float32))


X, PIXEL = dlgpu.zeros(2, 3), dlgpu.zeros(1, 2, 4, 4)
REFUSED: dict[str, tuple[Callable[[], Any], type[DlgpuError], str]] = {
    "conv2d dtype": (lambda: F.conv2d(PIXEL, dlgpu.zeros(1, 2, 1, 1, dtype="float16")), DtypeError, r"\[conv2d\]"),
    "conv2d algorithm": (
        lambda: F.conv2d(PIXEL, dlgpu.zeros(1, 2, 1, 1), algorithm="winograd"),  # type: ignore[arg-type]
        UnknownName,
        r"\[conv2d\] unknown algorithm 'winograd'; Did you mean 'winograd\d'",
    ),
    "adaptive": (
        lambda: F.adaptive_avg_pool2d(PIXEL, 3),
        ShapeError,
        r"\[adaptive_avg_pool2d\] output_size must divide",
    ),
    "adaptive rank": (lambda: F.adaptive_max_pool2d(X, 1), ShapeError, r"\[adaptive_max_pool2d\] input must"),
    "softmax": (lambda: F.softmax(X, 2), ShapeError, r"\[softmax\]"),
    "layer_norm": (lambda: F.layer_norm(X, (2,)), ShapeError, r"\[layer_norm\] the input's last axes must be \(2,\)"),
    "instance_norm": (lambda: F.instance_norm(X), ShapeError, r"\[instance_norm\]"),
    "dropout": (lambda: F.dropout(X, 1.5), ShapeError, r"\[dropout\] p must be in \[0, 1\]; got 1.5"),
    "pad odd": (lambda: F.pad(X, (1,)), ShapeError, r"\[pad\]"),
    "pad negative": (lambda: F.pad(X, (1, -1)), ShapeError, r"\[pad\]"),
    "pad too many": (lambda: F.pad(X, (1,) * 6), ShapeError, r"\[pad\]"),
    "mse shapes": (lambda: F.mse_loss(X, dlgpu.zeros(2, 1)), ShapeError, r"\[mse_loss\] target must have shape"),
    "bce shapes": (lambda: F.binary_cross_entropy_with_logits(X, dlgpu.zeros(3)), ShapeError, r"\[binary_cross"),
    "beta": (lambda: F.smooth_l1_loss(X, X, beta=0), ShapeError, r"\[smooth_l1_loss\] beta must be positive; got 0"),
    "reduction": (
        lambda: F.mse_loss(X, X, "avg"),  # type: ignore[arg-type]
        UnknownName,
        r"\[mse_loss\] unknown reduction 'avg'; known: mean, none, sum",
    ),
    "mean of nothing": (lambda: F.l1_loss(X[:0], X[:0]), ShapeError, r"\[l1_loss\] the mean of no losses"),
    "all ignored": (
        lambda: F.cross_entropy(X, np.array([-100, -100])),
        ShapeError,
        r"\[cross_entropy\] the mean of no losses is not defined; got .* only ignored",
    ),
    "nll classes": (lambda: F.nll_loss(X, np.array([0, 3])), ShapeError, r"\[nll_loss\] targets must be in \[0, 3\)"),
    "nll target": (lambda: F.nll_loss(X, np.array([0.0, 1.0])), DtypeError, r"\[nll_loss\] target must hold integer"),
    "activation": (lambda: F.activation(X, "swish"), UnknownName, r"\[activation\] unknown activation 'swish'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    call, error, words = REFUSED[what]
    with pytest.raises(error, match=rf"^{words}"):
        call()
