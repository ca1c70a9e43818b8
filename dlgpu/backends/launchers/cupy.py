"""Runs the kernels on NVIDIA GPUs through CuPy: no compiler at install time, any GPU from sm_70 up.

Kernels are compiled by our own NVRTC call (`dlgpu.backends.kernels.compile`) to a cubin per family and architecture,
because CuPy cannot name targets such as sm_90a and its own cache does not notice an edited header. The cubins are kept
in a cache folder under a hash of every source file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.compile import ARCHITECTURES, compile_family
from dlgpu.backends.kernels.plan import Dim3
from dlgpu.backends.kernels.tensor_map import TensorMap
from dlgpu.backends.launchers.gpu import NUMBERS, cupy_with_gpu, current_capability, refuse, refuse_count
from dlgpu.backends.launchers.tensor_maps import tensor_map
from dlgpu.errors import BackendUnavailable
from dlgpu.files import atomic_file, cache_folder

DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel gets without asking


class CupyLauncher:
    """The kernels on CuPy's current device and stream.

    Raises:
        BackendUnavailable: CuPy is not installed, or finds no GPU.
    """

    def __init__(self) -> None:
        self.xp = cupy_with_gpu("cuda:cupy")
        self._functions: dict[tuple[str, str], Any] = {}

    @property
    def capability(self) -> int:
        return current_capability(self.xp)

    def tensor_map(self, description: TensorMap, array: Any) -> np.ndarray:
        """The kernel argument that describes `array` to TMA."""
        return tensor_map(description, array)

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel on the current stream; errors in its arguments are found here, those inside it later."""
        arch = architecture(self.capability)
        function = self._functions.get((kernel, arch))
        if function is None:
            self._load(sources.family_of(kernel), arch)
            function = self._functions[kernel, arch]
        if shared_bytes > DEFAULT_SHARED and shared_bytes > function.max_dynamic_shared_size_bytes:
            function.max_dynamic_shared_size_bytes = shared_bytes
        function(grid, block, cast(kernel, args, self.xp.ndarray), shared_mem=shared_bytes)

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


def cast(kernel: str, args: tuple[Any, ...], array: type) -> tuple[Any, ...]:
    """The arguments as CuPy has to be given them: it checks nothing, and would pass a Python float as a double.

    Raises:
        DtypeError, ShapeError: a count, kind or value that does not fit the kernel's declaration.
    """
    parameters = sources.parameters(kernel)
    if len(args) != len(parameters):
        refuse_count(kernel, len(args))
    result = []
    with np.errstate(over="raise"):
        for index, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            converted = _cast(parameter, value, array)
            if converted is None:
                refuse(kernel, index, value)
            result.append(converted)
    return tuple(result)


def _cast(parameter: sources.Parameter, value: Any, array: type) -> Any:
    """The value as the parameter's type; None if it does not fit."""
    if parameter.pointer:
        return np.uint64(0) if value is None else value if isinstance(value, array) else None
    kind = parameter.type
    assert kind is not None
    if kind.names:
        return value if getattr(value, "dtype", None) == kind else None
    if not isinstance(value, NUMBERS[kind.kind]):
        return None
    try:
        return kind.type(value if kind.kind == "f" else int(value))  # NumPy's own integers would wrap around
    except (OverflowError, FloatingPointError):
        return None


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
