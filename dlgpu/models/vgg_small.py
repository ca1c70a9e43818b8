"""A VGG-style network for small images: pairs of 3x3 convolutions with batch normalisation, and pooling between.

    layer                            output at 32x32
    2 x conv 3x3, 32  - BN - ReLU    32 x 32 x 32
    max-pool 2x2                     32 x 16 x 16
    2 x conv 3x3, 64  - BN - ReLU    64 x 16 x 16
    max-pool 2x2                     64 x  8 x  8
    2 x conv 3x3, 128 - BN - ReLU   128 x  8 x  8
    max-pool 2x2                    128 x  4 x  4
    2 x conv 3x3, 256 - BN - ReLU   256 x  4 x  4
    global average pool, dropout, dense

The pattern is Simonyan and Zisserman's (2015), the batch normalisation Ioffe and Szegedy's (2015), the pooling before
the only dense layer Lin et al.'s (2014). 1.2 million parameters: trained to above 80 % on CIFAR-10 within an hour on
two CPU cores.
"""

from __future__ import annotations

from dlgpu import nn
from dlgpu.errors import ShapeError
from dlgpu.nn.module import check_positive


def vgg_small(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, dropout: float = 0.2) -> nn.Sequential:
    """(N, in_channels, image_size, image_size) -> (N, num_classes) logits; image_size at least 8."""
    check_positive("vgg_small", num_classes=num_classes, in_channels=in_channels)
    if image_size < 8:
        raise ShapeError(f"[vgg_small] image_size must be at least 8 (three poolings); got {image_size}")
    layers: list[nn.Module] = []
    channels = in_channels
    for width in (32, 64, 128, 256):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.he_normal_(layer.weight, "fan_out")
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(256, num_classes)
    )
