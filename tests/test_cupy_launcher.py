"""What of the CuPy launcher can be checked without a GPU: arguments, targets, the cubin cache, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.geometry import strides
from dlgpu.backends.launchers import cupy as launcher
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError

KERNEL = "dl::adam_step<float>"


def arguments(**changes: Any) -> tuple[Any, ...]:
    arena = np.zeros(4, np.float32)
    pointers = ("param", "grad", "exp_avg", "exp_avg_sq", "scaler", "half")
    given = dict.fromkeys(pointers, arena) | dict(count=4)
    numbers = ("step", "lr", "log_beta1", "log_beta2", "rest1", "rest2", "eps", "weight_decay", "keep")
    given |= dict.fromkeys(numbers, 0.5)
    given |= changes
    return tuple(given[p.name] for p in sources.parameters(KERNEL))


def test_numbers_get_the_declared_types() -> None:
    cast = launcher.cast(KERNEL, arguments(), np.ndarray)
    assert all(isinstance(value, np.ndarray) for value in cast[:6])
    assert isinstance(cast[6], np.uint32)
    assert all(isinstance(value, np.float32) for value in cast[7:])


def test_structs_and_null_pointers() -> None:
    x = np.zeros((1, 2, 3, 4), np.float32)
    s = strides(x)
    cast = launcher.cast("dl::copy<float, float>", (x, None, 2, 3, 4, 24, s, s), np.ndarray)
    assert cast[1] == 0
    assert isinstance(cast[1], np.uint64)
    assert cast[6] is s
    assert s.shape == ()  # CuPy passes NumPy arrays of size one by value


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(count=2.0), DtypeError, "count must be an integer; got 2.0"),
        (dict(count=-1), ShapeError, "count must fit uint32; got -1"),
        (dict(count=2**40), ShapeError, "count must fit uint32"),
        (dict(count=np.int64(-1)), ShapeError, "count must fit uint32; got -1"),
        (dict(lr="0.5"), DtypeError, "lr must be a number; got '0.5'"),
        (dict(lr=1e39), ShapeError, r"lr must fit float32; got 1e\+39"),
        (dict(grad=[1.0]), DtypeError, "grad must be a GPU array or None; got builtins.list"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        launcher.cast(KERNEL, arguments(**changes), np.ndarray)


def test_wrong_count_and_wrong_struct() -> None:
    with pytest.raises(ShapeError, match="takes 16 arguments; got 2"):
        launcher.cast(KERNEL, (1, 2), np.ndarray)
    x = np.zeros((1, 2, 3, 4), np.float32)
    with pytest.raises(DtypeError, match="x_strides must be a packed struct"):
        launcher.cast("dl::copy<float, float>", (x, x, 2, 3, 4, 24, 5, 5), np.ndarray)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        (75, "sm_75"),
        (80, "sm_80"),
        (86, "sm_86"),
        (87, "sm_86"),
        (89, "sm_89"),
        (90, "sm_90a"),
        (100, "sm_100"),
    ],
)
def test_targets(capability: int, arch: str) -> None:
    assert launcher.architecture(capability) == arch


def test_targets_without_kernels() -> None:
    with pytest.raises(BackendUnavailable, match="got sm_61"):
        launcher.architecture(61)


def test_cubins_are_cached_under_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLGPU_CACHE", str(tmp_path))
    path, names = launcher.cubin("optim", "sm_90a")
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert set(names) == set(sources.families()["optim"])
    before = path.stat().st_mtime_ns
    assert launcher.cubin("optim", "sm_90a")[0].stat().st_mtime_ns == before
    monkeypatch.setattr(sources, "digest", lambda: "edited")
    assert launcher.cubin("optim", "sm_90a")[0] != path


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match=r"CuPy is missing.*pip install .dlgpu\[cuda12\]"):
        launcher.CupyLauncher()
