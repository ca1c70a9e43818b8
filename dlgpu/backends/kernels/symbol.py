"""Arrays without contents, for finding out what an op would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Unrecordable(Exception):
    """The op does more than allocate, take views and launch: it cannot be replayed."""


class Symbol:
    """An array of which only shape, strides, dtype and alignment are known; taking views of it is all one can do.

    Attributes:
        slot: number of the array that it is a view of.
        address: where it begins, as far as that is known: modulo 16.
        views: the methods with their arguments that lead from that array to this one.
        moved: whether it begins elsewhere than that array.
    """

    def __init__(
        self,
        slot: int,
        shape: Sequence[int],
        dtype: Any,
        strides: tuple[int, ...] | None = None,
        address: int = 0,
        views: tuple[tuple[str, tuple[Any, ...]], ...] = (),
        moved: bool = False,
    ) -> None:
        self.slot, self.shape, self.dtype = slot, tuple(int(size) for size in shape), np.dtype(dtype)
        self.strides = dense_strides(self.shape, self.dtype.itemsize) if strides is None else strides
        self.address, self.views, self.moved = address, views, moved
        self.ndim, self.size, self.itemsize = len(self.shape), math.prod(self.shape), self.dtype.itemsize

    @property
    def data(self) -> Symbol:  # as in CuPy: x.data.ptr
        return self

    @property
    def ptr(self) -> int:
        return self.address

    @property
    def flags(self) -> Symbol:
        return self

    @property
    def c_contiguous(self) -> bool:
        dense = dense_strides(self.shape, self.itemsize)
        steps = zip(self.shape, self.strides, dense, strict=True)
        return self.size == 0 or all(step == wanted for size, step, wanted in steps if size > 1)

    def __len__(self) -> int:
        return self.shape[0]

    def transpose(self, *axes: int) -> Symbol:
        shape, strides = ([values[axis] for axis in axes] for values in (self.shape, self.strides))
        return self._view("transpose", axes, shape, tuple(strides))

    def reshape(self, *shape: int) -> Symbol:
        if not self.c_contiguous:
            raise Unrecordable("reshape would copy")
        known = math.prod(size for size in shape if size != -1)
        sizes = [self.size // max(known, 1) if size == -1 else size for size in shape]
        return self._view("reshape", tuple(sizes), sizes, None)

    def __getitem__(self, part: slice) -> Symbol:
        if not isinstance(part, slice):
            raise Unrecordable(f"indexed with {part!r}")
        taken = range(len(self))[part]
        if taken.step != 1:
            raise Unrecordable(f"indexed with {part!r}")
        view = self._view("__getitem__", (part,), (len(taken), *self.shape[1:]), self.strides)
        view.address = (self.address + taken.start * self.strides[0]) % 16
        view.moved = self.moved or taken.start > 0
        return view

    def astype(self, dtype: Any, copy: bool = True) -> Symbol:
        if copy or np.dtype(dtype) != self.dtype:
            raise Unrecordable("astype would copy")
        return self

    def __getattr__(self, name: str) -> Any:
        raise Unrecordable(f"uses .{name}")

    def _computes(self, *others: Any) -> Any:
        raise Unrecordable("the array library computes")

    # Operators are looked up in the class, past __getattr__.
    __setitem__ = __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _computes
    __truediv__ = __rtruediv__ = __neg__ = __abs__ = __pow__ = __array__ = _computes

    def _view(self, method: str, args: tuple[Any, ...], shape: Sequence[int], strides: Any) -> Symbol:
        views = (*self.views, (method, args))
        return Symbol(self.slot, shape, self.dtype, strides, self.address, views, self.moved)


class Number:
    """A number that is another in each call, as an argument of a plan. Nothing can be computed with it: ops pass it on,
    or give it to `each_call`.

    Attributes:
        slot: where it will be.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot


class SymbolicArrays:
    """The array library whose arrays are symbols.

    `allocate(kind, shape, dtype, strides)`: kind is "ndarray" or "zeros"; strides are None for a contiguous array.
    """

    def __init__(self, allocate: Callable[[str, tuple[int, ...], Any, tuple[int, ...] | None], Symbol]) -> None:
        self._allocate = allocate

    def empty(self, shape: Any, dtype: Any) -> Symbol:
        return self.ndarray(shape if isinstance(shape, tuple) else (shape,), dtype)

    def ndarray(self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Symbol:
        return self._allocate("ndarray", shape, dtype, strides)

    def zeros(self, shape: Any, dtype: Any) -> Symbol:
        return self._allocate("zeros", shape if isinstance(shape, tuple) else (shape,), dtype, None)

    def ascontiguousarray(self, x: Symbol, dtype: Any = None) -> Symbol:
        if not x.c_contiguous or dtype not in (None, x.dtype):
            raise Unrecordable("ascontiguousarray would copy")
        return x

    def moveaxis(self, x: Symbol, source: int, target: int) -> Symbol:
        axes = list(range(x.ndim))
        axes.insert(target % x.ndim, axes.pop(source))
        return x.transpose(*axes)

    def __getattr__(self, name: str) -> Any:
        raise Unrecordable(f"calls {name}")


def dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Of a contiguous array. Axes of an empty one count as one long, as NumPy and CuPy have it."""
    return tuple(itemsize * math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))
