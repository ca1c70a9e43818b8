"""What an op costs the CPU before a GPU sees anything: look-up, outputs, packed arguments.

    python -m benchmarks.test_launch_cost                               microseconds per op, for both launchers
    python -m benchmarks.test_launch_cost --arrays cupy                 with CuPy's own arrays; needs CuPy but no GPU
    pytest -c benchmarks/pytest.ini benchmarks/test_launch_cost.py      the first, by pytest-benchmark

Ops replay their programs (`dlgpu.backends.kernels.programs`). For CuPy's launcher, a stand-in does with the arguments
what it does, and then nothing. The native launcher is the real one over a CUDA runtime that does nothing
(`benchmarks.native_stand_in`). Arrays are NumPy's, but tell their address as CuPy's do; or they are CuPy's, with memory
that costs nothing. So what is missing of CuPy is its pool and its launch, and of the driver cuLaunchKernel.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.native_stand_in import Addressed, NativeStandIn, build, cupy_arrays, library, load, runtime
from dlgpu.backends.kernels import KernelBackend
from dlgpu.backends.launchers.cupy import NULL, cast, packed
from dlgpu.bench import check
from dlgpu.bench.arrange import arranged
from dlgpu.bench.cases import Case, select, tiny

GOALS = {"cupy": 6.0, "native": 2.5}  # microseconds


class Packing:
    """A launcher that casts arguments as CuPy must be given them, and launches nothing; `count` says how often."""

    capability, sms, device, null = 90, 132, 0, NULL

    def __init__(self, array: type = Addressed) -> None:
        self.xp, self.count = SimpleNamespace(**library(array)), 0

    def identity(self) -> dict[str, str]:
        return {}

    def launch(self, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        cast(kernel, args, self.xp.ndarray)
        self.count += 1

    def prepare(self, plan: Any) -> Any:
        pack = packed(plan, self.xp.ndarray)

        def start(values: tuple[Any, ...]) -> None:
            self.count += 1
            pack(values)

        return start

    def tensor_map(self, description: Any, array: Any) -> Any:
        return array


def cases() -> list[Case]:
    """One tiny case of every op: the cost does not depend on the size."""
    return list({case.op: case for case in reversed(tiny(select(batches=[64], dtypes=["float32"])))}.values())[::-1]


class Noting:
    """Notes the last call of an op of `ops`."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def op(*args: Any, **options: Any) -> Any:
            self.name, self.args, self.options = name, args, options
            return getattr(self.ops, name)(*args, **options)

        return op


def prepared(case: Case, launcher: Any) -> Callable[[], Any]:
    """The op on arrays of its own; nothing computes, so the numbers in them do not matter.

    It is called as from a line of Python in which everything has a name: what it takes to get there is not counted.
    """
    ops = KernelBackend("nothing", "cuda", Packing())
    arrays = check.draw(np, case.what.arrays(case.sizes), np.float32, 0)
    arrays = {n: a.view(Addressed) for n, a in arranged(np, case, arrays, "channels_last", "contiguous").items()}
    arrays |= case.what.saved(ops, arrays, case.sizes)
    noted = Noting(ops)
    case.what.call(noted, arrays, case.sizes)
    values = {f"v{i}": value for i, value in enumerate((*noted.args, *noted.options.values()))}
    given = [*values][: len(noted.args)], zip(noted.options, [*values][len(noted.args) :], strict=True)
    line = ", ".join([*given[0], *(f"{option}={name}" for option, name in given[1])])
    array = launcher.xp.ndarray
    if array is not Addressed:
        alike = {n: array(v.shape, v.dtype, None, v.strides) for n, v in values.items() if isinstance(v, np.ndarray)}
        values |= alike
    op = getattr(KernelBackend("nothing", "cuda", launcher), noted.name)
    return eval(f"lambda: op({line})", values | {"op": op})


@cache
def stand_in() -> Any:
    """The native module over a runtime that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder))
        runtime(path).fake_recording(0)
        return load(path)


@pytest.mark.parametrize("launcher", GOALS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.op)
def test_cpu_cost(benchmark: Any, case: Case, launcher: str) -> None:
    op = prepared(case, Packing() if launcher == "cupy" else NativeStandIn(stand_in()))
    op()
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


def main() -> None:
    """A line per op."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.test_launch_cost", description=main.__doc__)
    parser.add_argument("--arrays", choices=("numpy", "cupy"), default="numpy")
    array = Addressed if parser.parse_args().arrays == "numpy" else cupy_arrays()
    counting = Packing(array)
    launchers = [counting, NativeStandIn(stand_in(), array)]
    missed = dict.fromkeys(GOALS, 0)
    print("microseconds per op      launches  cupy  native  goals missed")
    for case in cases():
        ops = [prepared(case, launcher) for launcher in launchers]
        counting.count = 0
        ops[0]()
        launches = counting.count
        cupy, native = (median_us(op) for op in ops)
        missing = [name for name, us in (("cupy", cupy), ("native", native)) if us > GOALS[name]]
        for name in missing:
            missed[name] += 1
        print(f"{case.op:<24} {launches:>8} {cupy:>5.1f} {native:>7.2f}  {', '.join(missing)}")
    for name, count in missed.items():
        print(f"{name}: {count} ops over the goal of {GOALS[name]} microseconds")


if __name__ == "__main__":
    main()
