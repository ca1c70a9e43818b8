"""What op families of the kernel backend share: the array library, and running a plan."""

from __future__ import annotations

from typing import Any, Protocol

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.plan import Dim3, Plan


class Launcher(Protocol):
    """Runs a kernel by name. `args` are arrays (or None), scalars and packed structs, in the kernel's order."""

    @property
    def xp(self) -> Any:
        """The array library of its arrays."""
        ...

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel; raises if its name or arguments do not fit."""
        ...


class Launching:
    """Base of the op families: they make plans and run them here."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.xp = launcher.xp

    def dense(self, x: Array, layout: memory_format.MemoryFormat) -> Array:
        """`x` without gaps in the given format (contiguous unless 4-D): kernels walk over memory."""
        return memory_format.convert(self.xp, x, layout) if x.ndim == 4 else self.xp.ascontiguousarray(x)

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        """Launch a plan on its arrays, unless there is nothing to compute."""
        if not plan.empty:
            self.launcher.launch(plan.kernel, plan.grid, plan.block, (*arrays, *plan.args), plan.shared_bytes)
