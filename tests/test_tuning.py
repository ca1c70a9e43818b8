"""Programs, the cost model and the tuner, on launchers that need no GPU, with clocks that say what a test wants."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, memory_format
from dlgpu.backends import precision, tuning
from dlgpu.backends.kernels import KernelBackend, autotune, tiles
from dlgpu.backends.kernels.launching import filled
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.programs import Call, Choice, build, stand_in
from dlgpu.backends.kernels.tiles import Product, Target, predict
from dlgpu.cli import main
from dlgpu.errors import ShapeError


class Device:
    """A launcher that notes what it starts, and computes a product badly where `wrong` is in the kernel's name."""

    xp, null, capability, sms, device = np, None, 90, 132, 0

    def __init__(
        self,
        gpu: str = "A",
        driver: str = "1",
        wrong: str = "nothing",
        slow: str = "nothing",
        wrong_value: float = 2.0,
    ) -> None:
        self.names, self.wrong_value = {"gpu": gpu, "driver": driver}, wrong_value
        self.wrong, self.slow = wrong, slow
        self.started: list[str] = []
        self.now = 0.0

    def identity(self) -> dict[str, str]:
        return self.names

    def launch(self, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        self.started.append(kernel)

    def prepare(self, plan: Plan) -> Any:
        def start(arrays: list[Any]) -> None:
            self.started.append(plan.kernel)
            self.now += 2.0 if self.slow in plan.kernel else 1.0
            if plan.kernel.startswith(("dl::gemm_", "dl::add_slabs")):
                arrays[4][...] = self.wrong_value if self.wrong in plan.kernel else 1.0

        return start

    def seconds(self, run: Any) -> float:
        """The device is its own clock."""
        begin = self.now
        run()
        return self.now - begin


def backend(device: Device) -> KernelBackend:
    return KernelBackend("fake", "cuda", device, clock=device)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLGPU_CACHE", str(tmp_path))
    return tmp_path / "tuning"


A = np.ones((256, 64), np.float32)
B = np.ones((64, 256), np.float32)


def tuned(device: Device) -> list[str]:
    """Kernels of the second tuned call, which no longer tries anything."""
    ops = backend(device)
    with dlgpu.autotune():
        ops.gemm(A, B)
        device.started.clear()
        ops.gemm(A, B)
    return device.started


# --- the cost model -----------------------------------------------------------------------------------------------


def half(rows: int, columns: int, depth: int, split: bool = True) -> Product:
    return Product("__half", 1, rows, columns, depth, True, 1, split, gathered=True)


def test_a_last_wave_with_few_blocks_costs_almost_a_wave() -> None:
    slots = 132 * 2
    exact = predict(half(slots * 128, 128, 4608), 128, 1, Target())
    assert predict(half(slots * 128 + 1, 128, 4608), 128, 1, Target()) > 1.5 * exact
    assert predict(half(2 * slots * 128, 128, 4608), 128, 1, Target()) == 2 * exact


def test_vgg16_at_14x14() -> None:
    """Batch 64: 98 x 4 large tiles are 1.48 waves; small ones, of which an SM holds three, are 3.96."""
    p = half(64 * 14 * 14, 512, 4608, split=False)
    large, small = (next(t for t in tiles.candidates("op", p, Target()) if t.edge == edge) for edge in (128, 64))
    assert "1.48 waves of 264" in large.why
    assert "3.96 waves of 396" in small.why
    assert large.grid == (4, 98, 1)
    assert tiles.choose("op", p, Target()) == min((large, small), key=lambda tile: tile.cycles)


@pytest.mark.parametrize("dtype", ["float", "__half"])
@pytest.mark.parametrize("terms", [0, 1, 3])
@pytest.mark.parametrize("sms", [1, 20, 132])
def test_candidates_are_legal_and_sorted(dtype: str, terms: int, sms: int) -> None:
    for rows, columns, depth in ((1, 1, 1), (64, 64, 65_536), (129, 4096, 64), (12_544, 512, 4608), (0, 8, 8)):
        p = Product(dtype, 3, rows, columns, depth, True, terms)
        found = tiles.candidates("op", p, Target(sms, workspace=1 << 20))
        assert [t.cycles for t in found] == sorted(t.cycles for t in found)
        assert len({(t.edge, t.splits) for t in found}) == len(found)
        for tile in found:
            assert tile.splits == 1 or tile.splits * 3 * rows * columns * 4 <= 1 << 20
            assert tile.grid[0] * tile.edge >= columns
            assert tile.grid[1] * tile.edge >= rows


def test_more_work_never_costs_less() -> None:
    for edge, splits in ((64, 1), (128, 1), (64, 8)):
        by_depth = [predict(half(1000, 1000, depth), edge, splits, Target()) for depth in range(64, 5000, 64)]
        by_rows = [predict(half(rows, 1000, 1024), edge, splits, Target()) for rows in range(64, 20_000, 64)]
        assert by_depth == sorted(by_depth)
        assert by_rows == sorted(by_rows)


def test_fewer_multiprocessors_take_longer_and_choose_otherwise() -> None:
    p = half(2048, 2048, 4096, split=False)
    assert predict(p, 128, 1, Target(sms=20)) > predict(p, 128, 1, Target())
    small = half(512, 512, 512, split=False)
    assert tiles.choose("op", small, Target(sms=132)).edge == 64
    assert tiles.choose("op", small, Target(sms=4)).edge == 128


# --- programs -----------------------------------------------------------------------------------------------------


def test_a_second_call_is_replayed() -> None:
    ops = backend(Device())
    first, second = ops.gemm(A, B), ops.gemm(A, B)
    assert ops.program.cache_info().hits == 1
    assert first is not second


def kernels_after(ops: KernelBackend, device: Device, a: np.ndarray, b: np.ndarray, **how: Any) -> list[str]:
    device.started.clear()
    ops.gemm(a, b, **how)
    return list(device.started)


def test_what_a_program_depends_on() -> None:
    device = Device()
    ops = backend(device)
    plain = kernels_after(ops, device, A, B)
    odd = np.empty(A.size + 1, np.float32)[1:].reshape(A.shape)  # 4 bytes off
    odd = odd if odd.ctypes.data % 16 else np.empty(A.size + 2, np.float32)[2:].reshape(A.shape)
    assert kernels_after(ops, device, odd, B) != plain  # alignment
    assert kernels_after(ops, device, A, B) == plain
    assert kernels_after(ops, device, A.astype(np.float16), B.astype(np.float16)) != plain  # dtype
    with precision.use("tf32"):
        assert kernels_after(ops, device, A, B) != plain  # precision
    assert kernels_after(ops, device, A, B.T.copy().T) == plain  # another layout: copied, by the array library
    assert kernels_after(ops, device, A, B.T.copy(), transpose_b=True) != plain  # options
    device.device, device.capability = 1, 75  # another GPU
    half_ones = A.astype(np.float16), B.astype(np.float16)
    assert "gemm_tc" in kernels_after(ops, device, *half_ones)[0]
    bf = A.astype(dlgpu.bfloat16), B.astype(dlgpu.bfloat16)
    assert "gemm_simt" in kernels_after(ops, device, *bf)[0]
    device.device, device.capability = 0, 90
    assert "gemm_tc" in kernels_after(ops, device, *bf)[0]


def test_the_workspace_limit_is_kept() -> None:
    ops = backend(Device())
    x, w = np.ones((8, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32)
    call = Call("conv2d", 2, ("padding", "algorithm"), (stand_in(x), stand_in(w), 1, "im2col"))
    free = build(call, ops.launcher)
    with tuning.workspace_limit(100_000):
        tight = build(call, ops.launcher)
    assert (
        tight.workspace <= 2 * 100_000 < free.workspace
    )  # columns and the slabs of a split product: each in the limit
    assert len(tight.steps) > len(free.steps)
    with pytest.raises(ShapeError, match=r"\[workspace_limit\]"), tuning.workspace_limit(-1):
        pass


def test_layouts_keep_programs_of_their_own() -> None:
    device = Device()
    ops = backend(device)
    x, w = np.ones((2, 8, 6, 6), np.float32), np.ones((8, 8, 3, 3), np.float32)
    last = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    assert ops.conv2d(x, w).strides != ops.conv2d(last, w).strides
    assert ops.conv2d(x, w).strides == np.empty((2, 8, 4, 4), np.float32).strides


def test_options_that_cannot_be_keys_and_wrong_ones() -> None:
    ops = backend(Device())
    x, w = np.ones((2, 8, 6, 6), np.float32), np.ones((8, 8, 3, 3), np.float32)
    assert ops.conv2d(x, w, stride=[2, 2]).shape == (2, 8, 2, 2)
    for _ in range(2):
        with pytest.raises(ShapeError, match="stride"):
            ops.conv2d(x, w, stride=0)


class Noting(Device):
    """Keeps the arguments of its launches."""

    def __init__(self) -> None:
        super().__init__()
        self.args: list[tuple[Any, ...]] = []

    def launch(self, kernel: str, grid: Any, block: Any, args: tuple[Any, ...], shared_bytes: int = 0) -> None:
        self.args.append(args)

    def prepare(self, plan: Plan) -> Any:
        return lambda values: self.args.append(filled(plan.args, values))


@pytest.mark.parametrize(
    ("op", "arrays", "fixed", "changing"),
    [
        ("sgd_step", 3, dict(momentum=0.9), dict(lr=[0.1, 0.2, 0.3])),
        ("adagrad_step", 3, dict(weight_decay=0.1), dict(lr=[0.1, 0.2, 0.3])),
        ("rmsprop_step", 3, {}, dict(lr=[0.1, 0.2, 0.3])),
        ("adam_step", 4, {}, dict(step=[1, 2, 3], lr=[0.1, 0.1, 0.2])),
        ("adam_step", 4, dict(weight_decay=0.1, decoupled=True), dict(step=[1, 2, 3], lr=[0.1, 0.1, 0.2])),
        ("dropout", 1, dict(p=0.5), dict(seed=[1, 1, 2], offset=[0, 8, 2**40])),
        ("dropout_grad", 1, dict(p=0.5), dict(seed=[1, 1, 2], offset=[0, 8, 2**40])),
    ],
)
def test_numbers_that_change_are_those_of_the_call(
    op: str, arrays: int, fixed: dict[str, Any], changing: dict[str, list[float]]
) -> None:
    replayed, planned = Noting(), Noting()
    ops, plain = backend(replayed), KernelOps(planned)
    own = [np.ones(64, np.float32) for _ in range(arrays)]
    for numbers in zip(*changing.values(), strict=True):
        options = fixed | dict(zip(changing, numbers, strict=True))
        getattr(ops, op)(*own, **options)
        getattr(plain, op)(*own, **options)
    assert ops.program.cache_info().misses == 1
    # Arrays aside: outputs are new ones.
    replays, plans = (
        [[repr(arg) for arg in args if not getattr(arg, "shape", ())] for args in device.args]
        for device in (replayed, planned)
    )
    assert replays == plans
    assert len({tuple(args) for args in plans}) == 3


def test_numbers_that_change_are_checked_in_every_call() -> None:
    device = Noting()
    ops, arenas = backend(device), [np.ones(64, np.float32) for _ in range(4)]
    ops.adam_step(*arenas, step=1, lr=0.1)
    with pytest.raises(ShapeError, match="step counts from 1; got 0"):
        ops.adam_step(*arenas, step=0, lr=0.1)
    assert len(device.args) == 1


# --- tuning -------------------------------------------------------------------------------------------------------


def test_the_fastest_kernel_wins_and_is_remembered(cache: Path) -> None:
    untuned = Device()
    backend(untuned).gemm(A, B)
    (slow,) = untuned.started
    device = Device(slow=slow)
    (chosen,) = tuned(device)
    assert chosen != slow
    (file,) = cache.glob("*/*.json")
    again = Device(slow=slow)
    assert tuned(again) == [chosen]
    assert again.now == 2.0  # two calls, nothing was tried
    assert json.loads(file.read_text())["identity"]["gpu"] == "A"


@pytest.mark.parametrize("other", [dict(gpu="B"), dict(driver="2")])
def test_other_devices_and_drivers_tune_for_themselves(cache: Path, other: dict[str, str]) -> None:
    tuned(Device())
    device = Device(**other)
    tuned(device)
    assert device.now > 2.0
    assert len(list(cache.glob("*/*.json"))) == 2


@pytest.mark.parametrize("what", ["__version__", "digest"])
def test_other_versions_tune_for_themselves(cache: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    tuned(Device())
    if what == "digest":
        monkeypatch.setattr(autotune.sources, "digest", lambda: "other")
    else:
        monkeypatch.setattr(dlgpu, "__version__", "other")
    tuned(Device())
    assert len(list(cache.glob("*/*.json"))) == 2


def test_a_kernel_that_disagrees_is_refused() -> None:
    untuned = Device()
    backend(untuned).gemm(A, B)
    (slow,) = untuned.started
    wrong = tuned(Device(slow=slow))[0]  # what would win
    assert tuned(Device(gpu="C", slow=slow, wrong=wrong))[0] != wrong


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_cannot_be_compared_is_not_tuned(cache: Path, value: float) -> None:
    """The untuned kernel gives `value`: nothing else is tried, and nothing is remembered."""
    untuned = Device()
    backend(untuned).gemm(A, B)
    (only,) = untuned.started
    device = Device(slow=only, wrong=only, wrong_value=value)
    ops = backend(device)
    with dlgpu.autotune():
        result = ops.gemm(A, B)
    assert not np.isfinite(result).any()
    assert set(device.started) == {only}
    assert not list(cache.glob("*/*.json"))


def test_a_kernel_that_gives_nan_is_refused() -> None:
    untuned = Device()
    backend(untuned).gemm(A, B)
    (slow,) = untuned.started
    wrong = tuned(Device(slow=slow))[0]  # what would win
    assert tuned(Device(gpu="C", slow=slow, wrong=wrong, wrong_value=np.nan))[0] != wrong


@pytest.mark.parametrize("spelling", [dict(padding=(1, 1)), dict(stride=1, padding=1), dict(padding=1, groups=1)])
def test_a_call_is_one_however_it_is_spelled(cache: Path, spelling: dict[str, Any]) -> None:
    x, w = np.ones((2, 8, 6, 6), np.float32), np.ones((8, 8, 3, 3), np.float32)
    values = (stand_in(x), stand_in(w))
    plain = autotune.key(Call("conv2d", 2, ("padding",), (*values, 1)))
    assert autotune.key(Call("conv2d", 2, tuple(spelling), (*values, *spelling.values()))) == plain
    assert autotune.key(Call("conv2d", 2, ("padding",), (*values, 2))) != plain


def test_candidates_need_no_more_workspace_than_the_limit() -> None:
    x, w = np.ones((4, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32)
    call = Call("conv2d", 2, ("padding",), (stand_in(x), stand_in(w), 1))
    every = list(autotune.candidates(call, Device()))
    assert {choice.algorithm for choice, _ in every} >= {None, "direct", "im2col", "winograd2", "winograd4"}
    with tuning.workspace_limit(30_000):
        few = list(autotune.candidates(call, Device()))
    assert 0 < len(few) < len(every)
    assert all(program.workspace <= 30_000 for choice, program in few if choice != Choice())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"identity": {}}', b"\xff\xfe"])
def test_a_damaged_file_is_made_again(cache: Path, content: bytes) -> None:
    tuned(Device())
    (file,) = cache.glob("*/*.json")
    good = file.read_bytes()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is ignored and made again"):
        assert autotune.Store(Device().identity()).entries() == []
    with pytest.warns(UserWarning, match="is ignored and made again"):
        tuned(Device())
    assert file.read_bytes() == good


def test_a_choice_that_is_no_candidate_is_made_again(cache: Path) -> None:
    tuned(Device())
    (file,) = cache.glob("*/*.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"choice": dict(algorithm=None, edge=64, splits=777)}))
    with pytest.warns(UserWarning, match="is no candidate"):
        tuned(Device())
    assert json.loads(file.read_text()) == content


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert tuned(Device())
    assert all("[autotune]" in str(w.message) for w in caught)
    assert caught


def test_writers_at_the_same_time_leave_one_whole_file(cache: Path) -> None:
    store = autotune.Store({"gpu": "A", "driver": "1"})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.save("call", Choice(None, 64, i % 4 + 1), 1.0), range(40)))
    loaded = store.load("call")
    assert loaded is not None
    assert loaded.edge == 64
    assert [path.name for path in store.folder.iterdir()] == [f"{autotune._digest('call')}.json"]


def test_named_algorithms_are_left_alone() -> None:
    x, w = stand_in(np.ones((4, 8, 16, 16), np.float32)), stand_in(np.ones((8, 8, 3, 3), np.float32))
    assert autotune.tunable(Call("conv2d", 2, (), (x, w)))
    assert autotune.tunable(Call("conv2d_relu_max_pool2d", 2, (), (x, w)))
    assert autotune.tunable(Call("conv2d", 2, ("algorithm",), (x, w, "auto")))
    assert not autotune.tunable(Call("conv2d", 2, ("algorithm",), (x, w, "im2col")))
    assert not autotune.tunable(Call("max_pool2d", 1, (), (x,)))


class Pooling(Device):
    """Of four elements that are pooled the first is 1, the second hardly less, the others 0; the maximum is the first.

    Kernels with `wrong` in their name say that it is at `place`.
    """

    def __init__(self, place: int, wrong: str, slow: str = "nothing") -> None:
        super().__init__(wrong=wrong, slow=slow)
        self.place = place

    def prepare(self, plan: Plan) -> Any:
        note = super().prepare(plan)

        def start(values: list[Any]) -> None:
            note(values)
            *_, y, argmax = values
            if argmax is None:
                y[...] = 0.0
                y[..., ::2, ::2], y[..., ::2, 1::2] = 1.0, 1.0 - 1e-6
            else:
                y[...] = 1.0
                argmax[...] = self.place if self.wrong in plan.kernel else 0

        return start


@pytest.mark.parametrize(("place", "agrees"), [(0, True), (1, True), (2, False), (3, False), (4, False)])
def test_places_of_maxima_may_differ_among_equals(monkeypatch: pytest.MonkeyPatch, place: int, agrees: bool) -> None:
    monkeypatch.setattr(autotune, "ALGORITHMS", ("implicit_gemm",))
    x = memory_format.convert(np, np.ones((8, 16, 16, 16), np.float32), "channels_last")
    w = np.ones((32, 16, 1, 1), np.float32)
    plain = Device()
    backend(plain).conv2d_relu_max_pool2d(x, w)
    (untuned,) = plain.started
    edges = {"64, 64": "128, 128", "128, 128": "64, 64"}
    other = next(untuned.replace(*pair) for pair in edges.items() if pair[0] in untuned)
    device = Pooling(place, wrong=other, slow=untuned)
    with dlgpu.autotune():
        backend(device).conv2d_relu_max_pool2d(x, w)
    assert device.started[-1] == (other if agrees else untuned)


def test_a_convolution_with_pooling_is_tuned(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with every algorithm; where no format changes, for an argmax is converted by the array library."""
    monkeypatch.delenv("DLGPU_CACHE")  # which holds the compiled kernels as well
    monkeypatch.setattr(autotune, "cache_folder", lambda name: cache)
    ops = backends.get("host")
    x, w = (
        np.random.default_rng(i).standard_normal(s).astype(np.float32)
        for i, s in enumerate(((2, 8, 9, 8), (8, 8, 3, 3)))
    )
    x = memory_format.convert(np, x, "channels_last")
    expected = backends.get("numpy").conv2d_relu_max_pool2d(x, w, padding=1)
    with dlgpu.autotune():
        y, argmax = ops.conv2d_relu_max_pool2d(x, w, padding=1)
    np.testing.assert_allclose(y, expected[0], atol=1e-4)
    np.testing.assert_array_equal(argmax, expected[1])
    (file,) = cache.glob("*/*.json")
    assert json.loads(file.read_text())["call"].startswith("conv2d_relu_max_pool2d(")


# --- the command --------------------------------------------------------------------------------------------------


class Ones(Device):
    """Every kernel sets all its arrays to one."""

    def prepare(self, plan: Plan) -> Any:
        def start(values: list[Any]) -> None:
            self.now += 1.0
            for array in values:
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    array[...] = 1.0

        return start


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what `dlgpu kernels` prints."""
    with pytest.raises(SystemExit) as caught:
        main(["kernels", *arguments])
    streams = capsys.readouterr()
    return int(caught.value.code or 0), streams.out + streams.err


PLAN = ("plan", "conv2d", "2", "6", "14", "14", "16", "--kernel", "5", "--layout", "contiguous")


def test_the_command_tunes_a_network_once(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = KernelBackend("host", "host-kernels", Ones(), clock=Device())
    monkeypatch.setattr(backends, "_make", {"host": fake, "numpy": backends.get("numpy")}.__getitem__)
    assert "not tuned on this machine" in told(capsys, *PLAN)[1]
    tune = ("tune", "--network", "lenet5", "--batch", "2", "--layout", "contiguous", "--device", "host-kernels")
    code, out = told(capsys, *tune)
    files = len(list(cache.glob("*/*.json")))
    assert code == 0
    assert out.endswith(f"{files} calls tuned, for A; 0 were known\n")
    # Forward and weights of two convolutions, the input's gradient of one; three products of three dense layers.
    assert [out.count(f"  {op}(") for op in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight_bias")] == [2, 1, 2]
    assert [out.count(f"  {op}(") for op in ("linear", "linear_grad_input", "linear_grad_weight")] == [3, 3, 3]
    assert "\ntuned on A: as predicted, " in told(capsys, *PLAN)[1]
    assert told(capsys, *tune)[1] == f"0 calls tuned, for A; {files} were known\n"


def test_the_command_lists_candidates(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = told(capsys, *PLAN)
    assert code == 0
    _, *lines = out[out.index("candidates") :].splitlines()
    cycles = [float(line.split()[0].replace(",", "")) for line in lines if line.split()[0][0].isdigit()]
    assert len(cycles) > 1
    assert cycles == sorted(cycles)
    assert "direct" in out
    assert "candidates" not in told(capsys, *PLAN, "--algorithm", "im2col")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--network", "vgg16", "--device", "cpu"), "tuning wants a device that runs kernels; got --device cpu"),
        (("--network", "vgg16", "--device", "tpu"), "unknown backend"),
    ],
)
def test_the_command_refuses(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    code, out = told(capsys, "tune", *arguments)
    assert (code, out.count("\n")) == (2, 1)
    assert words in out
