"""Layout is strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import memory_format
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.testing import assert_close

SHAPES = [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1), (1, 1, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("source", memory_format.FORMATS)
@pytest.mark.parametrize("target", memory_format.FORMATS)
def test_convert(shape: tuple[int, ...], source: Any, target: Any) -> None:
    a = memory_format.empty(np, shape, np.dtype(np.float32), source)
    a[...] = np.arange(a.size).reshape(shape)
    assert memory_format.of(a) == source
    b = memory_format.convert(np, a, target)
    assert memory_format.of(b) == target
    dense = b.transpose(0, 2, 3, 1) if target == "channels_last" else b
    assert dense.flags.c_contiguous
    assert_close(b, np.arange(a.size, dtype=np.float32).reshape(shape))
    assert (b is a) == (source == target)


def test_gaps_are_closed() -> None:
    """A slice of a channels_last array is channels_last no more, until converted."""
    a = memory_format.empty(np, (2, 4, 3, 3), np.dtype(np.float32), "channels_last")
    assert memory_format.of(a[:, :2]) == "contiguous"
    assert memory_format.of(memory_format.convert(np, a[:, :2], "channels_last")) == "channels_last"


def test_only_images_have_a_format() -> None:
    rows = np.zeros((3, 4), np.float32)
    assert memory_format.of(rows, None) == "contiguous"
    assert memory_format.of(np.zeros((2, 1, 1, 3), np.float32).transpose(0, 3, 1, 2)) == "contiguous"
    with pytest.raises(ShapeError, match=r"^\[memory_format\] channels_last needs"):
        memory_format.convert(np, rows, "channels_last")
    with pytest.raises(UnknownName, match="Did you mean 'channels_last'"):
        memory_format.parse("channels_first")


def test_any_channels_last_array_decides() -> None:
    plain = np.zeros((1, 2, 2, 2), np.float32)
    last = memory_format.convert(np, plain, "channels_last")
    assert memory_format.of(plain, last) == "channels_last"


CHAIN = {
    "add": lambda x: x + 1.0,
    "broadcast": lambda x: x * dlgpu.full((3, 1, 1), 2.0),
    "div": lambda x: x / (x * x + 1.0),
    "conv2d": lambda x: F.conv2d(x, dlgpu.ones(4, 3, 3, 3), padding=1),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "relu": F.relu,
    "softmax": lambda x: F.softmax(x, 1),
    "dropout": F.dropout,
    "pad": lambda x: F.pad(x, (1, 2)),
    "cat": lambda x: dlgpu.cat([x, x], 1),
    "astype": lambda x: x.astype("float16").astype("float32"),
    "clamp": lambda x: x.clamp(0, 1),
    "detach": lambda x: x.detach() + 0.0,
}


@pytest.mark.parametrize("format", memory_format.FORMATS)
@pytest.mark.parametrize("op", CHAIN)
def test_tensor_ops_keep_the_format(op: str, format: Any) -> None:
    x = dlgpu.randn(2, 3, 4, 6).contiguous(format)
    x.requires_grad_()
    y = CHAIN[op](x)
    assert memory_format.of(y.data) == format
    if y.requires_grad:
        y.backward(dlgpu.randn(*y.shape))
        assert memory_format.of(x.grad.data) == format


@pytest.mark.parametrize("op", CHAIN)
def test_values_do_not_depend_on_the_format(op: str) -> None:
    dlgpu.manual_seed(1)
    x = dlgpu.randn(2, 3, 4, 6)
    state = dlgpu.random.get_state()
    results = []
    for format in memory_format.FORMATS:
        dlgpu.random.set_state(*state)
        results.append(CHAIN[op](x.contiguous(format)).numpy())
    # The same products, perhaps added in another order: 27 of them at most, all of order 1.
    assert_close(*results, rtol=2.0**-20, atol=27 * 2.0**-23)


def test_contiguous_is_differentiable_and_free_where_nothing_changes() -> None:
    x = dlgpu.randn(2, 3, 4, 5, requires_grad=True)
    assert x.contiguous() is x
    y = x.to(memory_format="channels_last")
    assert memory_format.of(y.data) == "channels_last"
    grad = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    y.backward(grad)
    assert_close(x.grad, grad)
