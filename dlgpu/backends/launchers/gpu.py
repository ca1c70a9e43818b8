"""What the launchers for NVIDIA GPUs share: CuPy with a device, and what they say about arguments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.tensor_map import TensorMap
from dlgpu.backends.launchers.tensor_maps import tensor_map
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


class GpuLauncher:
    """What a launcher says of CuPy's current device.

    Raises:
        BackendUnavailable: CuPy is not installed, or finds no GPU.
    """

    def __init__(self, backend: str) -> None:
        self.xp = cupy_with_gpu(backend)

    @property
    def capability(self) -> int:
        """90 for an H100. CuPy remembers it, so that asking costs little."""
        return int(self.xp.cuda.Device().compute_capability)

    @property
    def sms(self) -> int:
        """Multiprocessors: 132 in an H100."""
        return int(self.xp.cuda.Device().attributes["MultiProcessorCount"])

    @property
    def device(self) -> int:
        """Its number."""
        return self.xp.cuda.runtime.getDevice()

    def identity(self) -> dict[str, str]:
        """Name, and version of the driver (where Linux does not say: of the API it offers)."""
        runtime = self.xp.cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"]
        text = Path("/proc/driver/nvidia/version")
        driver = text.read_text().splitlines()[0] if text.exists() else f"CUDA {runtime.driverGetVersion()}"
        return {"gpu": name.decode() if isinstance(name, bytes) else str(name), "driver": driver}

    def tensor_map(self, description: TensorMap, array: Any) -> np.ndarray:
        """The kernel argument that describes `array` to TMA."""
        return tensor_map(description, array)


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
