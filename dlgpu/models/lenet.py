"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), today's variant and the original.

32x32 - conv 6@5x5 -> 28x28 - subsample -> 14x14 - conv 16@5x5 -> 10x10 - subsample -> 5x5 - 120 - 84 - 10
"""

from __future__ import annotations

import numpy as np

from dlgpu import functional as F
from dlgpu import nn
from dlgpu.errors import ShapeError
from dlgpu.nn.module import Parameter, check_positive
from dlgpu.tensor import Tensor


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """As trained today: ReLU and max-pooling; (N, in_channels, 28, 28) or 32 x 32 -> (N, num_classes) logits.

    28 x 28 images are padded by 2 in the first convolution, which makes them the 32 x 32 of the paper.
    """
    padding = _padding("lenet5", num_classes, in_channels, image_size)
    net = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            nn.init.he_normal_(parameter)
    return net


def lenet5_1998(num_classes: int = 10, in_channels: int = 1, image_size: int = 32) -> nn.Sequential:
    """As in the paper: scaled tanh, subsampling with a trained scale and bias per map, partly connected third layer.

    The output layer is a dense one (trained with cross-entropy) in place of the paper's fixed bitmaps (radial basis
    functions). 28 x 28 images are padded by 2, as for `lenet5`.
    """
    padding = _padding("lenet5_1998", num_classes, in_channels, image_size)
    net = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=padding),
        Subsample(6),
        ScaledTanh(),
        PartlyConnected(),
        Subsample(16),
        ScaledTanh(),
        nn.Conv2d(16, 120, 5),
        ScaledTanh(),
        nn.Flatten(),
        nn.Linear(120, 84),
        ScaledTanh(),
        nn.Linear(84, num_classes),
    )
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return net


def _padding(where: str, num_classes: int, in_channels: int, image_size: int) -> int:
    check_positive(where, num_classes=num_classes, in_channels=in_channels)
    if image_size not in (28, 32):
        raise ShapeError(f"[{where}] image_size must be 28 or 32; got {image_size}")
    return (32 - image_size) // 2


class ScaledTanh(nn.Module):
    """1.7159 * tanh(2/3 * x), which maps ±1 to ±1 (LeCun et al. 1998, appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x * (2 / 3)) * 1.7159


class Subsample(nn.Module):
    """Mean of each 2x2 window, times a trained scale, plus a trained bias: (N, C, H, W) -> (N, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = Parameter(np.ones((channels, 1, 1), np.float32))
        self.bias = Parameter(np.zeros((channels, 1, 1), np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) * self.weight + self.bias


# Which of the 6 input maps each of the 16 output maps of layer C3 sees (LeCun et al. 1998, table I).
C3_INPUTS = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    tuple(range(6)),
)


class PartlyConnected(nn.Conv2d):
    """Layer C3: a 5x5 convolution from 6 to 16 maps whose missing connections stay zero."""

    def __init__(self) -> None:
        super().__init__(6, 16, 5)
        mask = np.zeros((16, 6, 1, 1), np.float32)
        for output, inputs in enumerate(C3_INPUTS):
            mask[output, list(inputs)] = 1
        self.register_buffer("mask", Tensor(mask, self.weight.backend))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias)
