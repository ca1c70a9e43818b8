"""Where NVIDIA's headers are looked for, without any that this machine has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.errors import BackendUnavailable


def test_the_toolkit_of_the_nvcc_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder need not be called /usr/local/cuda, and nvcc may be a link into it."""
    toolkit, path = tmp_path / "cuda-13.7", tmp_path / "bin"
    for file in ("bin/nvcc", "include/cuda_fp16.h", "include/cccl/nv/target"):
        (toolkit / file).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / file).touch(0o755)
    path.mkdir()
    (path / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))

    monkeypatch.setenv("PATH", str(path))
    assert cuda_headers("cuda_fp16.h", "nv/target") == [toolkit / "include", toolkit / "include" / "cccl"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"cuda_fp16.h, nv/target must be installed"):
        cuda_headers("cuda_fp16.h", "nv/target")
