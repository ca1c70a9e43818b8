"""Tensor maps for NVIDIA GPUs: the driver encodes a description (`kernels/tensor_map.py`) and an address.

The driver is called through ctypes, on memory of our own: the map must begin at a multiple of 64 bytes (cuda.h; of 128
since CUDA 13), which cuda-python's objects do not.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache, lru_cache
from typing import Any

import numpy as np

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.tensor_map import Im2col, TensorMap
from dlgpu.errors import BackendUnavailable, ShapeError

LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
BYTES = ALIGNMENT = 128  # of a CUtensorMap
# From cuda.h
FLOAT16, BFLOAT16 = 6, 9
INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, OUTSIDE_ZERO = 0, 3, 3, 0


def tensor_map(description: TensorMap, array: Any) -> np.ndarray:
    """The kernel argument `TensorMap`, a 0-d structured array.

    Raises:
        BackendUnavailable: no driver, or one older than CUDA 12.
        ShapeError: the driver refuses the map.
    """
    return _encode(description, str(array.dtype) == "float16", array.data.ptr)


@lru_cache(maxsize=4096)
def _encode(m: TensorMap, half: bool, address: int) -> np.ndarray:
    driver = _driver()
    room = np.zeros(BYTES + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    encoded = room[start : start + BYTES]
    memory = ctypes.c_void_p(address), _array(ctypes.c_uint64, m.sizes), _array(ctypes.c_uint64, m.strides)
    head = encoded.ctypes.data_as(ctypes.c_void_p), FLOAT16 if half else BFLOAT16, len(m.sizes), *memory
    tail = INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, OUTSIDE_ZERO
    if isinstance(m, Im2col):
        corners = _array(ctypes.c_int, m.lower), _array(ctypes.c_int, m.upper)
        steps = _array(ctypes.c_uint32, (1, *m.steps, 1))
        status = driver.cuTensorMapEncodeIm2col(*head, *corners, m.channels, m.pixels, steps, *tail)
    else:
        box, steps = _array(ctypes.c_uint32, m.box), _array(ctypes.c_uint32, (1, 1, 1))
        status = driver.cuTensorMapEncodeTiled(*head, box, steps, *tail)
    if status:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(name))
        got = f"error {status}" if name.value is None else name.value.decode()
        raise ShapeError(f"[cuda] the driver must take the tensor map; got {got} for {m}")
    return encoded.view(sources.struct("TensorMap")).reshape(())


def _array(kind: Any, values: tuple[int, ...]) -> Any:
    return (kind * len(values))(*values)


@cache
def _driver() -> Any:
    try:
        driver = ctypes.CDLL(LIBRARY)
        driver.cuTensorMapEncodeTiled, driver.cuTensorMapEncodeIm2col  # noqa: B018
    except (OSError, AttributeError) as error:
        raise BackendUnavailable(f"[cuda] tensor maps need a driver for CUDA 12 or newer; got {error}") from error
    return driver
