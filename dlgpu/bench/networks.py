"""The convolution layers of six networks as their papers give them; square images, filters, strides and paddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True)
class Layer:
    """A convolution of C channels of H x H pixels with K filters of R x R; `times` such layers are in the network."""

    name: str
    C: int
    H: int
    K: int
    R: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    times: int = 1

    @property
    def P(self) -> int:
        """Output height and width."""
        return (self.H + 2 * self.padding - self.R) // self.stride + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image, of one such layer."""
        return self.P**2 * self.K * (self.C // self.groups) * self.R**2


def lenet5() -> Iterator[Layer]:
    """LeCun et al. 1998, on 28 x 28 images padded by 2."""
    yield Layer("conv1", 1, 28, 6, 5, padding=2)
    yield Layer("conv2", 6, 14, 16, 5)


def alexnet() -> Iterator[Layer]:
    """Krizhevsky et al. 2012: two towers are two groups."""
    yield Layer("conv1", 3, 227, 96, 11, stride=4)
    yield Layer("conv2", 96, 27, 256, 5, padding=2, groups=2)
    yield Layer("conv3", 256, 13, 384, 3, padding=1)
    yield Layer("conv4", 384, 13, 384, 3, padding=1, groups=2)
    yield Layer("conv5", 384, 13, 256, 3, padding=1, groups=2)


def vgg16() -> Iterator[Layer]:
    """Simonyan and Zisserman 2014, configuration D."""
    channels, size = 3, 224
    for stage, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for index in range(1, depth + 1):
            yield Layer(f"conv{stage}_{index}", channels, size, width, 3, padding=1)
            channels = width
        size //= 2


def resnet50() -> Iterator[Layer]:
    """He et al. 2015, with the stride in the 3x3 layers, as everybody trains it ("v1.5")."""
    yield Layer("conv1", 3, 224, 64, 7, stride=2, padding=3)
    channels, size = 64, 56
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 2):
        for block in range(1, blocks + 1):
            stride, name = 2 if block == 1 and stage > 2 else 1, f"conv{stage}_{block}"
            yield Layer(f"{name}a", channels, size, width, 1)
            yield Layer(f"{name}b", width, size, width, 3, stride=stride, padding=1)
            yield Layer(f"{name}c", width, size // stride, 4 * width, 1)
            if block == 1:
                yield Layer(f"{name}d", channels, size, 4 * width, 1, stride=stride)  # the shortcut
            channels, size = 4 * width, size // stride


# Szegedy et al. 2014, table 1: size, then the filters of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
INCEPTIONS = {
    "3a": (28, 64, 96, 128, 16, 32, 32),
    "3b": (28, 128, 128, 192, 32, 96, 64),
    "4a": (14, 192, 96, 208, 16, 48, 64),
    "4b": (14, 160, 112, 224, 24, 64, 64),
    "4c": (14, 128, 128, 256, 24, 64, 64),
    "4d": (14, 112, 144, 288, 32, 64, 64),
    "4e": (14, 256, 160, 320, 32, 128, 128),
    "5a": (7, 256, 160, 320, 32, 128, 128),
    "5b": (7, 384, 192, 384, 48, 128, 128),
}


def googlenet() -> Iterator[Layer]:
    """Szegedy et al. 2014, without the auxiliary classifiers."""
    yield Layer("conv1", 3, 224, 64, 7, stride=2, padding=3)
    yield Layer("conv2_reduce", 64, 56, 64, 1)
    yield Layer("conv2", 64, 56, 192, 3, padding=1)
    channels = 192
    for name, (size, one, reduce3, three, reduce5, five, pool) in INCEPTIONS.items():
        yield Layer(f"{name}_1x1", channels, size, one, 1)
        yield Layer(f"{name}_3x3_reduce", channels, size, reduce3, 1)
        yield Layer(f"{name}_3x3", reduce3, size, three, 3, padding=1)
        yield Layer(f"{name}_5x5_reduce", channels, size, reduce5, 1)
        yield Layer(f"{name}_5x5", reduce5, size, five, 5, padding=2)
        yield Layer(f"{name}_pool", channels, size, pool, 1)
        channels = one + three + five + pool


def mobilenet() -> Iterator[Layer]:
    """Howard et al. 2017, table 1: depthwise and pointwise layers in turn."""
    yield Layer("conv1", 3, 224, 32, 3, stride=2, padding=1)
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    halving, size = (2, 4, 6, 12), 112
    for index, (channels, width) in enumerate(pairwise(widths), 1):
        stride = 2 if index in halving else 1
        yield Layer(f"dw{index}", channels, size, channels, 3, stride=stride, padding=1, groups=channels)
        size //= stride
        yield Layer(f"pw{index}", channels, size, width, 1)


NETWORKS = {make.__name__: make for make in (vgg16, resnet50, alexnet, googlenet, mobilenet, lenet5)}


def layers(network: str) -> list[Layer]:
    """The different layers of a network, most work first; `times` counts the equal ones."""
    found: dict[Layer, Layer] = {}
    for layer in NETWORKS[network]():
        geometry = replace(layer, name="")
        first = found.get(geometry, replace(layer, times=0))
        found[geometry] = replace(first, times=first.times + 1)
    return sorted(found.values(), key=lambda layer: -layer.macs * layer.times)
