"""What of the CuPy launcher can be checked without a GPU: arguments, targets, the cubin cache, and what it says."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlgpu.backends.kernels import KernelBackend, sources
from dlgpu.backends.kernels.geometry import strides
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.programs import Call, build
from dlgpu.backends.kernels.symbol import Number
from dlgpu.backends.launchers import cupy as launcher
from dlgpu.backends.launchers import gpu
from dlgpu.bench.contestants import Ours
from dlgpu.bench.measure import WallClock
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError

KERNEL = "dl::adam_step<float>"


def arguments(**changes: Any) -> tuple[Any, ...]:
    arena = np.zeros(4, np.float32)
    pointers = ("param", "grad", "exp_avg", "exp_avg_sq", "scaler", "half")
    given = dict.fromkeys(pointers, arena) | dict(count=4)
    numbers = ("step", "lr", "log_beta1", "log_beta2", "rest1", "rest2", "eps", "weight_decay", "keep")
    given |= dict.fromkeys(numbers, 0.5)
    given |= changes
    return tuple(given[p.name] for p in sources.parameters(KERNEL))


def test_numbers_get_the_declared_types() -> None:
    cast = launcher.cast(KERNEL, arguments(), np.ndarray)
    assert all(isinstance(value, np.ndarray) for value in cast[:6])
    assert isinstance(cast[6], np.uint32)
    assert all(isinstance(value, np.float32) for value in cast[7:])


def test_structs_and_null_pointers() -> None:
    x = np.zeros((1, 2, 3, 4), np.float32)
    s = strides(x)
    cast = launcher.cast("dl::copy<float, float>", (x, None, 2, 3, 4, 24, s, s), np.ndarray)
    assert cast[1] == 0
    assert isinstance(cast[1], np.uint64)
    assert cast[6] is s
    assert s.shape == ()  # CuPy passes NumPy arrays of size one by value


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(count=2.0), DtypeError, "count must be an integer; got 2.0"),
        (dict(count=-1), ShapeError, "count must fit uint32; got -1"),
        (dict(count=2**40), ShapeError, "count must fit uint32"),
        (dict(count=np.int64(-1)), ShapeError, "count must fit uint32; got -1"),
        (dict(lr="0.5"), DtypeError, "lr must be a number; got '0.5'"),
        (dict(lr=1e39), ShapeError, r"lr must fit float32; got 1e\+39"),
        (dict(grad=[1.0]), DtypeError, "grad must be a GPU array or None; got builtins.list"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        launcher.cast(KERNEL, arguments(**changes), np.ndarray)


def test_wrong_count_and_wrong_struct() -> None:
    with pytest.raises(ShapeError, match="takes 16 arguments; got 2"):
        launcher.cast(KERNEL, (1, 2), np.ndarray)
    x = np.zeros((1, 2, 3, 4), np.float32)
    with pytest.raises(DtypeError, match="x_strides must be a packed struct"):
        launcher.cast("dl::copy<float, float>", (x, x, 2, 3, 4, 24, 5, 5), np.ndarray)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        (75, "sm_75"),
        (80, "sm_80"),
        (86, "sm_86"),
        (87, "sm_86"),
        (89, "sm_89"),
        (90, "sm_90a"),
        (100, "sm_100"),
        (103, "sm_100"),
        (120, "sm_120"),
        (121, "sm_120"),
    ],
)
def test_targets(capability: int, arch: str) -> None:
    assert launcher.architecture(capability) == arch


def test_targets_without_kernels() -> None:
    with pytest.raises(BackendUnavailable, match="got sm_61"):
        launcher.architecture(61)


def test_cubins_are_cached_under_their_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLGPU_CACHE", str(tmp_path))
    path, names = launcher.cubin("optim", "sm_90a")
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert set(names) == set(sources.families()["optim"])
    before = path.stat().st_mtime_ns
    assert launcher.cubin("optim", "sm_90a")[0].stat().st_mtime_ns == before
    monkeypatch.setattr(sources, "digest", lambda: "edited")
    assert launcher.cubin("optim", "sm_90a")[0] != path


def test_without_cupy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match=r"CuPy is missing.*pip install .dlgpu\[cuda12\]"):
        launcher.CupyLauncher()


# --- over a CuPy that notes what it is asked ----------------------------------------------------------------------


class Function:
    """A loaded kernel."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, name: str) -> None:
        self.name = name
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...], shared_mem: int) -> None:
        self.launches.append((grid, block, args, shared_mem))


class FakeCupy(types.ModuleType):
    """An H100 as device 3, whose modules hold adam_step under a mangled name."""

    ndarray = np.ndarray

    def __init__(self) -> None:
        super().__init__("cupy")
        self.loaded: list[str] = []
        self.function = Function("mangled")
        runtime = types.SimpleNamespace(
            CUDARuntimeError=RuntimeError,
            getDeviceCount=lambda: 4,
            getDevice=lambda: 3,
            getDeviceProperties=lambda device: {"name": b"GPU number %d" % device},
            driverGetVersion=lambda: 13_000,
        )
        device = types.SimpleNamespace(compute_capability="90", attributes={"MultiProcessorCount": 114})
        self.cuda = types.SimpleNamespace(runtime=runtime, Device=lambda: device)

    def RawModule(self, path: str) -> Any:
        self.loaded.append(path)
        return types.SimpleNamespace(get_function={"mangled": self.function}.__getitem__)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    module = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(launcher, "cubin", lambda family, arch: (Path(f"{family}-{arch}"), {KERNEL: "mangled"}))
    return module


def test_what_it_says_of_the_device(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    it = launcher.CupyLauncher()
    assert (it.capability, it.sms, it.device) == (90, 114, 3)
    file = tmp_path / "version"
    monkeypatch.setattr(gpu, "Path", lambda text: file)
    assert it.identity() == {"gpu": "GPU number 3", "driver": "CUDA 13000"}
    file.write_text("NVRM version: 580.1\nGCC version: 13\n")
    assert it.identity() == {"gpu": "GPU number 3", "driver": "NVRM version: 580.1"}


def adam(**changes: Any) -> tuple[tuple[Any, ...], Plan]:
    """The arrays of a step, one of them not there, and its plan."""
    args = arguments(half=None, **changes)
    return (*args[:5], launcher.CupyLauncher.null), Plan(
        KERNEL, (7, 1, 1), (256, 1, 1), args[6:], shared_bytes=100 << 10
    )


def same(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Whether arguments of launches are alike, in type too; arrays must be the same ones."""
    pairs = list(zip(mine, theirs, strict=True))
    return all(a is b if isinstance(b, np.ndarray) else (type(a), a) == (type(b), b) for a, b in pairs)


def test_a_prepared_plan_launches_what_launch_would(cupy: FakeCupy) -> None:
    it = launcher.CupyLauncher()
    arrays, plan = adam()
    it.prepare(plan)(arrays)
    it.launch(KERNEL, plan.grid, plan.block, (*arrays[:5], None, *plan.args), plan.shared_bytes)
    (*how, args, shared), (*wanted, expected, _) = cupy.function.launches
    assert (how, shared) == (wanted, 100 << 10)
    assert same(args, expected)
    assert isinstance(args[5], np.uint64)  # None
    assert cupy.function.max_dynamic_shared_size_bytes == 100 << 10
    assert cupy.loaded == ["optim-sm_90a"]


def test_a_prepared_plan_with_numbers_that_change(cupy: FakeCupy) -> None:
    it = launcher.CupyLauncher()
    arrays, plan = adam(step=Number(9), lr=Number(10))
    start = it.prepare(plan)
    for step, lr in ((1, 0.5), (2, 0.25)):
        start((*arrays, step, lr))
        _, same_plan = adam(step=step, lr=lr)
        assert same(
            cupy.function.launches[-1][2], launcher.cast(KERNEL, (*arrays[:5], None, *same_plan.args), np.ndarray)
        )
    for lr, error in (("0.5", DtypeError), (1e39, ShapeError)):
        with pytest.raises(error, match="lr must"):
            start((*arrays, 3, lr))
    assert len(cupy.function.launches) == 2


def test_replayed_ops_pass_null_pointers(cupy: FakeCupy) -> None:
    ops = KernelBackend("cuda:cupy", "cuda", launcher.CupyLauncher())
    arenas = [np.zeros(4, np.float32) for _ in range(4)]
    for step in (1, 2):
        ops.adam_step(*arenas, step=step, lr=0.5)
    first, second = (args for _, _, args, _ in cupy.function.launches)
    assert [type(arg) for arg in first] == [np.ndarray] * 4 + [np.uint64] * 2 + [np.uint32] + [np.float32] * 9
    assert list(second[4:9]) == [0, 0, 4, 2, 0.5]


class CupyArray(SimpleNamespace):
    """Takes its strides where `cupy.ndarray` does."""

    def __init__(self, shape: Any, dtype: Any, memptr: Any = None, strides: Any = None) -> None:
        super().__init__(shape=shape, dtype=dtype, strides=strides)


@pytest.mark.parametrize("array", [np.ndarray, CupyArray])
def test_channels_last_results_are_made_with_their_strides(array: type) -> None:
    """Not as a view of another array, which would cost half a microsecond more."""
    strides = (4 * 60, 4, 4 * 15, 4 * 3)
    call = Call("activation", 1, ("kind",), (((2, 3, 4, 5), strides, np.dtype(np.float32), 0), "relu"))
    started: list[Any] = []
    it = SimpleNamespace(xp=SimpleNamespace(ndarray=array), capability=90, sms=132, prepare=lambda plan: started.append)
    program = build(call, it)  # type: ignore[arg-type]
    result = program.run([None, "x"])
    assert type(result) is array
    assert (result.shape, result.strides, result.dtype) == ((2, 3, 4, 5), strides, np.float32)
    assert started[0][0] == "x"
    assert started[0][1] is result
    assert len(program.steps[0].make) == 1


def test_listing_launches_passes_them_on(cupy: FakeCupy) -> None:
    ops = KernelBackend("cuda:cupy", "cuda", launcher.CupyLauncher())
    arenas = [np.zeros(4, np.float32) for _ in range(4)]
    lines = Ours(ops, WallClock()).launches(lambda: ops.adam_step(*arenas, step=1, lr=0.5))
    assert lines == ["adam_step<float> on 1x1x1 x 256x1x1"]
    assert cupy.function.launches[0][2][5] == 0
