"""Geometry as kernels take it: the structs of kernels/shapes.cuh, filled from `dlgpu.backends.shapes`."""

from __future__ import annotations

import math

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.sources import pack
from dlgpu.backends.shapes import Conv2d, Window2d


def strides(x: Array) -> np.ndarray:
    """`dl::Strides` of an (N, C, H, W) array, in elements."""
    return pack("Strides", *(step // x.itemsize for step in x.strides))


def window(w: Window2d) -> np.ndarray:
    """`dl::Window2d`."""
    sizes = (w.N, w.C, w.H, w.W, w.R, w.S, w.P, w.Q)
    return pack("Window2d", *sizes, *w.stride, w.padding[0][0], w.padding[1][0], *w.dilation)


def conv(g: Conv2d) -> np.ndarray:
    """`dl::Conv2d`."""
    sizes = (g.N, g.C, g.H, g.W, g.K, g.R, g.S, g.P, g.Q, g.G)
    return pack("Conv2d", *sizes, *g.stride, g.padding[0][0], g.padding[1][0], *g.dilation)


def four_axes(x: Array) -> Array:
    """An (N, C, H, W) array as it is, any other contiguous one as (1, 1, 1, size): a view."""
    return x if x.ndim == 4 else x.reshape(1, 1, 1, x.size)


def norm(x: Array, groups: int) -> np.ndarray:
    """`dl::Norm` of a dense (N, C, ...) array in either memory format."""
    N, C = x.shape[:2]
    spatial = math.prod(x.shape[2:])
    channels_last = memory_format.of(x) == "channels_last"
    return pack("Norm", N, C, groups, spatial, C * spatial, *((1, C) if channels_last else (spatial, 1)))
