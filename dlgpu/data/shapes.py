"""Pictures to segment, drawn here: discs, squares and triangles of any colour on a busy background."""

from __future__ import annotations

import os

import numpy as np

from dlgpu.data.dataset import Dataset

SHAPES_CLASSES = ("background", "disc", "square", "triangle")
SHAPES_SIZE = 64


def scenes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 (count, 3, 64, 64) in 0..1, and the class of each pixel, int64 (count, 64, 64).

    Each has three shapes; later ones lie on earlier ones.
    """
    y, x = np.mgrid[:SHAPES_SIZE, :SHAPES_SIZE].astype(np.float32)
    waves, phases = rng.uniform(-0.4, 0.4, (2, count, 3, 1, 1)), rng.uniform(0, 6, (count, 3, 1, 1))
    images = 0.5 + 0.1 * np.sin(waves[0] * y + waves[1] * x + phases)
    masks = np.zeros((count, SHAPES_SIZE, SHAPES_SIZE), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for kind in rng.integers(1, len(SHAPES_CLASSES), 3):
            radius, (row, column) = rng.uniform(10, 18), rng.uniform(10, SHAPES_SIZE - 10, 2)
            down, right = y - row, x - column
            inside = {
                1: down**2 + right**2 < radius**2,
                2: np.maximum(abs(down), abs(right)) < 0.85 * radius,
                3: (down < 0.7 * radius) & (1.8 * abs(right) < down + radius),
            }[int(kind)]
            mask[inside] = kind
            image[:, inside] = rng.random((3, 1))
    noisy = images + rng.normal(0, 0.05, images.shape)
    return np.clip(noisy, 0, 1).astype(np.float32), masks


def shapes(train: bool = True, root: str | os.PathLike[str] | None = None) -> Dataset:
    """1,000 training or 200 test `scenes`, always the same; uint8 (N, 3, 64, 64) with a label per pixel.

    They are drawn, not read: `root` is there to be called like the other data sets, and not looked at.
    """
    images, masks = scenes(1000 if train else 200, np.random.default_rng(0 if train else 1))
    return Dataset((255 * images).round().astype(np.uint8), masks, SHAPES_CLASSES, "shapes")
