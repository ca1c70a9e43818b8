"""Augmentation of whole batches: `t(images, rng)` maps float32 (N, C, H, W) to float32 (N, C, H', W').

Each image of the batch draws its own random numbers from `rng`, so the result depends only on the images and the
generator's state. The input is never changed. The repr of a transform is its configuration.

Images may be arrays of any library with NumPy's functions: CuPy arrays stay on their GPU. The random numbers, a few for
each image, are drawn on the CPU and sent there, so they are the same everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlgpu.errors import DtypeError, ShapeError

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Compose:
    """The transforms one after another."""

    transforms: Sequence[Transform]

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in self.transforms:
            images = transform(images, rng)
        return images


@dataclass(frozen=True)
class Normalize:
    """(images - mean) / std, one mean and standard deviation per channel (see `Dataset.mean_std`)."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # arrays become tuples, so that the repr is short and == works
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ShapeError(f"[Normalize] mean and std must have one length, and std be > 0; got {self}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        channels = _shape("Normalize", images)[1]
        if channels != len(self.mean):
            raise ShapeError(f"[Normalize] needs {len(self.mean)} channels; got images {images.shape}")
        xp = _library(images)
        out = images - xp.asarray(np.array(self.mean, np.float32)[:, None, None])
        out /= xp.asarray(np.array(self.std, np.float32)[:, None, None])
        return out


@dataclass(frozen=True)
class Resize:
    """Scale to `size` x `size` pixels, each a mean of the pixels around its place, weighted by a triangle.

    The triangle is one pixel of the coarser of the two grids wide to each side: bilinear interpolation where images
    grow, and every pixel counts where they shrink.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ShapeError(f"[Resize] size must be at least 1; got {self.size}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        *_, height, width = _shape("Resize", images)
        if height == width == self.size:
            return images
        return _interpolation(height, self.size) @ images @ _interpolation(width, self.size).T


def _interpolation(source: int, target: int) -> np.ndarray:
    """(target, source): the weight of each source pixel in each target pixel; rows add up to 1."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5  # pixels are areas: their centres lie at half numbers
    distances = np.abs(centres[:, None] - np.arange(source)) / max(scale, 1.0)
    weights = np.maximum(1 - distances, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class RandomShift:
    """Move each image by up to `max_pixels` whole pixels along both axes; `fill` comes in at the edges."""

    max_pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.max_pixels < 0:
            raise ShapeError(f"[RandomShift] max_pixels must be at least 0; got {self.max_pixels}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        *_, height, width = _shape("RandomShift", images)
        return _random_windows(_pad(images, self.max_pixels, self.fill), height, width, rng)


@dataclass(frozen=True)
class RandomCrop:
    """A random window of `size` (H, W), or one number for a square, from the image with a zero border of
    `padding` pixels around it."""

    size: int | tuple[int, int]
    padding: int = 0

    def __post_init__(self) -> None:
        _pair("RandomCrop", self.size)
        if self.padding < 0:
            raise ShapeError(f"[RandomCrop] padding must be at least 0; got {self.padding}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = _pair("RandomCrop", self.size)
        _shape("RandomCrop", images, at_least=(height - 2 * self.padding, width - 2 * self.padding))
        return _random_windows(_pad(images, self.padding, 0.0), height, width, rng)


@dataclass(frozen=True)
class CenterCrop:
    """The middle `size` (H, W), or one number for a square; an odd pixel left over stays at the bottom right."""

    size: int | tuple[int, int]

    def __post_init__(self) -> None:
        _pair("CenterCrop", self.size)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = _pair("CenterCrop", self.size)
        *_, full_height, full_width = _shape("CenterCrop", images, at_least=(height, width))
        top, left = (full_height - height) // 2, (full_width - width) // 2
        return images[:, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Swap left and right with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ShapeError(f"[RandomHorizontalFlip] p must be in 0..1; got {self.p}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = rng.random(_shape("RandomHorizontalFlip", images)[0]) < self.p
        xp = _library(images)
        return xp.where(xp.asarray(flipped[:, None, None, None]), images[..., ::-1], images)


@dataclass(frozen=True)
class RandomRotation:
    """Turn each image about its centre by an angle from -degrees to +degrees (counter-clockwise is positive),
    bilinear; what lies outside the image is `fill`."""

    degrees: float
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.degrees < 0:
            raise ShapeError(f"[RandomRotation] degrees must be at least 0; got {self.degrees}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = _shape("RandomRotation", images)[0]
        return _rotate(images, rng.uniform(-self.degrees, self.degrees, count), self.fill)


@dataclass(frozen=True)
class Cutout:
    """Set a `size` x `size` square to zero, its centre anywhere in the image, so that it may stick out.
    After `Normalize` zero is the mean colour. Source: DeVries and Taylor 2017, arXiv:1708.04552."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ShapeError(f"[Cutout] size must be at least 1; got {self.size}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count, _, height, width = _shape("Cutout", images)
        xp = _library(images)
        hidden_rows = xp.asarray(self._hidden(height, count, rng)[:, None, :, None])
        hidden_columns = xp.asarray(self._hidden(width, count, rng)[:, None, None, :])
        return xp.where(hidden_rows & hidden_columns, np.float32(0), images)

    def _hidden(self, length: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """bool (count, length): a stretch of `size` around a random centre."""
        first = rng.integers(length, size=(count, 1)) - self.size // 2
        position = np.arange(length)
        return (position >= first) & (position < first + self.size)


def mixup(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Blend each image of a batch with another one -> (blends, the others' labels, share of the own image).

    The share is one draw of Beta(alpha, alpha); the loss of a blend is share * loss(labels) + (1 - share) *
    loss(others). Zhang et al. 2018, arXiv:1710.09412. Raises `ShapeError` unless alpha > 0.
    """
    if not alpha > 0:
        raise ShapeError(f"[mixup] alpha must be positive; got {alpha}")
    share, order = rng.beta(alpha, alpha), rng.permutation(len(images))
    others = images[_library(images).asarray(order)]
    return np.float32(share) * images + np.float32(1 - share) * others, labels[order], float(share)


def _library(images: Any) -> Any:
    """The library whose arrays these are: numpy, cupy."""
    return importlib.import_module(type(images).__module__.partition(".")[0])


def _pair(where: str, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ShapeError(f"[{where}] size must be at least 1; got {size}")
    return height, width


def _shape(where: str, images: np.ndarray, at_least: tuple[int, int] = (0, 0)) -> tuple[int, int, int, int]:
    if images.dtype != np.float32:
        raise DtypeError(f"[{where}] images must be float32; got {images.dtype}")
    if images.ndim != 4 or images.shape[2] < at_least[0] or images.shape[3] < at_least[1]:
        raise ShapeError(
            f"[{where}] images must be (N, C, H, W) with H >= {at_least[0]} and W >= {at_least[1]}; got {images.shape}"
        )
    return images.shape


def _pad(images: np.ndarray, border: int, fill: float) -> np.ndarray:
    count, channels, height, width = images.shape
    out = _library(images).full((count, channels, height + 2 * border, width + 2 * border), fill, np.float32)
    out[:, :, border : border + height, border : border + width] = images
    return out


def _random_windows(images: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A window of height x width at a random place of each image."""
    count, channels, full_height, full_width = images.shape
    top = rng.integers(full_height - height + 1, size=count).reshape(-1, 1, 1, 1)
    left = rng.integers(full_width - width + 1, size=count).reshape(-1, 1, 1, 1)
    xp = _library(images)
    rows, columns = xp.asarray(top) + xp.arange(height)[:, None], xp.asarray(left) + xp.arange(width)
    return images[xp.arange(count)[:, None, None, None], xp.arange(channels)[:, None, None], rows, columns]


def _rotate(images: np.ndarray, degrees: np.ndarray, fill: float) -> np.ndarray:
    """Each image turned by its own angle, counter-clockwise, bilinear."""
    count, channels, height, width = images.shape
    xp = _library(images)
    angle = np.deg2rad(degrees)[:, None, None]
    sine, cosine = xp.asarray(np.sin(angle).astype(np.float32)), xp.asarray(np.cos(angle).astype(np.float32))
    y = (xp.arange(height, dtype=np.float32) - (height - 1) / 2)[:, None]
    x = xp.arange(width, dtype=np.float32) - (width - 1) / 2
    # Where each output pixel comes from, (N, H, W); beyond one pixel outside the image all is fill.
    from_y = xp.clip(y * cosine + x * sine + (height - 1) / 2, -1, height)
    from_x = xp.clip(x * cosine - y * sine + (width - 1) / 2, -1, width)
    top = xp.minimum(xp.floor(from_y), height - 1)
    left = xp.minimum(xp.floor(from_x), width - 1)
    down, right = (from_y - top)[:, None], (from_x - left)[:, None]

    padded = _pad(images, 1, fill).reshape(-1)
    plane = xp.arange(count * channels).reshape(count, channels, 1, 1) * ((height + 2) * (width + 2))
    corner = ((top + 1) * (width + 2) + left + 1).astype(np.int64)[:, None] + plane  # (N, C, H, W), into padded
    top_left, top_right = padded.take(corner), padded.take(corner + 1)
    low_left, low_right = padded.take(corner + width + 2), padded.take(corner + width + 3)
    upper = top_left + right * (top_right - top_left)  # this form keeps equal neighbours exactly
    lower = low_left + right * (low_right - low_left)
    return upper + down * (lower - upper)
