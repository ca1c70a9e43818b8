"""What an op costs the CPU before a GPU sees anything: checks, plan, packed arguments.

    pytest -c benchmarks/pytest.ini benchmarks/test_launch_cost.py      microseconds per op
    python -m benchmarks.test_launch_cost                               the same, by stage, and where the time goes

Ops replay their programs (`dlgpu.backends.kernels.programs`). The launcher here does what CuPy's does with the
arguments, and then nothing. Arrays are NumPy's, but tell their address as CuPy's do (NumPy's `ctypes` takes half a
microsecond for that). So CuPy's own share is missing: allocating outputs from its pool, views, and cuLaunchKernel.
"""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlgpu.backends.kernels import KernelBackend
from dlgpu.backends.launchers.cupy import NULL, cast, packed
from dlgpu.bench import check
from dlgpu.bench.arrange import arranged
from dlgpu.bench.cases import Case, select, tiny


class Addressed(np.ndarray):
    """Tells its address as an array of CuPy does."""

    data = SimpleNamespace(ptr=0)  # type: ignore[assignment]


class Nothing:
    """A launcher that launches nothing. `count` says how often it did not."""

    xp, capability, sms, device = np, 90, 132, 0
    null: Any = None

    def __init__(self) -> None:
        self.count = 0

    def identity(self) -> dict[str, str]:
        return {}

    def prepare(self, plan: Any) -> Any:
        def start(arrays: tuple[Any, ...]) -> None:
            self.count += 1

        return start

    def tensor_map(self, description: Any, array: Any) -> Any:
        return array

    def launch(self, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        self.count += 1


class Packing(Nothing):
    """... but casts the arguments as CuPy must be given them."""

    null: Any = NULL

    def launch(self, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        cast(kernel, args, np.ndarray)
        self.count += 1

    def prepare(self, plan: Any) -> Any:
        pack = packed(plan, np.ndarray)

        def start(values: tuple[Any, ...]) -> None:
            self.count += 1
            pack(values)

        return start


def cases() -> list[Case]:
    """One tiny case of every op: the cost does not depend on the size."""
    return list({case.op: case for case in reversed(tiny(select(batches=[64], dtypes=["float32"])))}.values())[::-1]


def prepared(case: Case, launcher: Nothing) -> Callable[[], Any]:
    """The op on arrays of its own; nothing computes, so the numbers in them do not matter."""
    ops = KernelBackend("nothing", "cuda", launcher)
    arrays = check.draw(np, case.what.arrays(case.sizes), np.float32, 0)
    arrays = arranged(np, case, arrays, "channels_last", "contiguous")
    arrays |= case.what.saved(ops, arrays, case.sizes)
    addressed = {name: array.view(Addressed) for name, array in arrays.items()}
    return lambda: case.what.call(ops, addressed, case.sizes)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.op)
def test_cpu_cost(benchmark: Any, case: Case) -> None:
    launcher = Packing()
    op = prepared(case, launcher)
    op()
    benchmark.extra_info["launches"] = launcher.count
    benchmark(op)


def median_us(op: Callable[[], Any], rounds: int = 15, calls: int = 100) -> float:
    """Median over rounds of the mean over calls, in CPU time: what else the machine does is not counted."""
    for _ in range(20):
        op()
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            op()
        times.append((time.thread_time() - start) / calls)
    return 1e6 * statistics.median(times)


def shares(op: Callable[[], Any], calls: int = 500) -> Mapping[str, float]:
    """Function -> its own share of the time, under the profiler (which makes calls dearer than they are)."""
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    for _ in range(calls):
        op()
    profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    own = {f"{path.rpartition('/')[2]}:{name}": values[2] for (path, _, name), values in stats.items()}
    total = sum(own.values())
    return {name: seconds / total for name, seconds in sorted(own.items(), key=lambda item: -item[1])}


def main() -> None:
    """Microseconds per op: checks and plan, then with packing; and the functions that take most of it."""
    print(f"{'op':<22} launches   plan µs   + packing µs   most time in")
    for case in cases():
        plan, both = Nothing(), Packing()
        planning, packing = prepared(case, plan), prepared(case, both)
        both.count = 0
        packing()
        launches = both.count
        planned, packed = median_us(planning), median_us(packing)
        top = ", ".join(f"{name} {share:.0%}" for name, share in list(shares(packing).items())[:4])
        print(f"{case.op:<22} {launches:>8} {planned:>9.1f} {packed:>14.1f}   {top}")


if __name__ == "__main__":
    main()
