"""Errors a user can cause: one line, `[where] rule; got <values>`, then how to fix it where there is a way.

Every class derives from `DlgpuError`, so that the command line can print the line and exit with code 2, and from the
built-in exception that a Python user would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DlgpuError(Exception):
    """Base of every error that dlgpu raises on purpose."""


class ShapeError(DlgpuError, ValueError):
    """A shape, geometry or value argument breaks an op's rule."""


class DtypeError(DlgpuError, TypeError):
    """An array has a dtype that the op does not take."""


class AutogradError(DlgpuError, RuntimeError):
    """The tape cannot give a correct gradient."""


class BackendUnavailable(DlgpuError, RuntimeError):
    """The backend asked for is missing; the message says what to install."""


class DataError(DlgpuError, ValueError):
    """A data file is missing, damaged or of another kind."""


class CheckpointError(DlgpuError, ValueError):
    """A checkpoint is missing, damaged or belongs to another model."""


class TrainingError(DlgpuError, RuntimeError):
    """Training cannot go on (the loss is NaN, the disk is full, ...)."""


class UnknownName(DlgpuError, KeyError):
    """A name is not in its list; the message suggests the nearest one."""

    def __init__(self, where: str, kind: str, name: object, known: Iterable[str]):
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"[{where}] unknown {kind} {name!r};{hint} known: {', '.join(names)}")

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])
