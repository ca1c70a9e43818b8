"""GoogLeNet, or Inception v1 (Szegedy et al. 2015): modules of four branches whose outputs are joined.

    layer                        output at 224x224   1x1, 3x3 (reduced by 1x1), 5x5 (reduced), 1x1 after a max-pool
    conv 7x7/2                     64 x 112 x 112
    max-pool 3x3/2, LRN            64 x  56 x  56
    conv 1x1, conv 3x3, LRN       192 x  56 x  56
    max-pool 3x3/2                192 x  28 x  28
    inception 3a                  256 x  28 x  28    64, 128 (96),   32 (16),  32
    inception 3b                  480 x  28 x  28    128, 192 (128), 96 (32),  64
    max-pool 3x3/2                480 x  14 x  14
    inception 4a                  512 x  14 x  14    192, 208 (96),  48 (16),  64
    inception 4b                  512 x  14 x  14    160, 224 (112), 64 (24),  64
    inception 4c                  512 x  14 x  14    128, 256 (128), 64 (24),  64
    inception 4d                  528 x  14 x  14    112, 288 (144), 64 (32),  64
    inception 4e                  832 x  14 x  14    256, 320 (160), 128 (32), 128
    max-pool 3x3/2                832 x   7 x   7
    inception 5a                  832 x   7 x   7    256, 320 (160), 128 (32), 128
    inception 5b                 1024 x   7 x   7    384, 384 (192), 128 (48), 128
    average pool, dropout 40 %   1024
    dense                        1000

    variant          parameters, 1000 classes   with the auxiliary classifiers
    "paper"          6,998,552                  13,378,280
    "torchvision"    6,624,904                  13,004,888    batch norm, no LRN, 3x3 where the paper has 5x5

In training the network returns (logits, auxiliary logits after 4d, after 4a): `dlgpu.train.Trainer` adds 0.3 times the
loss of each, as the paper does. In evaluation it returns the logits alone. Names are torchvision's. Weights exported
from there want images normalised with mean 0.5 and standard deviation 0.5 in each channel.

The auxiliary classifiers pool 5x5 with stride 3, as the paper says; torchvision's pool adaptively to 4 x 4. At
224 x 224 that is the same size but not the same windows, so the auxiliary logits differ from theirs.

Images below 96 pixels (CIFAR) meet a 3x3 convolution of stride 1 first and no max-pooling after it.
"""

from __future__ import annotations

from collections import OrderedDict

from dlgpu import functional as F
from dlgpu import nn
from dlgpu.models.parts import check_known, check_sizes, initialise
from dlgpu.tensor import Tensor

VARIANTS = ("paper", "torchvision")

# 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, after the pool
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
    """Convolution that keeps the size but for its stride, batch normalisation if wanted, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not batch_norm)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y) if self.bn is None else self.bn(y, None, "relu")


def inception(inputs: int, sizes: tuple[int, ...], five: int, batch_norm: bool) -> nn.Concat:
    """The four branches side by side; `sizes` is a row of `MODULES`, `five` the size of what the paper calls 5x5."""
    one, reduce3, three, reduce5, outputs5, pooled = sizes
    return nn.Concat(
        OrderedDict(
            branch1=ConvUnit(inputs, one, 1, 1, batch_norm),
            branch2=nn.Sequential(
                ConvUnit(inputs, reduce3, 1, 1, batch_norm), ConvUnit(reduce3, three, 3, 1, batch_norm)
            ),
            branch3=nn.Sequential(
                ConvUnit(inputs, reduce5, 1, 1, batch_norm), ConvUnit(reduce5, outputs5, five, 1, batch_norm)
            ),
            branch4=nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvUnit(inputs, pooled, 1, 1, batch_norm)),
        )
    )


class Auxiliary(nn.Module):
    """A classifier half-way, of (N, inputs, size, size) features, that brings gradients to the layers below it."""

    def __init__(self, inputs: int, size: int, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv = ConvUnit(inputs, 128, 1, 1, batch_norm)
        self.fc1 = nn.Linear(128 * ((size - 5) // 3 + 1) ** 2, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.relu(self.fc1(self.conv(self.pool(x)).flatten(1)))))


class GoogLeNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits; in training with auxiliary ones."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, variant: str, aux: bool, dropout: float
    ) -> None:
        super().__init__()
        # The auxiliary classifiers' 5x5 windows must fit features of a quarter of a small image.
        small = check_sizes("googlenet", num_classes, in_channels, image_size, smallest=20)
        check_known("googlenet", "variant", variant, VARIANTS)
        paper = variant == "paper"

        def norm() -> nn.Module:
            return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75) if paper else nn.Identity()

        def halve(kernel: int = 3) -> nn.Module:
            return nn.MaxPool2d(kernel, 2, ceil_mode=True)

        self.conv1 = ConvUnit(in_channels, 64, *((3, 1) if small else (7, 2)), batch_norm=not paper)
        self.maxpool1, self.norm1 = nn.Identity() if small else halve(), norm()
        self.conv2 = ConvUnit(64, 64, 1, batch_norm=not paper)
        self.conv3 = ConvUnit(64, 192, 3, batch_norm=not paper)
        self.norm2, self.maxpool2, self.maxpool3, self.maxpool4 = norm(), halve(), halve(), halve(3 if paper else 2)
        inputs, features = 192, {}
        for name, sizes in MODULES.items():
            setattr(self, f"inception{name}", inception(inputs, sizes, 5 if paper else 3, batch_norm=not paper))
            features[name] = inputs = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        middle = -(-image_size // (4 if small else 16))  # height and width of modules 4a to 4e
        self.aux1 = Auxiliary(features["4a"], middle, num_classes, not paper) if aux else None
        self.aux2 = Auxiliary(features["4d"], middle, num_classes, not paper) if aux else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        first = x = self.inception4a(x)
        second = x = self.inception4d(self.inception4c(self.inception4b(x)))
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        if self.aux1 is None or self.aux2 is None or not self.training:
            return logits
        return logits, self.aux2(second), self.aux1(first)


def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    variant: str = "paper",
    aux: bool = True,
    dropout: float = 0.4,
) -> GoogLeNet:
    """`variant`: "paper", or "torchvision", whose weights load; `aux`: with the auxiliary classifiers."""
    return GoogLeNet(num_classes, in_channels, image_size, variant, aux, dropout)
