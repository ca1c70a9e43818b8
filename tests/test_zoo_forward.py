"""The larger networks against an independent forward pass, at full depth, and the published tables row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import zoo_forward

import dlgpu
from dlgpu import models, nn
from dlgpu.nn.summary import LayerRow, layer_rows
from dlgpu.testing import error

Forward = Callable[[zoo_forward.Net, np.ndarray], np.ndarray]
NETWORKS: list[tuple[str, dict[str, Any], Forward]] = [
    ("alexnet", {}, zoo_forward.alexnet),
    ("googlenet", {"aux": False}, zoo_forward.googlenet),
    ("inception_v2", {}, zoo_forward.inception_v2),
    ("mobilenet_v1", {"width_mult": 0.25}, zoo_forward.mobilenet_v1),
    ("mobilenet_v2", {"width_mult": 0.35}, zoo_forward.mobilenet_v2),
    ("resnet34", {"width": 8}, zoo_forward.resnet),
    ("resnet101", {"width": 8}, zoo_forward.resnet),
    ("squeezenet", {}, zoo_forward.squeezenet),
    ("squeezenet", {"bypass": "simple"}, partial(zoo_forward.squeezenet, added=(3, 5, 7, 9))),
    ("squeezenet", {"bypass": "complex"}, partial(zoo_forward.squeezenet, added=(3, 5, 7, 9))),
]
# Products are added up in another order: sums of thousands of terms are off by tens of units of rounding, not more. A
# wrong stride, branch or shortcut is off by 1e-3.
ROUNDING = 2**8 * float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("size", [33, 97])  # without and with the first layers' halving; odd, so that edges matter
@pytest.mark.parametrize(("name", "options", "forward"), NETWORKS)
def test_forward_is_what_the_paper_says(name: str, options: dict[str, Any], forward: Forward, size: int) -> None:
    dlgpu.manual_seed(0)
    rng = np.random.default_rng(0)
    net = models.build(name, num_classes=7, image_size=size, **options).to(dtype="float64").eval()
    state = net.state_dict()
    for key, value in state.items():  # away from 0 and 1, where a missing term would not be seen
        if value.ndim == 1:
            positive = key.endswith(("running_var", "weight"))
            state[key] = rng.uniform(0.5, 1.5, value.shape) if positive else rng.normal(0, 0.2, value.shape)
    net.load_state_dict(state)
    x = rng.standard_normal((2, 3, size, size))
    expected = forward(zoo_forward.Net(state, small=size < 96), x)
    assert expected.std() > 1e-3 * np.abs(expected).mean()  # says something about the images
    assert error(net(dlgpu.tensor(x)), expected) <= ROUNDING


# --- the published tables, every row ------------------------------------------------------------------------------


def rows_of(name: str, size: int = 224) -> list[LayerRow]:
    with nn.init.skipped():
        return layer_rows(models.build(name, image_size=size), (1, 3, size, size))


def shapes(name: str, kinds: tuple[str, ...], size: int = 224) -> list[tuple[int, ...]]:
    """Of the layers of these kinds, in order, without the batch axis."""
    return [row.output_shape[1:] for row in rows_of(name, size) if row.kind in kinds]


def squares(*rows: tuple[int, int]) -> list[tuple[int, ...]]:
    """(channels, size) -> (channels, size, size)."""
    return [(channels, size, size) for channels, size in rows]


def test_alexnet_table() -> None:
    """Krizhevsky et al. 2012, section 3.5: 55 x 55 x 96 ... 13 x 13 x 256, 4096, 4096, 1000; poolings 3x3/2."""
    maps = squares((96, 55), (96, 27), (256, 27), (256, 13), (384, 13), (384, 13), (256, 13), (256, 6))
    assert shapes("alexnet", ("Conv2d", "MaxPool2d", "Linear")) == [*maps, (4096,), (4096,), (1000,)]


# Szegedy et al. 2015, table 1: size, then #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj, channels in all
INCEPTION = {
    "3a": (28, (64, 96, 128, 16, 32, 32), 256),
    "3b": (28, (128, 128, 192, 32, 96, 64), 480),
    "4a": (14, (192, 96, 208, 16, 48, 64), 512),
    "4b": (14, (160, 112, 224, 24, 64, 64), 512),
    "4c": (14, (128, 128, 256, 24, 64, 64), 512),
    "4d": (14, (112, 144, 288, 32, 64, 64), 528),
    "4e": (14, (256, 160, 320, 32, 128, 128), 832),
    "5a": (7, (256, 160, 320, 32, 128, 128), 832),
    "5b": (7, (384, 192, 384, 48, 128, 128), 1024),
}


def test_googlenet_table() -> None:
    rows = rows_of("googlenet")
    found = {row.name: row.output_shape[1:] for row in rows}
    stem = squares((64, 112), (64, 56), (64, 56), (192, 56), (192, 28))
    assert [found[n] for n in ("conv1.conv", "maxpool1", "conv2.conv", "conv3.conv", "maxpool2")] == stem
    outputs = {}
    for module, (size, filters, channels) in INCEPTION.items():
        convs = [r.output_shape[1:] for r in rows if r.name.startswith(f"inception{module}.") and r.kind == "Conv2d"]
        assert convs == squares(*((count, size) for count in filters)), module
        outputs[module] = sum(shape[0] for shape in (convs[0], convs[2], convs[4], convs[5]))
        assert outputs[module] == channels, module
    assert found["maxpool3"] == (outputs["3b"], 14, 14)
    assert found["maxpool4"] == (outputs["4e"], 7, 7)
    assert [found[n] for n in ("avgpool", "dropout", "fc")] == [(1024, 1, 1), (1024,), (1000,)]


def test_inception_v2_table() -> None:
    """Ioffe and Szegedy 2015, figure 5: #1x1, #3x3 reduce, #3x3, #double 3x3 reduce, #double 3x3 (twice), pool proj."""
    table: dict[str, tuple[int, tuple[int, ...]]] = {
        "3a": (28, (64, 64, 64, 64, 96, 96, 32)),
        "3b": (28, (64, 64, 96, 64, 96, 96, 64)),
        "3c": (14, (128, 160, 64, 96, 96)),
        "4a": (14, (224, 64, 96, 96, 128, 128, 128)),
        "4b": (14, (192, 96, 128, 96, 128, 128, 128)),
        "4c": (14, (160, 128, 160, 128, 160, 160, 128)),
        "4d": (14, (96, 128, 192, 160, 192, 192, 128)),
        "4e": (7, (128, 192, 192, 256, 256)),
        "5a": (7, (352, 192, 320, 160, 224, 224, 128)),
        "5b": (7, (352, 192, 320, 192, 224, 224, 128)),
    }
    rows = rows_of("inception_v2")
    for module, (size, filters) in table.items():
        convs = [r.output_shape[1:] for r in rows if r.name.startswith(f"inception{module}.") and r.kind == "Conv2d"]
        assert [shape[0] for shape in convs] == list(filters), module
        before_stride = (0, 2, 3) if size < {"3": 28, "4": 14, "5": 7}[module[0]] else ()
        assert [s[1] for s in convs] == [2 * size if i in before_stride else size for i in range(len(convs))], module
    found = {row.name: row.output_shape[1:] for row in rows}
    stem = squares((64, 112), (64, 56), (64, 56), (192, 56), (192, 28))
    assert [found[n] for n in ("conv1.conv", "maxpool1", "conv2.conv", "conv3.conv", "maxpool2")] == stem
    assert (found["avgpool"], found["fc"]) == ((1024, 1, 1), (1000,))


def test_mobilenet_v1_table() -> None:
    """Howard et al. 2017, table 1: a row's output is the input size of the next one."""
    pairs = [(32, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28), (256, 512, 14)]
    pairs += [*5 * [(512, 512, 14)], (512, 1024, 7), (1024, 1024, 7)]
    convs = [(32, 112), *((channels, size) for inputs, outputs, size in pairs for channels in (inputs, outputs))]
    assert shapes("mobilenet_v1", ("Conv2d", "Linear")) == [*squares(*convs), (1000,)]
    assert len(convs) + 1 == 28
    assert shapes("mobilenet_v1", ("AdaptiveAvgPool2d",)) == [(1024, 1, 1)]


def test_mobilenet_v2_table() -> None:
    """Sandler et al. 2018, table 2: expansion, channels, blocks, and the size of what they make."""
    table = [(1, 16, 1, 112), (6, 24, 2, 56), (6, 32, 3, 28), (6, 64, 4, 14), (6, 96, 3, 14), (6, 160, 3, 7)]
    maps, inputs, before = [(32, 112)], 32, 112
    for expansion, channels, blocks, size in [*table, (6, 320, 1, 7)]:
        for _ in range(blocks):
            hidden = expansion * inputs
            maps += [(hidden, before)] * (expansion > 1) + [(hidden, size), (channels, size)]
            inputs, before = channels, size
    assert shapes("mobilenet_v2", ("Conv2d", "Linear")) == [*squares(*maps, (1280, 7)), (1000,)]
    assert shapes("mobilenet_v2", ("AdaptiveAvgPool2d",)) == [(1280, 1, 1)]


@pytest.mark.parametrize(
    ("name", "depths", "block"),
    [
        ("resnet18", (2, 2, 2, 2), (1, 1)),
        ("resnet34", (3, 4, 6, 3), (1, 1)),
        ("resnet50", (3, 4, 6, 3), (1, 1, 4)),
        ("resnet101", (3, 4, 23, 3), (1, 1, 4)),
        ("resnet152", (3, 8, 36, 3), (1, 1, 4)),
    ],
)
def test_resnet_tables(name: str, depths: tuple[int, ...], block: tuple[int, ...]) -> None:
    """He et al. 2016, table 1; a bottleneck halves in its second layer, and the shortcut runs last but one."""
    expected = [(64, 112)]
    for stage, depth in enumerate(depths):
        channels, size = 64 * 2**stage, 56 // 2**stage
        for index in range(depth):
            before = 2 * size if stage and not index and len(block) == 3 else size
            expected += [(channels * times, before if i == 0 else size) for i, times in enumerate(block)]
            if index == 0 and (stage or len(block) == 3):
                expected.append((channels * block[-1], size))
    rows = rows_of(name)
    assert [r.output_shape[1:] for r in rows if r.kind == "Conv2d"] == squares(*expected)
    found = {row.name: row.output_shape[1:] for row in rows}
    assert [found[n] for n in ("maxpool", "avgpool", "fc")] == [(64, 56, 56), (512 * block[-1], 1, 1), (1000,)]
    weighted = [row for row in rows if row.kind in ("Conv2d", "Linear") and "downsample" not in row.name]
    assert len(weighted) == int(name.removeprefix("resnet"))


def test_squeezenet_table() -> None:
    """Iandola et al. 2016, table 1, whose sizes are those of 227 x 227 pixels."""
    fires = [(2, 16, 64, 55), (3, 16, 64, 55), (4, 32, 128, 55), (5, 32, 128, 27), (6, 48, 192, 27), (7, 48, 192, 27)]
    fires += [(8, 64, 256, 27), (9, 64, 256, 13)]
    convs = [(96, 111), *((n, size) for _, s, e, size in fires for n in (s, e, e)), (1000, 13)]
    assert shapes("squeezenet", ("Conv2d",), 227) == squares(*convs)
    assert shapes("squeezenet", ("MaxPool2d",), 227) == squares((96, 55), (256, 27), (512, 13))
    assert shapes("squeezenet", ("AdaptiveAvgPool2d",), 227) == [(1000, 1, 1)]
