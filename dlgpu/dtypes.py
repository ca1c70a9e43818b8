"""The element types of arrays, and the rule for sums: storage may be narrow, accumulation is float32 or wider."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from dlgpu.errors import DtypeError, UnknownName

float16 = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)

FLOATS = {"float16": float16, "bfloat16": bfloat16, "float32": float32, "float64": float64}


def parse(dtype: Any) -> np.dtype:
    """`"bfloat16"`, `np.float32`, `dlgpu.float16` ... -> the NumPy dtype. Unknown names raise `UnknownName`."""
    if isinstance(dtype, str):
        if dtype in FLOATS:
            return FLOATS[dtype]
        try:
            return np.dtype(dtype)
        except TypeError:
            raise UnknownName("dtype", "dtype", dtype, FLOATS) from None
    return np.dtype(dtype)


def is_float(dtype: np.dtype) -> bool:
    """Whether `dtype` is one of the four floating-point storage types."""
    return dtype in FLOATS.values()


def accumulator(dtype: np.dtype) -> np.dtype:
    """The type sums over `dtype` are kept in: float64 for float64, float32 for everything narrower."""
    return float64 if dtype == float64 else float32


def check_floats(op: str, **arrays: Any) -> None:
    """Require every array that is not None to have the same floating-point dtype; raises `DtypeError`."""
    given = {name: a.dtype for name, a in arrays.items() if a is not None}
    if len(set(given.values())) == 1 and is_float(next(iter(given.values()))):
        return
    got = ", ".join(f"{name}: {dtype}" for name, dtype in given.items())
    raise DtypeError(f"[{op}] arrays must share one dtype of {', '.join(FLOATS)}; got {got}")
