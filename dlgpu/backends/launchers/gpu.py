"""What the launchers for NVIDIA GPUs share: CuPy with a device, and what they say about arguments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dlgpu.backends.kernels import sources
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError

# kind of a NumPy scalar type -> what may be passed for it
NUMBERS: dict[str, tuple[type[Any], ...]] = {"i": (int, np.integer), "u": (int, np.integer)}
NUMBERS["f"] = (int, np.integer, float, np.floating)


def cupy_with_gpu(backend: str) -> Any:
    """The module cupy, which allocates the arrays; raises `BackendUnavailable` if it, or a GPU, is missing."""
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f'[{backend}] CuPy is missing; got {error}: pip install "dlgpu[cuda12]" (or [cuda13])'
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(f"[{backend}] there must be an NVIDIA GPU and its driver; got {error}") from error
    if not count:
        raise BackendUnavailable(f"[{backend}] there must be an NVIDIA GPU; got none")
    return cupy


def current_capability(cupy: Any) -> int:
    """Of CuPy's current device: 90 for an H100. CuPy remembers it, so that asking costs little."""
    return int(cupy.cuda.Device().compute_capability)


def multiprocessors(cupy: Any) -> int:
    """Of CuPy's current device: 132 in an H100."""
    return int(cupy.cuda.Device().attributes["MultiProcessorCount"])


def identity(cupy: Any) -> dict[str, str]:
    """Name of CuPy's current device, and version of the driver (where Linux does not say: of the API it offers)."""
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"]
    text = Path("/proc/driver/nvidia/version")
    driver = text.read_text().splitlines()[0] if text.exists() else f"CUDA {runtime.driverGetVersion()}"
    return {"gpu": name.decode() if isinstance(name, bytes) else str(name), "driver": driver}


def refuse_count(kernel: str, count: int) -> NoReturn:
    """Raise what is wrong with a launch that passes `count` arguments."""
    raise ShapeError(f"[{kernel}] takes {len(sources.parameters(kernel))} arguments; got {count}")


def refuse(kernel: str, index: int, value: Any, element: str = "", writes: bool = False) -> NoReturn:
    """Raise what is wrong with `value` as argument number `index`.

    `element` is what a pointer points to, where the launcher knows it; `writes`: the kernel writes there.
    """
    parameter = sources.parameters(kernel)[index]
    must = f"[{kernel}] {parameter.name} must"
    if parameter.pointer:
        wanted = ("writeable " if writes else "") + "GPU array" + (f" of {element}" if element else "")
        dtype = getattr(value, "dtype", None)
        got = f"{type(value).__module__}.{type(value).__qualname__}" + ("" if dtype is None else f" of {dtype}")
        raise DtypeError(f"{must} be a {wanted} or None; got {got}")
    kind = parameter.type
    assert kind is not None
    if kind.names:
        raise DtypeError(f"{must} be a packed struct; got {value!r}")
    if isinstance(value, NUMBERS[kind.kind]):
        raise ShapeError(f"{must} fit {kind}; got {value}")
    raise DtypeError(f"{must} be {'a number' if kind.kind == 'f' else 'an integer'}; got {value!r}")
