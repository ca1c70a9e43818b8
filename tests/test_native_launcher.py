"""The native launcher without a GPU.

Three parts: bindings/module.cpp over a CUDA runtime that writes down what it is asked (native_kernels/, built by g++);
the real module, built by nvcc for one architecture and two families, where there is an nvcc; and what setup.py decides.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from benchmarks.native_stand_in import FAKE, build, load, runtime
from dlgpu import backends
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.symbol import Number
from dlgpu.backends.launchers import native
from dlgpu.backends.launchers.native import NativeLauncher
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError, UnknownName

ROOT = Path(__file__).parents[1]
STREAM, DEVICE = 0x50, 3


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A folder that the first of the test workers fills; the others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            build(part)
            part.rename(folder)
    return folder


# ---- arrays that need no GPU: only their addresses are read ------------------------------------------------------


class CupyArray:
    """What the module reads of a CuPy array."""

    def __init__(self, address: int, dtype: Any) -> None:
        self.data, self.dtype = types.SimpleNamespace(ptr=address), np.dtype(dtype)
        self.shape, self.strides = (4,), (self.dtype.itemsize,)


class InterfaceArray:
    def __init__(self, address: int, typestr: str, read_only: bool = False, **more: Any) -> None:
        self.__cuda_array_interface__ = dict(
            data=(address, read_only), typestr=typestr, shape=(4,), strides=None, version=3, **more
        )


class DlpackArray:
    """A NumPy array that says that it lies on a GPU."""

    def __init__(self, array: np.ndarray, device: int = 2) -> None:
        self.array, self.device, self.stream = array, device, None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        self.stream = stream
        return self.array.__dlpack__()


class FakeCupy(types.ModuleType):
    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, devices: int = 1) -> None:
        super().__init__("cupy")
        runtime = types.SimpleNamespace(
            getDeviceCount=lambda: devices, getDevice=lambda: DEVICE, CUDARuntimeError=self.CUDARuntimeError
        )
        stream = types.SimpleNamespace(ptr=STREAM)
        self.cuda = types.SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)


# ---- over the fake runtime ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ctypes.CDLL]:
    """The module over the fake runtime, and its other face."""
    pytest.importorskip("pybind11")
    if not shutil.which("g++"):
        pytest.skip("no g++")
    flags = ("-fsanitize=undefined", "-fno-sanitize-recover")
    path = once(tmp_path_factory, "native-recorder", lambda folder: build(folder, flags)) / "_native.so"
    return load(path), runtime(path)


class Recorded:
    """The launcher over the fake runtime; `launch` gives the events of a launch."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.launcher = library, NativeLauncher()

    def launch(self, kernel: str = "everything<float>", *, shared_bytes: int = 0, **changes: Any) -> list[str]:
        args = tuple((GOOD | changes).values())
        self.library.fake_events()
        self.launcher.launch(kernel, (7, 8, 9), (32, 2, 1), args, shared_bytes)
        return self.events()

    def events(self) -> list[str]:
        return self.library.fake_events().decode().splitlines()


@pytest.fixture
def fake(recorder: tuple[Any, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    cached = [f for f in vars(sources).values() if hasattr(f, "cache_clear")]
    monkeypatch.setattr(sources, "folder", lambda: FAKE)
    monkeypatch.setattr(sources, "digest", lambda: "fake")
    monkeypatch.setitem(sys.modules, native.MODULE, recorder[0])
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    for function in cached:
        function.cache_clear()
    GOOD["shape"] = sources.pack("Shape", 5, -6)
    yield Recorded(recorder[1])
    for function in cached:
        function.cache_clear()


F, U, V = CupyArray(0x1000, "f4"), CupyArray(0x2000, "u1"), CupyArray(0x3000, "f8")
GOOD: dict[str, Any] = dict(y=F, x=F, mask=U, any=V, i=-1, u=2**32 - 1, l=-(2**63), ul=2**64 - 1, f=0.5, shape=None)


def expected(y: int = 0x1000, x: int = 0x1000) -> str:
    return f"everything {y} {x} {0x2000} {0x3000} -1 {2**32 - 1} {-(2**63)} {2**64 - 1} 0.500000 5 -6 "


def test_a_launch_passes_everything_on(fake: Recorded) -> None:
    launch = f"launch 7 8 9 32 2 1 1234 {STREAM}"
    assert fake.launch(shared_bytes=1234) == [f"device {DEVICE}", launch, expected()]


def test_a_prepared_plan_launches_what_launch_would(fake: Recorded) -> None:
    arrays, args = list(GOOD.values())[:4], list(GOOD.values())[4:]
    fake.library.fake_events()
    fake.launcher.prepare(Plan("everything<float>", (7, 8, 9), (32, 2, 1), tuple(args), 1234))(tuple(arrays))
    assert fake.events() == fake.launch(shared_bytes=1234)
    assert fake.launcher.device == DEVICE


def test_a_prepared_plan_with_numbers_that_change(fake: Recorded) -> None:
    arrays, (_, *same, f, shape) = list(GOOD.values())[:4], list(GOOD.values())[4:]
    plan = Plan("everything<float>", (7, 8, 9), (32, 2, 1), (Number(9), *same, Number(10), shape))
    start = fake.launcher.prepare(plan)
    for number, fraction in ((5, 0.25), (6, 0.75)):
        fake.library.fake_events()
        start((*arrays, number, fraction))
        assert fake.events() == fake.launch(i=number, f=fraction)
    with pytest.raises(ShapeError, match="i must fit"):
        start((*arrays, 2**31, f))


def test_a_program_checks_what_its_launches_get(fake: Recorded) -> None:
    """A replay finds arrays of the wrong type, and numbers that do not fit, as a launch does."""
    constants = {i: value for i, value in enumerate(GOOD.values()) if i not in (1, 8)}
    kernel = fake.launcher._kernel("everything<float>")
    step = ((), kernel, (7, 8, 9), (32, 2, 1), 1234, constants, {1: 1, 8: 2}, ())
    program = fake.launcher._module.Program([step], [], ())

    def plain(*args: Any, **options: Any) -> Any:
        raise AssertionError("not replayed")

    plain.__signature__ = None  # type: ignore[attr-defined]
    backend, cuda = types.SimpleNamespace(launcher=fake.launcher), fake.launcher.xp.cuda
    here = cuda.runtime.getDevice, cuda.get_current_stream
    find, changing = (lambda x, f: program), ("f",)
    op = fake.launcher._module.replayed(plain, find, backend, fake.launcher, CupyArray, changing, [], *here)
    assert op(F, f=0.5) == ()
    assert fake.events() == fake.launch(shared_bytes=1234)
    for x, f, error, words in (
        (CupyArray(1, "f2"), 0.5, DtypeError, "x must be a GPU array of float32 or None; got .*of float16"),
        (F, 1e39, ShapeError, r"f must fit float32; got 1e\+39"),
        (F, "1", DtypeError, "f must be a number; got '1'"),
        (F, F, DtypeError, "f must be a number"),
    ):
        with pytest.raises(error, match=r"^\[everything<float>\] " + words):
            op(x, f=f)
    with pytest.raises(AssertionError, match="not replayed"):
        op(F, f=0.5, extra=[])
    assert fake.events() == []


def test_a_program_of_many_launches(fake: Recorded) -> None:
    """More than have room for their arguments at a time."""
    kernel = fake.launcher._kernel("everything<float>")
    step = lambda i: ((), kernel, (7, 8, 9), (32, 2, 1), 0, dict(enumerate((GOOD | dict(i=i)).values())), {}, ())  # noqa: E731
    module = fake.launcher._module
    program = module.Program([step(i) for i in range(40)], [], ())
    plain = types.SimpleNamespace(__signature__=None)
    backend, cuda = types.SimpleNamespace(launcher=fake.launcher), fake.launcher.xp.cuda
    here = cuda.runtime.getDevice, cuda.get_current_stream
    op = module.replayed(plain, lambda: program, backend, fake.launcher, CupyArray, (), [], *here)
    expected = [event for i in range(40) for event in fake.launch(i=i)[1:]]
    for _ in range(2):
        op()
        assert [event for event in fake.events() if not event.startswith("device ")] == expected


def test_each_instantiation_is_itself(fake: Recorded) -> None:
    for type_, dtype in (("float", "f4"), ("__half", "f2"), ("__nv_bfloat16", ml_dtypes.bfloat16)):
        array = CupyArray(0x4000, dtype)
        for _ in range(2):  # the second time, the dtype is remembered
            events = fake.launch(f"everything<{type_}>", y=array, x=array)
            assert events[-1] == expected(0x4000, 0x4000)


def test_null_and_empty_arrays(fake: Recorded) -> None:
    assert fake.launch(y=None, x=CupyArray(0, "f4"))[-1] == expected(0, 0)


@pytest.mark.parametrize("kind", ["f4", "f2", "V2"])
def test_arrays_with_an_interface(fake: Recorded, kind: str) -> None:
    kernel = {"f4": "everything<float>", "f2": "everything<__half>", "V2": "everything<__nv_bfloat16>"}[kind]
    array = InterfaceArray(0x5000, f"<{kind}")
    assert fake.launch(kernel, y=array, x=array)[-1] == expected(0x5000, 0x5000)
    assert fake.launch(kernel, y=None, x=InterfaceArray(0x5000, f"<{kind}", read_only=True))[-1] == expected(0, 0x5000)


def test_the_kernel_waits_for_other_streams(fake: Recorded) -> None:
    x, own = InterfaceArray(0x5000, "<f4", stream=77), InterfaceArray(0x5000, "<f4", stream=STREAM)
    events = fake.launch(y=own, x=x)
    assert events[:3] == [f"device {DEVICE}", "record 77", f"wait {STREAM}"]
    assert len(events) == 5
    assert len(fake.launch(y=own, x=InterfaceArray(0x5000, "<f4", stream=None))) == 3


def test_arrays_with_dlpack(fake: Recorded) -> None:
    memory = np.zeros(6, np.float32)
    array = DlpackArray(memory[2:])
    assert fake.launch(x=array)[-1] == expected(x=memory.ctypes.data + 8)
    assert array.stream == STREAM
    managed = DlpackArray(memory, device=13)
    assert fake.launch(x=managed)[-1] == expected(x=memory.ctypes.data)
    fake.launcher.xp.cuda.get_current_stream().ptr = 0
    fake.launch(x=array)
    assert array.stream == 1  # DLPack's name of the default stream


def test_memory_given_by_dlpack_is_freed(fake: Recorded) -> None:
    memory = np.zeros(6, np.float32)
    before = sys.getrefcount(memory)
    for _ in range(3):
        fake.launch(x=DlpackArray(memory))
    assert sys.getrefcount(memory) == before


def test_large_shared_memory_is_asked_for_once(fake: Recorded) -> None:
    attribute = "attribute 8 "  # cudaFuncAttributeMaxDynamicSharedMemorySize
    asked = [
        [e for e in fake.launch(shared_bytes=kib << 10) if e.startswith(attribute)] for kib in (48, 64, 64, 60, 96)
    ]
    assert asked == [[], [attribute + "65536"], [], [], [attribute + "98304"]]
    another = Recorded(fake.library)  # launcher, on the same device: it must not lower the limit
    assert [e for e in another.launch(shared_bytes=64 << 10) if e.startswith(attribute)] == []
    fake.launcher.xp.cuda.runtime.getDevice = lambda: DEVICE + 1
    assert fake.launch(shared_bytes=64 << 10)[:2] == [f"device {DEVICE + 1}", attribute + "65536"]


def label(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__ if isinstance(value, type) else " ".join(value)


POINTER = "must be a (writeable )?GPU array of float32 or None; got "


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            dict(y=CupyArray(1, "f2")),
            DtypeError,
            "y must be a writeable GPU array of float32 or None; got .*of float16",
        ),
        (dict(x=CupyArray(1, "i4")), DtypeError, "x must be a GPU array of float32 or None; got .*of int32"),
        (dict(x=np.zeros(3, np.float32)), DtypeError, "x must be a GPU array .* got numpy.ndarray of float32"),
        (dict(x=DlpackArray(np.zeros(3, np.float32), device=1)), DtypeError, f"x {POINTER}.*DlpackArray"),
        (dict(x=DlpackArray(np.zeros(3))), DtypeError, f"x {POINTER}"),
        (dict(x=DlpackArray(np.zeros(3, np.int32))), DtypeError, f"x {POINTER}"),
        (dict(x=InterfaceArray(1, "<f8")), DtypeError, f"x {POINTER}"),
        (dict(x=InterfaceArray(1, ">f4")), DtypeError, f"x {POINTER}"),
        (dict(y=InterfaceArray(1, "<f4", read_only=True)), DtypeError, f"y {POINTER}"),
        (dict(mask=F), DtypeError, "mask must be a GPU array of uint8"),
        (dict(any=7), DtypeError, "any must be a GPU array of void or None; got builtins.int"),
        (dict(x=types.SimpleNamespace(data=None)), DtypeError, f"x {POINTER}"),
        (dict(i=2**31), ShapeError, "i must fit int32; got 2147483648"),
        (dict(i=-(2**31) - 1), ShapeError, "i must fit int32"),
        (dict(i=2**70), ShapeError, "i must fit int32"),
        (dict(i=1.0), DtypeError, "i must be an integer; got 1.0"),
        (dict(i=None), DtypeError, "i must be an integer; got None"),
        (dict(i="1"), DtypeError, "i must be an integer; got '1'"),
        (dict(i=np.zeros((), np.int32)), DtypeError, "i must be an integer"),
        (dict(u=-1), ShapeError, "u must fit uint32; got -1"),
        (dict(u=2**32), ShapeError, "u must fit uint32"),
        (dict(u=np.int64(-1)), ShapeError, "u must fit uint32; got -1"),
        (dict(l=2**63), ShapeError, "l must fit int64"),
        (dict(l=-(2**63) - 1), ShapeError, "l must fit int64"),
        (dict(ul=-1), ShapeError, "ul must fit uint64"),
        (dict(ul=2**64), ShapeError, "ul must fit uint64"),
        (dict(f=1e39), ShapeError, r"f must fit float32; got 1e\+39"),
        (dict(f=10**400), ShapeError, "f must fit float32"),
        (dict(f="1"), DtypeError, "f must be a number; got '1'"),
        (dict(f=1j), DtypeError, "f must be a number"),
        (dict(f=np.zeros(())), DtypeError, "f must be a number"),
        (dict(shape=5), DtypeError, "shape must be a packed struct; got 5"),
        (dict(shape=None), DtypeError, "shape must be a packed struct; got None"),
        (dict(shape=np.zeros((), "i4,i4")), DtypeError, "shape must be a packed struct"),
    ],
    ids=label,
)
def test_arguments_that_do_not_fit(fake: Recorded, changes: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=r"^\[everything<float>\] " + words):
        fake.launch(**changes)
    assert fake.events() == []  # CUDA was not called


def test_an_array_of_structs_is_no_struct(fake: Recorded) -> None:
    with pytest.raises(DtypeError, match="shape must be a packed struct"):
        fake.launch(shape=np.array([GOOD["shape"], GOOD["shape"]]))


@pytest.mark.parametrize(
    "changes",
    [
        dict(i=np.int16(-1), u=np.uint32(2**32 - 1), l=np.int64(-(2**63)), ul=np.uint64(2**64 - 1), f=np.float32(0.5)),
        dict(f=np.float16(0.5)),
        dict(f=np.float64(0.5)),
    ],
    ids=label,
)
def test_numbers_of_numpy(fake: Recorded, changes: dict[str, Any]) -> None:
    assert fake.launch(**changes)[-1] == expected()


def test_floats_keep_what_no_range_holds(fake: Recorded) -> None:
    for number, text in (
        (float("inf"), " inf "),
        (float("-inf"), " -inf "),
        (float("nan"), " nan "),
        (3, " 3.000000 "),
    ):
        assert text in fake.launch(f=number)[-1]


def test_wrong_names_counts_and_sizes(fake: Recorded) -> None:
    launch = fake.launcher.launch
    with pytest.raises(UnknownName, match="Did you mean 'everything<float>'"):
        launch("everything<floot>", (1, 1, 1), (1, 1, 1), ())
    for count in (0, 9, 11):
        with pytest.raises(ShapeError, match=rf"^\[everything<float>\] takes 10 arguments; got {count}$"):
            launch("everything<float>", (1, 1, 1), (1, 1, 1), (1,) * count)
    args = tuple(GOOD.values())
    for bad in ((0, 1, 1), (1, 1), (1, -1, 1), (1, 1, 2**32), (1.0, 1, 1), 5):
        with pytest.raises(ValueError, match="grid must be three positive integers; got"):
            launch("everything<float>", bad, (1, 1, 1), args)
        with pytest.raises(ValueError, match="block must be three positive integers; got"):
            launch("everything<float>", (1, 1, 1), bad, args)
    assert fake.events() == []


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (100, BackendUnavailable, r"\[cuda:native\] there must be an NVIDIA GPU and its driver; got cudaErrorFake"),
        (35, BackendUnavailable, r"\[cuda:native\] there must be an NVIDIA GPU and its driver"),
        (802, BackendUnavailable, r"\[cuda:native\] there must be an NVIDIA GPU and its driver"),
        (209, BackendUnavailable, r"\[cuda:native\] must be built for this GPU; .*DLGPU_CUDA_ARCHITECTURES"),
        (222, BackendUnavailable, r"\[cuda:native\] must be built for this GPU; .*DLGPU_CUDA_ARCHITECTURES"),
        (
            700,
            RuntimeError,
            r"\[everything<float>\] it and all kernels before it must .*; got .*CUDA_LAUNCH_BLOCKING=1",
        ),
        (719, RuntimeError, r"\[everything<float>\] it and all kernels before it must run to their end; got cudaErr"),
        (
            9,
            RuntimeError,
            r"\[everything<float>\] CUDA must accept the launch; got .*grid \(7, 8, 9\), block \(32, 2, 1\)",
        ),
    ],
)
def test_errors_of_cuda(fake: Recorded, code: int, error: type, words: str) -> None:
    fake.library.fake_error(code, 0)
    with pytest.raises(error, match="^" + words):
        fake.launch()
    assert fake.events()[-1] == "cleared"
    assert fake.launch()[-1] == expected()


# ---- what is missing ---------------------------------------------------------------------------------------------


def test_native_comes_first_where_it_is_built(fake: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    best = backends._best_cuda.__wrapped__
    assert best() == "cuda:native"
    monkeypatch.setattr(native, "built", lambda: False)
    assert best() == "cuda:cupy"


def test_a_module_of_other_kernels(fake: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "digest", lambda: "edited")
    with pytest.raises(BackendUnavailable, match="must be built from these kernels; got others: `DLGPU_CUDA=1 pip"):
        NativeLauncher()


def test_a_module_without_its_libraries(fake: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libstdc++.so.6: cannot open")

    monkeypatch.setattr(native.importlib, "import_module", fail)
    with pytest.raises(BackendUnavailable, match=r"must load; got libstdc\+\+.so.6: cannot open"):
        NativeLauncher()


def test_no_gpu(fake: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(devices=0))
    with pytest.raises(BackendUnavailable, match=r"^\[cuda:native\] there must be an NVIDIA GPU; got none"):
        NativeLauncher()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match=r"^\[cuda:native\] CuPy is missing.*pip install"):
        NativeLauncher()


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "built", lambda: False)
    with pytest.raises(BackendUnavailable, match="the ahead-of-time module is missing: `DLGPU_CUDA=1 pip install"):
        NativeLauncher()


# ---- the real module ---------------------------------------------------------------------------------------------

FAMILIES = ("movement", "optim")  # structs and scalars; quick to compile


def project(folder: Path, families: tuple[str, ...]) -> Path:
    """A copy of what a build reads, with these families only."""
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "bindings", folder / "bindings")
    code = shutil.ignore_patterns("*.so", "__pycache__", "mnist_files")
    shutil.copytree(ROOT / "dlgpu", folder / "dlgpu", ignore=code)
    (folder / "kernels").mkdir()
    for path in (*(ROOT / "kernels").glob("*.cuh"), *(ROOT / "kernels" / f"{family}.cu" for family in families)):
        shutil.copy(path, folder / "kernels")
    return folder


def python(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "DLGPU"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=variables | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel with the module for one architecture, built as pip does."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pybind11")
    if not (shutil.which("nvcc") and shutil.which("cmake")):
        pytest.skip("building the real module needs nvcc and cmake")

    def build_wheel(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        code = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
        built = python(project(source, FAMILIES), code, DLGPU_CUDA="1", DLGPU_CUDA_ARCHITECTURES="sm_80, 90a")
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        (file,) = folder.glob("*.whl")
        zipfile.ZipFile(file).extractall(folder / "wheel")

    return once(tmp_path_factory, "native-wheel", build_wheel) / "wheel"


@pytest.fixture(scope="module")
def module_path(wheel: Path) -> Path:
    (path,) = wheel.rglob("*.so")
    assert path.parent == wheel / "dlgpu" / "backends" / "launchers"
    return path


def test_the_module_knows_its_kernels(wheel: Path, module_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(module_path)
    names = [name for family in FAMILIES for name in sources.families()[family]]
    assert sorted(module.names()) == sorted(names)
    for name in names:
        declared = sources.parameters(name)
        deduced = module.Kernel(name, declared).signature
        assert [type_.endswith("*") for type_ in deduced] == [p.pointer for p in declared]
        values = [p.type for p in declared if p.type is not None]
        spelled = [f"{t.itemsize} bytes" if t.names else str(t) for t in values]
        assert [type_ for type_ in deduced if not type_.endswith("*")] == spelled
    with pytest.raises(KeyError):
        module.Kernel("dl::unknown", [])
    with pytest.raises(ValueError, match="must be declared with 16 parameters; got 1"):
        module.Kernel("dl::adam_step<float>", sources.parameters("dl::adam_step<float>")[:1])
    monkeypatch.setattr(sources, "folder", lambda: wheel / "dlgpu" / "kernels")
    assert module.sources == sources.digest.__wrapped__()


def test_without_a_gpu_it_says_so(wheel: Path) -> None:
    """In a process of its own, from the wheel, with everything real but CuPy: import, check, launch."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.append({str(ROOT)!r})  # benchmarks/; dlgpu is the wheel's
import test_native_launcher as t
from dlgpu import backends
from dlgpu.backends.launchers.native import NativeLauncher
try:
    backends.get("cuda:native")
except t.BackendUnavailable as error:
    print("get:", error)
sys.modules["cupy"] = t.FakeCupy()
launcher = NativeLauncher()
x = t.CupyArray(0, "f4")
for args in ((x, x, None, None, None, 4, 0.1, 0.9, 0, 1), (x, x, None, None, None, 4, 0.1, 0.9, 0, 0.0)):
    try:
        launcher.launch("dl::sgd_step<float>", (1, 1, 1), (256, 1, 1), args[:-1] + (args[-1] or "zero",))
    except Exception as error:
        print(type(error).__name__, error)
"""
    # No device for the runtime to find, also where there is one.
    result = python(wheel, code, PYTHONPATH=str(wheel), CUDA_VISIBLE_DEVICES="-1")
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert lines[0].startswith("get: [backends] 'cuda:native' is not available: [cuda:native] ")
    assert lines[1].startswith("BackendUnavailable [cuda:native] there must be an NVIDIA GPU and its driver; got cuda")
    assert lines[2] == "DtypeError [dl::sgd_step<float>] weight_decay must be a number; got 'zero'"


def test_the_module_needs_no_library_of_nvidia(module_path: Path) -> None:
    assert b"libcuda" not in b"".join(needed(module_path.read_bytes()))


def test_machine_code_for_each_architecture_and_ptx_of_the_last(module_path: Path) -> None:
    assert fat_binaries(module_path.read_bytes()) == {("elf", 80), ("elf", 90), ("ptx", 90)}


def needed(elf: bytes) -> list[bytes]:
    """The libraries that a 64-bit ELF file names (DT_NEEDED)."""
    sections = elf_sections(elf)
    strings, dynamic = sections[b".dynstr"], sections[b".dynamic"]
    entries = struct.iter_unpack("<QQ", dynamic)
    return [strings[value : strings.index(b"\0", value)] for tag, value in entries if tag == 1]


def elf_sections(elf: bytes) -> dict[bytes, bytes]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    start = headers[names][4]
    return {elf[start + h[0] : elf.index(b"\0", start + h[0])]: elf[h[4] : h[4] + h[5]] for h in headers}


def fat_binaries(elf: bytes) -> set[tuple[str, int]]:
    """Kind and architecture of everything that nvcc embedded; what tells sm_90a from sm_90 is not in these headers."""
    section, found, at = elf_sections(elf)[b".nv_fatbin"], set(), 0
    while (at := section.find(struct.pack("<I", 0xBA55ED50), at)) >= 0:
        header, size = struct.unpack_from("<HQ", section, at + 6)
        end, at = at + header + size, at + header
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", section, at)
            found.add(({1: "ptx", 2: "elf"}[kind], struct.unpack_from("<I", section, at + 28)[0]))
            at += header + size
    return found


# ---- what setup.py decides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "release", "requires", "words"),
    [
        ("0", "13.0", False, ""),
        ("auto", "13.0", True, ""),
        ("auto", "12.0", True, ""),
        ("auto", "11.8", False, "[setup] cuda:native is not built: "),
        ("auto", None, False, "[setup] cuda:native is not built: "),
        ("1", "12.4", True, ""),
        ("1", "11.8", None, "[setup] DLGPU_CUDA=1 must find nvcc 12.0 or newer; got "),
        ("1", None, None, "[setup] DLGPU_CUDA=1 must find nvcc 12.0 or newer; got "),
        ("yes", "13.0", None, "[setup] DLGPU_CUDA must be auto, 0 or 1; got 'yes'"),
    ],
)
def test_setup_decides(tmp_path: Path, choice: str, release: str | None, requires: bool | None, words: str) -> None:
    """requires: whether pip has to fetch what a build needs; None: the installation fails, with one line."""
    pytest.importorskip("setuptools", minversion="77")
    nvcc = tmp_path / "nvcc"
    if release:
        nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
        nvcc.chmod(0o755)
    code = "from setuptools import build_meta; print('needs', build_meta.get_requires_for_build_wheel())"
    (tmp_path / "source").mkdir()
    result = python(project(tmp_path / "source", ()), code, DLGPU_CUDA=choice, CUDACXX=str(nvcc))
    assert words in result.stdout + result.stderr
    assert (result.returncode == 0) == (requires is not None), result.stderr
    assert re.findall(r"needs \[.*pybind11", result.stdout) != [] or not requires
    assert "Traceback" not in result.stdout + result.stderr
