"""What TMA, Hopper's copy engine, is told of an array: a pure description; a launcher adds the address and encodes it.

Rules: CUDA driver API, cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col. All maps here swizzle by 128 bytes, and what
is read outside of the array is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlgpu.backends.kernels.plan import Plan

LINE = 64  # elements of 16 bits in the 128 bytes that are swizzled
MOST_BYTES = 1 << 40  # of a stride


@dataclass(frozen=True)
class Tiled:
    """Boxes of an array of three axes, contiguous one first. Strides are in bytes, of the second and third axis."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int]
    box: tuple[int, int, int]

    @property
    def extent(self) -> int:
        """Bytes from the first element to the end of the last."""
        return _extent(self.sizes, self.strides)


@dataclass(frozen=True)
class Im2col:
    """Channels of consecutive window positions of images (C, W, H, N).

    The window's first tap walks from `lower` to the last pixel plus `upper` (along w, h) in steps of `steps`.
    """

    sizes: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    channels: int
    pixels: int
    lower: tuple[int, int]
    upper: tuple[int, int]
    steps: tuple[int, int]

    @property
    def extent(self) -> int:
        return _extent(self.sizes, self.strides)


TensorMap = Tiled | Im2col


@dataclass(frozen=True)
class MappedPlan:
    """A launch, and the maps of its first arrays in their order."""

    launch: Plan
    maps: tuple[TensorMap, ...]


def _extent(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return 2 * sizes[0] + sum((size - 1) * stride for size, stride in zip(sizes[1:], strides, strict=True))


def encodable(m: TensorMap) -> bool:
    """Whether the driver would take the map, for an address that is a multiple of 16."""
    fits = all(1 <= size < 1 << 31 for size in m.sizes)
    fits &= all(0 < stride < MOST_BYTES and stride % 16 == 0 for stride in m.strides)
    if isinstance(m, Im2col):
        fits &= all(-128 <= corner <= 127 for corner in (*m.lower, *m.upper)) and all(1 <= s <= 8 for s in m.steps)
    return fits
