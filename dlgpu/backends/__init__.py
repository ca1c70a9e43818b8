"""Where ops run. `get("numpy")` is the reference; a backend that is missing raises and says what to install."""

from __future__ import annotations

from functools import cache

from dlgpu.backends.contract import Contract
from dlgpu.errors import BackendUnavailable, UnknownName

NAMES = ("numpy", "cuda", "cuda:cupy", "cuda:native", "host")
# device, as a Tensor names it -> backend
_DEVICES = {"cpu": "numpy", "cuda": "cuda", "host-kernels": "host"}


def get(name: str) -> Contract:
    """The backend called `name`: one of `NAMES`, or a device ("cpu", "cuda", "host-kernels").

    "numpy" is the reference. "cuda:cupy" runs the CUDA kernels through CuPy and compiles them at first use;
    "cuda:native" runs them through the module that nvcc built at installation; "cuda" is native if built, else cupy.
    "host" runs the same kernels on the CPU, slowly, for tests; it compiles them at first use.

    Raises:
        UnknownName: no such backend.
        BackendUnavailable: it exists, but not on this machine or not in this version. Nothing falls back silently.
    """
    name = _DEVICES.get(name, name)
    if name not in NAMES:
        raise UnknownName("backends", "backend", name, (*NAMES, *_DEVICES))
    try:
        return _make(_best_cuda() if name == "cuda" else name)
    except BackendUnavailable as error:
        raise BackendUnavailable(f"[backends] {name!r} is not available: {error}") from error


@cache
def _make(name: str) -> Contract:
    if name == "numpy":
        from dlgpu.backends import reference

        return reference
    from dlgpu.backends.kernels import KernelBackend

    if name == "host":
        from dlgpu.backends.launchers.host import HostLauncher

        return KernelBackend("host", "host-kernels", HostLauncher())
    if name == "cuda:cupy":
        from dlgpu.backends.launchers.cupy import CupyLauncher

        return KernelBackend("cuda:cupy", "cuda", CupyLauncher())
    from dlgpu.backends.launchers.native import NativeLauncher

    return KernelBackend("cuda:native", "cuda", NativeLauncher())


@cache
def _best_cuda() -> str:
    from dlgpu.backends.launchers import native

    return "cuda:native" if native.built() else "cuda:cupy"


def available() -> dict[str, str]:
    """For each backend "ready", or the reason why it is not. Compiles nothing."""
    return {name: _state(name) for name in NAMES}


def _state(name: str) -> str:
    try:
        if name == "host":
            from dlgpu.backends.launchers.host import check_requirements

            check_requirements()
        else:
            get(name)
    except BackendUnavailable as error:
        return str(error)
    return "ready"
