"""Multilayer perceptron: affine and ReLU in turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dlgpu import nn
from dlgpu.nn.module import check_positive


def mlp(
    num_classes: int = 10, in_channels: int = 1, image_size: int = 28, hidden: Sequence[int] = (100,)
) -> nn.Sequential:
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits through hidden layers of the given widths.

    He initialisation for the ReLU layers, biases zero.
    """
    check_positive("mlp", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    sizes = [in_channels * image_size * image_size, *hidden, num_classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        if index:
            layers.append(nn.ReLU())
        layer = nn.Linear(inputs, outputs)
        nn.init.he_normal_(layer.weight)
        layers.append(layer)
    return nn.Sequential(*layers)
