"""VGG (Simonyan and Zisserman 2015): blocks of 3x3 convolutions, each block followed by 2x2 max-pooling.

    configuration  conv layers per block (64, 128, 256, 512, 512 channels)   parameters at 224x224, 1000 classes
    VGG11 (A)      1 1 2 2 2                                                 132,863,336
    VGG13 (B)      2 2 2 2 2                                                 133,047,848
    VGG16 (D)      2 2 3 3 3                                                 138,357,544
    VGG19 (E)      2 2 4 4 4                                                 143,667,240

At 224x224 the classifier is 4096 - 4096 - classes on 7x7x512 features, with dropout. For small images (a multiple of
32, CIFAR size) it is one dense layer on the pooled features (and `dropout` has no use), as is customary there.
Parameter names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dlgpu import nn
from dlgpu.errors import ShapeError
from dlgpu.nn.module import check_positive
from dlgpu.tensor import Tensor

CHANNELS = (64, 128, 256, 512, 512)


def vgg_block(in_channels: int, width: int, depth: int, batch_norm: bool) -> list[nn.Module]:
    """`depth` 3x3 convolutions with ReLU, then 2x2 max-pooling: (N, in_channels, H, W) -> (N, width, H/2, W/2)."""
    layers: list[nn.Module] = []
    for inputs in (in_channels, *[width] * (depth - 1)):
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [nn.Conv2d(inputs, width, 3, padding=1), *norm, nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)]


class VGG(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits."""

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
        image_size: int,
        batch_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        where = f"vgg{sum(blocks) + 3}"
        check_positive(where, num_classes=num_classes, in_channels=in_channels)
        if image_size < 32 or image_size % 32:
            raise ShapeError(f"[{where}] image_size must be a multiple of 32 (five poolings); got {image_size}")
        layers: list[nn.Module] = []
        for depth, (inputs, width) in zip(blocks, pairwise((in_channels, *CHANNELS)), strict=True):
            layers += vgg_block(inputs, width, depth, batch_norm)
        self.features = nn.Sequential(*layers)
        flat = CHANNELS[-1] * (image_size // 32) ** 2
        if image_size < 224:
            self.classifier = nn.Sequential(nn.Linear(flat, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Linear(flat, 4096),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(4096, num_classes),
            )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.he_normal_(layer.weight, "fan_out")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg11(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, dropout: float = 0.5
) -> VGG:
    """Configuration A: 8 convolutions."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels, image_size, batch_norm, dropout)


def vgg13(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, dropout: float = 0.5
) -> VGG:
    """Configuration B: 10 convolutions."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels, image_size, batch_norm, dropout)


def vgg16(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, dropout: float = 0.5
) -> VGG:
    """Configuration D: 13 convolutions."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels, image_size, batch_norm, dropout)


def vgg19(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, batch_norm: bool = False, dropout: float = 0.5
) -> VGG:
    """Configuration E: 16 convolutions."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels, image_size, batch_norm, dropout)
