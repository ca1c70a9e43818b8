"""Where the files of a data set are: on disk, else from the network with a checksum."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from dlgpu.errors import DataError
from dlgpu.files import atomic_file, cache_folder


def find_folder(
    name: str,
    files: Sequence[str],
    root: str | os.PathLike[str] | None,
    *,
    fetch: Callable[[Path], None],
    advice: str,
    packaged: tuple[Path, ...] = (),
) -> Path:
    """The folder that has all `files` of the data set `name`.

    With `root` only that folder counts. Without it: $DLGPU_DATA/<name>, the `packaged` folders, then
    `dlgpu.files.cache_folder(name)`, which `fetch(folder)` fills if no folder has the files. Raises DataError if a
    file is missing in `root`, or if fetching fails: its last words, "Put <files> into <folder>", go on with `advice`.
    """
    cache = cache_folder(name)
    if root is not None:
        folders = [Path(root)]
    elif own := os.environ.get("DLGPU_DATA"):
        folders = [Path(own) / name, *packaged, cache]
    else:
        folders = [*packaged, cache]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    if root is not None:
        raise DataError(
            f"[data.{name}] root must hold {', '.join(files)}; got {root}. Leave root out to search and download"
        )
    try:
        fetch(cache)
    except (OSError, HTTPException) as error:  # no network, no rights, disk full: the same way out
        raise DataError(
            f"[data.{name}] the files are not on disk and the download failed; got {error!r}. "
            f"Put {', '.join(files)} into {cache} {advice}"
        ) from error
    return cache


def download(url: str, path: Path, md5: str) -> None:
    """Save `url` as `path`, which appears only when complete and with the right sum (else DataError)."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=30) as response, atomic_file(path) as file:
        while chunk := response.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
        check_sum(url, digest.hexdigest(), md5, "The transfer was cut or the file was replaced; try again")


def check_sum(source: str | Path, got: str, expected: str, advice: str) -> None:
    """Raise DataError, which names `source` and ends in `advice`, unless the two hexadecimal sums agree."""
    if got != expected:
        raise DataError(f"[data] the checksum of {source} must be {expected}; got {got}. {advice}")
