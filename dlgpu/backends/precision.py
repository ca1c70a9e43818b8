"""How products of float32 arrays are computed on GPUs with tensor cores: a choice between exactness and speed.

"float32"    strict: every product and sum in float32 (the default)
"tf32"       tensor cores: factors rounded to 10 bits of mantissa, sums in float32
"float32x3"  tensor cores: each factor as a sum of two tf32 numbers, three products; nearly float32

The reference computes in float32 whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from dlgpu.errors import UnknownName

Precision = Literal["float32", "tf32", "float32x3"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float32x3")

_current: ContextVar[Precision] = ContextVar("precision", default="float32")


def current() -> Precision:
    """What products of float32 arrays use now."""
    return _current.get()


@contextmanager
def use(precision: Precision) -> Iterator[None]:
    """Choose inside a `with` block; raises `UnknownName`."""
    if precision not in PRECISIONS:
        raise UnknownName("precision", "precision of float32 products", precision, PRECISIONS)
    token = _current.set(precision)
    try:
        yield
    finally:
        _current.reset(token)
