"""What several families share: which images are small, what is refused, the width multiplier, initial weights."""

from __future__ import annotations

from collections.abc import Collection

from dlgpu import nn
from dlgpu.errors import ShapeError, UnknownName
from dlgpu.nn.module import check_positive

# Networks made for 224 x 224 pixels halve the image several times before their first block. Below this size they do
# so later or not at all, as is customary for CIFAR's 32 x 32 (He et al. 2016, section 4.2).
SMALL_IMAGES = 96


def check_sizes(where: str, num_classes: int, in_channels: int, image_size: int, smallest: int) -> bool:
    """Whether the variant for small images is meant; raises `ShapeError` for sizes that no variant takes."""
    check_positive(where, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if image_size < smallest:
        raise ShapeError(f"[{where}] image_size must be at least {smallest}; got {image_size}")
    return image_size < SMALL_IMAGES


def check_known(where: str, kind: str, name: str, known: Collection[str]) -> None:
    """Raises `UnknownName` if `name` is not one of `known`."""
    if name not in known:
        raise UnknownName(where, kind, name, known)


def scaled(where: str, channels: int, width_mult: float) -> int:
    """`channels` times the width multiplier, as a multiple of 8 (at least 8) that is at most 10 % too small.

    Sandler et al. 2018 round so. Raises `ShapeError` unless 0 < width_mult <= 4.
    """
    if not 0 < width_mult <= 4:
        raise ShapeError(f"[{where}] width_mult must be in (0, 4]; got {width_mult}")
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def initialise(model: nn.Module) -> None:
    """He et al. 2015 for convolutions, a narrow Gaussian for dense layers."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.he_normal_(layer.weight)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
