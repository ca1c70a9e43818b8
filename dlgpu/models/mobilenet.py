"""MobileNet v1 (Howard et al. 2017) and v2 (Sandler et al. 2018): depthwise separable convolutions.

    v1, layer                          stride   output at 224x224, width 1
    conv 3x3                           2          32 x 112 x 112
    depthwise 3x3, pointwise 1x1       1          64 x 112 x 112
    2 x (depthwise, pointwise)         2, 1      128 x  56 x  56
    2 x                                2, 1      256 x  28 x  28
    6 x                                2, 1 ...  512 x  14 x  14
    2 x                                2, 1     1024 x   7 x   7
    average pool, dense                         1000

28 layers with weights; batch normalisation and ReLU after each convolution. (The paper's table prints stride 2 for the
last depthwise layer too, and 7 x 7 as its output: it is 1.)

    v2, block                          stride   output at 224x224, width 1
    conv 3x3                           2          32 x 112 x 112
    1 inverted residual, expansion 1   1          16 x 112 x 112
    2, expansion 6                     2, 1       24 x  56 x  56
    3                                  2, 1, 1    32 x  28 x  28
    4                                  2, 1 ...   64 x  14 x  14
    3                                  1          96 x  14 x  14
    3                                  2, 1, 1   160 x   7 x   7
    1                                  1         320 x   7 x   7
    conv 1x1                           1        1280 x   7 x   7
    average pool, dropout, dense                1000

    parameters at 1000 classes     width 1      0.75         0.5          0.25
    v1                             4,231,976    2,585,560    1,331,592    470,072
    v2                             3,504,872    2,636,424    1,968,680    1,519,112

`width_mult` is the papers' width multiplier; their resolution multiplier is `image_size` (192, 160, 128 for 224).
Images below 96 pixels (CIFAR) are not halved by the first layer, in v2 not by the first block with stride 2 either.
Parameter names of v2 are torchvision's.
"""

from __future__ import annotations

from dlgpu import nn
from dlgpu.models.parts import check_sizes, initialise, scaled
from dlgpu.tensor import Tensor

# v1: (stride, output channels) of each pair of depthwise and pointwise convolution
V1 = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *5 * ((1, 512),), (2, 1024), (1, 1024))
# v2: expansion, output channels, blocks, stride of the first
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size but for its stride, batch normalisation, activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, activation: nn.Module, stride: int = 1, groups: int = 1
    ) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), activation)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 without activation; plus the input where the sizes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv = nn.Sequential(
            *([ConvNorm(inputs, hidden, 1, nn.ReLU6())] if expansion > 1 else []),
            ConvNorm(hidden, hidden, 3, nn.ReLU6(), stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.skips else y


class MobileNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits, from features and a classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def mobilenet_v1(
    num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width_mult: float = 1.0
) -> MobileNet:
    """Version 1; channels are multiples of 8."""
    where = "mobilenet_v1"
    small = check_sizes(where, num_classes, in_channels, image_size, smallest=8)
    channels = scaled(where, 32, width_mult)
    layers = [ConvNorm(in_channels, channels, 3, nn.ReLU(), 1 if small else 2)]
    for stride, wanted in V1:
        width = scaled(where, wanted, width_mult)
        layers.append(ConvNorm(channels, channels, 3, nn.ReLU(), stride, groups=channels))
        layers.append(ConvNorm(channels, width, 1, nn.ReLU()))
        channels = width
    return MobileNet(nn.Sequential(*layers), nn.Sequential(nn.Linear(channels, num_classes)))


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    width_mult: float = 1.0,
    dropout: float = 0.2,
) -> MobileNet:
    """Version 2; channels are multiples of 8, and the last convolution is never narrowed below 1280."""
    where = "mobilenet_v2"
    small = check_sizes(where, num_classes, in_channels, image_size, smallest=8)
    channels = scaled(where, 32, width_mult)
    layers: list[nn.Module] = [ConvNorm(in_channels, channels, 3, nn.ReLU6(), 1 if small else 2)]
    for stage, (expansion, wanted, blocks, first_stride) in enumerate(V2):
        width = scaled(where, wanted, width_mult)
        for index in range(blocks):
            stride = first_stride if index == 0 and not (small and stage == 1) else 1
            layers.append(InvertedResidual(channels, width, stride, expansion))
            channels = width
    last = scaled(where, 1280, max(1.0, width_mult))
    layers.append(ConvNorm(channels, last, 1, nn.ReLU6()))
    return MobileNet(nn.Sequential(*layers), nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes)))
