"""Choosing among the programs of a call by trying them out, inside `with dlgpu.autotune():`.

The first call of its kind makes a program for every candidate that needs no more workspace than the limit, compares
each result with that of the program that would be taken without tuning, and times those that agree. A kernel is not
trusted on a device before it has agreed there. What wins is remembered in the process and in a file, so a call is tuned
once for a GPU, driver, version of dlgpu and set of kernels. With the same files the same inputs give the same bits.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

import dlgpu
from dlgpu.backends import precision, tuning
from dlgpu.backends.kernels import gemm_hopper, sources
from dlgpu.backends.kernels.launching import HOPPER
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.programs import Call, Choice, Program, build, is_array, stand_in
from dlgpu.backends.kernels.symbol import Unrecordable
from dlgpu.errors import BackendUnavailable, ShapeError
from dlgpu.files import atomic_file, cache_folder

PRODUCTS = ("gemm", "batched_gemm", "linear", "linear_grad_input", "linear_grad_weight")
POOLED = "conv2d_relu_max_pool2d"  # returns places of maxima too
CONVOLUTIONS = ("conv2d", POOLED, "conv2d_grad_input", "conv2d_grad_weight", "conv2d_grad_weight_bias")
# What candidates are made of. Faster kernels enter here, under the name that `algorithm=` gives them.
ALGORITHMS = ("implicit_gemm", "direct", "im2col", "winograd2", "winograd4")
EDGES = (128, 64)
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
PAIRS = ("stride", "padding", "dilation")  # options that may be one number for both directions
ROUNDS = 5  # of timing, of which the median counts
GAIN = 0.98  # of the untuned time: what is hardly faster is not worth other roundings

# Rounding errors of a sum of n terms grow like sqrt(n) * 2^-24 of its terms' sizes; the factor makes larger ones
# unlikely in any element (Higham and Mary, SIAM J. Sci. Comput. 41 (2019): probabilistic bounds), and covers that n is
# an estimate. Winograd's transforms add up to a factor 7 (Lavin and Gray, arXiv:1509.09308, table 3).
UNLIKELY, TRANSFORMS = 16.0, 10.0
FACTOR_LOSS = {"tf32": 2.0**-10, "float32x3": 2.0**-21}  # of both factors of a product


class Clock(Protocol):
    """Measures work on a device."""

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of one run."""
        ...


class DeviceClock:
    """Events on CuPy's current stream; without a device the wall clock."""

    def __init__(self, xp: Any) -> None:
        self._cuda = getattr(xp, "cuda", None)

    def seconds(self, run: Callable[[], Any]) -> float:
        if self._cuda is None:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, end = self._cuda.Event(), self._cuda.Event()
        start.record()
        run()
        end.record()
        end.synchronize()
        return self._cuda.get_elapsed_time(start, end) / 1e3


class Store:
    """Choices on disk: a file for each call, in a folder for each identity of device, driver, version and kernels.

    Files appear whole, and two processes that tune the same call write the same file: the later one stays.
    """

    def __init__(self, device: dict[str, str]) -> None:
        self.identity = device | {"dlgpu": dlgpu.__version__, "kernels": sources.digest()}
        self.folder = cache_folder("tuning") / _digest(json.dumps(self.identity, sort_keys=True))

    def load(self, call: str) -> Choice | None:
        """The choice for a call; None, with a warning, if its file is damaged or another's."""
        found = _entry(self.folder / f"{_digest(call)}.json", {"identity": self.identity, "call": call})
        return None if found is None else Choice(**found["choice"])

    def entries(self) -> list[dict[str, Any]]:
        """What the files of this identity hold; the damaged ones nothing but a warning."""
        found = (_entry(path, {"identity": self.identity}) for path in sorted(self.folder.glob("*.json")))
        return [entry for entry in found if entry is not None]

    def save(self, call: str, choice: Choice, seconds: float) -> None:
        """Remember; where the disk does not take it, only this process does."""
        content = {"identity": self.identity, "call": call, "choice": asdict(choice), "seconds": seconds}
        path = self.folder / f"{_digest(call)}.json"
        try:
            with atomic_file(path) as file:
                file.write(json.dumps(content, indent=1).encode())
        except OSError as error:
            warnings.warn(f"[autotune] {path} cannot be written; got {error}", stacklevel=2)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _entry(path: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """What a file holds; None if there is none, and, with a warning, if it is damaged or not what is expected."""
    try:
        found = json.loads(path.read_text())
        if {name: found[name] for name in expected} != expected:
            raise ValueError("it belongs to something else")
        return found | {"choice": asdict(Choice(**found["choice"])), "seconds": float(found["seconds"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"[autotune] {path} is ignored and made again; got {error}", stacklevel=3)
        return None


def known(call: str) -> list[dict[str, Any]]:
    """What the files on this machine hold of a call: one entry for each device and driver, of this version only."""
    paths = sorted(cache_folder("tuning").glob(f"*/{_digest(call)}.json"))
    entries = [entry for path in paths if (entry := _entry(path, {"call": call})) is not None]
    version = Store({}).identity
    return [entry for entry in entries if version.items() <= entry["identity"].items()]


def key(call: Call) -> str:
    """A call with the settings in force, as text. However it spells its options, it is the same call."""
    options = dict(zip(call.names, call.values[call.positional :], strict=True))
    given = inspect.signature(getattr(KernelOps, call.op)).bind(None, *call.values[: call.positional], **options)
    given.apply_defaults()
    named = list(given.arguments.items())[1:]  # without self
    pairs = [(name, (v, v) if name in PAIRS and isinstance(v, int) else v) for name, v in named]
    settings = f"{precision.current()}, workspace {tuning.current().workspace_limit}"
    return f"{call.op}({', '.join(f'{name}={value}' for name, value in pairs)}), {settings}"


def tunable(call: Call) -> bool:
    """Products, and convolutions whose algorithm nobody named."""
    if call.op in CONVOLUTIONS:
        return dict(zip(call.names, call.values[call.positional :], strict=True)).get("algorithm", "auto") == "auto"
    return call.op in PRODUCTS


def candidates(call: Call, launcher: Any) -> Iterator[tuple[Choice, Program]]:
    """What would be taken untuned, then every other program within the workspace limit, each once."""
    limit = tuning.current().workspace_limit
    seen = set()
    tiles: list[tuple[int | None, ...]] = [(None, None), *((edge, splits) for edge in EDGES for splits in SPLITS)]
    if launcher.capability == HOPPER:
        tiles += [(None, None, *hopper) for hopper in itertools.product(gemm_hopper.WIDTHS, gemm_hopper.CLUSTERS)]
    for algorithm in (None, *(ALGORITHMS if call.op in CONVOLUTIONS else ())):
        for tile in tiles:
            choice = Choice(algorithm, *tile)
            try:
                program = build(call, launcher, choice)
            except (ShapeError, BackendUnavailable, Unrecordable):  # this one cannot do that
                continue
            launches = tuple(str(step.plan) for step in program.steps)
            if launches not in seen and (choice == Choice() or program.workspace <= limit):
                seen.add(launches)
                yield choice, program


class Tuned:
    """A program that is chosen when it first runs."""

    def __init__(self, call: Call, launcher: Any, clock: Clock) -> None:
        self.call, self.launcher, self.clock = call, launcher, clock
        self.store = Store(launcher.identity())
        self.key = key(call)
        self.choice: Choice | None = None
        self.chosen: Program | None = None  # by the first run

    def run(self, memory: list[Any]) -> Any:
        """As `Program.run`; from the second time on it is that."""
        self.choice = self.store.load(self.key)
        program = None if self.choice is None else self._remembered(self.choice)
        if program is None:
            program = self._tune(memory)
        self.chosen, self.run = program, program.run  # type: ignore[method-assign]
        return program.run(memory)

    def _remembered(self, choice: Choice) -> Program | None:
        for known, program in candidates(self.call, self.launcher):
            if known == choice:
                return program
        warnings.warn(f"[autotune] {choice} is no candidate for {self.call.op}: it is tuned again", stacklevel=3)
        return None

    def _tune(self, memory: list[Any]) -> Program:
        (_, untuned), *others = candidates(self.call, self.launcher)
        self.choice, best = Choice(), untuned
        unpooled = self._unpooled(memory)
        expected, size = _comparable(_results(untuned, memory), unpooled), self._sizes(memory)
        if not all(np.isfinite(values).all() for values in (*expected, *size)):
            return untuned  # nothing can be compared; the next process tries again
        fastest = before = self._seconds(untuned, memory)
        for choice, program in others:
            bounds = [self._bound(e, s, choice) for e, s in zip(expected, size, strict=True)]
            results = _comparable(_results(program, memory), unpooled)
            if not all(
                (np.abs(mine - theirs) <= bound).all()
                for mine, theirs, bound in zip(results, expected, bounds, strict=True)
            ):
                continue
            seconds = self._seconds(program, memory)
            if seconds < min(fastest, GAIN * before):
                self.choice, best, fastest = choice, program, seconds
        self.store.save(self.key, self.choice, fastest)
        return best

    def _seconds(self, program: Program, memory: list[Any]) -> float:
        return statistics.median(self.clock.seconds(lambda: program.run([*memory])) for _ in range(ROUNDS))

    def _sizes(self, memory: list[Any]) -> list[np.ndarray]:
        """The same on the sizes of all elements: how large the sums are whose roundings may differ."""
        sizes = [None if a is None else abs(a) for a in memory]
        arrays = iter(sizes[1:])
        values = tuple(stand_in(next(arrays)) if is_array(v) else v for v in self.call.values)
        results = _results(build(self.call._replace(values=values), self.launcher), sizes)
        # A place is judged by two elements of the convolution, each of which may be off.
        return [results[0], 2 * results[0]] if self.call.op == POOLED else results

    def _unpooled(self, memory: list[Any]) -> np.ndarray | None:
        """Of a convolution with pooling: what is pooled."""
        if self.call.op != POOLED:
            return None
        call = Call("conv2d", self.call.positional, (*self.call.names, "activation"), (*self.call.values, "relu"))
        (before,) = _results(build(call, self.launcher), memory)
        return before

    def _bound(self, expected: np.ndarray, size: np.ndarray, choice: Choice) -> float:
        """How far two correct results may lie apart: sums in another order, then each stored."""
        dtypes = [v[2] for v in self.call.values if is_array(v)]
        factors = [math.prod(v[0]) for v in self.call.values if is_array(v)][:2]
        terms = math.sqrt(math.prod(factors) / max(1, expected.size))  # (M K) (K N) / (M N) = K^2
        loss = FACTOR_LOSS.get(precision.current(), 0.0) if dtypes[0] == np.float32 else 0.0
        transforms = TRANSFORMS if (choice.algorithm or "").startswith("winograd") else 1.0
        sums = 2 * (UNLIKELY * transforms * math.sqrt(max(terms, 1.0)) * 2.0**-24 + loss)
        unit = float(ml_dtypes.finfo(dtypes[0]).eps)
        return sums * float(size.max(initial=0)) + unit * float(np.abs(expected).max(initial=0))


def _comparable(results: list[np.ndarray], unpooled: np.ndarray | None) -> list[np.ndarray]:
    """Results whose elements may be compared: places of maxima by what lies there, for equals may change places."""
    if unpooled is None:
        return results
    y, argmax = results
    p, q = argmax.shape[2:]
    windows = unpooled[:, :, : 2 * p, : 2 * q].reshape(*argmax.shape[:2], p, 2, q, 2)
    there = np.full(argmax.shape, np.nan)  # which agrees with nothing
    for place in range(4):
        there = np.where(argmax == place, windows[:, :, :, place // 2, :, place % 2], there)
    return [y, there]


def _results(program: Program, memory: list[Any]) -> list[np.ndarray]:
    """On the CPU, as float64."""
    results = program.run([*memory])
    several = results if isinstance(results, tuple) else (results,)
    return [(a.get() if hasattr(a, "get") else a).astype(np.float64) for a in several if a is not None]
