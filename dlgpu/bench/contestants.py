"""Who can run a case: this library, its NumPy reference, PyTorch, the array library's own product
(cuBLAS), and cuDNN's own convolutions.

A contestant gets the same numbers as all others, in the memory format that it likes best, and gives back functions
without arguments. What it cannot do raises `BackendUnavailable`, which becomes a row of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, Protocol

import numpy as np

from dlgpu.backends import precision, reference, tuning
from dlgpu.backends.kernels.launching import filled
from dlgpu.bench.arrange import arranged
from dlgpu.bench.cases import Case
from dlgpu.bench.cudnn_frontend import Cudnn
from dlgpu.bench.measure import Call, Clock, EventClock, WallClock, Work, cycle, one_by_one
from dlgpu.bench.ops import Arrays
from dlgpu.errors import BackendUnavailable
from dlgpu.memory_format import MemoryFormat

BASELINES = ("numpy", "torch", "cublas", "cudnn")
HOPPER = "hopper"  # as an algorithm: the kernels that `dlgpu.backends.tuning.hopper` forces


class Contestant(Protocol):
    """See the module's text."""

    name: str
    ours: bool

    @property
    def clock(self) -> Clock:
        """What times its work."""
        ...

    def takes(self, case: Case) -> bool:
        """False where it would only repeat another contestant, or has nothing of that kind."""
        ...

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        """A function that runs the case on these arrays and returns what `results` understands."""
        ...

    def results(self, returned: Any) -> tuple[Any, ...]:
        """What a call returned, as NumPy or CuPy arrays."""
        ...

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        """The calls, ready to be timed."""
        ...


class Ours:
    """A backend of this library. Images and weights are channels_last unless asked otherwise.

    `how` labels wall-clock figures: "clock", or "emulated" for the host launcher, which says nothing about a GPU.
    """

    def __init__(
        self,
        backend: Any,
        clock: Clock,
        name: str = "dlgpu",
        algorithm: str = "auto",
        layout: MemoryFormat = "channels_last",
        *,
        autotune: bool = False,
        ours: bool = True,
        how: str = "clock",
    ) -> None:
        self.backend, self.clock, self.ours, self.how = backend, clock, ours, how
        self.algorithm, self.layout, self.autotune = algorithm, layout, autotune
        self.name = name + (f" {algorithm}" if algorithm != "auto" else "") + (" tuned" if autotune else "")

    def takes(self, case: Case) -> bool:
        if self.algorithm == HOPPER:
            return case.what.family in ("conv", "product") and case.dtype in ("float16", "bfloat16")
        return self.algorithm == "auto" or case.what.family == "conv"

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        if case.dtype in ("tf32", "float32x3") and self.backend is reference:
            raise BackendUnavailable(f"[{self.name}] computes float32 products exactly; got {case.dtype} asked for")
        if case.dtype == "tf32" and self.algorithm == "winograd4":
            raise BackendUnavailable(f"[{self.name}] multiplies roundings by ten; got tf32, which has none to spare")
        capability = getattr(getattr(self.backend, "launcher", None), "capability", None)
        if self.algorithm == HOPPER and capability != 90:
            raise BackendUnavailable(f"[{self.name}] wgmma kernels want capability 9.0; got {capability}")
        if self.backend.xp is np:
            arrays = {name: a.get() if hasattr(a, "get") else a for name, a in arrays.items()}
        own = arranged(self.backend.xp, case, arrays, self.layout, self.layout)
        sizes = dict(case.sizes) | {"algorithm": "auto" if self.algorithm == HOPPER else self.algorithm}
        own |= case.what.saved(self.backend, own, sizes)
        settings: list[Callable[[], AbstractContextManager[None]]] = []
        if case.dtype in ("tf32", "float32x3"):
            settings.append(lambda: precision.use(case.dtype))  # type: ignore[arg-type]
        if self.algorithm == HOPPER:
            settings.append(tuning.hopper)
        if self.autotune:
            settings.append(tuning.autotune)
        if not settings:
            return lambda: case.what.call(self.backend, own, sizes)

        def call() -> Any:
            with ExitStack() as stack:
                for setting in settings:
                    stack.enter_context(setting())
                return case.what.call(self.backend, own, sizes)

        return call

    def results(self, returned: Any) -> tuple[Any, ...]:
        return returned if isinstance(returned, tuple) else (returned,)

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        if isinstance(self.clock, EventClock):
            return self.clock.capture(calls, seconds_per_call)
        return cycle(calls, self.how, seconds_per_call)

    def launches(self, call: Call) -> list[str]:
        """The kernels that one call launches, with grid and block; none in the reference, which has no launcher."""
        launcher = getattr(self.backend, "launcher", None)
        if launcher is None:
            return []
        log = _Log(launcher)
        self.backend.launcher = log
        try:
            call()
        finally:
            self.backend.launcher = launcher
        return log.lines


class _Log:
    """A launcher that notes what it passes on."""

    null = None  # as `launch` takes it

    def __init__(self, launcher: Any) -> None:
        self._launcher = launcher
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launcher, name)

    def launch(self, kernel: str, grid: Any, block: Any, args: Any, shared_bytes: int = 0) -> None:
        sizes = " x ".join("x".join(map(str, dims)) for dims in (grid, block))
        self.lines.append(f"{kernel.removeprefix('dl::')} on {sizes}")
        self._launcher.launch(kernel, grid, block, args, shared_bytes)

    def prepare(self, plan: Any) -> Any:
        kernel, grid, block, args, shared = plan.kernel, plan.grid, plan.block, plan.args, plan.shared_bytes
        return lambda values: self.launch(kernel, grid, block, filled(args, values), shared)


class Torch:
    """PyTorch in one memory format, with `cudnn.benchmark`, on the same device and stream as we are.

    Products of half-precision numbers are summed in float32, as here (PyTorch's default lets cuBLAS round partial sums
    to the narrow type). Arrays are shared, not copied, unless the memory format or the op demands a copy.
    """

    ours = False

    def __init__(self, clock: Clock, layout: MemoryFormat = "contiguous") -> None:
        try:
            import torch
        except ImportError as error:
            raise BackendUnavailable(f"[torch] PyTorch is not installed; got {error}: pip install torch") from error
        self.torch, self.clock, self.layout = torch, clock, layout
        self.name = "torch" if layout == "contiguous" else f"torch {layout}"
        self.device = "cuda" if isinstance(clock, EventClock) else "cpu"
        if isinstance(clock, EventClock):
            if not torch.cuda.is_available():
                raise BackendUnavailable("[torch] this PyTorch has no CUDA; got a CPU build: install a CUDA build")
            self.stream = torch.cuda.ExternalStream(clock.stream.ptr)
            torch.cuda.set_stream(self.stream)
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        else:
            from dlgpu.threads import num_threads

            torch.set_num_threads(num_threads())

    def takes(self, case: Case) -> bool:
        images = any(len(draw.shape) == 4 for draw in case.what.arrays(case.sizes).values())
        return self.layout == "contiguous" or (images and case.what.layout is None)

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        if case.dtype == "tf32" and self.device == "cpu":
            raise BackendUnavailable("[torch] TF32 is for GPUs; got the CPU")
        if self.device == "cuda":  # one case has one precision, so these may stay as they are until the next
            self.torch.backends.cuda.matmul.allow_tf32 = case.dtype == "tf32"
            self.torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"
        xp = np if self.device == "cpu" else self.clock.cupy  # type: ignore[attr-defined]
        own = arranged(xp, case, arrays, self.layout, self.layout)
        with self.torch.no_grad():
            run = case.what.torch(self.torch, {name: self._tensor(a) for name, a in own.items()}, case.sizes)

        def call() -> Any:
            with self.torch.no_grad():
                return run()

        return call

    def _tensor(self, a: Any) -> Any:
        """Shares memory. bfloat16 goes as int16: not every exchange format knows it."""
        if str(a.dtype) == "bfloat16":
            return self.torch.from_dlpack(a.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_dlpack(a)

    def results(self, returned: Any) -> tuple[Any, ...]:
        xp = np if self.device == "cpu" else self.clock.cupy  # type: ignore[attr-defined]
        return tuple(self._array(xp, t.detach()) for t in (returned if isinstance(returned, tuple) else (returned,)))

    def _array(self, xp: Any, t: Any) -> Any:
        if t.dtype == self.torch.bfloat16:
            from dlgpu.dtypes import bfloat16

            return xp.from_dlpack(t.view(self.torch.int16)).view(bfloat16)
        return xp.from_dlpack(t)

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        if self.device == "cpu":
            return cycle(calls, "clock", seconds_per_call)
        work = one_by_one(calls, seconds_per_call)
        work.run()  # cudnn.benchmark tries its algorithms here
        self.stream.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        try:
            with self.torch.cuda.graph(graph, stream=self.stream):
                work.run()
        except RuntimeError as error:
            work.how = f"events (no graph: {str(error).splitlines()[0][:200]})"
            return work
        return Work(graph.replay, work.calls, "graph", [graph])


class Cublas:
    """The product of the array library: cuBLAS as CuPy calls it."""

    name, ours = "cublas (CuPy)", False

    def __init__(self, clock: Clock) -> None:
        if not isinstance(clock, EventClock):
            raise BackendUnavailable("[cublas] is for GPUs; got the CPU")
        self.clock: EventClock = clock
        self.cupy = clock.cupy

    def takes(self, case: Case) -> bool:
        return case.what.library is not None

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        if case.dtype == "tf32":
            raise BackendUnavailable("[cublas] CuPy takes TF32 for a whole process only (CUPY_TF32); see torch's row")
        if case.op == "batched_gemm" and case.storage != "float32":  # cupy/cupy#10317
            raise BackendUnavailable(f"[cublas] CuPy multiplies no batches of {case.dtype} as such; see torch's row")
        assert case.what.library is not None
        library = case.what.library
        return lambda: library(self.cupy, arrays, case.sizes)

    def results(self, returned: Any) -> tuple[Any, ...]:
        return (returned,)

    def capture(self, calls: Sequence[Call], seconds_per_call: float) -> Work:
        # CuPy refuses to call cuBLAS on a stream that is being captured
        return one_by_one(calls, seconds_per_call)


def baselines(names: Sequence[str], clock: Clock) -> tuple[list[Contestant], dict[str, str]]:
    """The baselines of that name that are there, and for the others the reason why not."""
    found: list[Contestant] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            if name == "numpy":
                found.append(
                    Ours(
                        reference,
                        clock if isinstance(clock, WallClock) else WallClock(),
                        "numpy",
                        layout="contiguous",
                        ours=False,
                    )
                )
            elif name == "cublas":
                found.append(Cublas(clock))
            elif name == "cudnn":
                found.append(Cudnn(clock))
            else:
                found += [Torch(clock, "contiguous"), Torch(clock, "channels_last")]
        except BackendUnavailable as error:
            missing[name] = str(error)
    return found, missing


def release() -> None:
    """Give back the device memory that a finished case had."""
    import gc
    import sys

    gc.collect()
    if "cupy" in sys.modules:
        with suppress(Exception):  # a lost device: the worker finds out by itself
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        with suppress(Exception):
            sys.modules["torch"].cuda.empty_cache()
