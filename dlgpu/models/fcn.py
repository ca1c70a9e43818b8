"""Fully convolutional networks for per-pixel classes (Long, Shelhamer and Darrell 2015, arXiv:1411.4038).

A classifier of the VGG kind whose dense layers are convolutions gives a coarse map of class scores; transposed
convolutions bring it back to the size of the image, and finer maps from earlier poolings are added on the way:

    trunk, five poolings     pool3: 1/8     pool4: 1/16     pool5: 1/32
    classifier (7x7, 1x1) on pool5 -> 1x1 scores
    FCN-32s                  scores, 32 times larger
    FCN-16s                  scores twice larger + scores of pool4, then 16 times larger
    FCN-8s                   that twice larger + scores of pool3, then 8 times larger

All enlarging starts as bilinear interpolation; the doublings are trained, the last step stays as it is (section 4.3).
Layers that give scores start at zero. On VGG16 with 21 classes there are 134 million parameters (table 1).

Parameter names are those of torchvision's VGG, so `load_vgg` turns a classifier into a segmenter, and
`dlgpu.transfer.load_matching` goes from FCN-32s to FCN-16s to FCN-8s, as the paper trains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dlgpu import nn, transfer
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.models.vgg import CHANNELS, vgg_block
from dlgpu.nn.module import check_positive
from dlgpu.tensor import Tensor


@dataclass(frozen=True)
class Trunk:
    """The convolutions per block and their channels; the convolutional classifier's width and first filter size."""

    blocks: Sequence[int]
    widths: Sequence[int]
    classifier: int
    kernel_size: int
    batch_norm: bool


TRUNKS = {
    "vgg16": Trunk((2, 2, 3, 3, 3), CHANNELS, 4096, 7, batch_norm=False),
    "small": Trunk((2, 2, 2, 2, 2), (16, 24, 32, 48, 64), 96, 3, batch_norm=True),  # trains on a CPU in minutes
}


class FCN(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes, H, W) logits; H and W are multiples of 32.

    `stride`: 32, 16 or 8, the step of the finest map that is used.
    """

    def __init__(
        self, stride: int, trunk: Trunk, num_classes: int, in_channels: int, image_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.where = f"fcn{stride}s"
        check_positive(self.where, num_classes=num_classes, in_channels=in_channels)
        _check_size(self.where, image_size, image_size)
        blocks = [
            vgg_block(inputs, width, depth, trunk.batch_norm)
            for depth, (inputs, width) in zip(trunk.blocks, pairwise((in_channels, *trunk.widths)), strict=True)
        ]
        self.features = nn.Sequential(*(layer for block in blocks for layer in block))
        wide, k = trunk.classifier, trunk.kernel_size
        self.classifier = nn.Sequential(
            nn.Conv2d(trunk.widths[-1], wide, k, padding=k // 2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(wide, wide, 1),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(wide, num_classes, 1),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.he_normal_(layer.weight)
        nn.init.zeros_(self.classifier[-1].weight)
        skips = {32: 0, 16: 1, 8: 2}[stride]
        widths = trunk.widths[-2 : -2 - skips : -1]  # of pool4, pool3
        self.scores = nn.Sequential(*(_score(width, num_classes) for width in widths))
        self.doubled = nn.Sequential(*(_enlarge(num_classes, 2) for _ in widths))
        self.enlarged = _enlarge(num_classes, stride, groups=num_classes).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(self.where, *x.shape[2:])
        pooled = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(x)
        y = self.classifier(pooled.pop())
        for score, double in zip(self.scores, self.doubled, strict=True):
            y = double(y) + score(pooled.pop())
        return self.enlarged(y)


def fcn32s(
    num_classes: int = 21, in_channels: int = 3, image_size: int = 224, trunk: str = "vgg16", dropout: float = 0.5
) -> FCN:
    """From the last pooling alone. `trunk`: "vgg16" or "small"; image_size: a multiple of 32."""
    return FCN(32, _trunk("fcn32s", trunk), num_classes, in_channels, image_size, dropout)


def fcn16s(
    num_classes: int = 21, in_channels: int = 3, image_size: int = 224, trunk: str = "vgg16", dropout: float = 0.5
) -> FCN:
    """From the last two poolings."""
    return FCN(16, _trunk("fcn16s", trunk), num_classes, in_channels, image_size, dropout)


def fcn8s(
    num_classes: int = 21, in_channels: int = 3, image_size: int = 224, trunk: str = "vgg16", dropout: float = 0.5
) -> FCN:
    """From the last three poolings."""
    return FCN(8, _trunk("fcn8s", trunk), num_classes, in_channels, image_size, dropout)


def load_vgg(model: FCN, state: Mapping[str, np.ndarray]) -> list[str]:
    """Copy a VGG classifier's weights, its dense layers as convolutions; returns the names left as they were.

    The scores are taken too where the numbers of classes agree. Raises `CheckpointError` if nothing fits.
    """
    own = model.state_dict()
    # A dense layer sees (C, R, S) flattened in this order.
    cast = {
        name: values.reshape(own[name].shape)
        for name, values in state.items()
        if name in own and values.size == own[name].size and values.shape[0] == own[name].shape[0]
    }
    return transfer.load_matching(model, cast)


def _trunk(where: str, name: str) -> Trunk:
    if name not in TRUNKS:
        raise UnknownName(where, "trunk", name, TRUNKS)
    return TRUNKS[name]


def _check_size(where: str, *sizes: int) -> None:
    if any(size < 32 or size % 32 for size in sizes):
        given = " x ".join(map(str, sizes))
        raise ShapeError(f"[{where}] height and width must be multiples of 32 (five poolings); got {given}")


def _score(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(layer.weight)
    return layer


def _enlarge(channels: int, factor: int, groups: int = 1) -> nn.ConvTranspose2d:
    """(N, C, H, W) -> (N, C, factor * H, factor * W), at first by bilinear interpolation."""
    size, border = 2 * factor, factor // 2
    layer = nn.ConvTranspose2d(channels, channels, size, factor, border, groups=groups, bias=False)
    nn.init.bilinear_(layer.weight)
    return layer
