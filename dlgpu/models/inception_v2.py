"""Inception-v2 (Ioffe and Szegedy 2015): GoogLeNet with batch normalisation, each 5x5 convolution replaced by two 3x3.

    layer             output at 224x224   1x1, 3x3 (reduced by 1x1), two 3x3 (reduced), 1x1 after a pooling
    conv 7x7/2          64 x 112 x 112
    max-pool 3x3/2      64 x  56 x  56
    conv 1x1, conv 3x3  192 x 56 x  56
    max-pool 3x3/2     192 x  28 x  28
    inception 3a       256 x  28 x  28    64,  64 (64),    96 (64),   average, 32
    inception 3b       320 x  28 x  28    64,  96 (64),    96 (64),   average, 64
    inception 3c       576 x  14 x  14    -,  160 (128),   96 (64),   max, as it is; stride 2
    inception 4a       576 x  14 x  14    224, 96 (64),   128 (96),   average, 128
    inception 4b       576 x  14 x  14    192, 128 (96),  128 (96),   average, 128
    inception 4c       608 x  14 x  14    160, 160 (128), 160 (128),  average, 128
    inception 4d       608 x  14 x  14    96,  192 (128), 192 (160),  average, 128
    inception 4e      1056 x   7 x   7    -,  192 (128),  256 (192),  max, as it is; stride 2
    inception 5a      1024 x   7 x   7    352, 320 (192), 224 (160),  average, 128
    inception 5b      1024 x   7 x   7    352, 320 (192), 224 (192),  max, 128
    average pool      1024
    dense             1000

11,285,224 parameters at 1000 classes. The paper's table prints 576 channels for 4c and 4d, and 1024 for 4e: its filters
are those above, and give 608 and 1056, as in the network known as BN-Inception from Caffe (11,295,240 parameters, with
the biases that batch normalisation makes useless). The first convolution is a plain one; the paper's is separable.

Images below 96 pixels (CIFAR) meet a 3x3 convolution of stride 1 first and no max-pooling after it.
"""

from __future__ import annotations

from collections import OrderedDict

from dlgpu import nn
from dlgpu.models.googlenet import ConvUnit
from dlgpu.models.parts import check_sizes, initialise
from dlgpu.tensor import Tensor

# 1x1, 3x3 reduced, 3x3, two 3x3 reduced, two 3x3, pooling, 1x1 after it; modules without the first and last halve
MODULES = {
    "3a": (64, 64, 64, 64, 96, "average", 32),
    "3b": (64, 64, 96, 64, 96, "average", 64),
    "3c": (0, 128, 160, 64, 96, "max", 0),
    "4a": (224, 64, 96, 96, 128, "average", 128),
    "4b": (192, 96, 128, 96, 128, "average", 128),
    "4c": (160, 128, 160, 128, 160, "average", 128),
    "4d": (96, 128, 192, 160, 192, "average", 128),
    "4e": (0, 128, 192, 192, 256, "max", 0),
    "5a": (352, 192, 320, 160, 224, "average", 128),
    "5b": (352, 192, 320, 192, 224, "max", 128),
}


def inception(
    inputs: int, one: int, reduce3: int, three: int, reduce_double: int, double: int, pool: str, pooled: int
) -> nn.Concat:
    """The branches of a row of `MODULES` side by side."""
    stride = 1 if one else 2
    branches: OrderedDict[str, nn.Module] = OrderedDict()
    if one:
        branches["branch1"] = ConvUnit(inputs, one, 1)
    branches["branch2"] = nn.Sequential(ConvUnit(inputs, reduce3, 1), ConvUnit(reduce3, three, 3, stride))
    branches["branch3"] = nn.Sequential(
        ConvUnit(inputs, reduce_double, 1), ConvUnit(reduce_double, double, 3), ConvUnit(double, double, 3, stride)
    )
    pooling = nn.MaxPool2d(3, stride, 1) if pool == "max" else nn.AvgPool2d(3, stride, 1)
    branches["branch4"] = nn.Sequential(pooling, *([ConvUnit(inputs, pooled, 1)] if pooled else []))
    return nn.Concat(branches)


class InceptionV2(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        small = check_sizes("inception_v2", num_classes, in_channels, image_size, smallest=8)
        self.conv1 = ConvUnit(in_channels, 64, *((3, 1) if small else (7, 2)))
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = ConvUnit(64, 64, 1)
        self.conv3 = ConvUnit(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, padding=1)
        inputs = 192
        for name, row in MODULES.items():
            setattr(self, f"inception{name}", inception(inputs, *row))
            one, _, three, _, double, _, pooled = row
            inputs = one + three + double + (pooled or inputs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        for name in MODULES:
            x = getattr(self, f"inception{name}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def inception_v2(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> InceptionV2:
    """See the table above."""
    return InceptionV2(num_classes, in_channels, image_size)
