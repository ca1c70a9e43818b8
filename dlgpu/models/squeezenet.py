"""SqueezeNet (Iandola et al. 2016): fire modules, which squeeze with 1x1 and expand with 1x1 and 3x3 convolutions.

    layer                      output at 227x227
    conv 96@7x7/2, ReLU          96 x 111 x 111
    max-pool 3x3/2               96 x  55 x  55
    fire 2, 3, 4                128, 128, 256 x 55 x 55
    max-pool 3x3/2              256 x  27 x  27
    fire 5, 6, 7, 8             256, 384, 384, 512 x 27 x 27
    max-pool 3x3/2              512 x  13 x  13
    fire 9, dropout             512 x  13 x  13
    conv 1000@1x1, ReLU        1000 x  13 x  13
    average pool               1000

    version, bypass      parameters at 1000 classes
    1.0                  1,248,424
    1.0, simple          1,248,424    the input is added to the output of fire 3, 5, 7, 9
    1.0, complex         1,589,672    and to that of fire 2, 4, 6, 8 through a 1x1 convolution
    1.1                  1,235,496    3x3 first, pools earlier: 2.4 times less work (the authors, after the paper)

(The paper says 224 x 224, but its sizes are those of 227 x 227; and 7.7 MB for the complex bypass, while the layers it
describes have 6.4 MB.) Images below 96 pixels (CIFAR) meet a 3x3 convolution of stride 1 first. Parameter names are
torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlgpu import functional as F
from dlgpu import nn
from dlgpu.models.parts import check_known, check_sizes, initialise
from dlgpu.tensor import Tensor, cat

# squeeze and expand channels of fire modules 2 to 9; the expanded ones come twice, from 1x1 and from 3x3
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
# version: channels and size of the first convolution, and the fire modules before which there is a pooling
VERSIONS = {"1.0": (96, 7, (2, 5, 9)), "1.1": (64, 3, (2, 4, 6))}
BYPASSES = ("none", "simple", "complex")


class Fire(nn.Module):
    """(N, inputs, H, W) -> (N, 2 * expand, H, W), plus `bypass` of the input where there is one."""

    def __init__(self, inputs: int, squeeze: int, expand: int, bypass: nn.Module | None = None) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.squeeze(x))
        y = F.relu(cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1))
        return y if self.bypass is None else y + self.bypass(x)


class SqueezeNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits."""

    def __init__(self, features: Sequence[nn.Module], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        last = nn.Conv2d(2 * FIRES[-1][1], num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), last, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        initialise(self)
        nn.init.normal_(last.weight, 0.0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).flatten(1)


def squeezenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    version: str = "1.0",
    bypass: str = "none",
    dropout: float = 0.5,
) -> SqueezeNet:
    """`version`: "1.0" or "1.1"; `bypass`: "none", "simple" or "complex"."""
    small = check_sizes("squeezenet", num_classes, in_channels, image_size, smallest=9)
    check_known("squeezenet", "version", version, VERSIONS)
    check_known("squeezenet", "bypass", bypass, BYPASSES)
    channels, kernel, pooled = VERSIONS[version]
    first = nn.Conv2d(in_channels, channels, 3, padding=1) if small else nn.Conv2d(in_channels, channels, kernel, 2)
    layers: list[nn.Module] = [first, nn.ReLU()]
    for number, (squeeze, expand) in enumerate(FIRES, 2):
        if number in pooled:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        around: nn.Module | None = None
        if channels == 2 * expand and bypass != "none":
            around = nn.Identity()
        elif bypass == "complex":
            around = nn.Conv2d(channels, 2 * expand, 1)
        layers.append(Fire(channels, squeeze, expand, around))
        channels = 2 * expand
    return SqueezeNet(layers, num_classes, dropout)
