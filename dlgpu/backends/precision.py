"""How convolutions and matrix products of float32 tensors are computed: a choice between exactness and speed.

"float32"    strict: every product and sum in float32 (the default)
"tf32"       on tensor cores: factors rounded to 10 bits of mantissa, sums in float32
"float32x3"  on tensor cores: each factor as a sum of two tf32 numbers, three products; nearly float32
"float16"    mixed precision (dlgpu.amp): factors and results are float16 or bfloat16 tensors, sums in float32;
"bfloat16"     it is `dlgpu.functional` that casts: a backend computes in the type of the arrays it is given

The reference computes in float32 where tensor cores are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from dlgpu.errors import UnknownName

Precision = Literal["float32", "tf32", "float32x3", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float32x3", "float16", "bfloat16")

CURRENT: ContextVar[Precision] = ContextVar("precision", default="float32")


def current() -> Precision:
    """What products of float32 arrays use now."""
    return CURRENT.get()


@contextmanager
def use(precision: Precision) -> Iterator[None]:
    """Choose inside a `with` block; raises `UnknownName`."""
    if precision not in PRECISIONS:
        raise UnknownName("precision", "precision", precision, PRECISIONS)
    token = CURRENT.set(precision)
    try:
        yield
    finally:
        CURRENT.reset(token)
