"""The native launcher's replay of ops, in C++, over a CUDA runtime that writes launches down with all their bytes.

What a replay launches must be what the same op launches when it is planned anew, in order and to the byte.
"""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from test_contract import CALLS
from test_native_launcher import once, recorder  # noqa: F401  # a fixture

import dlgpu
from benchmarks.native_stand_in import NativeStandIn
from dlgpu.backends import contract, precision, tuning
from dlgpu.backends.kernels import KernelBackend, programs, sources
from dlgpu.backends.kernels.autotune import Tuned
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.bench.contestants import Ours
from dlgpu.errors import DtypeError, ShapeError


class Address:
    def __init__(self, array: np.ndarray) -> None:
        self.ptr = array.ctypes.data


class DeviceArray(np.ndarray):
    """Tells its real address, as an array of CuPy does, and `made` of every array that is allocated."""

    made: ClassVar[Callable[[Any], None]]

    def __new__(cls, shape: Any, dtype: Any, buffer: None = None, offset: int = 0, strides: Any = None) -> DeviceArray:
        array = super().__new__(cls, shape, dtype, buffer, offset, strides)
        array.fill(0)
        cls.made(array)
        return array

    @property
    def data(self) -> Address:  # type: ignore[override]
        return Address(self)


class Recorded:
    """A backend that replays natively, its ops without replay, and what they launch."""

    def __init__(self, module: Any, library: Any) -> None:
        self.library = library
        self.kept: list[np.ndarray] = []  # everything allocated: so that no address is used twice
        self.keeping = True
        DeviceArray.made = self.made
        self.launcher = NativeStandIn(module, DeviceArray)
        self.clock = Clock()
        self.ops, self.plain = KernelBackend("native", "cuda", self.launcher, self.clock), KernelOps(self.launcher)

    def made(self, array: np.ndarray) -> None:
        if self.keeping:
            self.kept.append(array)

    def events(self) -> list[str]:
        return self.library.fake_events().decode().splitlines()

    def launches(self, run: Callable[[], Any]) -> list[Any]:
        """Sizes and stream, then the kernel with its arguments; what was allocated meanwhile by its number."""
        self.kept.clear()
        self.events()
        run()
        return [self._named(event) for event in self.events() if not event.startswith(("device ", "attribute "))]

    def _named(self, event: str) -> Any:
        if event.startswith("launch "):
            return event
        kernel = event[: event.rindex(">") + 1] if ">" in event else event.split(" ")[0]
        parameters = sources.parameters(kernel)
        raw = event[len(kernel) + 1 :].split(" ")
        return kernel, *[self._place(r) if p.pointer else r for p, r in zip(parameters, raw, strict=True)]

    def _place(self, raw: str) -> Any:
        address = int.from_bytes(bytes.fromhex(raw), "little")
        for number, array in enumerate(self.kept):
            if array.nbytes and 0 <= address - array.ctypes.data < array.nbytes:
                return "allocated", number, address - array.ctypes.data
        return address

    def replayed(self, run: Callable[[], Any]) -> list[Any]:
        """What a second call launches; it must not have come to Python for its program."""
        run()
        before = self.ops.program.cache_info()
        found = self.launches(run)
        assert self.ops.program.cache_info() == before
        return found


class Clock:
    """Every run takes a second."""

    def seconds(self, run: Callable[[], Any]) -> float:
        run()
        return 1.0


@pytest.fixture
def native(recorder: tuple[Any, Any]) -> Iterator[Recorded]:  # noqa: F811
    yield Recorded(*recorder)
    recorder[1].fake_error(0, 0)


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype).view(DeviceArray)


def call(ops: Any, op: str, arrays: dict[str, Any]) -> Any:
    return getattr(ops, op)(**arrays)


def arguments(op: str) -> dict[str, Any]:
    """Arrays and options of `test_contract.CALLS`, on the device."""
    shapes, rest = CALLS[op]
    free = [p for p in inspect.signature(getattr(contract.Contract, op)).parameters if p not in rest and p != "self"]
    given = {p: np.zeros(shape, np.float32) for p, shape in zip(free, shapes, strict=False)} | rest
    return {name: v.view(DeviceArray) if isinstance(v, np.ndarray) else v for name, v in given.items()}


# Which have no program, of the calls in that table: the array library computes, or copies.
UNRECORDED = ("batch_norm_infer", "conv2d_relu_max_pool2d", "conv_transpose2d")


@pytest.mark.parametrize("op", sorted(set(CALLS) - set(programs.NOT_REPLAYED)))
def test_every_op_launches_what_it_would_unreplayed(native: Recorded, op: str) -> None:
    given = arguments(op)
    planned = native.launches(lambda: call(native.plain, op, given))
    assert planned
    assert native.launches(lambda: call(native.ops, op, given)) == planned  # the first call
    again = native.launches if op in UNRECORDED else native.replayed
    assert again(lambda: call(native.ops, op, given)) == planned


def shape_of(result: Any) -> Any:
    several = result if isinstance(result, tuple) else (result,)
    return [None if a is None else (type(a), a.shape, a.strides, a.dtype) for a in several]


@pytest.mark.parametrize("op", ["conv2d", "batch_norm_train", "batch_norm_grad", "conv2d_relu_max_pool2d", "sgd_step"])
def test_results_are_those_of_the_op(native: Recorded, op: str) -> None:
    given = arguments(op)
    planned, first, again = (call(ops, op, given) for ops in (native.plain, native.ops, native.ops))
    assert shape_of(first) == shape_of(again) == shape_of(planned)
    assert isinstance(again, tuple) == isinstance(planned, tuple)
    assert first is None or first is not again


def test_several_launches_in_order_on_one_stream(native: Recorded) -> None:
    x, v = array(2, 64, 9, 9), array(64)
    native.launcher.stream.ptr = 0x77
    launched = native.replayed(lambda: native.ops.batch_norm_train(x, v, v, v, v))
    names = [event[0].split("<")[0] for event in launched if isinstance(event, tuple)]
    assert names == ["dl::batch_norm_moments", "dl::batch_norm_statistics", "dl::batch_norm_apply"]
    assert all(event.endswith(f" {0x77}") for event in launched if isinstance(event, str))
    native.launcher.stream.ptr = 0x88  # the stream is that of the moment
    again = native.launches(lambda: native.ops.batch_norm_train(x, v, v, v, v))
    assert all(event.endswith(f" {0x88}") for event in again if isinstance(event, str))


def test_launches_are_handed_over_together(native: Recorded) -> None:
    """Python's lock is left once for all launches between which nothing is allocated after something was freed."""
    x, v = array(2, 64, 9, 9), array(64)
    native.replayed(lambda: native.ops.batch_norm_grad(x, x, v, v, v))
    native.events()
    native.ops.batch_norm_grad(x, x, v, v, v)
    kinds = [event.split(" ")[0] for event in native.events() if not event.startswith("dl::")]
    assert kinds == ["device", "launch", "launch", "launch"]


def test_arrays_of_the_moment(native: Recorded) -> None:
    """Other arrays of the same kind, also views that begin elsewhere: their addresses, from the same program."""
    big = array(8, 32)
    for rows in (big[0:2], big[4:6], array(2, 32)):
        launched = native.launches(lambda: native.ops.softmax(rows))  # noqa: B023
        assert launched[1][1] == rows.ctypes.data
    assert native.ops.program.cache_info().misses <= 2  # NumPy promises no address modulo 16


@pytest.mark.parametrize("decoupled", [False, True])
def test_changing_numbers(native: Recorded, decoupled: bool) -> None:
    arenas = [array(64) for _ in range(4)]
    for step, lr in ((1, 0.5), (2, 0.25), (np.int64(3), np.float32(0.125))):
        launched, planned = (
            native.launches(
                lambda: ops.adam_step(*arenas, step=step, lr=lr, weight_decay=0.1, decoupled=decoupled)  # noqa: B023
            )
            for ops in (native.ops, native.plain)
        )
        assert launched == planned
    assert native.ops.program.cache_info().misses == 1
    x = array(3, 5)
    for seed, offset in ((1, 0), (2**64 - 1, 2**63), (7, 2**40)):
        launched, planned = (
            native.launches(lambda: ops.dropout(x, p=0.5, seed=seed, offset=offset))  # noqa: B023
            for ops in (native.ops, native.plain)
        )
        assert launched == planned
    assert native.ops.program.cache_info().misses == 2


def test_changing_numbers_that_do_not_fit(native: Recorded) -> None:
    arenas = [array(64) for _ in range(4)]
    native.ops.adam_step(*arenas, step=1, lr=0.1)
    native.events()
    with pytest.raises(ShapeError, match=r"^\[adam_step\] step counts from 1; got 0"):
        native.ops.adam_step(*arenas, step=0, lr=0.1)
    with pytest.raises(DtypeError, match=r"^\[dl::adam_step<float>\] lr must be a number; got 'fast'"):
        native.ops.adam_step(*arenas, step=1, lr="fast")
    with pytest.raises(ShapeError, match=r"^\[dl::adam_step<float>\] lr must fit float32; got 1e\+39"):
        native.ops.adam_step(*arenas, step=1, lr=1e39)
    assert native.events() == []
    native.ops.adam_step(*arenas, step=2, lr=0.1)
    assert len(native.events()) == 3


def test_bad_calls_say_what_the_op_says(native: Recorded) -> None:
    x, w = array(2, 8, 6, 6), array(8, 8, 3, 3)
    native.ops.conv2d(x, w)
    for _ in range(2):
        for bad in (dict(stride=0), dict(padding=-1), dict(groups=3)):
            errors = []
            for ops in (native.ops, native.plain):
                with pytest.raises(ShapeError) as caught:
                    ops.conv2d(x, w, **bad)
                errors.append(str(caught.value))
            assert errors[0] == errors[1]
        with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
            native.ops.conv2d(x, w, strides=1)
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            native.ops.conv2d(x)
        with pytest.raises(DtypeError, match=r"^\[conv2d\] "):
            native.ops.conv2d(x, array(8, 8, 3, 3, dtype=np.float16))


def test_options_that_cannot_be_keys_go_through_python(native: Recorded) -> None:
    x, w = array(2, 8, 6, 6), array(8, 8, 3, 3)
    planned = native.launches(lambda: native.plain.conv2d(x, w, stride=[2, 2]))
    for _ in range(2):
        assert native.launches(lambda: native.ops.conv2d(x, w, stride=[2, 2])) == planned


def test_what_a_program_depends_on(native: Recorded) -> None:
    """Each of these calls, replayed, launches what it launches when planned; and they differ from one another."""
    x, w = array(4, 16, 12, 12), array(16, 16, 3, 3)
    channels_last = array(4, 12, 12, 16).transpose(0, 3, 1, 2)
    shifted = array(x.size + 1)[1:].reshape(4, 12, 12, 16).transpose(0, 3, 1, 2)  # not where vectors may begin
    last = array(16, 3, 3, 16).transpose(0, 3, 1, 2)
    b = array(16)
    calls: list[Callable[[Any], Any]] = [
        lambda ops: ops.conv2d(x, w),
        lambda ops: ops.conv2d(x, w, stride=2),
        lambda ops: ops.conv2d(x, w, padding=1),
        lambda ops: ops.conv2d(x, w, padding=(1, 0)),
        lambda ops: ops.conv2d(x, w, b),
        lambda ops: ops.conv2d(x, w, None, x[:, :, 1:-1, 1:-1]),
        lambda ops: ops.conv2d(x, w, activation="relu"),
        lambda ops: ops.conv2d(x, w, algorithm="winograd2"),
        lambda ops: ops.conv2d(x[1:], w),
        lambda ops: ops.conv2d(channels_last, last),
        lambda ops: ops.conv2d(shifted, last),
        lambda ops: under(precision.use("tf32"), lambda: ops.conv2d(x, w)),
        lambda ops: under(precision.use("float32x3"), lambda: ops.conv2d(x, w)),
        lambda ops: under(tuning.workspace_limit(0), lambda: ops.conv2d(x, w, algorithm="im2col")),
        lambda ops: ops.conv2d(x, w, algorithm="im2col"),
    ]
    planned = [native.launches(lambda: call(native.plain)) for call in calls]  # noqa: B023
    for _ in range(2):
        assert [native.launches(lambda: call(native.ops)) for call in calls] == planned  # noqa: B023
    assert len({repr(launches) for launches in planned}) == len(calls)


def under(setting: Any, run: Callable[[], Any]) -> Any:
    with setting:
        return run()


def test_tensor_maps(native: Recorded) -> None:
    """The maps of a wgmma kernel's factors: of the arrays of the moment."""
    with tuning.hopper(256):
        for _ in range(2):
            a, b = array(256, 64, dtype=np.float16), array(64, 256, dtype=np.float16)
            planned = native.launches(lambda: native.plain.gemm(a, b))  # noqa: B023
            launched = native.launches(lambda: native.ops.gemm(a, b))  # noqa: B023
            assert launched == planned
            (kernel, *args) = launched[1]
            assert kernel.startswith("dl::gemm_hopper")
            pointers = [x.ctypes.data.to_bytes(8, "little").hex() for x in (a, b)]
            assert [arg[:16] for arg in args[:2]] == pointers
    assert native.ops.program.cache_info().misses == 1


def test_another_device_plans_anew(native: Recorded) -> None:
    x = array(2, 32)
    native.replayed(lambda: native.ops.softmax(x))
    native.launcher.current_device = 1
    native.ops.softmax(x)
    assert native.ops.program.cache_info().misses == 2
    assert "device 1" in native.events()


def test_a_launcher_in_its_place_is_used(native: Recorded) -> None:
    """`dlgpu bench` lists launches so."""
    x = array(2, 32)
    native.ops.softmax(x)
    ours = Ours(native.ops, native.clock)
    assert [line.split("<")[0] for line in ours.launches(lambda: native.ops.softmax(x))] == ["softmax"]
    native.replayed(lambda: native.ops.softmax(x))


def test_a_tuned_call_is_replayed_once_it_is_tuned(
    native: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("DLGPU_CACHE", str(tmp_path))
    monkeypatch.setattr(Tuned, "_tune", lambda self, memory: programs.build(self.call, self.launcher))
    a, b = array(64, 64), array(64, 64)
    with dlgpu.autotune():
        planned = native.launches(lambda: native.plain.gemm(a, b))
        assert native.launches(lambda: native.ops.gemm(a, b)) == planned
        native.ops.gemm(a, b)
        assert native.replayed(lambda: native.ops.gemm(a, b)) == planned


def test_errors_of_cuda(native: Recorded) -> None:
    x = array(2, 32)
    native.ops.softmax(x)
    native.library.fake_error(9, 0)
    with pytest.raises(RuntimeError, match=r"^\[dl::softmax<.*>\] CUDA must accept the launch; got cudaErrorFake"):
        native.ops.softmax(x)
    native.events()
    native.replayed(lambda: native.ops.softmax(x))


def test_an_error_names_the_launch_that_it_is_of(native: Recorded) -> None:
    x, v = array(2, 64, 9, 9), array(64)
    native.ops.batch_norm_train(x, v, v, v, v)
    for before, name in enumerate(("moments", "statistics", "apply")):
        native.events()
        native.library.fake_error(9, before)
        with pytest.raises(RuntimeError, match=rf"^\[dl::batch_norm_{name}.*\] CUDA must accept the launch"):
            native.ops.batch_norm_train(x, v, v, v, v)
        assert sum(event.startswith("launch ") for event in native.events()) == before
    native.replayed(lambda: native.ops.batch_norm_train(x, v, v, v, v))


def test_errors_of_the_array_library(native: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    x = array(2, 32)

    class Full(list):
        def append(self, array: Any) -> None:
            raise MemoryError("out of memory")

    native.ops.softmax(x)
    monkeypatch.setattr(native, "kept", Full())
    with pytest.raises(MemoryError, match="out of memory"):
        native.ops.softmax(x)


def test_nothing_is_kept(native: Recorded) -> None:
    """Neither results, nor workspace after its last launch, nor arguments, nor the backend."""
    native.keeping = False
    x, v = array(2, 64, 9, 9), array(64)
    references = [sys.getrefcount(x), sys.getrefcount(v)]
    for _ in range(3):
        alive = [weakref.ref(a) for a in native.ops.batch_norm_train(x, v, v, None, None)]
        assert [a() for a in alive] == [None] * 3
    assert [sys.getrefcount(x), sys.getrefcount(v)] == references
    backend = weakref.ref(native.ops)
    del native.ops
    gc.collect()
    assert backend() is None


def test_workspace_is_freed_when_nothing_needs_it(native: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where launches got views of it: im2col in rounds."""
    made: list[Any] = []
    most = 0

    def noting(array: np.ndarray) -> None:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in made))
        made.append(weakref.ref(array))

    monkeypatch.setattr(DeviceArray, "made", noting)
    x, w = array(4, 16, 12, 12), array(16, 16, 3, 3)
    with tuning.workspace_limit(0):
        for conv2d in (native.ops.conv2d, native.ops.conv2d, programs.Replayed(native.ops, "conv2d")):
            made.clear()
            conv2d(x, w, algorithm="im2col")
            assert len(made) > 4
            assert all(ref() is None for ref in made)
    assert most <= 3  # the result, a filter in another format, this round's columns


def test_two_threads_replay_one_program(native: Recorded) -> None:
    """A launch leaves the interpreter lock: arguments must not be shared."""
    own = [[array(64, 64) for _ in range(2)] for _ in range(2)]
    native.keeping = False
    native.ops.gemm(*own[0])

    def calls(a: np.ndarray, b: np.ndarray) -> None:
        for _ in range(300):
            native.ops.gemm(a, b)

    def both() -> None:
        threads = [threading.Thread(target=calls, args=pair) for pair in own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    factors = [event[1:3] for event in native.launches(both) if isinstance(event, tuple)]
    addresses = [tuple(x.ctypes.data for x in pair) for pair in own]
    assert [factors.count(pair) for pair in addresses] == [300, 300]
    assert len(factors) == 600


def test_most_programs(native: Recorded) -> None:
    """Beyond the limit they are forgotten, and found again."""
    x = array(5000)
    for n in range(1, 2200):
        native.ops.activation(x[:n], kind="relu")
    for n in (1, 2199):
        launched, planned = (
            native.launches(lambda: ops.activation(x[:n], kind="relu"))  # noqa: B023
            for ops in (native.ops, native.plain)
        )
        assert launched == planned


def test_ops_have_their_signatures(native: Recorded) -> None:
    for op in contract.OPS:
        expected = list(inspect.signature(getattr(contract.Contract, op)).parameters)[1:]
        assert list(inspect.signature(getattr(native.ops, op)).parameters) == expected
    with pytest.raises(TypeError, match="cannot create"):
        type(native.ops.gemm)()
