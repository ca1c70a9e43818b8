"""Runs the kernels on NVIDIA GPUs through CuPy: no compiler at install time; any GPU from sm_75 to sm_120.

Kernels are compiled by our own NVRTC call (`dlgpu.backends.kernels.compile`) to a cubin per family and architecture,
because CuPy cannot name targets such as sm_90a and its own cache does not notice an edited header. The cubins are kept
in a cache folder under a hash of every source file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.compile import ARCHITECTURES, compile_family
from dlgpu.backends.kernels.launching import Start
from dlgpu.backends.kernels.plan import Dim3, Plan
from dlgpu.backends.kernels.symbol import Number
from dlgpu.backends.launchers.gpu import NUMBERS, GpuLauncher, refuse, refuse_count
from dlgpu.errors import BackendUnavailable
from dlgpu.files import atomic_file, cache_folder

DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel gets without asking


NULL = np.uint64(0)


class CupyLauncher(GpuLauncher):
    """The kernels on CuPy's current device and stream.

    Raises:
        BackendUnavailable: CuPy is not installed, or finds no GPU.
    """

    null = NULL

    def __init__(self) -> None:
        super().__init__("cuda:cupy")
        self._functions: dict[tuple[str, str], Any] = {}

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel on the current stream; errors in its arguments are found here, those inside it later."""
        self._function(kernel, shared_bytes)(grid, block, cast(kernel, args, self.xp.ndarray), shared_mem=shared_bytes)

    def prepare(self, plan: Plan) -> Start:
        """The plan as a function of its arrays and changing numbers, with all other numbers and structs cast once."""
        function, pack = self._function(plan.kernel, plan.shared_bytes), packed(plan, self.xp.ndarray)
        grid, block, shared = plan.grid, plan.block, plan.shared_bytes
        return lambda values: function(grid, block, pack(values), shared_mem=shared)

    def _function(self, kernel: str, shared_bytes: int) -> Any:
        arch = architecture(self.capability)
        function = self._functions.get((kernel, arch))
        if function is None:
            self._load(sources.family_of(kernel), arch)
            function = self._functions[kernel, arch]
        if shared_bytes > DEFAULT_SHARED and shared_bytes > function.max_dynamic_shared_size_bytes:
            function.max_dynamic_shared_size_bytes = shared_bytes
        return function

    def _load(self, family: str, arch: str) -> None:
        path, names = cubin(family, arch)
        module = self.xp.RawModule(path=str(path))
        for kernel, mangled in names.items():
            self._functions[kernel, arch] = module.get_function(mangled)


def architecture(capability: int) -> str:
    """A device's capability (90, 86, ...) -> the entry of `ARCHITECTURES` to compile for.

    The device's own, with its specific features where there is such an entry; else the newest of the same generation,
    which runs on it.
    """
    if f"sm_{capability}a" in ARCHITECTURES:
        return f"sm_{capability}a"
    known = [int(arch[3:]) for arch in ARCHITECTURES if arch[3:].isdigit()]
    fits = [arch for arch in known if arch // 10 == capability // 10 and arch <= capability]
    if not fits:
        raise BackendUnavailable(f"[cuda:cupy] compiled for {', '.join(ARCHITECTURES)}; got sm_{capability}")
    return f"sm_{max(fits)}"


def cast(kernel: str, args: tuple[Any, ...], array: type, first: int = 0) -> tuple[Any, ...]:
    """The arguments as CuPy has to be given them: it checks nothing, and would pass a Python float as a double.

    `args` are those from parameter number `first` on, to the last.

    Raises:
        DtypeError, ShapeError: a count, kind or value that does not fit the kernel's declaration.
    """
    casts = _casts(kernel, array)
    if first < 0 or first + len(args) != len(casts):
        refuse_count(kernel, first + len(args))
    result = [convert(value) for convert, value in zip(casts[first:], args, strict=True)]
    for index, value in enumerate(result):
        if value is None:
            refuse(kernel, first + index, args[index])
    return tuple(result)


def packed(plan: Plan, array: type) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """What `prepare` does with the arguments: a `Start` that returns them instead of launching."""
    kernel, first = plan.kernel, len(sources.parameters(plan.kernel)) - len(plan.args)
    changing = [first + index for index, arg in enumerate(plan.args) if isinstance(arg, Number)]
    same = cast(kernel, tuple(0 if isinstance(arg, Number) else arg for arg in plan.args), array, first)
    if not changing:
        return lambda arrays: arrays + same
    casts = [(index, _casts(kernel, array)[index]) for index in changing]

    def pack(values: tuple[Any, ...]) -> tuple[Any, ...]:
        args = [*values[:first], *same]
        for (index, convert), number in zip(casts, values[first:], strict=True):
            args[index] = convert(number)
            if args[index] is None:
                refuse(kernel, index, number)
        return tuple(args)

    return pack


@cache
def _casts(kernel: str, array: type) -> tuple[Callable[[Any], Any], ...]:
    """For each parameter: a value -> that value as the parameter's type; None if it does not fit."""
    return tuple(_cast_to(parameter, array) for parameter in sources.parameters(kernel))


def _cast_to(parameter: sources.Parameter, array: type) -> Callable[[Any], Any]:
    kind = parameter.type
    if kind is None:
        return lambda value: NULL if value is None else value if isinstance(value, array) else None
    if kind.names:
        # A 0-d array: of a NumPy scalar CuPy 14.0 takes no more than 63 bytes.
        return lambda value: (
            value if isinstance(value, np.ndarray) and (value.dtype, value.shape) == (kind, ()) else None
        )
    make, numbers = kind.type, NUMBERS[kind.kind]
    if kind.kind == "f":
        most = float(np.finfo(kind).max)
        return lambda value: make(value) if isinstance(value, numbers) and not most < abs(value) < math.inf else None
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    return lambda value: make(int(value)) if isinstance(value, numbers) and low <= value <= high else None


def cubin(family: str, arch: str) -> tuple[Path, dict[str, str]]:
    """The compiled family, from the cache or made now -> (cubin file, instantiation -> mangled name)."""
    stem = f"{family}-{arch}-{dlgpu.__version__}-{sources.digest()}"
    path, names = (cache_folder("cubin") / f"{stem}{suffix}" for suffix in (".cubin", ".json"))
    if not (path.exists() and names.exists()):
        compiled = compile_family(family, arch)
        with atomic_file(path) as file:
            file.write(compiled.cubin)
        with atomic_file(names) as file:
            file.write(json.dumps(compiled.names).encode())
    return path, json.loads(names.read_text())
