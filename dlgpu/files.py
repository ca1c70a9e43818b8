"""Files that appear under their names only when they are whole, and where those lie that can be made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, which takes that name only if the block ends without an error.

    By then its content is on the disk, so that not even a power cut leaves half of it. Folders are made as needed.
    Raises OSError if the disk is full or the folder cannot be written; what stood under the name is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(part, 0o644)  # mkstemp's files are private
        os.replace(part, path)
    except BaseException:  # Ctrl-C too must not leave half a file behind
        os.unlink(part)
        raise


def cache_folder(name: str) -> Path:
    """$DLGPU_CACHE/<name>, else ~/.cache/dlgpu/<name>: downloads and compiled kernels. It need not exist yet."""
    return Path(os.environ.get("DLGPU_CACHE") or Path.home() / ".cache" / "dlgpu") / name
