"""Checkpoints: one safetensors file with all arrays, and a JSON text in its header with everything else.

One file can be replaced atomically, so that a crash, a full disk or a kill leaves either the old checkpoint or the new
one, never half of each. No pickle: loading a checkpoint runs no code.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dlgpu.errors import CheckpointError, TrainingError
from dlgpu.files import atomic_file

FORMAT = 1
_KEY = "dlgpu"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` for a run's files; raises `TrainingError` if the disk is full or the folder cannot be written."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise TrainingError(
            f"[write] cannot write {path}; got: {error.strerror or error}. What was there is kept"
        ) from error


def save(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
    """Write named arrays and a JSON-able `info` to `path` (.safetensors), atomically.

    Raises:
        TrainingError: the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    header = {"format": FORMAT, "info": info, "crc32": _checksums(arrays, info)}
    with replacing(Path(path)) as file:
        file.write(to_bytes(arrays, metadata={_KEY: json.dumps(header)}))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """-> (arrays, info) of a file written by `save`.

    Raises:
        CheckpointError: no such file, not a dlgpu checkpoint, truncated or damaged, or of a newer format.
    """
    header, arrays = _read(path)
    if not isinstance(header, dict):
        raise CheckpointError(
            f"[checkpoint] {path} holds weights but was not written by dlgpu.checkpoint; got no header"
        )
    if header.get("format") != FORMAT:
        raise CheckpointError(f"[checkpoint] this version reads format {FORMAT}; got {header.get('format')} in {path}")
    info: dict[str, Any] = header.get("info") or {}
    if header.get("crc32") != _checksums(arrays, info):
        raise CheckpointError(f"[checkpoint] {path} is damaged; got contents that do not fit their checksums")
    return arrays, info


def weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The model weights in a checkpoint, or in any .safetensors file; torch's counters of batches are left out.

    Raises `CheckpointError` as `load` does.
    """
    header, arrays = _read(path)
    if header is not None:
        arrays, _ = load(path)
        if any(name.startswith("model.") for name in arrays):
            return select(arrays, "model")
    return {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


def _read(path: str | os.PathLike[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """-> (our header or None, arrays), not checked against each other."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"[checkpoint] there must be a checkpoint file; got none at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"[checkpoint] {path} is damaged or not a checkpoint; got: {error}") from error
    return header, arrays


def _checksums(arrays: Mapping[str, np.ndarray], info: Any) -> dict[str, Any]:
    """Of everything in a file: safetensors notices that it is truncated, but not a flipped bit."""
    return {
        "info": zlib.crc32(json.dumps(info).encode()),
        "arrays": {name: zlib.crc32(array.tobytes()) for name, array in arrays.items()},
    }


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays called "<prefix>.<name>", by <name>."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(prefix + ".")}
