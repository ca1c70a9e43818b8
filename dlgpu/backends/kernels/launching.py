"""What op families of the kernel backend share: the array library, running a plan, and the layout of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dlgpu import memory_format
from dlgpu.backends import tuning
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.geometry import four_axes, strides
from dlgpu.backends.kernels.plan import MOST_YZ, THREADS, Dim3, Plan, check_count, elementwise, vector
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.tiles import Target

Start = Callable[[list[Any]], None]  # launches one plan on its arrays

TURNED = 64  # rows and columns of the tile of kernels/movement.cuh that a block turns


class Launcher(Protocol):
    """Runs a kernel by name. `args` are arrays (or None), scalars and packed structs, in the kernel's order."""

    @property
    def xp(self) -> Any:
        """The array library of its arrays."""
        ...

    @property
    def capability(self) -> int:
        """What the device can do: 75, 80, 86, 89, 90 or 100, as in sm_90."""
        ...

    @property
    def sms(self) -> int:
        """Multiprocessors of the device."""
        ...

    @property
    def device(self) -> int:
        """Number of the current device: what was chosen for one is not used on another."""
        ...

    def identity(self) -> dict[str, str]:
        """Names "gpu" and "driver" of the current device: what was tuned on another does not hold here."""
        ...

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel; raises if its name or arguments do not fit."""
        ...

    def prepare(self, plan: Plan) -> Start:
        """The same for one plan, to be started often: what can be done beforehand is done here."""
        ...


ALIGNMENT = 16  # bytes of a vector


def address(x: Array) -> int:
    """Where the first element of an array lies, in bytes."""
    return x.ctypes.data if type(x) is np.ndarray else x.data.ptr


def copy_plan(op: str, x: Array, y: Array) -> Plan:
    """From x to y of the same logical shape, in vectors where they lie alike, else tile by tile between the formats.

    What is neither (other strides; a type and a format at once) goes element by element in the memory order of y.
    """
    source, target = storage(op, x.dtype), storage(op, y.dtype)
    formats = [next((f for f in memory_format.FORMATS if memory_format.is_stored(a, f)), None) for a in (x, y)]
    if source != target and x.strides == _scaled(y, x.itemsize) and None not in formats:
        check_count(op, x.size)
        threads = -(-x.size // vector(max((x.dtype, y.dtype), key=lambda d: d.itemsize)))
        return elementwise(op, f"dl::cast<{source}, {target}>", threads, x.size)
    N, C, H, W = x.shape
    rows, columns = (C, H * W) if formats[0] == "contiguous" else (H * W, C)
    down, across = -(-rows // TURNED), -(-columns // TURNED)
    if source == target and set(formats) == set(memory_format.FORMATS) and max(N, down) <= MOST_YZ:
        check_count(op, x.size)
        why = f"{N} images, {rows} x {columns} turned in tiles of {TURNED}"
        return Plan(f"dl::transpose<{source}>", (across, down, N), (THREADS, 1, 1), (rows, columns), why=why)
    kernel = f"dl::copy<{source}, {target}>"
    return elementwise(op, kernel, x.size, C, H, W, x.size, strides(x), strides(y))


def _scaled(a: Array, itemsize: int) -> tuple[int, ...]:
    """The strides of an array that lies like `a`, with elements of another size."""
    return tuple(step // a.itemsize * itemsize for step in a.strides)


class Launching:
    """Base of the op families: they make plans and run them here."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.xp = launcher.xp

    @property
    def target(self) -> Target:
        """What plans are made for."""
        return Target(self.launcher.sms, tuning.current().workspace_limit)

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        """Launch a plan on its arrays, unless there is nothing to compute."""
        if not plan.empty:
            self.launcher.launch(plan.kernel, plan.grid, plan.block, (*arrays, *plan.args), plan.shared_bytes)

    def aligned(self, *arrays: Array) -> bool:
        """Whether each begins at a multiple of 16 bytes, as vector copies want it."""
        return all(address(x) % ALIGNMENT == 0 for x in arrays)

    def dense(self, x: Array, layout: memory_format.MemoryFormat) -> Array:
        """`x` without gaps in the given format (contiguous unless 4-D): kernels walk over memory."""
        if x.ndim != 4:
            return self.xp.ascontiguousarray(x)
        return x if memory_format.is_stored(x, layout) else self.copied("layout", x, x.dtype, layout)

    def copied(self, op: str, x: Array, dtype: np.dtype, layout: memory_format.MemoryFormat) -> Array:
        """A copy in another type or format."""
        y = memory_format.empty(self.xp, x.shape, dtype, layout)
        source, target = four_axes(x), four_axes(y)
        self.run(copy_plan(op, source, target), source, target)
        return y
