"""Where NVIDIA's headers are: NVRTC and the host build need them, and pip wheels carry them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from dlgpu.errors import BackendUnavailable


def cuda_headers(*needed: str) -> list[Path]:
    """The include folders that together hold all `needed` headers.

    Searched: the pip wheels of CUDA 13, those of CUDA 12, $CUDA_HOME, $CUDA_PATH, /usr/local/cuda, the toolkit of the
    nvcc in $PATH. Raises `BackendUnavailable`, which says what to install.
    """
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(path) for path in (spec.submodule_search_locations or [])] if spec else []
    homes = [[wheel / "cu13"] for wheel in wheels]
    homes += [[wheel / "cuda_runtime", wheel / "cuda_cccl"] for wheel in wheels]
    homes += [[Path(os.environ.get(name) or "/usr/local/cuda")] for name in ("CUDA_HOME", "CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        homes.append([Path(nvcc).resolve().parents[1]])
    for home in homes:
        folders = [include for part in home for include in (part / "include", part / "include" / "cccl")]
        if all(any((folder / name).is_file() for folder in folders) for name in needed):
            return [folder for folder in folders if folder.is_dir()]
    raise BackendUnavailable(
        f"[cuda headers] {', '.join(needed)} must be installed; got no wheel or toolkit that has them: "
        'pip install "dlgpu[test]" (or [cuda12], [cuda13]), or set CUDA_HOME to a toolkit'
    )
