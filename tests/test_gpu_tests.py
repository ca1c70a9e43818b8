"""What happens to the rest of the GPU tests when a kernel of one of them fails: CUDA is stood in for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# test 2 of 5 ends CUDA for its process
SUITE = """
import sys
from types import SimpleNamespace
import pytest

class Runtime:
    dead = False
    def deviceSynchronize(self):
        if self.dead:
            raise RuntimeError("WHAT")

runtime = Runtime()
sys.modules["cupy"] = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

@pytest.mark.gpu
@pytest.mark.parametrize("i", range(5))
def test_kernel(i):
    assert not runtime.dead
    runtime.dead = i == 2
"""


def run(folder: Path, error: str, workers: int) -> subprocess.CompletedProcess[str]:
    """The suite beside our conftest, where CUDA ends with `error`."""
    for name in ("conftest.py", "naive.py"):
        shutil.copy(TESTS / name, folder)
    (folder / "test_suite.py").write_text(SUITE.replace("WHAT", error))
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    environment.pop("PYTEST_XDIST_WORKER", None)  # ours
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-n", str(workers)]
    return subprocess.run(
        [*command, "-rA", str(folder)], cwd=folder, capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dead_gpu_spoils_one_test(tmp_path: Path, workers: int) -> None:
    done = run(tmp_path, "cudaErrorIllegalAddress: an illegal memory access", workers)
    out = done.stdout + done.stderr
    if workers:
        assert "crashed while running 'test_suite.py::test_kernel[2]'" in out
        assert "PASSED test_suite.py::test_kernel[4]" in out
    else:
        assert "test_suite.py::test_kernel[2] ended CUDA for this process: cudaErrorIllegalAddress" in out
        assert done.returncode == 3


def test_cupy_without_a_gpu_spoils_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "cudaErrorNoDevice: no CUDA-capable device is detected", 0)
    assert "PASSED test_suite.py::test_kernel[2]" in done.stdout
    assert "ended CUDA" not in done.stdout + done.stderr
