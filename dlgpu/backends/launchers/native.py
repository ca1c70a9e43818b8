"""Runs the kernels on NVIDIA GPUs through the ahead-of-time module that nvcc built (bindings/, CMakeLists.txt).

Against the CuPy launcher: nothing is compiled at run time, and a launch costs less of Python's time, because the
arguments are converted in C++. CuPy still allocates the arrays and owns the stream.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from dlgpu.backends import precision, tuning
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.launching import Start, filled
from dlgpu.backends.kernels.plan import Dim3, Plan
from dlgpu.backends.kernels.programs import Replayed, Step
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
        function, cuda = self._kernel(kernel), self.xp.cuda
        stream = cuda.get_current_stream().ptr
        function.launch(grid, block, args, shared_bytes, cuda.runtime.getDevice(), stream)

    def prepare(self, plan: Plan) -> Start:
        """The plan as a function of its arrays and changing numbers."""
        kernel, grid, block, args, shared = plan.kernel, plan.grid, plan.block, plan.args, plan.shared_bytes
        return lambda values: self.launch(kernel, grid, block, filled(args, values), shared)

    def replayed(self, op: Replayed) -> Any:
        """The same op with its look-up and its replay in C++ (bindings/op.h), for as long as its backend is ours."""

        def find(*args: Any, **options: Any) -> Any:
            program = op.find(args, options)[0]
            chosen = program and program.chosen
            return chosen and self._module.Program(map(self._step, chosen.steps), chosen.last, chosen.results)

        cuda, settings = self.xp.cuda, [precision.CURRENT, tuning.CURRENT]
        here = cuda.runtime.getDevice, cuda.get_current_stream
        return self._module.replayed(op, find, op.backend, self, self.xp.ndarray, op.changing, settings, *here)

    def _step(self, step: Step) -> tuple[Any, ...]:
        """What the module's `Program` takes for a step."""
        plan = step.plan
        values = filled(plan.args, [Number(slot) if slot else None for slot in step.slots])
        args = dict(enumerate(values))
        missing = {i: value.slot for i, value in args.items() if isinstance(value, Number)}
        same = {i: value for i, value in args.items() if i not in missing}
        kernel = self._kernel(plan.kernel)
        return step.make, kernel, plan.grid, plan.block, plan.shared_bytes, same, missing, step.done

    def _kernel(self, name: str) -> Any:
        if name not in self._kernels:
            self._kernels[name] = self._module.Kernel(name, sources.parameters(name))
        return self._kernels[name]
