"""ResNet (He, Zhang, Ren and Sun 2016): blocks that add what they compute to what they were given.

    layer        output at 224x224   18       34       50        101       152       blocks
    conv 7x7/2    64 x 112 x 112
    max-pool 3x3/2  ... x 56 x 56
    layer1       x 56 x 56           2        3        3         3         3         of   64 channels
    layer2       x 28 x 28           2        4        4         4         8             128
    layer3       x 14 x 14           2        6        6         23        36            256
    layer4       x  7 x  7           2        3        3         3         3             512
    average pool, dense
    parameters, 1000 classes   11,689,512  21,797,672  25,557,032  44,549,160  60,192,808

A block of ResNet-18 and 34 is two 3x3 convolutions; a "bottleneck" of the others is 1x1, 3x3 and 1x1, the last with
four times the channels. The first block of layers 2 to 4 halves the image, bottlenecks in their 3x3 convolution, as
everybody trains them (the paper: in the first 1x1). Parameter names are torchvision's.

Images below 96 pixels (CIFAR) meet a 3x3 convolution of stride 1 first and no max-pooling. `width` is the number of
channels of layer1; the paper's own CIFAR networks begin with 16, which costs a sixteenth of 64.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlgpu import nn
from dlgpu.models.parts import check_sizes, initialise
from dlgpu.nn.module import check_positive
from dlgpu.tensor import Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), None, "relu")
        return self.bn2(self.conv2(y), x if self.downsample is None else self.downsample(x), "relu")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: (N, in_channels, H, W) -> (N, 4 * channels, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), None, "relu")
        y = self.bn2(self.conv2(y), None, "relu")
        return self.bn3(self.conv3(y), x if self.downsample is None else self.downsample(x), "relu")


def shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """What makes a block's input fit its output: nothing, or a 1x1 convolution (the paper's option B)."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ResNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int,
    ) -> None:
        super().__init__()
        where = f"resnet{2 + sum(depths) * (2 if block is BasicBlock else 3)}"
        small = check_sizes(where, num_classes, in_channels, image_size, smallest=8)
        check_positive(where, width=width)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        inputs = width
        for stage, depth in enumerate(depths):
            channels, blocks = width * 2**stage, []
            for index in range(depth):
                blocks.append(block(inputs, channels, 2 if stage and not index else 1))
                inputs = channels * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x), None, "relu"))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width: int = 64) -> ResNet:
    """8 blocks of two convolutions."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, image_size, width)


def resnet34(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width: int = 64) -> ResNet:
    """16 blocks of two convolutions."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, image_size, width)


def resnet50(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width: int = 64) -> ResNet:
    """16 bottlenecks."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, image_size, width)


def resnet101(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width: int = 64) -> ResNet:
    """33 bottlenecks."""
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, image_size, width)


def resnet152(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224, width: int = 64) -> ResNet:
    """50 bottlenecks."""
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_channels, image_size, width)
