"""What op families of the kernel backend share: the array library, running a plan, and the layout of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from dlgpu import memory_format
from dlgpu.backends import tuning
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.geometry import four_axes, strides
from dlgpu.backends.kernels.plan import MOST_YZ, THREADS, Dim3, Plan, check_count, elementwise, vector
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.symbol import Number
from dlgpu.backends.kernels.tensor_map import MappedPlan, TensorMap
from dlgpu.backends.kernels.tiles import Target

# Launches one plan on its arrays, which the tuple begins with, and what its Numbers are this time, in their order.
Start = Callable[[tuple[Any, ...]], None]

TURNED = 64  # rows and columns of the tile of kernels/movement.cuh that a block turns


class Launcher(Protocol):
    """Runs a kernel by name. `args` are arrays (or None), scalars and packed structs, in the kernel's order.

    One that can replay programs faster than Python also has `replayed(op)`: it makes of a `programs.Replayed` what is
    called in its place.
    """

    @property
    def xp(self) -> Any:
        """The array library of its arrays."""
        ...

    @property
    def null(self) -> Any:
        """What a `Start` is given for an array that is not there."""
        ...

    @property
    def capability(self) -> int:
        """What the device can do: 75, 80, 86, 89, 90, 100 or 120, as in sm_90."""
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

    def tensor_map(self, description: TensorMap, array: Array) -> np.ndarray:
        """The kernel argument that describes `array` to TMA."""
        ...

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel; raises if its name or arguments do not fit."""
        ...

    def prepare(self, plan: Plan) -> Start:
        """The same for one plan, to be started often: what can be done beforehand is done here."""
        ...


ALIGNMENT = 16  # bytes of a vector
HOPPER = 90  # the capability that has wgmma and TMA


def address(x: Array) -> int:
    """Where the first element of an array lies, in bytes."""
    return x.ctypes.data if type(x) is np.ndarray else x.data.ptr


def copy_plan(op: str, x: Array, y: Array) -> Plan:
    """From x to y of the same logical shape, in vectors where they lie alike, else tile by tile between the formats.

    What is neither (other strides; a type and a format at once) goes element by element in the memory order of y.
    """
    source, target = storage(op, x.dtype), storage(op, y.dtype)
    stored = [{f for f in memory_format.FORMATS if memory_format.is_stored(a, f)} for a in (x, y)]
    if source != target and stored[0] & stored[1]:
        check_count(op, x.size)
        threads = -(-x.size // vector(max((x.dtype, y.dtype), key=lambda d: d.itemsize)))
        return elementwise(op, f"dl::cast<{source}, {target}>", threads, x.size)
    N, C, H, W = x.shape
    rows, columns = (C, H * W) if "contiguous" in stored[0] else (H * W, C)
    down, across = -(-rows // TURNED), -(-columns // TURNED)
    if source == target and all(stored) and not stored[0] & stored[1] and max(N, down) <= MOST_YZ:
        check_count(op, x.size)
        why = f"{N} images, {rows} x {columns} turned in tiles of {TURNED}"
        return Plan(f"dl::transpose<{source}>", (across, down, N), (THREADS, 1, 1), (rows, columns), why=why)
    kernel = f"dl::copy<{source}, {target}>"
    return elementwise(op, kernel, x.size, C, H, W, x.size, strides(x), strides(y))


def filled(args: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
    """Arrays, then `args` with the numbers of this call in place of their `Number`s: a whole kernel's arguments."""
    arrays = len(values) - sum(isinstance(arg, Number) for arg in args)
    numbers = iter(values[arrays:])
    return (*values[:arrays], *[next(numbers) if isinstance(arg, Number) else arg for arg in args])


def mapped(launcher: Launcher, maps: Sequence[TensorMap], arrays: Sequence[Array | None]) -> list[Any]:
    """The arguments of a kernel that takes its first arrays as tensor maps."""
    described = [launcher.tensor_map(m, array) for m, array in zip(maps, arrays, strict=False)]
    return [*described, *arrays[len(maps) :]]


class Launching:
    """Base of the op families: they make plans and run them here."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.xp = launcher.xp

    @property
    def target(self) -> Target:
        """What plans are made for."""
        current = tuning.current()
        sms, capability = self.launcher.sms, self.launcher.capability
        hopper = current.hopper if capability == HOPPER else None
        return Target(sms, current.workspace_limit, hopper=hopper, cluster=current.cluster, capability=capability)

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        """Launch a plan on its arrays, unless there is nothing to compute."""
        if not plan.empty:
            self.launcher.launch(plan.kernel, plan.grid, plan.block, (*arrays, *plan.args), plan.shared_bytes)

    def run_mapped(self, plan: MappedPlan, *arrays: Array | None) -> None:
        """Launch a plan whose first arrays go to the kernel as tensor maps."""
        self.run(plan.launch, *mapped(self.launcher, plan.maps, arrays))

    def each_call(self, function: Callable[[Any], Any], number: Any) -> Any:
        """`function(number)`, for a check or a computation that a replayed call must not leave out."""
        return function(number)

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
