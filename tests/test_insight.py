"""Confusion, mistakes, activations and saliency against networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

import dlgpu
from dlgpu import data, insight, nn
from dlgpu.data import DataLoader, Dataset
from dlgpu.errors import ShapeError


class Brightest(nn.Module):
    """Class k is pixel k: logits are ten times the first three pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(np.full(1, 10, np.float32))

    def forward(self, x: dlgpu.Tensor) -> dlgpu.Tensor:
        return x.flatten(1)[:, :3] * self.scale


def dataset(pixels: list[list[int]], labels: list[int]) -> Dataset:
    images = np.array(pixels, np.uint8).reshape(len(pixels), 1, 2, 2)
    return Dataset(images, np.array(labels), ("a", "b", "c"), "pixels")


def test_judge_counts_and_orders_mistakes() -> None:
    images = dataset(
        [[255, 0, 0, 0], [0, 255, 0, 0], [0, 255, 200, 0], [255, 0, 0, 0], [0, 0, 255, 0]], [0, 1, 2, 2, 2]
    )
    judgement = insight.judge(Brightest(), DataLoader(images, 2), 3)
    np.testing.assert_array_equal(judgement.matrix, [[1, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert judgement.accuracy == 0.6
    assert [(m.index, m.label, m.predicted) for m in judgement.mistakes] == [(3, 2, 0), (2, 2, 1)]
    first = np.exp(10) / (np.exp(10) + 2)
    assert judgement.mistakes[0].probability == pytest.approx(first, rel=1e-5)


def test_judge_wants_the_right_classes() -> None:
    with pytest.raises(ShapeError, match=r"\[judge\] the model must know 4 classes; got 3"):
        insight.judge(Brightest(), DataLoader(dataset([[0, 0, 0, 0]], [0]), 1), 4)


def test_saliency_is_the_gradient_of_the_right_score() -> None:
    images = data.mnist(train=False).subset(slice(2)).images[:, :, :2, :2].astype(np.float32)
    maps = insight.saliency(Brightest(), images, [1, 2])
    np.testing.assert_array_equal(maps.reshape(2, 4), [[0, 10, 0, 0], [0, 0, 10, 0]])


def test_saliency_takes_the_largest_channel() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 2))
    net[1].weight.data[...] = np.arange(-12, 12).reshape(2, 12)
    maps = insight.saliency(net, np.zeros((1, 3, 2, 2), np.float32), [0])
    np.testing.assert_array_equal(maps[0], [[12, 11], [10, 9]])
    assert all(p.grad is None for p in net.parameters())


def test_activations_follow_normalisation_and_relu() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1), nn.Flatten(), nn.ReLU()
    ).eval()
    net[4].bias.data[...] = -100  # so that a ReLU behind the Flatten would show
    image = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    maps = insight.activations(net, image)
    assert list(maps) == ["0", "4"]
    x = dlgpu.tensor(image[None])
    expected = net[2](net[1](net[0](x)))
    np.testing.assert_array_equal(maps["0"], expected.numpy()[0])
    np.testing.assert_array_equal(maps["4"], net[4](net[3](expected)).numpy()[0])
    assert maps["0"].min() == 0
    assert maps["4"].max() < 0
    assert not any(module._forward_hooks for module in net.modules())
