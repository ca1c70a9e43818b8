"""Checkpoint files: what comes back, what a failing write leaves behind, and every kind of damaged file."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dlgpu import checkpoint, dtypes, memory_format
from dlgpu.errors import CheckpointError, TrainingError

INFO = {"epoch": 3, "random": [2**64 - 1, 7], "history": [{"loss": 0.1, "name": "ä"}, {}], "none": None}
DTYPES = [*dtypes.FLOATS.values(), *map(np.dtype, ("bool", "int8", "uint8", "int16", "uint32", "int64", "uint64"))]


def small() -> dict[str, np.ndarray]:
    return {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(5), "empty": np.empty((0, 2))}


def bits(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@contextmanager
def tiny_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A disk that really fills up."""
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint, alone in its folder."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, small(), INFO)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError, match=r"^\[checkpoint\] .+; got.+$") as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_come_back_bit_for_bit(tmp_path: Path, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    images = np.frombuffer(rng.bytes(2 * 3 * 4 * 5 * dtype.itemsize), dtype).reshape(2, 3, 4, 5)  # NaNs of all kinds
    if dtype.kind == "b":
        images = rng.random(images.shape) < 0.5
    arrays = {
        "images": images,
        "channels_last": memory_format.convert(np, images, "channels_last"),
        "backwards": images[::-1, :, ::2],
        "no axes": images[0, 0, 0, 0].reshape(()),
        "no elements": images[:, :0],
        "one": images[:1, :1, :1, :1],
    }
    checkpoint.save(tmp_path / "a.safetensors", arrays, {})
    loaded, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert bits(loaded) == bits(arrays)


def test_info_comes_back(path: Path) -> None:
    assert checkpoint.load(path)[1] == INFO


def test_no_arrays_and_folders_made_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.safetensors"
    checkpoint.save(path, {}, {})
    assert checkpoint.load(path) == ({}, {})


def test_same_content_same_bytes(path: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "b.safetensors", small(), INFO)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_select_takes_the_prefix_off() -> None:
    arrays = {"model.a.b": np.zeros(1), "model2.a": np.zeros(2), "optimizer.a": np.zeros(3)}
    assert bits(checkpoint.select(arrays, "model")) == bits({"a.b": np.zeros(1)})


# --- failing writes ---------------------------------------------------------------------------------------------------


@contextmanager
def _failing(call: str, error: BaseException) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        yield


@contextmanager
def _limited_size() -> Iterator[None]:
    """The system refuses to write more than 100 bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("failure", "error", "reason"),
    [
        (lambda: _failing("fsync", FULL), TrainingError, "No space left on device"),
        (lambda: _failing("replace", FULL), TrainingError, "No space left on device"),
        (lambda: _failing("fsync", KeyboardInterrupt()), KeyboardInterrupt, None),
        (_limited_size, TrainingError, "File too large"),
    ],
    ids=["sync", "rename", "Ctrl-C", "write"],
)
@pytest.mark.parametrize("there_before", [True, False])
def test_failed_write_leaves_what_was_there(
    path: Path, failure: Callable, error: type[BaseException], reason: str | None, there_before: bool
) -> None:
    before = path.read_bytes()
    if not there_before:
        path.unlink()
    with failure(), pytest.raises(error, match=reason) as caught:
        checkpoint.save(path, {"other": np.ones(1000)}, {})
    if there_before:
        assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name] * there_before
    if error is TrainingError:
        assert str(caught.value) == f"[write] cannot write {path}; got: {reason}. What was there is kept"


def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 32) as disk:
        path = disk / "a.safetensors"
        checkpoint.save(path, small(), INFO)
        before = path.read_bytes()
        with pytest.raises(TrainingError, match="No space left on device"):
            checkpoint.save(path, {"other": np.ones(100_000)}, {})
        assert path.read_bytes() == before
        assert os.listdir(disk) == [path.name]


def test_folder_that_cannot_be_made(path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^\[write\] cannot write .+; got: .+"):
        checkpoint.save(path / "below a file" / "b.safetensors", small(), INFO)


# --- damaged files ----------------------------------------------------------------------------------------------------


def test_every_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    """Also in the header, where numbers, names and shapes are."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        refused(path)


def _plain_safetensors(path: Path) -> None:
    save_file(small(), path)


def _newer(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        checkpoint.save(path, small(), INFO)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "none at"),
        (Path.mkdir, "none at"),
        (lambda path: path.write_text("epoch 3\nloss 0.1\n"), "damaged or not a checkpoint"),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged or not a checkpoint"),
        (_plain_safetensors, "not written by dlgpu"),
        (_newer, f"reads format {checkpoint.FORMAT}; got {checkpoint.FORMAT + 1}"),
    ],
    ids=["missing", "folder", "text", "binary", "plain safetensors", "newer format"],
)
def test_not_a_checkpoint(tmp_path: Path, make: Callable[[Path], Any], reason: str) -> None:
    path = tmp_path / "b.safetensors"
    make(path)
    assert reason in refused(path)
