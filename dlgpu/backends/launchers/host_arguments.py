"""Arguments of a launch on the CPU, checked against what the kernel's own type takes, because C++ would not."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np
from numpy.lib.array_utils import byte_bounds

Memory = tuple[int, int, int, str]  # begin, end, bytes of an element, what it is


class Parameter(NamedTuple):
    """What the compiler says of one: its C++ type, NumPy's name of it or of what it points to ("" for a struct), the
    bytes of that, whether it is a pointer, and whether the kernel may write there."""

    text: str
    dtype: str
    size: int
    pointer: bool
    writes: bool


def packed(kernel: str, parameters: Sequence[Parameter], args: Sequence[Any]) -> tuple[list[bytes], list[Memory]]:
    """The bytes of each argument, and the memory that a launch may touch.

    Raises:
        TypeError, ValueError, OverflowError: a count, kind or value that does not fit.
    """
    if len(args) != len(parameters):
        raise TypeError(f"[{kernel}] takes {len(parameters)} arguments; got {len(args)}")
    values, memory = [], []
    for index, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        argument = _Argument(kernel, index, parameter, value)
        values.append(argument.raw())
        if parameter.pointer and value is not None:
            memory.append((*_bounds(value), parameter.size, f"argument {index} ({parameter.text})"))
    return values, _merged(memory)


class _Argument(NamedTuple):
    kernel: str
    number: int
    parameter: Parameter
    value: Any

    def raw(self) -> bytes:
        if self.parameter.pointer:
            return struct.pack("P", self._address())
        if not self.parameter.dtype:
            return self._struct()
        name = self.parameter.dtype
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        return (self._integer(dtype) if dtype.kind in "iub" else self._real(dtype)).tobytes()

    def _address(self) -> int:
        array, parameter = self.value, self.parameter
        if array is None:
            return 0
        if not isinstance(array, np.ndarray):
            self._refuse(TypeError)
        raw = not parameter.dtype and array.dtype.kind == "V" and array.itemsize == parameter.size
        if not raw and parameter.dtype not in ("void", array.dtype.name):
            self._refuse(TypeError, f"an array of {array.dtype.name}")
        if parameter.writes and not array.flags.writeable:
            self._refuse(ValueError, "a read-only array")
        return array.ctypes.data

    def _struct(self) -> bytes:
        if not isinstance(self.value, bytes | np.generic | np.ndarray):
            self._refuse(TypeError)
        raw = self.value if isinstance(self.value, bytes) else self.value.tobytes()
        if len(raw) != self.parameter.size:
            self._refuse(ValueError, f"{len(raw)} bytes instead of {self.parameter.size}")
        return raw

    def _integer(self, dtype: np.dtype) -> np.generic:
        try:
            number = operator.index(self.value)
        except TypeError:
            self._refuse(TypeError)
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not low <= number <= high:
            self._refuse(OverflowError, str(number))
        return dtype.type(number)

    def _real(self, dtype: np.dtype) -> np.generic:
        if isinstance(self.value, np.ndarray | str):
            self._refuse(TypeError)
        try:
            number = float(self.value)
        except (TypeError, ValueError):
            self._refuse(TypeError)
        with np.errstate(over="ignore"):
            converted = dtype.type(number)
        if np.isfinite(number) and not np.isfinite(converted):
            self._refuse(OverflowError, repr(self.value))
        return converted

    def _refuse(self, error: type[Exception], got: str = "") -> NoReturn:
        got = got or f"{type(self.value).__name__} {self.value!r:.60}"
        raise error(f"[{self.kernel}] argument {self.number} is {self.parameter.text}; got {got}")


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """First byte, and the one after the last, of an array of any strides."""
    return byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)


def _merged(memory: list[Memory]) -> list[Memory]:
    """Arguments may be views of one array: then they are one piece of memory."""
    result: list[Memory] = []
    for begin, end, size, text in sorted(memory):
        if not result or begin >= result[-1][1]:
            result.append((begin, end, size, text))
            continue
        first, last, least, names = result[-1]
        result[-1] = (first, max(last, end), min(least, size), f"{names} = {text}")
    return result
