"""Bad input through the Python API: the right class, one line `[op] rule; got ...`, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import data, models, nn, optim
from dlgpu import functional as F
from dlgpu.errors import AutogradError, DlgpuError, DtypeError, UnknownName

FORM = re.compile(r"\[[\w .()]+\] (.+; got .+|unknown .+;.* known: .+)")


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype)


def whole(*values: int, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype)


def on_tensors(op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The op on the arrays' own memory."""
    return lambda *arrays: op(*(None if a is None else dlgpu.from_numpy(a) for a in arrays), **options)


IMAGE = floats(2, 3, 8, 8)
FILTERS = floats(4, 3, 3, 3)
LOGITS = floats(3, 5)
PER_CHANNEL = floats(3)
PIXELS = np.full((4, 1, 2, 2), 7, np.uint8)
LABELS = whole(0, 1, 2, 0)
DIGITS = data.Dataset(PIXELS, LABELS, ("a", "b", "c"), "x")


def weights() -> nn.Parameter:
    return nn.Parameter(np.ones(3, np.float32))


def optimizer(kind: type[optim.Optimizer], **settings: Any) -> Callable[[], optim.Optimizer]:
    return lambda: kind([weights()], **settings)


def loader(**settings: Any) -> Callable[[], data.DataLoader]:
    return lambda: data.DataLoader(DIGITS, **({"batch_size": 2} | settings))


def dataset(pixels: np.ndarray, labels: np.ndarray) -> data.Dataset:
    return data.Dataset(pixels, labels, ("a", "b", "c"), "x")


def picture(content: bytes | None, **options: Any) -> Callable[..., Any]:
    def load(tmp_path: Any) -> np.ndarray:
        if content is not None:
            (tmp_path / "a.png").write_bytes(content)
        return data.load_image(tmp_path / "a.png", **options)

    return load


# what -> (the built-in error a Python user expects, the call, the arrays it is called with)
CASES: dict[str, tuple[type[Exception], Callable[..., Any], tuple[np.ndarray | None, ...]]] = {
    # convolution
    "conv2d rank of input": (ValueError, on_tensors(F.conv2d), (IMAGE[0], FILTERS)),
    "conv2d rank of weight": (ValueError, on_tensors(F.conv2d), (IMAGE, FILTERS[0])),
    "conv2d channels": (ValueError, on_tensors(F.conv2d), (IMAGE, floats(4, 2, 3, 3))),
    "conv2d bias": (ValueError, on_tensors(F.conv2d), (IMAGE, FILTERS, floats(3))),
    "conv2d groups": (ValueError, on_tensors(F.conv2d, groups=2), (IMAGE, FILTERS)),
    "conv2d groups 0": (ValueError, on_tensors(F.conv2d, groups=0), (IMAGE, FILTERS)),
    "conv2d kernel too large": (ValueError, on_tensors(F.conv2d), (IMAGE, floats(4, 3, 9, 3))),
    "conv2d dilated kernel too large": (ValueError, on_tensors(F.conv2d, dilation=4), (IMAGE, FILTERS)),
    "conv2d padded kernel too large": (ValueError, on_tensors(F.conv2d, padding=1), (IMAGE, floats(4, 3, 11, 11))),
    "conv2d stride 0": (ValueError, on_tensors(F.conv2d, stride=0), (IMAGE, FILTERS)),
    "conv2d stride of 3": (ValueError, on_tensors(F.conv2d, stride=(1, 1, 1)), (IMAGE, FILTERS)),
    "conv2d fractional stride": (ValueError, on_tensors(F.conv2d, stride=1.5), (IMAGE, FILTERS)),
    "conv2d dilation 0": (ValueError, on_tensors(F.conv2d, dilation=0), (IMAGE, FILTERS)),
    "conv2d negative padding": (ValueError, on_tensors(F.conv2d, padding=-1), (IMAGE, FILTERS)),
    "conv2d padding word": (ValueError, on_tensors(F.conv2d, padding="full"), (IMAGE, FILTERS)),
    "conv2d same with stride": (ValueError, on_tensors(F.conv2d, padding="same", stride=2), (IMAGE, FILTERS)),
    "conv2d algorithm": (KeyError, on_tensors(F.conv2d, algorithm="winograd3"), (IMAGE, FILTERS)),
    "conv2d integers": (TypeError, on_tensors(F.conv2d), (IMAGE.astype(np.int32), FILTERS)),
    "conv2d two dtypes": (TypeError, on_tensors(F.conv2d), (IMAGE, FILTERS.astype(np.float16))),
    "conv_transpose2d channels": (ValueError, on_tensors(F.conv_transpose2d), (IMAGE, floats(4, 3, 3, 3))),
    "conv_transpose2d output padding": (
        ValueError,
        on_tensors(F.conv_transpose2d, output_padding=1),
        (IMAGE, floats(3, 4, 3, 3)),
    ),
    # pooling
    "max_pool2d rank": (ValueError, on_tensors(F.max_pool2d, kernel_size=2), (IMAGE[0],)),
    "max_pool2d kernel too large": (ValueError, on_tensors(F.max_pool2d, kernel_size=9), (IMAGE,)),
    "max_pool2d kernel 0": (ValueError, on_tensors(F.max_pool2d, kernel_size=0), (IMAGE,)),
    "max_pool2d stride 0": (ValueError, on_tensors(F.max_pool2d, kernel_size=2, stride=0), (IMAGE,)),
    "max_pool2d padding": (ValueError, on_tensors(F.max_pool2d, kernel_size=2, padding=2), (IMAGE,)),
    "max_pool2d integers": (TypeError, on_tensors(F.max_pool2d, kernel_size=2), (IMAGE.astype(np.int8),)),
    "avg_pool2d stride 0": (ValueError, on_tensors(F.avg_pool2d, kernel_size=2, stride=0), (IMAGE,)),
    "adaptive_avg_pool2d size": (ValueError, on_tensors(F.adaptive_avg_pool2d, output_size=3), (IMAGE,)),
    # dense
    "linear features": (ValueError, on_tensors(F.linear), (LOGITS, floats(4, 3))),
    "linear rank of weight": (ValueError, on_tensors(F.linear), (LOGITS, floats(5))),
    "linear bias": (ValueError, on_tensors(F.linear), (LOGITS, floats(4, 5), floats(5))),
    "linear two dtypes": (TypeError, on_tensors(F.linear), (LOGITS, floats(4, 5, dtype=np.float64))),
    "matmul": (ValueError, on_tensors(lambda a, b: a @ b), (LOGITS, LOGITS)),
    # losses
    "cross_entropy label too large": (ValueError, on_tensors(F.cross_entropy), (LOGITS, whole(0, 1, 5))),
    "cross_entropy negative label": (ValueError, on_tensors(F.cross_entropy), (LOGITS, whole(0, -1, 4))),
    "cross_entropy number of labels": (ValueError, on_tensors(F.cross_entropy), (LOGITS, whole(0, 1))),
    "cross_entropy rank": (ValueError, on_tensors(F.cross_entropy), (LOGITS[0], whole(0))),
    "cross_entropy float labels": (TypeError, on_tensors(F.cross_entropy), (LOGITS, floats(3))),
    "cross_entropy integer logits": (TypeError, on_tensors(F.cross_entropy), (LOGITS.astype(int), whole(0, 1, 2))),
    "cross_entropy empty batch": (ValueError, on_tensors(F.cross_entropy), (LOGITS[:0], whole())),
    "cross_entropy all ignored": (ValueError, on_tensors(F.cross_entropy), (LOGITS, whole(-100, -100, -100))),
    "cross_entropy smoothing": (
        ValueError,
        on_tensors(F.cross_entropy, label_smoothing=1.5),
        (LOGITS, whole(0, 1, 2)),
    ),
    "cross_entropy reduction": (
        KeyError,
        on_tensors(F.cross_entropy, reduction="average"),
        (LOGITS, whole(0, 1, 2)),
    ),
    "nll_loss label": (ValueError, on_tensors(F.nll_loss), (LOGITS, whole(0, 1, 5))),
    "mse_loss shape": (ValueError, on_tensors(F.mse_loss), (LOGITS, LOGITS[0])),
    "mse_loss empty batch": (ValueError, on_tensors(F.mse_loss), (LOGITS[:0], LOGITS[:0])),
    # normalisation and dropout
    "batch_norm rank": (ValueError, on_tensors(F.batch_norm, training=True), (PER_CHANNEL, None, None)),
    "batch_norm statistics": (ValueError, on_tensors(F.batch_norm), (IMAGE, floats(2), floats(2))),
    "batch_norm no statistics": (ValueError, on_tensors(F.batch_norm), (IMAGE, None, None)),
    "batch_norm weight": (
        ValueError,
        on_tensors(F.batch_norm, training=True),
        (IMAGE, PER_CHANNEL, PER_CHANNEL + 2, floats(4)),
    ),
    "batch_norm one value": (
        ValueError,
        on_tensors(F.batch_norm, training=True),
        (IMAGE[:1, :, :1, :1], PER_CHANNEL, PER_CHANNEL + 2),
    ),
    "batch_norm integers": (
        TypeError,
        on_tensors(F.batch_norm, training=True),
        (IMAGE.astype(int), PER_CHANNEL, PER_CHANNEL + 2),
    ),
    "group_norm groups": (ValueError, on_tensors(F.group_norm, num_groups=2), (IMAGE,)),
    "layer_norm shape": (ValueError, on_tensors(F.layer_norm, normalized_shape=(4,)), (LOGITS,)),
    "dropout p": (ValueError, on_tensors(F.dropout, p=1.5), (LOGITS,)),
    "dropout nan": (ValueError, on_tensors(F.dropout, p=float("nan")), (LOGITS,)),
    "activation name": (KeyError, on_tensors(F.activation, kind="rleu"), (LOGITS,)),
    # shape
    "reshape": (ValueError, on_tensors(lambda x: x.reshape(4, 4)), (LOGITS,)),
    "reshape two unknowns": (ValueError, on_tensors(lambda x: x.reshape(-1, -1)), (LOGITS,)),
    "flatten": (ValueError, on_tensors(lambda x: x.flatten(3)), (LOGITS,)),
    "permute": (ValueError, on_tensors(lambda x: x.permute(0, 0)), (LOGITS,)),
    "squeeze": (ValueError, on_tensors(lambda x: x.squeeze(0)), (LOGITS,)),
    "sum axis": (ValueError, on_tensors(lambda x: x.sum(2)), (LOGITS,)),
    "mean of nothing": (ValueError, on_tensors(lambda x: x.mean()), (LOGITS[:0],)),
    "item": (ValueError, on_tensors(lambda x: x.item()), (LOGITS,)),
    "index": (ValueError, on_tensors(lambda x: x[7]), (LOGITS,)),
    "pad": (ValueError, on_tensors(F.pad, pad=(1,)), (LOGITS,)),
    "cat nothing": (ValueError, lambda: dlgpu.cat([]), ()),
    "cat sizes": (ValueError, on_tensors(lambda a, b: dlgpu.cat([a, b])), (LOGITS, floats(3, 4))),
    "cat ranks": (ValueError, on_tensors(lambda a, b: dlgpu.cat([a, b])), (LOGITS, PER_CHANNEL)),
    "cat axis": (ValueError, on_tensors(lambda a: dlgpu.cat([a, a], dim=2)), (LOGITS,)),
    "stack shapes": (ValueError, on_tensors(lambda a, b: dlgpu.stack([a, b])), (LOGITS, floats(3, 4))),
    # tensors and gradients
    "tensor of words": (TypeError, lambda: dlgpu.tensor("digit"), ()),
    "tensor of ragged rows": (TypeError, lambda: dlgpu.tensor([[1, 2], [3]]), ()),
    "dtype name": (KeyError, lambda: dlgpu.zeros(2, dtype="float23"), ()),
    "device name": (KeyError, lambda: dlgpu.zeros(2, device="cude"), ()),
    "gradient of integers": (TypeError, lambda: dlgpu.tensor([1, 2], requires_grad=True), ()),
    "backward without gradient": (RuntimeError, on_tensors(lambda x: x.sum().backward()), (LOGITS,)),
    "backward from many": (RuntimeError, lambda: (weights() * 2).backward(), ()),
    "backward shape": (ValueError, lambda a: (weights() * 2).backward(dlgpu.from_numpy(a)), (LOGITS,)),
    # data
    "Dataset float pixels": (TypeError, dataset, (PIXELS.astype(np.float32), LABELS)),
    "Dataset labels of another dtype": (TypeError, dataset, (PIXELS, LABELS.astype(np.int32))),
    "Dataset rank": (ValueError, dataset, (PIXELS[:, 0], LABELS)),
    "Dataset lengths": (ValueError, dataset, (PIXELS, LABELS[:3])),
    "Dataset label too large": (ValueError, dataset, (PIXELS, LABELS + 1)),
    "Dataset negative label": (ValueError, dataset, (PIXELS, LABELS - 1)),
    "Dataset split": (ValueError, lambda: DIGITS.split(4, seed=0), ()),
    "Dataset mean of none": (ValueError, lambda: DIGITS.subset([]).mean_std(), ()),
    "DataLoader batch 0": (ValueError, loader(batch_size=0), ()),
    "DataLoader empty": (ValueError, lambda: data.DataLoader(DIGITS.subset([]), 2), ()),
    "DataLoader all dropped": (ValueError, loader(batch_size=5, drop_last=True), ()),
    "DataLoader seed": (ValueError, loader(seed=-1), ()),
    "DataLoader start": (ValueError, lambda: next(loader()().epoch(0, start=3)), ()),
    "Normalize channels": (ValueError, lambda: next(iter(loader(transform=data.Normalize([0, 0], [1, 1]))())), ()),
    "Normalize std 0": (ValueError, lambda: data.Normalize([0], [0]), ()),
    "RandomCrop size": (ValueError, lambda: next(iter(loader(transform=data.RandomCrop(9))())), ()),
    "data set name": (KeyError, lambda: data.load("minst", train=True), ()),
    # models and layers
    "model name": (KeyError, lambda: models.build("lenet"), ()),
    "model argument": (ValueError, lambda: models.build("mlp", classes=10), ()),
    "model classes": (ValueError, lambda: models.build("mlp", num_classes=0), ()),
    "model image too small": (ValueError, lambda: models.build("lenet5", image_size=3), ()),
    "vgg image too small": (ValueError, lambda: models.build("vgg11", image_size=16), ()),
    "model on another size": (ValueError, on_tensors(lambda x: models.build("lenet5")(x)), (floats(1, 1, 32, 32),)),
    "model on other channels": (ValueError, on_tensors(lambda x: models.build("lenet5")(x)), (floats(1, 3, 28, 28),)),
    "model on pixels": (TypeError, on_tensors(lambda x: models.build("lenet5")(x)), (floats(1, 1, 28, 28, dtype=int),)),
    "Linear features": (ValueError, lambda: nn.Linear(0, 3), ()),
    "Linear fraction": (ValueError, lambda: nn.Linear(2.5, 3), ()),
    "Conv2d kernel": (ValueError, lambda: nn.Conv2d(1, 1, 0), ()),
    "Conv2d stride": (ValueError, lambda: nn.Conv2d(1, 1, 3, stride=0), ()),
    "Conv2d groups": (ValueError, lambda: nn.Conv2d(3, 4, 3, groups=2), ()),
    "MaxPool2d stride": (ValueError, lambda: nn.MaxPool2d(2, stride=0), ()),
    "BatchNorm2d channels": (ValueError, lambda: nn.BatchNorm2d(-1), ()),
    "GroupNorm groups": (ValueError, lambda: nn.GroupNorm(2, 3), ()),
    "Dropout p": (ValueError, lambda: nn.Dropout(-0.1), ()),
    "Sequential": (ValueError, lambda: nn.Sequential(F.relu), ()),
    "load_state_dict": (ValueError, lambda: nn.Linear(2, 3).load_state_dict({"weight": floats(3, 2)}), ()),
    # optimizers
    "Adam lr": (ValueError, optimizer(optim.Adam, lr=-1.0), ()),
    "SGD lr nan": (ValueError, optimizer(optim.SGD, lr=float("nan")), ()),
    "SGD momentum": (ValueError, optimizer(optim.SGD, momentum=1.0), ()),
    "SGD nesterov": (ValueError, optimizer(optim.SGD, nesterov=True), ()),
    "Adam betas": (ValueError, optimizer(optim.Adam, betas=(0.9, 1.5)), ()),
    "optimizer of nothing": (ValueError, lambda: optim.Adam([]), ()),
    "optimizer setting": (ValueError, lambda: optim.Adam([{"params": [weights()], "rate": 1}]), ()),
    "optimizer of one twice": (ValueError, lambda: optim.SGD([weights()] * 2), ()),
    "optimizer of frozen": (ValueError, lambda: optim.SGD([weights().requires_grad_(False)]), ()),
    "clip_grad_norm": (ValueError, lambda: optim.SGD([weights()]).clip_grad_norm(0), ()),
    "optimizer state": (ValueError, lambda: optim.SGD([weights()]).load_state_dict({}), ()),
    "schedule": (ValueError, lambda: optim.CosineDecay(0), ()),
    "seed": (ValueError, lambda: dlgpu.manual_seed(-1), ()),
}  # fmt: skip


def check(call: Callable[[], Any], builtin: type[Exception]) -> None:
    with pytest.raises(DlgpuError) as caught:
        call()
    assert isinstance(caught.value, builtin)
    message = str(caught.value)
    assert FORM.fullmatch(message), message  # `.` does not match a line break


@pytest.mark.parametrize("what", CASES)
def test_bad_input(what: str) -> None:
    builtin, call, arrays = CASES[what]
    before = [None if a is None else (a.tobytes(), a.shape, a.strides, a.dtype) for a in arrays]
    check(lambda: call(*arrays), builtin)
    assert [None if a is None else (a.tobytes(), a.shape, a.strides, a.dtype) for a in arrays] == before


@pytest.mark.parametrize(
    ("content", "options"),
    [(None, {}), (b"", {}), (b"no picture", {}), (None, dict(channels=2)), (None, dict(image_size=0))],
    ids=str,
)
def test_load_image(tmp_path: Any, content: bytes | None, options: dict[str, Any]) -> None:
    check(lambda: picture(content, **options)(tmp_path), ValueError)


def test_every_class_is_two_errors() -> None:
    """So that `except ValueError` and `except DlgpuError` both work."""
    for error in DlgpuError.__subclasses__():
        assert set(error.__bases__) & {ValueError, TypeError, RuntimeError, KeyError}, error
    assert issubclass(DtypeError, TypeError)
    assert issubclass(AutogradError, RuntimeError)
    assert str(UnknownName("x", "colour", "rde", ["red", "blue"])) == (
        "[x] unknown colour 'rde'; Did you mean 'red'? known: blue, red"
    )
