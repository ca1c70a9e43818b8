"""The native launcher over a CUDA runtime that launches nothing: what it costs, and what it asks CUDA for, anywhere.

g++ compiles bindings/module.cpp with an empty function for every kernel of kernels/*.cu, which has the kernel's
parameters, pointers without a type. tests/native_kernels/fake_cuda.cpp is the runtime. Serves tests too.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import struct
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.backends.kernels import sources
from dlgpu.backends.launchers.native import NativeLauncher
from dlgpu.errors import DlgpuError

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "native_kernels"
NAMES = {dtype: name for name, dtype in sources.SCALARS.items()}


def kernels() -> str:
    """C++ that registers every kernel, each with a function of its own."""
    lines = ["template <int N> struct Bytes { char bytes[N]; };", "template <int, typename... P> void empty(P...) {}"]
    for index, kernel in enumerate(name for names in sources.families().values() for name in names):
        types = [
            "void*" if p.type is None else NAMES.get(p.type) or f"Bytes<{p.type.itemsize}>"
            for p in sources.parameters(kernel)
        ]
        lines.append(f'static const dl::Entry entry_{index}("{kernel}", &empty<{", ".join([str(index), *types])}>);')
    return "\n".join(lines) + "\n"


def build(folder: Path, flags: Sequence[str] = ("-O3", "-DNDEBUG")) -> Path:
    """The module, made in `folder` (about 15 s); raises `DlgpuError` if g++ does not compile it."""
    import pybind11

    everything = folder / "kernels.cu"
    everything.write_text(kernels())
    includes = cuda_headers("cuda_runtime_api.h", "cuda_fp16.h", "crt/host_defines.h", "nv/target")
    includes += [Path(pybind11.get_include()), Path(sysconfig.get_paths()["include"])]
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror", "-Wno-psabi", *flags]
    command += [*(f"-isystem{path}" for path in includes), '-DDL_SOURCES="fake"']
    command += ["-include", str(ROOT / "bindings" / "launch.h"), "-x", "c++", str(everything)]
    command += [str(FAKE / "everything.cu"), str(FAKE / "fake_cuda.cpp"), str(ROOT / "bindings" / "module.cpp")]
    result = subprocess.run([*command, "-o", str(folder / "_native.so")], capture_output=True, text=True)
    if result.returncode:
        raise DlgpuError(f"[native stand-in] must compile; got {result.stderr[:4000]}")
    return folder / "_native.so"


def load(path: Path) -> Any:
    """A module of that name from any file: Python keeps one per name."""
    name = f"{path.parent}._native"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def runtime(path: Path) -> ctypes.CDLL:
    """The other face of the same file, that of fake_cuda.cpp."""
    library = ctypes.CDLL(str(path))
    library.fake_events.restype = ctypes.c_char_p
    return library


class Addressed(np.ndarray):
    """Tells an address as an array of CuPy does (NumPy's `ctypes` takes half a microsecond for that)."""

    __slots__ = ()  # CuPy's arrays have no dictionary either
    data = SimpleNamespace(ptr=0x7F00_0000_0000)  # type: ignore[assignment]


def cupy_arrays() -> type:
    """CuPy's own type of arrays without a GPU: from now on they all lie in the same host memory, which nobody reads."""
    import cupy
    from cupy.cuda import MemoryPointer, UnownedMemory

    room = np.empty(1 << 24, np.uint8)
    memory = UnownedMemory(room.ctypes.data, room.nbytes, room, device_id=0)
    cupy.cuda.set_allocator(lambda size: MemoryPointer(memory, 0))
    return cupy.ndarray


def library(array: type) -> dict[str, Any]:
    """NumPy with another type of arrays."""

    def zeros(shape: Any, dtype: Any) -> Any:
        made = array(shape, dtype)
        if isinstance(made, np.ndarray):
            made.fill(0)
        return made

    return vars(np) | dict(ndarray=array, empty=array, zeros=zeros)


class NativeStandIn(NativeLauncher):
    """The native launcher with NumPy as its CuPy, on an H100.

    Args:
        module: what `load` gives.
        array: the type of arrays.
    """

    capability, sms = 90, 132

    def __init__(self, module: Any, array: type = Addressed) -> None:
        self.stream = SimpleNamespace(ptr=0x50)
        self.current_device = 3
        here = SimpleNamespace(
            runtime=SimpleNamespace(getDevice=lambda: self.current_device), get_current_stream=lambda: self.stream
        )
        self._module, self._kernels = module, {}
        own = dict(cuda=here, ascontiguousarray=lambda x, dtype=None: np.ascontiguousarray(x, dtype).view(array))
        self.xp = SimpleNamespace(**library(array) | own)

    def identity(self) -> dict[str, str]:
        return {"gpu": "none", "driver": "none"}

    def tensor_map(self, description: Any, array: Any) -> np.ndarray:
        """The address, and a digest of the description: 128 bytes, as the driver's."""
        raw = struct.pack("=Q", array.data.ptr) + hashlib.sha512(repr(description).encode()).digest()
        return np.frombuffer(raw.ljust(128, b"\0"), sources.struct("TensorMap")).reshape(())
