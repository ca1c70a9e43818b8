"""Labelled images in memory: uint8 pixels, so that 60,000 digits take 47 MB; floats are made batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlgpu.errors import DataError, DtypeError


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with one label each, or with one per pixel.

    images: uint8 (N, C, H, W), 0 is dark and 255 is bright.
    labels: int64 (N,), or (N, H, W) for segmentation; indices into `classes`.
    classes: the name of each class.
    name: the name that reports print.

    Raises DtypeError for other dtypes, and DataError if the ranks or lengths disagree or a label is out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or labels.dtype != np.int64:
            raise DtypeError(f"[Dataset] images must be uint8 and labels int64; got {images.dtype} and {labels.dtype}")
        if images.ndim != 4 or labels.shape not in (images.shape[:1], (len(images), *images.shape[2:])):
            raise DataError(
                f"[Dataset] images must be (N, C, H, W) and labels (N,) or (N, H, W); "
                f"got {images.shape} and {labels.shape}"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(
                f"[Dataset] labels must be in 0..{len(self.classes) - 1}, one per class; "
                f"got {labels.min()}..{labels.max()}"
            )

    @property
    def per_pixel(self) -> bool:
        """Whether each pixel has a label."""
        return self.labels.ndim == 3

    @property
    def image_size(self) -> int:
        """Height and width of the images; raises DataError unless they are square."""
        height, width = self.images.shape[2:]
        if height != width:
            raise DataError(f"[Dataset] images must be square; got {height} x {width} in {self.name}")
        return height

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name!r}, {len(self)} images of {size}, {len(self.classes)} classes)"

    def subset(self, indices: slice | Sequence[int] | np.ndarray) -> Dataset:
        """The chosen images, in the given order. A slice shares memory with this set, indices copy."""
        return Dataset(self.images[indices], self.labels[indices], self.classes, self.name)

    def split(self, size: float | int, seed: int) -> tuple[Dataset, Dataset]:
        """Two disjoint random parts: the first has `size` images (int) or that fraction of them (float), the
        second has the rest. The same seed gives the same parts. Raises DataError if a part would be empty."""
        count = round(size * len(self)) if isinstance(size, float) else size
        if not 0 < count < len(self):
            raise DataError(f"[Dataset.split] both parts need an image; got size {size} of {len(self)} images")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.subset(order[:count]), self.subset(order[count:])

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and (population) standard deviation of each channel, float32 (C,), for pixels scaled to 0..1."""
        if not len(self):
            raise DataError("[Dataset.mean_std] an empty set has no mean; got 0 images")
        channels = self.images.shape[1]
        counts = np.zeros((channels, 256), np.int64)
        for start in range(0, len(self), 1024):  # bincount widens its input to int64, hence in chunks
            chunk = self.images[start : start + 1024]
            for channel in range(channels):
                counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
        share = counts / counts[0].sum()
        values = np.arange(256) / 255
        mean = share @ values
        variance = (share * (values - mean[:, None]) ** 2).sum(axis=1)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
