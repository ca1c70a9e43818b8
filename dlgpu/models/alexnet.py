"""AlexNet (Krizhevsky, Sutskever and Hinton 2012), and its later form with one tower (Krizhevsky 2014).

    layer                                        output at 224x224   weights and biases
    conv 96@11x11/4, ReLU, LRN                    96 x 55 x 55            34,944
    max-pool 3x3/2                                96 x 27 x 27
    conv 256@5x5 in two groups, ReLU, LRN        256 x 27 x 27           307,456
    max-pool 3x3/2                               256 x 13 x 13
    conv 384@3x3, ReLU                           384 x 13 x 13           885,120
    conv 384@3x3 in two groups, ReLU             384 x 13 x 13           663,936
    conv 256@3x3 in two groups, ReLU             256 x 13 x 13           442,624
    max-pool 3x3/2                               256 x  6 x  6
    dropout, dense 4096, ReLU                   4096                  37,752,832
    dropout, dense 4096, ReLU                   4096                  16,781,312
    dense 1000                                  1000                   4,097,000
                                                                      60,965,224

The paper's two towers, one on each of its two GPUs, are two groups of channels. The first convolution is padded by 2,
which makes its output 55 x 55 as printed there. The later form has no groups and no LRN, 64 and 192 channels in its
first layers, and 61,100,840 parameters; torchvision's `alexnet` is this one, and names are torchvision's in both.
Images below 96 pixels (CIFAR) meet a 5x5 convolution of stride 1 first, and one dense layer on the pooled features.

Weights start as He et al. (2015) propose: from the paper's Gaussian, training takes long to begin.
"""

from __future__ import annotations

from dlgpu import nn
from dlgpu.models.parts import check_known, check_sizes, initialise
from dlgpu.tensor import Tensor

# variant: channels of the five convolutions, and groups of the second, fourth and fifth
VARIANTS = {"paper": ((96, 256, 384, 384, 256), 2), "torchvision": ((64, 192, 384, 256, 256), 1)}


class AlexNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int, variant: str, dropout: float) -> None:
        super().__init__()
        small = check_sizes("alexnet", num_classes, in_channels, image_size, smallest=15)
        check_known("alexnet", "variant", variant, VARIANTS)
        (one, two, three, four, five), groups = VARIANTS[variant]

        def norm() -> list[nn.Module]:
            # The paper adds up the squares of 5 channels; torch.nn's alpha multiplies their mean.
            return [nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)] if variant == "paper" else []

        kernel, stride = (5, 1) if small else (11, 4)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, one, kernel, stride, padding=2),
            nn.ReLU(),
            *norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(one, two, 5, padding=2, groups=groups),
            nn.ReLU(),
            *norm(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(two, three, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(three, four, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(four, five, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        size = (image_size + 4 - kernel) // stride + 1
        for _ in range(3):
            size = (size - 3) // 2 + 1
        flat = five * size**2
        if small:
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(flat, num_classes))
        else:
            self.classifier = nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(flat, 4096),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(4096, 4096),
                nn.ReLU(),
                nn.Linear(4096, num_classes),
            )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def alexnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    variant: str = "paper",
    dropout: float = 0.5,
) -> AlexNet:
    """`variant`: "paper" (2012: two groups, LRN) or "torchvision" (2014: one tower, whose weights load)."""
    return AlexNet(num_classes, in_channels, image_size, variant, dropout)
