"""benchmarks/gpu_all.sh with programs that do nothing for Python, CMake and the rest: what it runs, and reports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_all.sh"
STEPS = [
    "machine",
    "install",
    "info",
    "build",
    "tests",
    "hopper",
    "memcheck",
    "racecheck",
    "launch-cost",
    "bench",
    "tuned",
]
NOTHING = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *"$FAILS"*) echo "it | broke"; exit 3 ;; *"$HANGS"*) sleep 60 ;; esac
[ "$(basename "$0")" = nvidia-smi ] && echo 9.0
echo fine
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python3", "cmake", "nvidia-smi", "nvcc", "compute-sanitizer"):
        (programs / name).write_text(NOTHING)
        (programs / name).chmod(0o755)
    never = {"FAILS": "no such step", "HANGS": "no such step"}
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "DLGPU_COMMIT": "abc123"}
    return {name: value for name, value in os.environ.items() if name != "PYTHON"} | own | never


def gpu_all(tmp_path: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), "--minutes", "1", "--output", str(tmp_path / "out"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def rows(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Step -> exit code and last line."""
    lines = [line.split(" | ") for line in (tmp_path / "out" / "summary.md").read_text().splitlines()]
    return {line[0][2:]: (line[1], line[3][:-2]) for line in lines if len(line) == 4 and line[0] != "| step"}


@pytest.mark.parametrize("options", [(), ("--host",)])
def test_every_step_is_run(tmp_path: Path, environment: dict[str, str], options: tuple[str, ...]) -> None:
    done = gpu_all(tmp_path, environment, *options)
    assert (done.returncode, done.stderr) == (0, "")
    gpu = not options
    assert set(rows(tmp_path)) == {*STEPS, *(["native"] if gpu else [])}
    assert all(code == "0" for code, _ in rows(tmp_path).values())
    assert "commit abc123" in (tmp_path / "out" / "summary.md").read_text()
    assert {path.stem for path in (tmp_path / "out" / "logs").iterdir()} == set(rows(tmp_path))
    calls = (tmp_path / "calls").read_text()
    device = "cuda" if gpu else "host-kernels"
    bench, tuned = [line for line in calls.splitlines() if f"bench --device {device}" in line and "/out" in line]
    assert all(f"--algorithm {name}" in bench for name in ("auto", "winograd2", "winograd4", "hopper"))
    assert "--autotune" in tuned
    assert f"{tmp_path}/out/tuned" in tuned
    if gpu:
        assert re.search("compute-sanitizer --tool memcheck .* --tiny --check-only --compare none", calls)
        assert "cmake --build" in calls
        assert "pytest" in calls


def test_a_failing_step_is_reported_and_the_others_run(tmp_path: Path, environment: dict[str, str]) -> None:
    done = gpu_all(tmp_path, environment | {"FAILS": "gpu tests/test_kernels_hopper.py"})
    assert done.returncode == 1
    assert rows(tmp_path)["hopper"] == ("3", "it / broke")
    assert all(code == "0" for name, (code, _) in rows(tmp_path).items() if name != "hopper")
    assert "--algorithm hopper" not in (tmp_path / "calls").read_text()  # such kernels might hang


def test_the_benchmarks_keep_their_share_of_the_time(tmp_path: Path, environment: dict[str, str]) -> None:
    """Of 60 seconds 36 are for everything else, also where a step takes what it can get."""
    done = gpu_all(tmp_path, environment | {"HANGS": "-m gpu tests --ignore"})
    limits = {name: int(most) for name, most in re.findall(r"== (\S+) \(at most (-?\d+) s\)", done.stdout)}
    assert rows(tmp_path)["tests"][0] == "124"
    assert rows(tmp_path)["tests"][1] == f"stopped after {limits['tests']} seconds"
    assert limits["tests"] == 12
    assert max(limits[name] for name in STEPS[:-2]) <= 36
    assert limits["bench"] >= 18
    assert done.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_step_at_once(tmp_path: Path, environment: dict[str, str], number: int) -> None:
    process = subprocess.Popen(
        ["env", "--default-signal=INT", str(SCRIPT), "--output", str(tmp_path / "out")],  # ignored in background jobs
        env=environment | {"HANGS": "-m dlgpu info"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("== info"):
            break
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode == 1
    assert "interrupted" in out
    assert set(rows(tmp_path)) == {"machine", "install"}


@pytest.mark.parametrize("options", [("--minutes", "eight"), ("--minutes", "0"), ("--minutes",), ("--minute", "3")])
def test_wrong_options(options: tuple[str, ...]) -> None:
    done = subprocess.run([str(SCRIPT), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "minutes" in done.stdout + done.stderr
