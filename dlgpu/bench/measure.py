"""Clocks, CUDA graphs, interleaved timing, statistics, and what a machine can do at most.

On a GPU the calls of one contestant (one per input set, repeated until they take long enough) are captured in one CUDA
graph; a round replays it once unmeasured, to get ahead of the device, and once between two events. So neither Python
nor launch gaps are in the figure. Where capturing fails, the calls are made one by one between the events, and the
figure says "events" instead of "graph". On a CPU it is a wall clock, and says "clock".

Contestants take turns, round by round, in a different order each time: a change of the machine's clocks meets all.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dlgpu.errors import DlgpuError

Call = Callable[[], Any]
SHORTEST = 200e-6  # seconds that one replay should last at least
MOST_CALLS = 256  # in one graph


@dataclass
class Work:
    """`run` makes `calls` calls; `how` says how they are timed: "graph", "events" or "clock"."""

    run: Call
    calls: int
    how: str
    keep: list[Any] = field(default_factory=list)  # memory that must outlive the graph


def one_by_one(calls: Sequence[Call], seconds_per_call: float) -> Work:
    """One call per input set, and that as often as it takes to fill `SHORTEST`.

    As many results are alive as there are sets, so that outputs, too, lie in memory that has left the cache.
    """
    rounds = math.ceil(SHORTEST / max(seconds_per_call * len(calls), 1e-9))
    many = [*calls] * max(1, min(rounds, MOST_CALLS // len(calls)))

    def run() -> None:
        results: deque[Any] = deque(maxlen=len(calls))
        for call in many:
            results.append(call())

    return Work(run, len(many), "events")


class Clock(Protocol):
    """Seconds that a piece of work takes, on a device or on the CPU."""

    def seconds(self, run: Call) -> float:
        """Of one run, which ends before this returns."""
        ...


class WallClock:
    """For work on the CPU.

    Idle worker threads of the contestant before spin for a while, on processors that are not theirs: each waits until
    they sleep, and wakes its own by an unmeasured run where that is short.
    """

    PAUSE = 0.05

    def seconds(self, run: Call) -> float:
        time.sleep(self.PAUSE)
        taken = self._once(run)
        return self._once(run) if taken < self.PAUSE else taken

    def _once(self, run: Call) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


class EventClock:
    """Device events on one stream of CuPy (or of anything with its names), which becomes the current one for good."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        self.stream.use()

    def seconds(self, run: Call) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        run()  # unmeasured: while it runs, the CPU enqueues what follows
        start.record(self.stream)
        run()
        end.record(self.stream)
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(start, end) / 1e3

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        """`one_by_one` as one CUDA graph, or as it is if it cannot be captured.

        The graph has a memory pool of its own: what is freed while capturing must not be handed to anyone else, since
        every replay writes there again.
        """
        pool = self.cupy.cuda.MemoryPool()
        work = one_by_one(calls, seconds_per_call)
        with self.cupy.cuda.using_allocator(pool.malloc):
            work.run()  # compiles, loads, and fills the pool
            self.stream.synchronize()
            try:
                graph = self._graph(work.run)
            except Exception as error:  # whatever capturing raised, the calls themselves have just worked
                work.how += f" (no graph: {one_line(error)})"
                return work
        return Work(lambda: graph.launch(self.stream), work.calls, "graph", [pool, graph])

    def _graph(self, run: Call) -> Any:
        self.stream.begin_capture()
        try:
            run()
        except BaseException:
            with contextlib.suppress(Exception):  # the capture is broken: ending it raises too
                self.stream.end_capture()
            raise
        return self.stream.end_capture()


def one_line(error: BaseException) -> str:
    """First line of an error, after its type unless it is one of ours, which begin with the place."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, DlgpuError) else f"{type(error).__name__}: {lines[0][:300]}"


def cycle(calls: Sequence[Call], how: str, seconds_per_call: float) -> Work:
    """For a wall clock: every run goes on where the last one stopped, with as many calls as fill `SHORTEST`."""
    count = min(MOST_CALLS, max(1, math.ceil(SHORTEST / max(seconds_per_call, 1e-9))))
    endless = itertools.cycle(calls)

    def run() -> None:
        for call in itertools.islice(endless, count):
            call()

    return Work(run, count, how)


def interleave(
    works: Mapping[str, tuple[Clock, Work]],
    *,
    rounds: int,
    limit: float,
    turn: Callable[[str], None] = lambda name: None,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call, one figure per contestant and round.

    At least three rounds; none begins when `limit` seconds are over. `turn` hears whose turn it is, before it is timed.
    """
    figures: dict[str, list[float]] = {name: [] for name in works}
    start, names = now(), list(works)
    for index in range(rounds if works else 0):
        if index >= 3 and now() - start > limit:
            break
        for name in names[index % len(names) :] + names[: index % len(names)]:
            clock, work = works[name]
            turn(name)
            figures[name].append(clock.seconds(work.run) / work.calls)
    return figures


@dataclass(frozen=True)
class Figures:
    """What is kept of the rounds: microseconds per call. `spread` is half the interquartile range over the median."""

    us: float
    low: float
    high: float
    spread: float
    rounds: int


def summary(seconds: Sequence[float]) -> Figures:
    """Median, least, most and spread of one contestant's rounds."""
    us = sorted(1e6 * second for second in seconds)
    middle = statistics.median(us)
    first, _, third = statistics.quantiles(us, n=4, method="inclusive") if len(us) > 1 else (middle,) * 3
    return Figures(middle, us[0], us[-1], (third - first) / 2 / middle if middle else 0.0, len(us))


# --- what the machine can do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceilings:
    """Measured, not from a datasheet: GB/s of a large copy (bytes read plus bytes written), GFLOP/s of a large product
    per precision."""

    copy_gbs: float
    gflops: Mapping[str, float]

    def floor_us(self, flops: int, bytes_: int, dtype: str) -> float | None:
        """The roofline (Williams, Waterman and Patterson 2009): no less time than arithmetic and bytes each need."""
        if flops and not self.gflops.get(dtype):
            return None
        arithmetic = flops / self.gflops[dtype] / 1e3 if flops else 0.0
        return max(arithmetic, bytes_ / self.copy_gbs / 1e3)


def best_of(clock: Clock, run: Call, repeats: int = 5) -> float:
    """Seconds of the fastest run after a warm-up: ceilings are what is possible, not what is usual."""
    run()
    return min(clock.seconds(run) for _ in range(repeats))


def copy_gbs(xp: Any, clock: Clock, bytes_: int) -> float:
    """GB/s of copying an array of so many bytes."""
    source, target = xp.ones(bytes_ // 4, np.float32), xp.empty(bytes_ // 4, np.float32)

    def run() -> None:
        target[...] = source

    return 2 * bytes_ / best_of(clock, run) / 1e9


@contextlib.contextmanager
def nan_filled(cupy: Any) -> Iterator[None]:
    """Every allocation inside holds 0xFF bytes, which is NaN in every floating-point type."""
    pool = cupy.get_default_memory_pool()

    def allocate(size: int) -> Any:
        memory = pool.malloc(size)
        if size:
            memory.memset_async(0xFF, size)
        return memory

    with cupy.cuda.using_allocator(allocate):
        yield
