"""How kernels are chosen for products and convolutions: by prediction (the default), or by trying them out.

`autotune` is PyTorch's `cudnn.benchmark`: the first call with new shapes times every candidate on its own arrays. The
choice then depends on the clock, so other runs may round differently; the choices are kept on disk, and with the same
choices the same inputs give the same bits. Without it everything is a function of shapes. The NumPy reference ignores
both settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from dlgpu.errors import ShapeError


class Tuning(NamedTuple):
    """What holds now. `workspace_limit` is in bytes, `hopper` and `cluster` what `hopper` asked for."""

    autotune: bool = False
    workspace_limit: int = 1 << 28
    hopper: int | None = None
    cluster: int | None = None


_DEFAULT = Tuning()
CURRENT: ContextVar[Tuning] = ContextVar("tuning", default=_DEFAULT)


def current() -> Tuning:
    """The settings in force."""
    return CURRENT.get()


@contextmanager
def _changed(**settings: Any) -> Iterator[None]:
    token = CURRENT.set(current()._replace(**settings))
    try:
        yield
    finally:
        CURRENT.reset(token)


@contextmanager
def autotune(enabled: bool = True) -> Iterator[None]:
    """Whether kernels are tried out, inside a `with` block (`dlgpu.backends.kernels.autotune` says how)."""
    with _changed(autotune=enabled):
        yield


@contextmanager
def workspace_limit(limit: int) -> Iterator[None]:
    """Inside a `with` block, no buffer of an op (columns, transformed tiles, slabs) is larger than `limit` bytes.

    What needs more works in rounds, down to one image at a time. Results and layout copies are not counted; a tuner
    counts all but the results, together. Raises `ShapeError`.
    """
    if limit < 0:
        raise ShapeError(f"[workspace_limit] limit must be a number of bytes >= 0; got {limit}")
    with _changed(workspace_limit=limit):
        yield


@contextmanager
def hopper(columns: int = 0, cluster: int | None = None) -> Iterator[None]:
    """Inside a `with` block, products and implicit-GEMM convolutions take the wgmma kernels where those can do them.

    columns: of their tiles, 256 or 128; 0: as waves make it sensible. cluster: blocks that share loads, 1 or 2; None:
    as tiles and multiprocessors make it sensible. Only for a GPU of capability 9.0; elsewhere nothing changes. Without
    it those kernels run where `autotune` has found them right and faster.
    """
    with _changed(hopper=columns, cluster=cluster):
        yield
