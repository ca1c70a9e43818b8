"""The arrays of a case as a contestant likes them."""

from __future__ import annotations

from typing import Any

from dlgpu import memory_format
from dlgpu.bench.cases import Case
from dlgpu.bench.ops import Arrays
from dlgpu.memory_format import MemoryFormat


def arranged(xp: Any, case: Case, arrays: Arrays, layout: MemoryFormat, filters: MemoryFormat) -> Arrays:
    """4-D arrays in the layout (weights in that of `filters`); own copies of what the op changes."""
    found = {}
    for name, a in arrays.items():
        if a.ndim == 4:
            a = memory_format.convert(xp, a, case.what.layout or (filters if name == "w" else layout))
        found[name] = a.copy() if name in case.what.changes else a
    return found
