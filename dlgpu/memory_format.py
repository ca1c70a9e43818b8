"""Layout is strides: a 4-D array always has the logical shape (N, C, H, W); its memory order is a separate matter.

"contiguous" stores N, C, H, W with W fastest; "channels_last" stores N, H, W, C with C fastest (PyTorch's words).
Every op returns the format it was given. Works on NumPy and CuPy arrays alike.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dlgpu.errors import ShapeError, UnknownName

MemoryFormat = Literal["contiguous", "channels_last"]
FORMATS: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")


def parse(name: str) -> MemoryFormat:
    """Check a format's name; raises `UnknownName`."""
    if name not in FORMATS:
        raise UnknownName("memory_format", "memory format", name, FORMATS)
    return name


def of(*arrays: Any) -> MemoryFormat:
    """ "channels_last" if any of the 4-D arrays is stored so (as PyTorch decides), else "contiguous".

    Strides, not flags, decide: with C = 1 an array is contiguous in both senses, and only its strides remember which
    one its maker meant.
    """
    for a in arrays:
        if a is None or a.ndim != 4:
            continue
        _, c, h, w = a.shape
        item = a.itemsize
        if h * w > 1 and a.strides[1:] == (item, w * c * item, c * item):
            return "channels_last"
    return "contiguous"


def empty(xp: Any, shape: tuple[int, ...], dtype: np.dtype, memory_format: MemoryFormat) -> Any:
    """An uninitialised array of logical `shape` in the given format. `xp` is numpy or cupy."""
    if memory_format == "contiguous" or len(shape) != 4:
        return xp.empty(shape, dtype)
    _, c, h, w = (max(1, size) for size in shape)  # axes of an empty array count as one long, as NumPy has it
    item = np.dtype(dtype).itemsize
    return xp.ndarray(shape, dtype, strides=(h * w * c * item, item, w * c * item, c * item))


def is_stored(a: Any, memory_format: MemoryFormat) -> bool:
    """Whether `a` lies in memory without gaps in the given format. Only 4-D arrays can be channels_last."""
    if memory_format == "channels_last" and a.ndim != 4:
        raise ShapeError(f"[memory_format] channels_last needs an (N, C, H, W) array; got shape {a.shape}")
    dense = a.transpose(0, 2, 3, 1) if memory_format == "channels_last" else a
    one_pixel = a.ndim == 4 and a.shape[2] * a.shape[3] == 1  # stored alike in both formats
    return bool(dense.flags.c_contiguous) and (one_pixel or of(a) == memory_format)


def convert(xp: Any, a: Any, memory_format: MemoryFormat) -> Any:
    """`a` in the given format: itself if it is already so stored, else a copy. Only 4-D arrays can be channels_last."""
    if is_stored(a, memory_format):
        return a
    out = empty(xp, a.shape, a.dtype, memory_format)
    out[...] = a
    return out
