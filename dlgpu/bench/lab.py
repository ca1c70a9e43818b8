"""One machine and everything that can be measured on it. Lives in a worker process (run.py)."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu import backends, dtypes
from dlgpu.bench import check, measure
from dlgpu.bench.cases import ITEMSIZE, Case
from dlgpu.bench.contestants import BASELINES, Contestant, Ours, baselines, release
from dlgpu.bench.measure import Call, Ceilings, Clock, EventClock, Figures, WallClock, Work, one_line
from dlgpu.errors import BackendUnavailable, DlgpuError
from dlgpu.memory_format import MemoryFormat

Row = dict[str, Any]  # one line of results.json; report.py says what is in it
MOST_SETS = {"cuda": 32, "cpu": 8, "host-kernels": 1}  # of inputs to rotate through


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: as `backends.get` takes it.
        compare: which of `contestants.BASELINES`.
        algorithms: of convolutions; each is a contestant.
        layout: of our images.
        autotune: our kernels are chosen by `dlgpu.autotune`.
        seconds: of timing per case, all contestants on the device together.
        rounds: at most so many figures per contestant; 0 checks only.
        ceilings: measure what the machine can do first.
        reference_gflop: the NumPy reference is left out of cases with more work than this, and says so.
        without: (contestant, case id or family) pairs that are left out, because they have crashed or hung before.
    """

    device: str
    compare: tuple[str, ...] = BASELINES
    algorithms: tuple[str, ...] = ("auto",)
    layout: MemoryFormat = "channels_last"
    autotune: bool = False
    seconds: float = 0.5
    rounds: int = 50
    ceilings: bool = True
    reference_gflop: float = 20.0
    without: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """ "cuda", "cpu" or "host-kernels"."""
        return kind_of(self.device)


def kind_of(device: str) -> str:
    """The device of a backend: "cuda:native" -> "cuda"."""
    return {"numpy": "cpu", "host": "host-kernels"}.get(device, device.partition(":")[0])


@dataclass(frozen=True)
class Trying:
    """Said before a contestant runs, in case nothing is heard afterwards."""

    by: str


class Lab:
    """Checks and times cases, one at a time."""

    def __init__(self, settings: Settings, tell: Callable[[Trying], None] = lambda trying: None) -> None:
        self.settings, self._tell = settings, tell
        backend = backends.get(settings.device)
        self.backend, self.xp = backend.name, backend.xp
        self.clock: Clock = EventClock(self.xp) if settings.kind == "cuda" else WallClock()
        self.cache_bytes, self.most_sets = self._cache_bytes(), MOST_SETS[settings.kind]
        name = {"cpu": "numpy"}.get(settings.kind, "dlgpu")
        how = "emulated" if settings.kind == "host-kernels" else "clock"
        self.ours = [
            Ours(backend, self.clock, name, algorithm, settings.layout, autotune=settings.autotune, how=how)
            for algorithm in settings.algorithms
        ]
        wanted = [b for b in settings.compare if not (b == "numpy" and settings.kind == "cpu")]
        others, self.missing = baselines(wanted, self.clock)
        self.contestants: list[Contestant] = [*self.ours, *others]

    # --- the machine --------------------------------------------------------------------------------------------------

    def machine(self) -> Row:
        """What the figures were measured on and with; ceilings included."""
        found: Row = {
            "device": self.settings.kind,
            "backend": self.backend,
            "name": self._device_name(),
            "dlgpu": dlgpu.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "processors": os.cpu_count(),
            "contestants": [c.name for c in self.contestants],
            "missing": self.missing,
            "cache_mb": round(self.cache_bytes / 1e6, 1),
            "layout": self.settings.layout,
        }
        for module in ("torch", "cupy"):
            with contextlib.suppress(ImportError):
                found[module] = __import__(module).__version__
        found["ceilings"] = asdict(self.ceilings()) if self.settings.ceilings else None
        if self.settings.kind == "cuda":
            found["gpu"] = self.gpu_state()  # after the ceilings: the clocks of a busy GPU
            found["cuda_runtime"] = self.xp.cuda.runtime.runtimeGetVersion()
            found["cudnn"] = _cudnn_version()
        return found

    def gpu_state(self) -> str:
        """Driver, clocks, power and temperature as nvidia-smi tells them; looking changes nothing."""
        query = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return one_line(error)
        return f"{query}: {(done.stdout or done.stderr).strip()}"

    def _device_name(self) -> str:
        if self.settings.kind == "cuda":
            name = self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)["name"]
            return name.decode() if isinstance(name, bytes) else str(name)
        info = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
        return found.group(1) if found else platform.machine()

    def _cache_bytes(self) -> int:
        """Of the last cache before memory."""
        if self.settings.kind == "cuda":
            return int(self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)["l2CacheSize"])
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
        text = size.read_text().strip() if size.exists() else ""
        return int(text[:-1]) << 10 if re.fullmatch(r"\d+K", text) else 32 << 20

    def ceilings(self) -> Ceilings:
        """Copy bandwidth of the array library, and the best matrix product of any contestant."""
        gpu = self.settings.kind == "cuda"
        gbs = measure.copy_gbs(self.xp, self.clock, (4 << 30) if gpu else max(64 << 20, 2 * self.cache_bytes))
        n = 8192 if gpu else 1536
        gflops = {dtype: self._product_gflops(dtype, n) for dtype in (ITEMSIZE if gpu else ("float32",))}
        return Ceilings(gbs, {dtype: best for dtype, best in gflops.items() if best})

    def _product_gflops(self, dtype: str, n: int) -> float:
        """0 if nobody can do it; the cases say why. Of ours only the plain one is asked: others may hang."""
        case = Case("gemm", "ceiling", str(n), dtype, dict(M=n, N=n, K=n))
        arrays = check.draw(self.xp, case.what.arrays(case.sizes), dtypes.parse(case.storage), 0)
        best = 0.0
        plain = [c for c in self.contestants if not isinstance(c, Ours) or c.algorithm == "auto"]
        for contestant in plain:
            if contestant.takes(case) and contestant.clock is self.clock:
                with contextlib.suppress(Exception):
                    best = max(best, case.flops / measure.best_of(self.clock, contestant.prepare(case, arrays)) / 1e9)
        release()
        return best

    # --- one case -----------------------------------------------------------------------------------------------------

    def run(self, case: Case) -> Row:
        """Check every contestant on this case, then time those that were right, taking turns."""
        try:
            return self._measure(case)
        finally:
            release()

    def _measure(self, case: Case) -> Row:
        rotated = math.ceil(3 * self.cache_bytes / case.bytes) if self.settings.rounds else 1
        count = max(1, min(self.most_sets, rotated))
        storage = dtypes.parse(case.storage)
        sets = [check.draw(self.xp, case.what.arrays(case.sizes), storage, seed) for seed in range(count)]
        truths = check.truths(self.xp, case, sets[0])
        results: dict[str, Row] = {}
        ready: dict[str, tuple[Contestant, list[Call]]] = {}
        for contestant in (c for c in self.contestants if c.takes(case)):
            row = results[contestant.name] = {"by": contestant.name, "ours": contestant.ours}
            self._trying(contestant.name)
            try:
                self._not_left_out(contestant, case)
                first = contestant.prepare(case, sets[0])
                row |= self._checked(contestant, first, truths)
                if row["state"] in ("ok", "inexact") and self.settings.rounds:
                    rest = [contestant.prepare(case, arrays) for arrays in sets[1:]]
                    ready[contestant.name] = (contestant, [first, *rest])
            except (DlgpuError, NotImplementedError) as error:
                row |= {"state": "not available", "reason": one_line(error)}
            except Exception as error:
                row |= {"state": "failed", "reason": one_line(error)}
                self._still_there()
        for name, figures in self._timed(ready, results).items():
            results[name] |= self._rates(case, figures)
        return {"results": list(results.values()), "sets": count, "cached": count * case.bytes < 2 * self.cache_bytes}

    def _trying(self, name: str) -> None:
        self._tell(Trying(name))

    def _not_left_out(self, contestant: Contestant, case: Case) -> None:
        if {(contestant.name, case.id), (contestant.name, case.what.family)} & {*self.settings.without}:
            raise BackendUnavailable(f"[{contestant.name}] is left out; got a crash or no answer before")
        if contestant.name != "numpy" or contestant.ours:
            return
        # 1 GB of traffic takes NumPy about as long as 10 GFLOP
        work, most = case.flops / 1e9 + case.bytes / 1e8, self.settings.reference_gflop
        if work > most:
            raise BackendUnavailable(f"[numpy] is left out beyond the work of {most:g} GFLOP; got {work:.0f}")

    def _checked(self, contestant: Contestant, call: Call, truths: list[check.Truth]) -> Row:
        on_gpu = isinstance(contestant.clock, EventClock)
        with measure.nan_filled(self.xp) if on_gpu and contestant.ours else contextlib.nullcontext():
            verdict = check.compare(truths, contestant.results(call()))
        row: Row = {"error": verdict.relative, "bounds": verdict.worst, "state": "ok"}
        if not verdict.right:
            far = not verdict.relative <= check.INEXACT
            row["state"] = "WRONG" if contestant.ours or far else "inexact"
            row["reason"] = f"relative error {verdict.relative:.2g}, worst element {verdict.worst:.3g} times its bound"
        if isinstance(contestant, Ours) and row["state"] == "ok":
            row["launches"] = contestant.launches(call)
        return row

    def _timed(self, ready: dict[str, tuple[Contestant, list[Call]]], results: dict[str, Row]) -> dict[str, Figures]:
        # Those on the CPU take turns of their own: they would leave the others no time, and share no clock with them.
        works: dict[type[Clock], dict[str, tuple[Clock, Work]]] = {}
        for name, (contestant, calls) in ready.items():
            self._trying(name)
            try:
                results[name]["cpu_us"] = self._enqueue_us(contestant.clock, calls)
                work = contestant.capture(calls, measure.best_of(contestant.clock, calls[-1], 1))
                results[name]["how"] = work.how
                works.setdefault(type(contestant.clock), {})[name] = (contestant.clock, work)
            except Exception as error:
                results[name] |= {"state": "failed", "reason": one_line(error)}
                self._still_there()
        figures: dict[str, Figures] = {}
        for together in works.values():
            rounds, limit = self.settings.rounds, self.settings.seconds
            seconds = measure.interleave(together, rounds=rounds, limit=limit, turn=self._trying)
            figures |= {name: measure.summary(of_rounds) for name, of_rounds in seconds.items()}
        return figures

    def _enqueue_us(self, clock: Clock, calls: list[Call]) -> float | None:
        """Microseconds of CPU per call, warm: what a device has to be kept busy with."""
        if not isinstance(clock, EventClock):
            return None
        calls = (calls * 8)[:8]
        calls[0]()
        clock.stream.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        taken = time.perf_counter() - start
        clock.stream.synchronize()
        return 1e6 * taken / len(calls)

    def _rates(self, case: Case, figures: Figures) -> Row:
        return asdict(figures) | {
            "gflops": case.flops / figures.us / 1e3 if case.flops else None,
            "gbs": case.bytes / figures.us / 1e3,
        }

    def _still_there(self) -> None:
        """After an error: does the device still answer? If not, this raises, and the worker is replaced."""
        if isinstance(self.clock, EventClock):
            self.clock.stream.synchronize()
            self.xp.zeros(1).get()


def _commit() -> str:
    """$DLGPU_COMMIT, or of the checkout this runs from, with "+" if it was changed; "unknown" elsewhere."""
    if given := os.environ.get("DLGPU_COMMIT"):
        return given
    root = Path(dlgpu.__file__).parents[1]
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=20)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "") if not commit.returncode else "unknown"


def _cudnn_version() -> str | None:
    with contextlib.suppress(Exception):
        import torch

        return str(torch.backends.cudnn.version())
    return None
