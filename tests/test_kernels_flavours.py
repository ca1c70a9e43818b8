"""The kernel tests again under the host launcher's bug finders, each in a process of its own.

ubsan: index, alignment and integer errors. asan: out of bounds in global and shared memory. check: races between
threads and blocks, reads of shared memory that nobody wrote. Hopper's kernels differ for half and bfloat16 in one word:
the former suffices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlgpu.backends.launchers.host import check_requirements, own_process_environment
from dlgpu.errors import BackendUnavailable

ROOT = Path(__file__).parents[1]
QUICK = "host and not large_tiles and not bank_conflicts and not are_clean and not (hopper and bfloat16)"


def kernel_tests(flavour: str, chosen: str = QUICK, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The tests of the kernels of a checkout that `-k chosen` names, in a process for one flavour."""
    files = sorted(map(str, checkout.glob("tests/test_kernels*.py")))
    environment = {**os.environ, **own_process_environment(flavour), "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-k", chosen, "-p", "no:cacheprovider", *files]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checkout, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["ubsan", "asan", "check"])
def test_kernels_are_clean(flavour: str) -> None:
    try:
        check_requirements()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    run = kernel_tests(flavour)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout  # else nothing was run
