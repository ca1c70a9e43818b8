"""What op families of the kernel backend share: the array library, running a plan, and the layout of arrays."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.gemm_hopper import HopperPlan
from dlgpu.backends.kernels.geometry import four_axes, strides
from dlgpu.backends.kernels.plan import Dim3, Plan, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.tensor_map import TensorMap


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

    def tensor_map(self, description: TensorMap, array: Array) -> np.ndarray:
        """The kernel argument that describes `array` to TMA."""
        ...

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel; raises if its name or arguments do not fit."""
        ...


def copy_plan(op: str, x: Array, y: Array) -> Plan:
    """From x to y of the same logical shape: one thread per element, in the memory order of what is written."""
    kernel = f"dl::copy<{storage(op, x.dtype)}, {storage(op, y.dtype)}>"
    return elementwise(op, kernel, x.size, *x.shape[1:], x.size, strides(x), strides(y))


class Launching:
    """Base of the op families: they make plans and run them here."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.xp = launcher.xp

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        """Launch a plan on its arrays, unless there is nothing to compute."""
        if not plan.empty:
            self.launcher.launch(plan.kernel, plan.grid, plan.block, (*arrays, *plan.args), plan.shared_bytes)

    def run_hopper(self, plan: HopperPlan, *arrays: Array | None) -> None:
        """Launch a plan whose first arrays go to the kernel as tensor maps."""
        mapped = [self.launcher.tensor_map(m, a) for m, a in zip(plan.maps, arrays, strict=False) if a is not None]
        self.run(plan.launch, *mapped, *arrays[len(plan.maps) :])

    def aligned(self, *arrays: Array) -> bool:
        """Whether each begins at a multiple of 16 bytes, as vector copies want it."""
        return all((x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr) % 16 == 0 for x in arrays)

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
