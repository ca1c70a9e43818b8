"""Tensor maps for NVIDIA GPUs: the driver encodes a description (`kernels/tensor_map.py`) and an address."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.tensor_map import Im2col, TensorMap
from dlgpu.errors import BackendUnavailable, ShapeError


def tensor_map(description: TensorMap, array: Any) -> np.ndarray:
    """The 128 bytes that a kernel takes as `TensorMap`.

    Raises:
        BackendUnavailable: cuda-python, which calls the driver, is missing.
        ShapeError: the driver refuses the map.
    """
    return _encode(description, str(array.dtype) == "float16", array.data.ptr)


@lru_cache(maxsize=4096)
def _encode(m: TensorMap, half: bool, address: int) -> np.ndarray:
    driver = _driver()
    types = driver.CUtensorMapDataType
    kind = types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16 if half else types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    head = (kind, len(m.sizes), address, [wide(n) for n in m.sizes], [wide(n) for n in m.strides])
    end = (
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,  # zeros
    )
    if isinstance(m, Im2col):
        steps = [narrow(n) for n in (1, *m.steps, 1)]
        status, encoded = driver.cuTensorMapEncodeIm2col(
            *head, list(m.lower), list(m.upper), m.channels, m.pixels, steps, *end
        )
    else:
        status, encoded = driver.cuTensorMapEncodeTiled(*head, [narrow(n) for n in m.box], [narrow(1)] * 3, *end)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ShapeError(f"[cuda] the driver must take the tensor map; got {status.name} for {m}")
    return np.frombuffer(ctypes.string_at(encoded.getPtr(), 128), sources.struct("TensorMap"))[0]


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailable(
            f"[cuda] tensor maps need cuda-python; got {error}: pip install cuda-bindings"
        ) from error
    return driver
