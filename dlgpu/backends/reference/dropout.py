"""Dropout, with its mask from Philox4x32-10: a function of (seed, offset, element index), so nothing is stored."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.reference.common import finish, masked, widen
from dlgpu.backends.shapes import check_probability
from dlgpu.dtypes import check_floats


def dropout(x: np.ndarray, *, p: float, seed: int, offset: int) -> np.ndarray:
    return _apply("dropout", x, p, seed, offset)


def dropout_grad(grad_output: np.ndarray, *, p: float, seed: int, offset: int) -> np.ndarray:
    return _apply("dropout_grad", grad_output, p, seed, offset)


def _apply(op: str, x: np.ndarray, p: float, seed: int, offset: int) -> np.ndarray:
    check_floats(op, input=x)
    check_probability(op, p)
    uniform = philox_uniform(x.size, seed, offset).reshape(x.shape)  # logical row-major order, whatever the layout
    keep = uniform >= p
    wide = memory_format.convert(np, widen(x), "contiguous")
    y = masked(wide, keep)
    if p < 1:
        y *= y.dtype.type(1 / (1 - p))
    return finish(y, x.dtype, memory_format.of(x))


def philox_uniform(count: int, seed: int, offset: int) -> np.ndarray:
    """`count` float32 numbers in [0, 1): the top 24 bits of successive Philox words."""
    words = philox4x32(seed, offset, -(-count // 4)).reshape(-1)[:count]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def philox4x32(seed: int, offset: int, blocks: int) -> np.ndarray:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011) -> (blocks, 4) uint32.

    Key: the 64 bits of `seed`, low word first. Counter of block i: the 64 bits of offset + i, low word first, then two
    zero words.
    """
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    counter = np.uint64(offset) + np.arange(blocks, dtype=np.uint64)
    c0, c1 = counter & low, counter >> shift
    c2 = c3 = np.zeros(blocks, np.uint64)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> shift) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)
