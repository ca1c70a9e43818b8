"""Runs the kernels on NVIDIA GPUs through CuPy: no compiler at install time, any GPU from sm_70 up.

Kernels are compiled by our own NVRTC call (`dlgpu.backends.kernels.compile`) to a cubin per family and architecture,
because CuPy cannot name targets such as sm_90a and its own cache does not notice an edited header. The cubins are kept
in a cache folder under a hash of every source file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.compile import ARCHITECTURES, compile_family
from dlgpu.backends.kernels.plan import Dim3
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError
from dlgpu.files import atomic_file, cache_folder


class CupyLauncher:
    """The kernels on CuPy's current device and stream.

    Raises:
        BackendUnavailable: CuPy is not installed, or finds no GPU.
    """

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BackendUnavailable(
                f'[cuda:cupy] CuPy is missing; got {error}: pip install "dlgpu[cuda12]" (or [cuda13])'
            ) from error
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendUnavailable(f"[cuda:cupy] there must be an NVIDIA GPU and its driver; got {error}") from error
        if not count:
            raise BackendUnavailable("[cuda:cupy] there must be an NVIDIA GPU; got none")
        self.xp = cupy
        self._functions: dict[tuple[str, str], Any] = {}

    @property
    def capability(self) -> int:
        """Of the current device: 90 for an H100."""
        return int(self.xp.cuda.Device().compute_capability)

    def launch(self, kernel: str, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        """Start the kernel on the current stream; errors in its arguments are found here, those inside it later."""
        arch = architecture(self.xp.cuda.Device().compute_capability)
        function = self._functions.get((kernel, arch))
        if function is None:
            self._load(sources.family_of(kernel), arch)
            function = self._functions[kernel, arch]
        function(grid, block, cast(kernel, args, self.xp.ndarray), shared_mem=shared_bytes)

    def _load(self, family: str, arch: str) -> None:
        path, names = cubin(family, arch)
        module = self.xp.RawModule(path=str(path))
        for kernel, mangled in names.items():
            self._functions[kernel, arch] = module.get_function(mangled)


def architecture(capability: str) -> str:
    """A device's capability ("90", "86", ...) -> the entry of `ARCHITECTURES` to compile for.

    The device's own, with its specific features where there is such an entry; else the newest of the same generation,
    which runs on it.
    """
    own = int(capability)
    if f"sm_{own}a" in ARCHITECTURES:
        return f"sm_{own}a"
    known = [int(arch[3:]) for arch in ARCHITECTURES if arch[3:].isdigit()]
    fits = [arch for arch in known if arch // 10 == own // 10 and arch <= own]
    if not fits:
        raise BackendUnavailable(f"[cuda:cupy] kernels are compiled for {', '.join(ARCHITECTURES)}; got sm_{own}")
    return f"sm_{max(fits)}"


def cast(kernel: str, args: tuple[Any, ...], array: type) -> tuple[Any, ...]:
    """The arguments as CuPy has to be given them: it checks nothing, and would pass a Python float as a double.

    Raises:
        DtypeError, ShapeError: a count, kind or value that does not fit the kernel's declaration.
    """
    parameters = sources.parameters(kernel)
    if len(args) != len(parameters):
        raise ShapeError(f"[{kernel}] takes {len(parameters)} arguments; got {len(args)}")
    return tuple(_cast(kernel, p, value, array) for p, value in zip(parameters, args, strict=True))


def _cast(kernel: str, parameter: sources.Parameter, value: Any, array: type) -> Any:
    if parameter.pointer:
        if value is None:
            return np.uint64(0)
        if not isinstance(value, array):
            raise DtypeError(
                f"[{kernel}] {parameter.name} must be a {array.__module__} array; got {type(value).__name__}"
            )
        return value
    kind = parameter.type
    assert kind is not None
    if kind.names:
        if getattr(value, "dtype", None) != kind:
            raise DtypeError(f"[{kernel}] {parameter.name} must be a packed struct; got {value!r}")
        return value
    if kind.kind in "iu" and not isinstance(value, int | np.integer):
        raise DtypeError(f"[{kernel}] {parameter.name} must be an integer; got {value!r}")
    try:
        return kind.type(value)
    except OverflowError:
        raise ShapeError(f"[{kernel}] {parameter.name} must fit {kind}; got {value}") from None


def cubin(family: str, arch: str) -> tuple[Path, dict[str, str]]:
    """The compiled family, from the cache or made now -> (cubin file, instantiation -> mangled name)."""
    stem = cache_folder("cubin") / f"{family}-{arch}-{_sources_hash()}"
    path, names = stem.with_suffix(".cubin"), stem.with_suffix(".json")
    if not (path.exists() and names.exists()):
        compiled = compile_family(family, arch)
        with atomic_file(path) as file:
            file.write(compiled.cubin)
        with atomic_file(names) as file:
            file.write(json.dumps(compiled.names).encode())
    return path, json.loads(names.read_text())


@functools.cache
def _sources_hash() -> str:
    """Of every source file and this version: an edited header gives another cubin."""
    digest = hashlib.sha256(dlgpu.__version__.encode())
    for path in sorted(sources.folder().glob("*.cu*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
