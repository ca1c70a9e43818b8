"""Where ops run. `get("numpy")` is the reference; a backend that is missing raises and says what to install."""

from __future__ import annotations

from dlgpu.backends.contract import Contract
from dlgpu.errors import BackendUnavailable, UnknownName

# name -> the device its tensors report; "cuda" picks the native module if it was built, else CuPy
NAMES = ("numpy", "cuda", "cuda:cupy", "cuda:native", "host")
_DEVICES = {"cpu": "numpy", "cuda": "cuda", "host-kernels": "host"}


def get(name: str) -> Contract:
    """The backend called `name`: one of `NAMES`, or a device ("cpu", "cuda", "host-kernels").

    Raises:
        UnknownName: no such backend.
        BackendUnavailable: it exists, but not on this machine or not in this version. Nothing falls back silently.
    """
    name = _DEVICES.get(name, name)
    if name not in NAMES:
        raise UnknownName("backends", "backend", name, (*NAMES, *_DEVICES))
    if name != "numpy":
        raise BackendUnavailable(
            f"[backends] {name!r} runs the CUDA kernels, which this version ({_version()}) does not contain yet; "
            "use 'numpy' (device 'cpu')"
        )
    from dlgpu.backends import reference

    return reference


def available() -> dict[str, str]:
    """For each backend "ready", or the reason why it is not."""
    report = {}
    for name in NAMES:
        try:
            get(name)
            report[name] = "ready"
        except BackendUnavailable as error:
            report[name] = str(error)
    return report


def _version() -> str:
    from dlgpu import __version__

    return __version__
