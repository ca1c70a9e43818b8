"""What the commands of `dlgpu` share: the console, the device that is meant, and a free folder."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from dlgpu import backends

# Lines are never broken; tables fit the terminal, or a wide page where there is none.
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def chosen_device(name: str) -> str:
    """The device that `--device` names; "auto" is cuda where it is ready. Raises as `backends.get` does."""
    if name != "auto":
        backends.get(name)  # raises if it is unknown or missing
        return name
    return "cuda" if backends.available()["cuda"] == "ready" else "cpu"


def free_folder(name: str) -> Path:
    """runs/<name>-<number>, with the first number that is free."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
