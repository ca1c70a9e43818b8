"""Runs the kernels on NVIDIA GPUs through the ahead-of-time module that nvcc built (bindings/, CMakeLists.txt).

Against the CuPy launcher: nothing is compiled at run time, and a launch costs less of Python's time, because the
arguments are converted in C++. CuPy still allocates the arrays and owns the stream.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.launching import Start, filled
from dlgpu.backends.kernels.plan import Dim3, Plan
from dlgpu.backends.kernels.symbol import Number
from dlgpu.backends.launchers.gpu import GpuLauncher
from dlgpu.errors import BackendUnavailable

MODULE = "dlgpu.backends.launchers._native"
_BUILD = "`DLGPU_CUDA=1 pip install .` in a checkout of dlgpu builds it (needs nvcc)"


def built() -> bool:
    """Whether the module is there; if it can run is another question."""
    return importlib.util.find_spec(MODULE) is not None


def load() -> ModuleType:
    """The module, which also loads where there is no GPU.

    Raises:
        BackendUnavailable: it was not built, or from other kernels than these, or does not load.
    """
    if not built():
        raise BackendUnavailable(f"[cuda:native] the ahead-of-time module is missing: {_BUILD}")
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendUnavailable(f"[cuda:native] the ahead-of-time module must load; got {error}: {_BUILD}") from error
    if module.sources != sources.digest():
        raise BackendUnavailable(f"[cuda:native] the module must be built from these kernels; got others: {_BUILD}")
    return module


class NativeLauncher(GpuLauncher):
    """The kernels on CuPy's current device and stream.

    Raises:
        BackendUnavailable: the module, CuPy or a GPU is missing.
    """

    null = None

    def __init__(self) -> None:
        self._module = load()
        super().__init__("cuda:native")
        self._kernels: dict[str, Any] = {}

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel on the current stream; errors in its arguments are found here, those inside it later.

        Args:
            kernel, grid, block, shared_bytes: as in a `Plan`.
            args: for pointers None, or arrays of CuPy or with `__cuda_array_interface__` or DLPack, of the kernel's
                element type (it gets their address; their work is waited for, on the device, where they name a stream);
                numbers; packed structs.

        Raises:
            UnknownName, ShapeError, DtypeError: name, count, type or value do not fit the kernel.
            BackendUnavailable: no GPU, or not one that the module was built for.
            RuntimeError: CUDA refuses the launch.
        """
        function = self._kernels.get(kernel) or self._find(kernel)
        cuda = self.xp.cuda
        stream = cuda.get_current_stream().ptr
        function.launch(grid, block, args, shared_bytes, cuda.runtime.getDevice(), stream)

    def prepare(self, plan: Plan) -> Start:
        """The plan as a function of its arrays and changing numbers."""
        start, (grid, block, args, shared) = (
            self._find(plan.kernel).launch,
            (plan.grid, plan.block, plan.args, plan.shared_bytes),
        )
        current, device = self.xp.cuda.get_current_stream, self.xp.cuda.runtime.getDevice
        if any(isinstance(arg, Number) for arg in args):
            return lambda values: start(grid, block, filled(args, values), shared, device(), current().ptr)
        return lambda arrays: start(grid, block, (*arrays, *args), shared, device(), current().ptr)

    def _find(self, kernel: str) -> Any:
        function = self._module.Kernel(kernel, sources.parameters(kernel))
        return self._kernels.setdefault(kernel, function)
