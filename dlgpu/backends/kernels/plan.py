"""A plan: which kernel runs, on which grid, with which arguments.

Plans are made from shapes alone and print themselves; nothing else in dlgpu chooses a grid, a block or a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlgpu.errors import ShapeError

Dim3 = tuple[int, int, int]

THREADS = 256
# Blocks of a grid-stride loop: enough to fill the largest GPUs several times over, few enough to keep them cheap.
MOST_BLOCKS = 132 * 32
MOST_ELEMENTS = 2**31 - 1  # kernels index with 32 bits
VECTOR_BYTES = 16
MOST_YZ = 65_535  # CUDA's limit for grid.y and grid.z


@dataclass(frozen=True)
class Plan:
    """One launch without its arrays: `args` holds the scalars and structs that follow them.

    `why` says in a few words what the choice was made for; `cycles` is what `tiles.predict` says of
    products.
    """

    kernel: str
    grid: Dim3
    block: Dim3
    args: tuple[Any, ...] = ()
    shared_bytes: int = 0
    why: str = ""
    cycles: float = 0.0

    @property
    def empty(self) -> bool:
        """Nothing to compute: a grid without blocks, which CUDA does not launch."""
        return math.prod(self.grid) == 0

    def __str__(self) -> str:
        grid, block = ("x".join(map(str, dims)) for dims in (self.grid, self.block))
        shared = f", {self.shared_bytes} bytes of shared memory" if self.shared_bytes else ""
        return f"{self.kernel} on grid {grid}, block {block}{shared}" + (f"  ({self.why})" if self.why else "")


def check_count(op: str, count: int) -> None:
    """An array must be small enough to be indexed; raises `ShapeError`."""
    if count > MOST_ELEMENTS:
        raise ShapeError(f"[{op}] kernels index with 32 bits: at most {MOST_ELEMENTS} elements; got {count}")


def vector(dtype: np.dtype) -> int:
    """How many elements a thread reads and writes at once: 16 bytes."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def elementwise(op: str, kernel: str, count: int, *args: Any) -> Plan:
    """A grid-stride loop over `count` elements."""
    check_count(op, count)
    blocks = min(-(-count // THREADS), MOST_BLOCKS)
    return Plan(kernel, (blocks, 1, 1), (THREADS, 1, 1), args, why=f"{count} threads' work")
