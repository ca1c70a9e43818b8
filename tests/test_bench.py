"""The benchmark harness: what it counts, what it calls right, how it times, what it writes, and how it fails.

Times are never judged: clocks, events and graphs are stand-ins here. Every op runs once for real on tiny arrays, on the
reference and beside PyTorch; the kernels run on the host launcher.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlgpu import backends, dtypes
from dlgpu.backends import reference, tuning
from dlgpu.bench import cases, check, contestants, lab, measure, networks, report, run
from dlgpu.bench.cases import Case, by_information, every_case, select, tiny
from dlgpu.bench.command import choose
from dlgpu.bench.goals import GOALS, Goal
from dlgpu.bench.measure import Ceilings, EventClock, Work
from dlgpu.bench.ops import OPS
from dlgpu.errors import BackendUnavailable, DataError, ShapeError, UnknownName

# --- the networks -----------------------------------------------------------------------------------------------------

# Multiply-accumulates of all convolutions for one image. VGG16, ResNet-50 and MobileNet: the published totals (15.47,
# 4.09 and 0.569 GMAC) less their dense layers (123.6, 2.05 and 1.02 million).
TOTALS = {
    "lenet5": 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25,
    "alexnet": 55**2 * 96 * 363 + 27**2 * 256 * 48 * 25 + 13**2 * 9 * (384 * 256 + 384 * 192 + 256 * 192),
    "vgg16": 15_346_630_656,
    "resnet50": 4_087_136_256,
    "googlenet": 1_581_647_872,
    "mobilenet": 567_716_352,
}


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_network_totals(network: str) -> None:
    layers = networks.layers(network)
    assert sum(layer.macs * layer.times for layer in layers) == TOTALS[network]
    assert sum(layer.times for layer in layers) == len(list(networks.NETWORKS[network]()))
    assert [layer.macs * layer.times for layer in layers] == sorted((x.macs * x.times for x in layers), reverse=True)


def test_network_layers_fit_each_other() -> None:
    """Each layer of a plain network reads what the one before it wrote."""
    vgg = list(networks.vgg16())
    assert all(b.C == a.K and a.H in (b.H, 2 * b.H) for a, b in pairwise(vgg))
    mobile = list(networks.mobilenet())
    assert all((b.C, b.H) == (a.K, a.P) for a, b in pairwise(mobile))
    assert (mobile[-1].K, mobile[-1].P) == (1024, 7)
    assert [layer.P for layer in networks.resnet50() if layer.name.endswith("_1d")] == [56, 28, 14, 7]
    assert [layer.C for layer in networks.googlenet() if layer.name.endswith("_1x1")] == [
        *(192, 256, 480, 512, 512, 512, 528, 832, 832)  # the depth column of Szegedy et al., table 1
    ]


# --- FLOPs, bytes, rooflines ------------------------------------------------------------------------------------------

CONV = dict(N=2, C=6, H=9, K=10, R=3, stride=2, padding=1, groups=2)  # 5 x 5 outputs


def case(op: str, sizes: dict[str, Any], dtype: str = "float32") -> Case:
    return Case(op, "test", "case", dtype, sizes)


@pytest.mark.parametrize(
    ("op", "sizes", "dtype", "flops", "bytes_"),
    [
        # 2 x 10 x 25 outputs of 3 x 9 products; x 2x6x81, w 10x3x9, y 2x10x25
        ("conv2d", CONV, "float32", 2 * 500 * 27, 4 * (972 + 270 + 500)),
        ("conv2d_bias_relu", CONV, "float16", 2 * 500 * 27, 2 * (972 + 270 + 500)),
        ("conv2d_grad_input", CONV, "tf32", 2 * 500 * 27, 4 * (972 + 270 + 500)),
        ("conv2d_grad_weight", CONV, "bfloat16", 2 * 500 * 27, 2 * (972 + 270 + 500)),
        # a strided 1x1 convolution reads 4 x 4 of 8 x 8 pixels; its input gradient writes all of them
        ("conv2d", CONV | dict(H=8, R=1, padding=0), "float32", 2 * 320 * 3, 4 * (2 * 6 * 16 + 30 + 320)),
        ("conv2d_grad_input", CONV | dict(H=8, R=1, padding=0), "float32", 2 * 320 * 3, 4 * (2 * 6 * 64 + 30 + 320)),
        ("gemm", dict(M=3, N=5, K=7), "float16", 210, 2 * (21 + 35 + 15)),
        ("batched_gemm", dict(B=4, M=3, N=5, K=7), "float32", 840, 16 * (21 + 35 + 15)),
        ("linear", dict(M=3, N=5, K=7), "float32", 210, 4 * (21 + 35 + 15 + 5)),
        ("max_pool2d", dict(N=1, C=2, H=8, R=2, stride=2, padding=0), "float16", 0, 2 * 128 + 3 * 32),
        ("avg_pool2d", dict(N=1, C=2, H=8, R=2, stride=2, padding=0), "float32", 0, 4 * (128 + 32)),
        ("batch_norm_train", dict(N=2, C=3, H=4), "float32", 0, 3 * 4 * 96),
        ("local_response_norm", dict(N=2, C=3, H=4), "float16", 0, 2 * 2 * 96 + 4 * 96),
        ("cross_entropy_grad", dict(N=8, C=10), "float32", 0, 2 * 4 * 80),
        ("adam_step", dict(size=100), "float32", 0, 4 * 100 * 7),  # reads 4 arrays, writes 3
        ("sgd_step", dict(size=100), "float32", 0, 4 * 100 * 5),
        ("cast_to_float16", dict(N=2, C=3, H=4), "float32", 0, 6 * 96),
        ("im2col", dict(N=2, C=3, H=4, R=3, stride=1, padding=1), "float32", 0, 4 * (96 + 2 * 16 * 27)),
    ],
)
def test_flops_and_bytes(op: str, sizes: dict[str, int], dtype: str, flops: int, bytes_: int) -> None:
    it = case(op, sizes, dtype)
    assert (it.flops, it.bytes) == (flops, bytes_)


def test_floor_is_the_slower_of_arithmetic_and_bytes() -> None:
    machine = Ceilings(copy_gbs=100.0, gflops={"float32": 1000.0})
    assert machine.floor_us(2_000_000, 1000, "float32") == pytest.approx(2.0)  # 2 MFLOP at 1 TFLOP/s
    assert machine.floor_us(2_000, 1_000_000, "float32") == pytest.approx(10.0)  # 1 MB at 100 GB/s
    assert machine.floor_us(0, 1_000_000, "float16") == pytest.approx(10.0)
    assert machine.floor_us(1, 1, "float16") is None  # no ceiling, no roofline


# --- selecting and ordering -------------------------------------------------------------------------------------------


def test_everything_that_was_asked_for_is_there() -> None:
    every = list(every_case())
    assert len({c.id for c in every}) == len(every)
    convs = {(c.op, c.group, c.batch, c.dtype) for c in every if c.what.family == "conv"}
    for op in ("conv2d", "conv2d_grad_input", "conv2d_grad_weight"):
        for network in ("lenet5", "alexnet", "vgg16", "resnet50", "googlenet", "mobilenet"):
            for batch in (1, 32, 64, 256):
                for dtype in ("float32", "tf32", "float32x3", "float16", "bfloat16"):
                    assert (op, network, batch, dtype) in convs
    assert {c.sizes["M"] for c in every if c.op == "gemm"} == {512, 1024, 2048, 4096, 8192}
    assert {c.sizes["B"] for c in every if c.op == "batched_gemm"} == {16, 36}
    assert {(c.sizes["M"], c.sizes["N"], c.sizes["K"]) for c in every if c.op == "linear"} == {
        (m, 4096, 25088) for m in (64, 128, 256, 512)
    }


def test_a_short_run_sees_a_bit_of_everything() -> None:
    order = select()
    assert {c.op for c in order[:100]} == set(OPS)
    assert {c.dtype for c in order[:200]} == set(cases.DTYPES)
    first_convs = [c for c in order if c.op == "conv2d" and c.dtype == "tf32"][:6]  # in which no goal goes first
    assert {c.group for c in first_convs} == set(networks.NETWORKS)  # the heaviest layer of each
    assert {c.batch for c in first_convs} == {64}
    assert sorted(map(id, by_information(order))) == sorted(map(id, order))  # nothing lost, nothing twice


def test_the_goals_are_answered_first() -> None:
    """A run that sees no more cases than there are goals sees one of each; two of each come next."""
    order = select()
    for goal in GOALS:
        answers = [case for case in order if goal.takes(case)]
        seen = sum(goal.takes(case) for case in order[: len(GOALS)])
        assert seen >= 1, goal.text
        assert sum(goal.takes(case) for case in order[: 2 * len(GOALS)]) >= min(2, len(answers)), goal.text
    assert not any(goal.takes(case) for goal in GOALS for case in tiny(order))


def test_which_cases_answer_a_goal() -> None:
    def takes(text: str, op: str, dtype: str, **sizes: int) -> bool:
        (goal,) = (goal for goal in GOALS if goal.text == text)
        return goal.takes(Case(op, "group", "name", dtype, conv | sizes))

    conv = dict(N=32, C=128, H=28, K=128, R=3, stride=1, padding=1, groups=1)
    wide = "half conv, 3x3, C and K >= 128"
    assert takes(wide, "conv2d", "bfloat16")
    for other in (dict(N=31), dict(C=127), dict(K=127), dict(R=1), dict(groups=2)):
        assert not takes(wide, "conv2d", "bfloat16", **other)
    assert not takes(wide, "conv2d", "float32")
    assert not takes(wide, "conv2d_bias_relu", "float16")
    assert takes("half conv + bias + ReLU, C or K <= 64", "conv2d_bias_relu", "float16", K=64)
    assert not takes("half conv + bias + ReLU, C or K <= 64", "conv2d_bias_relu", "float16")
    few, many = "float32 conv, 3x3, C <= 128 (Winograd)", "float32 conv, 3x3, C >= 256 (Winograd)"
    assert [takes(few, "conv2d", "float32", C=c) for c in (3, 64, 128, 129, 256)] == [False, True, True, False, False]
    assert [takes(many, "conv2d", "float32", C=c) for c in (128, 255, 256, 512)] == [False, False, True, True]
    assert not takes(few, "conv2d", "float32", stride=2)
    assert not takes(few, "conv2d", "tf32")


def test_how_far_a_goal_was_reached() -> None:
    row = {
        "cached": False,
        "results": [
            {"by": "dlgpu", "ours": True, "us": 12.0},
            {"by": "dlgpu winograd2", "ours": True, "us": 10.0},
            {"by": "dlgpu hopper", "ours": True, "state": "WRONG"},
            {"by": "torch", "ours": False, "us": 30.0},
            {"by": "torch channels_last", "ours": False, "us": 15.0},
            {"by": "numpy", "ours": False, "us": 1.0},
        ],
    }
    ratio = Goal("ratio", lambda case: True, ("torch", "torch channels_last"), 1.4, 1.6)
    assert ratio.reached(row, 8.0) == (1.5, "dlgpu winograd2")
    assert replace(ratio, against=("torch",)).reached(row, 8.0) == (3.0, "dlgpu winograd2")
    assert replace(ratio, against=("cudnn",)).reached(row, 8.0) is None
    share = replace(ratio, against=())
    assert share.reached(row, 8.0) == (0.8, "dlgpu winograd2")
    assert share.reached(row | {"cached": True}, 8.0) is share.reached(row, None) is None
    assert ratio.reached({"state": "timeout", "reason": "hung", "case": {}}, 8.0) is None
    assert [ratio.verdict(v) for v in (None, 1.39, 1.4, 1.6, float("nan"))] == [
        *("not measured", "not met", "met", "met, and the stretch", "not met")
    ]
    assert (ratio.shown(1.5), share.shown(0.853), share.shown(None)) == ("1.50x", "85%", "-")


def test_filters() -> None:
    chosen = select(["pool", "gemm"], ["vgg16", "ladder"], [7], ["float16"])
    assert {c.op for c in chosen} == {"gemm", "max_pool2d", "max_pool2d_grad"}
    assert {c.batch for c in chosen} == {7, None}
    assert all(c.dtype == "float16" for c in chosen)
    for given, text in (
        (dict(ops=["conv3d"]), "unknown op or family 'conv3d'; Did you mean 'conv2d'?"),
        (dict(networks=["vgg61"]), "Did you mean 'vgg16'?"),
        (dict(dtypes=["fp16"]), "unknown dtype 'fp16'"),
    ):
        with pytest.raises(UnknownName, match=text.replace("?", r"\?")):
            select(**given)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least one case must be left"):
        select(["gemm"], ["vgg16"])


def test_defaults_of_the_command() -> None:
    free = dict(networks=(), batches=(), dtypes=(), algorithms=("auto",), layout="channels_last", compare=())
    free |= dict(small=False, check_only=False)
    cpu, settings = choose((), device="cpu", **free)  # type: ignore[arg-type]
    assert {c.batch for c in cpu} == {1, None}
    assert {c.dtype for c in cpu} == {"float32"}
    assert max(c.flops for c in cpu) <= 50e9 < max(c.flops for c in choose(("gemm",), device="cpu", **free)[0])  # type: ignore[arg-type]
    assert settings.compare == contestants.BASELINES
    gpu, settings_of_gpu = choose((), device="cuda", **free)  # type: ignore[arg-type]
    assert {c.batch for c in gpu} == {1, 32, 64, 256, None}
    assert settings_of_gpu.reference_gflop < settings.reference_gflop
    assert {c.dtype for c in gpu} == set(cases.DTYPES)
    emulated, settings = choose((), device="host-kernels", **free)  # type: ignore[arg-type]
    assert max(c.bytes for c in emulated) < 1e6
    assert {c.dtype for c in emulated} == set(cases.DTYPES)
    assert settings.compare == ()
    assert not settings.ceilings
    for backend, device in (("numpy", "cpu"), ("host", "host-kernels"), ("cuda:cupy", "cuda"), ("cuda:native", "cuda")):
        same, settings = choose((), device=backend, **free)  # type: ignore[arg-type]
        assert same == choose((), device=device, **free)[0]  # type: ignore[arg-type]
        assert (settings.device, settings.kind) == (backend, device)
    for wrong in (dict(algorithms=("winograd",)), dict(compare=("pytorch",)), dict(layout="nhwc")):
        with pytest.raises(UnknownName):
            choose((), device="cpu", **(free | wrong))  # type: ignore[arg-type]
    _, settings = choose((), device="cuda", **(free | dict(algorithms=("auto", "hopper"), autotune=True)))  # type: ignore[arg-type]
    assert settings.autotune
    with pytest.raises(ShapeError, match="chooses among kernels"):
        choose((), device="cpu", **free, autotune=True)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="goes alone"):
        choose((), device="cpu", **(free | dict(compare=("none", "torch"))))  # type: ignore[arg-type]


def test_tiny_keeps_the_kind() -> None:
    small = tiny(every_case())
    assert {(c.op, c.dtype) for c in small} == {(c.op, c.dtype) for c in every_case()}
    assert max(c.bytes for c in small) < 1e6
    groups = {(c.sizes["groups"], c.sizes["C"], c.sizes["R"], c.sizes["stride"]) for c in small if c.op == "conv2d"}
    assert (20, 20, 3, 2) in groups  # depthwise, strided
    assert (2, 20, 5, 1) in groups  # AlexNet's towers
    assert (1, 3, 11, 4) in groups
    assert len({(c.op, c.dtype, str(c.sizes)) for c in small}) == len(small)


# --- right or wrong ---------------------------------------------------------------------------------------------------

ONE_OF_EACH = list({(c.op, c.dtype): c for c in reversed(tiny(select(batches=[64])))}.values())
# the geometries that differ: strides, paddings, groups, even sizes
CONVS = tiny([c for c in every_case([2]) if c.what.family == "conv" and c.dtype == "float32"])


def drawn(it: Case, seed: int = 0) -> dict[str, np.ndarray]:
    return check.draw(np, it.what.arrays(it.sizes), dtypes.parse(it.storage), seed)


def called(it: Case, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    own = {name: a.copy() for name, a in arrays.items()}
    own |= it.what.saved(reference, own, it.sizes)
    result = it.what.call(reference, own, it.sizes)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("it", [*ONE_OF_EACH, *CONVS], ids=lambda c: f"{c.id} {list(c.sizes.values())}")
def test_right_is_right_and_wrong_is_wrong(it: Case) -> None:
    """The reference passes; the same with one channel, row or column spoilt, NaN, or other inputs does not."""
    arrays = drawn(it)
    truths = check.truths(np, it, arrays)
    results = called(it, arrays)
    verdict = check.compare(truths, results)
    assert verdict.right, verdict
    assert verdict.relative < 0.01

    spoilt = [r.copy() for r in results]
    spoilt[0].reshape(-1)[spoilt[0].size // 2] = np.nan
    assert not check.compare(truths, tuple(spoilt)).right  # one NaN anywhere, in the sample or not
    assert not check.compare(truths, called(it, drawn(it, seed=1))).right
    if it.op not in ("cross_entropy", "max_pool2d"):
        assert not check.compare(truths, tuple(-r for r in results)).right
    corner = results[0].copy()
    corner[(0,) * corner.ndim] += 1 + abs(corner[(0,) * corner.ndim])
    assert not check.compare(truths, (corner, *results[1:])).right, "the first element is always looked at"


def test_the_bound_catches_one_missing_product() -> None:
    """The strictest claim of check.py's text: leaving out one of many products is noticed, in float32."""
    it = case("gemm", dict(M=40, N=40, K=4608))
    arrays = drawn(it)
    truths = check.truths(np, it, arrays)
    missing = arrays["a"].copy()
    missing[:, 77] = 0
    assert check.compare(truths, (arrays["a"] @ arrays["b"],)).right
    assert check.compare(truths, (missing @ arrays["b"],)).worst > 20


def test_tf32_may_round_its_factors_and_float32_may_not() -> None:
    it = case("gemm", dict(M=64, N=64, K=1000))
    arrays = drawn(it)
    rounded = {n: (a.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32) for n, a in arrays.items()}
    result = (rounded["a"] @ rounded["b"],)
    assert not check.compare(check.truths(np, it, arrays), result).right
    assert check.compare(check.truths(np, replace(it, dtype="tf32"), arrays), result).right


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_finite(dtype: str) -> None:
    a = np.ones((2, 3, 4, 5), dtypes.parse(dtype)).transpose(0, 3, 1, 2)
    assert check.all_finite(a)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        a[1, 2, 0, 3] = bad
        assert not check.all_finite(a)
    assert check.all_finite(np.arange(3, dtype=np.uint8))


# --- contestants ------------------------------------------------------------------------------------------------------


class Instant:
    """A clock that takes no time and still runs the work."""

    def seconds(self, do: Any) -> float:
        do()
        return 1e-6


@pytest.mark.parametrize("it", ONE_OF_EACH, ids=lambda c: c.id)
def test_pytorch_computes_the_same(it: Case) -> None:
    """In both memory formats, and without changing what the others will read."""
    pytest.importorskip("torch")
    arrays = drawn(it)
    before = {name: a.copy() for name, a in arrays.items()}
    truths = check.truths(np, it, arrays)
    for layout in ("contiguous", "channels_last"):
        torch = contestants.Torch(Instant(), layout)  # type: ignore[arg-type]
        if it.dtype == "tf32":
            with pytest.raises(BackendUnavailable, match="TF32"):
                torch.prepare(it, arrays)
            continue
        if not torch.takes(it):
            continue
        try:
            results = torch.results(torch.prepare(it, arrays)())
        except NotImplementedError:
            assert it.op == "local_response_norm", "PyTorch's CPU has this"
            continue
        verdict = check.compare(truths, results)
        # PyTorch's fold and pooling sum in the narrow type
        assert verdict.right or (it.storage != "float32" and verdict.relative < check.INEXACT), verdict
        assert bool(results) != (it.op == "dropout")  # its own mask: only timed
    for name, a in arrays.items():
        np.testing.assert_array_equal(a, before[name])


def test_torch_has_two_formats_only_for_images() -> None:
    pytest.importorskip("torch")
    other = contestants.Torch(Instant(), "channels_last")  # type: ignore[arg-type]
    taken = {it.op for it in ONE_OF_EACH if other.takes(it)}
    assert "conv2d" in taken
    assert not taken & {"gemm", "linear", "softmax", "adam_step", "to_contiguous", "to_channels_last"}


def test_ours_says_what_it_cannot_do() -> None:
    it = case("gemm", dict(M=2, N=2, K=2), "tf32")
    with pytest.raises(BackendUnavailable, match="exactly; got tf32"):
        contestants.Ours(reference, Instant()).prepare(it, drawn(it))
    winograd = contestants.Ours(reference, Instant(), algorithm="winograd4")
    assert winograd.name == "dlgpu winograd4"
    assert not winograd.takes(it)
    with pytest.raises(BackendUnavailable, match="multiplies roundings by ten"):
        contestants.Ours(Wrong(), Instant(), algorithm="winograd4").prepare(case("conv2d", CONV, "tf32"), {})
    assert winograd.takes(case("conv2d", CONV))


def test_hopper_and_autotune_are_settings_of_our_calls() -> None:
    class Backend:
        xp, launcher = np, SimpleNamespace(capability=90)

        def gemm(self, *args: Any, **options: Any) -> Any:
            return tuning.current()

    it = case("gemm", dict(M=2, N=2, K=2), "float16")
    drawn_ = drawn(it)
    hopper = contestants.Ours(Backend(), Instant(), algorithm="hopper", autotune=True)
    assert hopper.name == "dlgpu hopper tuned"
    assert hopper.prepare(it, drawn_)()[::2] == (True, 0)
    assert contestants.Ours(Backend(), Instant()).prepare(it, drawn_)() == tuning.Tuning()
    assert hopper.takes(it)
    assert hopper.takes(case("conv2d", CONV, "bfloat16"))
    assert not hopper.takes(case("conv2d", CONV))
    with pytest.raises(BackendUnavailable, match=r"capability 9.0; got None"):
        contestants.Ours(reference, Instant(), algorithm="hopper").prepare(it, drawn_)


def test_launches_are_counted_and_the_launcher_comes_back() -> None:
    class Launcher:
        xp = np

        def launch(self, *args: Any) -> None:
            raise RuntimeError("out of order")

        def extra(self) -> int:
            return 7

    class Backend:
        launcher = Launcher()
        xp = np

    backend = Backend()
    before = backend.launcher
    ours = contestants.Ours(backend, Instant())

    def call() -> None:
        assert backend.launcher.extra() == 7
        backend.launcher.launch("dl::gemm<float>", (1, 2, 3), (256, 1, 1), ())

    with pytest.raises(RuntimeError, match="out of order"):
        ours.launches(call)
    assert backend.launcher is before
    Launcher.launch = lambda *args: None  # type: ignore[method-assign,assignment]
    assert ours.launches(call) == ["gemm<float> on 1x2x3 x 256x1x1"]
    assert contestants.Ours(reference, Instant()).launches(call) == []


# --- a stand-in for CuPy ----------------------------------------------------------------------------------------------


class FakeCupy:
    """Events, streams, graphs and pools as CuPy names them. `log` is what happened, `time` a clock that work moves."""

    def __init__(self, capture_fails: bool = False) -> None:
        fake = self
        self.log: list[str] = []
        self.time = 0.0
        self.allocator: Any = None
        self.capture_fails = capture_fails

        class Event:
            def record(self, stream: Any) -> None:
                self.at = fake.time
                fake.log.append("record")

            def synchronize(self) -> None:
                fake.log.append("wait")

        class Graph:
            def launch(self, stream: Any) -> None:
                fake.log.append("replay")
                fake.time += 8e-3

        class Stream:
            ptr = 1

            def __init__(self, non_blocking: bool) -> None:
                assert non_blocking, "the default stream cannot be captured"

            def use(self) -> None:
                fake.log.append("use")

            def synchronize(self) -> None:
                fake.log.append("sync")

            def begin_capture(self) -> None:
                fake.log.append("begin")

            def end_capture(self) -> Any:
                fake.log.append("end")
                if fake.capture_fails:
                    raise RuntimeError("invalidated")
                return Graph()

        class Pool:
            def malloc(self, size: int) -> Any:
                return Memory()

        class Memory:
            def memset_async(self, value: int, size: int) -> None:
                fake.log.append(f"fill {value:#x} {size}")

        @contextmanager
        def using_allocator(allocate: Any) -> Any:
            before, fake.allocator = fake.allocator, allocate
            yield
            fake.allocator = before

        pool = Pool()
        self.get_default_memory_pool = lambda: pool
        self.cuda = type("cuda", (), {})()
        self.cuda.Event, self.cuda.Stream, self.cuda.MemoryPool = Event, Stream, Pool
        self.cuda.using_allocator = using_allocator
        self.cuda.get_elapsed_time = lambda a, b: 1e3 * (b.at - a.at)  # milliseconds


def test_events_surround_the_second_of_two_runs() -> None:
    cupy = FakeCupy()
    clock = EventClock(cupy)

    def work() -> None:
        cupy.log.append("work")
        cupy.time += 0.25

    assert clock.seconds(work) == pytest.approx(0.25)
    assert cupy.log == ["use", "work", "record", "work", "record", "wait"]


def test_capture_makes_a_graph_with_memory_of_its_own() -> None:
    cupy = FakeCupy()
    clock = EventClock(cupy)
    pools = set()

    def call() -> None:
        cupy.log.append("call")
        pools.add(id(cupy.allocator.__self__))

    work = clock.capture([call, call], 1.0)
    assert cupy.log == ["use", "call", "call", "sync", "begin", "call", "call", "end"]
    assert (work.calls, work.how) == (2, "graph")
    assert clock.seconds(work.run) / work.calls == pytest.approx(4e-3)  # one replay makes two calls
    assert cupy.log[-5:] == ["replay", "record", "replay", "record", "wait"]
    assert len(pools) == 1
    assert any(id(kept) in pools for kept in work.keep), "the graph's memory must live as long as the graph"
    assert cupy.allocator is None


@pytest.mark.parametrize("how", ["in the call", "at the end"])
def test_what_cannot_be_captured_is_called_one_by_one(how: str) -> None:
    cupy = FakeCupy(capture_fails=how == "at the end")
    clock = EventClock(cupy)

    def call() -> None:
        if how == "in the call" and "begin" in cupy.log and "end" not in cupy.log:
            raise NotImplementedError("calling a library during capture")
        cupy.log.append("call")
        cupy.time += 1e-3

    work = clock.capture([call] * 3, 1.0)
    assert work.how.startswith("events (no graph: ")
    assert ("NotImplementedError: calling" in work.how) == (how == "in the call")
    assert "end" in cupy.log  # the stream does not stay in capture mode
    assert clock.seconds(work.run) / work.calls == pytest.approx(1e-3)


def test_memory_is_nan_before_a_check() -> None:
    cupy = FakeCupy()
    with measure.nan_filled(cupy):
        cupy.allocator(512)
        cupy.allocator(0)
    assert cupy.log == ["fill 0xff 512"]
    for kind in ("f4", "f2", dtypes.bfloat16):
        assert np.isnan(np.frombuffer(b"\xff" * 4, kind).astype(np.float32)).all()


def test_outputs_leave_the_cache_too() -> None:
    """As many results are alive as there are input sets, so that they cannot all lie in one place."""

    class Output:
        pass

    outputs: list[weakref.ref[Output]] = []
    alive: list[int] = []

    def call() -> Output:
        made = Output()
        outputs.append(weakref.ref(made))
        alive.append(sum(one() is not None for one in outputs))
        return made

    measure.one_by_one([call] * 3, 20e-6).run()
    assert alive == [1, 2, 3] + [4] * 9  # three sets, and the one that is being made
    assert not any(one() for one in outputs)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_summary() -> None:
    figures = measure.summary([3e-6, 1e-6, 2e-6, 4e-6, 100e-6])
    assert (figures.us, figures.low, figures.high, figures.rounds) == pytest.approx((3, 1, 100, 5))
    assert figures.spread == pytest.approx((4 - 2) / 2 / 3)
    alone = measure.summary([7e-6])
    assert (alone.us, alone.spread) == pytest.approx((7, 0))


def test_contestants_take_turns_in_changing_order() -> None:
    ran: list[str] = []

    class Clock:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.taken = name, seconds

        def seconds(self, do: Any) -> float:
            ran.append(self.name)
            return self.taken

    works = {n: (Clock(n, s), Work(lambda: None, 4, "clock")) for n, s in (("a", 4.0), ("b", 8.0), ("c", 2.0))}
    turns: list[str] = []
    found = measure.interleave(works, rounds=3, limit=100, turn=turns.append, now=lambda: 0.0)
    assert turns == ran
    assert ran == list("abc") + list("bca") + list("cab")
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [0.5] * 3}  # per call: each run makes four
    ticks = iter(range(100))
    late = measure.interleave(works, rounds=50, limit=4, now=lambda: float(next(ticks)))
    assert {len(v) for v in late.values()} == {7}  # three rounds for certain, then until the clock says 4
    assert measure.interleave({}, rounds=3, limit=1) == {}


def test_repeats_fill_the_shortest_time() -> None:
    ran: list[int] = []
    work = measure.one_by_one([lambda: ran.append(0), lambda: ran.append(1)], 20e-6)
    work.run()
    assert ran == [0, 1] * 5
    assert (work.calls, work.how) == (10, "events")
    for sets, seconds, calls in ((2, 1.0, 2), (2, 0.0, measure.MOST_CALLS), (32, 1e-9, measure.MOST_CALLS)):
        assert measure.one_by_one([lambda: None] * sets, seconds).calls == calls
    ran.clear()
    work = measure.cycle([lambda: ran.append(0), lambda: ran.append(1), lambda: ran.append(2)], "clock", 100e-6)
    assert work.calls == 2
    work.run()
    work.run()
    assert ran == [0, 1, 2, 0]  # goes on where it stopped


# --- one case in the lab ----------------------------------------------------------------------------------------------


class Wrong:
    """The reference, but for what is overwritten."""

    xp = np

    def __init__(self, **ops: Any) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["ops"].get(name) or getattr(reference, name)


def make_lab(backend: Any, monkeypatch: pytest.MonkeyPatch, *others: Any) -> lab.Lab:
    monkeypatch.setattr(backends, "get", lambda name: backend)
    monkeypatch.setattr(lab, "WallClock", Instant)
    monkeypatch.setattr(lab, "baselines", lambda names, clock: (list(others), {}))
    return lab.Lab(lab.Settings("cpu", rounds=3, ceilings=False))


GEMM = case("gemm", dict(M=20, N=30, K=40))


def test_a_wrong_result_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_lab(Wrong(gemm=lambda a, b: a @ b + 0.1), monkeypatch)
    (row,) = here.run(GEMM)["results"]
    assert row["state"] == "WRONG"
    assert "us" not in row
    assert "times its bound" in row["reason"]


def test_a_failing_or_missing_contestant_leaves_the_others_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(a: Any, b: Any) -> Any:
        raise ZeroDivisionError("no\nsuch luck")

    def missing(a: Any, b: Any) -> Any:
        raise BackendUnavailable("[gemm] not here")

    def later(a: Any, b: Any) -> Any:
        later.calls += 1  # type: ignore[attr-defined]
        if later.calls > 2:  # type: ignore[attr-defined]
            raise MemoryError("while timing")
        return a @ b

    later.calls = 0  # type: ignore[attr-defined]
    others = [
        contestants.Ours(Wrong(gemm=f), Instant(), name, ours=False)
        for name, f in (
            ("fails", fails),
            ("missing", missing),
            ("later", later),
            ("inexact", lambda a, b: a @ b * 1.001),
        )
    ]
    off = contestants.Ours(Wrong(gemm=lambda a, b: b.T @ a.T), Instant(), "another op", ours=False)
    others.append(contestants.Ours(Wrong(gemm=lambda a, b: 2 * (a @ b)), Instant(), "twice", ours=False))
    here = make_lab(reference, monkeypatch, *others, off)
    rows = {row["by"]: row for row in here.run(GEMM)["results"]}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {
        "numpy": "ok",
        "fails": "failed",
        "missing": "not available",
        "later": "failed",
        "inexact": "inexact",
        "twice": "WRONG",
        "another op": "failed",
    }
    assert rows["fails"]["reason"] == "ZeroDivisionError: no"
    assert rows["missing"]["reason"] == "[gemm] not here"
    assert {name for name, row in rows.items() if "us" in row} == {"numpy", "inexact"}
    assert rows["numpy"]["gflops"] == pytest.approx(GEMM.flops / rows["numpy"]["us"] / 1e3)
    assert rows["numpy"]["gbs"] == pytest.approx(GEMM.bytes / rows["numpy"]["us"] / 1e3)


def test_numpy_takes_no_turns_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its milliseconds would leave microseconds no rounds."""

    class Other(Instant):
        pass

    groups: list[list[str]] = []
    interleave = measure.interleave

    def noting(works: Any, **how: Any) -> Any:
        groups.append(list(works))
        return interleave(works, **how)

    monkeypatch.setattr(measure, "interleave", noting)
    numpy = contestants.Ours(reference, Other(), "numpy", ours=False)
    here = make_lab(reference, monkeypatch, numpy, contestants.Ours(reference, Instant(), "torch", ours=False))
    here.ours[0].name = "dlgpu"
    rows = here.run(GEMM)["results"]
    assert groups == [["dlgpu", "torch"], ["numpy"]]
    assert all("us" in row for row in rows)


def test_ceilings_do_not_ask_who_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prepare(self: contestants.Ours, *args: Any) -> Any:
        asked.append(self.name)
        return lambda: None

    here = make_lab(reference, monkeypatch, contestants.Ours(reference, Instant(), "other", ours=False))
    here.contestants.append(contestants.Ours(reference, here.clock, algorithm="hopper"))
    for contestant in here.contestants:
        contestant.clock = here.clock  # type: ignore[misc]
    monkeypatch.setattr(contestants.Ours, "prepare", prepare)
    assert here._product_gflops("float16", 8) > 0
    assert asked == ["numpy", "other"]


def test_check_only(monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_lab(reference, monkeypatch)
    here.settings = replace(here.settings, rounds=0)
    (row,) = here.run(GEMM)["results"]
    assert row["state"] == "ok"
    assert "us" not in row
    (line,) = report.lines({"case": run.describe(GEMM), "results": [row], "cached": False}, None)
    assert "right; not timed" in report.line_of(report.cells(line))


def test_the_reference_is_left_out_where_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = contestants.Ours(reference, Instant(), "numpy", ours=False)
    here = make_lab(reference, monkeypatch, numpy)
    here.ours[0].name = "dlgpu"
    here.settings = replace(here.settings, reference_gflop=1e-9)
    rows = {row["by"]: row for row in here.run(GEMM)["results"]}
    assert rows["numpy"]["state"] == "not available"
    assert "left out" in rows["numpy"]["reason"]
    assert "us" in rows["dlgpu"]


@pytest.mark.parametrize("op", ["conv2d", "conv2d_grad_weight", "linear", "max_pool2d_grad", "adam_step"])
def test_the_kernels_run_on_the_host_launcher(op: str) -> None:
    try:
        here = lab.Lab(lab.Settings("host", compare=(), rounds=3, seconds=0.0, ceilings=False))
    except BackendUnavailable as error:
        pytest.skip(str(error))
    (it,) = [c for c in ONE_OF_EACH if (c.op, c.dtype) == (op, "float32")]
    (row,) = here.run(it)["results"]
    assert (row["state"], row["how"]) == ("ok", "emulated")
    assert row["launches"]
    assert all(" on " in line for line in row["launches"])


# --- the loop ---------------------------------------------------------------------------------------------------------

MACHINE = {
    "device": "cpu",
    "backend": "numpy",
    "name": "a machine",
    "dlgpu": "0",
    "commit": "abc",
    "python": "3",
    "numpy": "2",
    "missing": {"torch": "not installed"},
    "ceilings": {"copy_gbs": 10.0, "gflops": {"float32": 100.0}},
}
SETTINGS = lab.Settings("cpu")


def timed(by: str, us: float, ours: bool, it: Case = GEMM, **more: Any) -> dict[str, Any]:
    rates = {"gflops": it.flops / us / 1e3, "gbs": it.bytes / us / 1e3}
    figures = {"us": us, "low": us, "high": us, "spread": 0.01, "rounds": 3}
    return (
        {"by": by, "ours": ours, "state": "ok", "how": "clock", "launches": [], "cpu_us": None} | rates | figures | more
    )


class FakeWorker:
    """Answers from a list; an answer may be an exception."""

    made: list[FakeWorker]

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.ended = answers, False

    def ask(self, request: Any, seconds: float) -> Any:
        if request == "machine":
            return MACHINE
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        self.ended = True


def loop(tmp_path: Path, answers: list[Any], its: list[Case], **options: Any) -> tuple[run.Results, list[FakeWorker]]:
    workers: list[FakeWorker] = []

    def worker(settings: lab.Settings) -> Any:
        workers.append(FakeWorker(answers))
        return workers[-1]

    results = options.pop("results", None) or run.Results(tmp_path / "results.json")
    options = {"budget": 1e9} | options
    run.run(its, SETTINGS, results, worker=worker, **options)  # type: ignore[arg-type]
    return results, workers


ITS = [replace(GEMM, name=str(i)) for i in range(4)]
FINE = {"results": [timed("numpy", 10.0, True), timed("torch", 5.0, False)], "sets": 1, "cached": True}


def test_a_crash_costs_one_case_and_one_worker(tmp_path: Path) -> None:
    crash = {"state": "crashed", "reason": "the worker process ended with code -11"}
    results, workers = loop(tmp_path, [FINE, crash, FINE, FINE], ITS)
    assert [row.get("state") for row in results.rows] == [None, "crashed", None, None]
    assert len(workers) == 2
    assert all(worker.ended for worker in workers)
    assert results.wrong == ["gemm test 1 float32: crashed: the worker process ended with code -11"]
    assert run.Results.read(results.path).rows == results.rows


def test_who_crashes_is_left_out_and_the_case_measured(tmp_path: Path) -> None:
    """After a crash of this case, after a hang of all of its family; the others keep their times."""
    asked: list[tuple[tuple[str, str], ...]] = []
    states = {"a": "crashed", "b": "timeout"}

    class Here(FakeWorker):
        def ask(self, request: Any, seconds: float) -> Any:
            if request == "machine":
                return MACHINE
            asked.append(self.settings.without)
            for name, state in states.items():
                if not {(name, request.id), (name, "product")} & {*self.settings.without}:
                    return {"state": state, "reason": "why", "by": name}
            gone = [{"by": name, "ours": True, "state": "not available", "reason": "left out"} for name in states]
            return {"results": [timed("numpy", 10.0, True), *gone], "sets": 1, "cached": True}

    def worker(settings: lab.Settings) -> Any:
        here = Here([])
        here.settings = settings  # type: ignore[attr-defined]
        return here

    results = run.Results(tmp_path / "results.json")
    run.run(ITS[:2], SETTINGS, results, budget=1e9, worker=worker)
    a, b, again = (("a", ITS[0].id), ("b", "product"), ("a", ITS[1].id))
    assert asked == [(), (a,), (a, b), (a, b), (a, b, again)]
    states_of = [{r["by"]: (r["state"], r.get("reason")) for r in row["results"]} for row in results.rows]
    assert states_of[0]["a"] == states_of[1]["a"] == ("failed", "crashed: why")
    assert states_of[0]["b"] == ("failed", "timeout: why")
    assert states_of[1]["b"] == ("not available", "left out")
    assert all("us" in row["results"][0] for row in results.rows)
    assert len(results.wrong) == 3


def test_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    other = contestants.Ours(reference, Instant(), "other", ours=False)
    here = make_lab(reference, monkeypatch, other)
    here._tell = lambda trying: told.append(trying.by)
    here.settings = replace(here.settings, without=(("other", "product"), ("numpy", "conv")))
    rows = {row["by"]: row for row in here.run(GEMM)["results"]}
    assert (rows["other"]["state"], "us" in rows["numpy"]) == ("not available", True)
    assert told == ["numpy", "other", "numpy", *["numpy"] * 3]  # checked, captured, timed
    here.settings = replace(here.settings, without=(("numpy", GEMM.id),))
    rows = {row["by"]: row for row in here.run(GEMM)["results"]}
    assert (rows["numpy"]["state"], "us" in rows["other"]) == ("not available", True)


def test_results_are_on_disk_as_they_come(tmp_path: Path) -> None:
    seen = []

    def measured(row: Any) -> None:
        seen.append(len(json.loads((tmp_path / "results.json").read_text())["rows"]))

    loop(tmp_path, [FINE] * 4, ITS, measured=measured)
    assert seen == [1, 2, 3, 4]
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, [FINE, KeyboardInterrupt()], ITS)
    kept = run.Results.read(tmp_path / "results.json")
    assert len(kept.rows) == 1
    assert kept.left == 3


def test_a_budget_ends_the_run_between_two_cases(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 9.0, 11.0, 12.0])
    results, _ = loop(tmp_path, [FINE] * 4, ITS, budget=10, now=lambda: next(clock))
    assert [row["case"]["name"] for row in results.rows] == ["0", "1"]
    assert results.left == 2


def test_resume_measures_what_is_missing(tmp_path: Path) -> None:
    first, _ = loop(tmp_path, [FINE, FINE], ITS[:2])
    again, _ = loop(tmp_path, [FINE, FINE], ITS, results=run.Results.read(first.path))
    assert [row["case"]["name"] for row in again.rows] == ["0", "1", "2", "3"]
    assert again.left == 0


def test_not_a_results_file(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"schema": 1, "rows": [], "more": 1}', '{"schema": 99}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError, match=r"\[bench\]"):
            run.Results.read(tmp_path / "results.json")


def _dies(settings: Any, connection: Any) -> None:
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(settings: Any, connection: Any) -> None:
    time.sleep(600)


def _hangs_in_one(settings: Any, connection: Any) -> None:
    for name in ("first", "second"):
        connection.send(lab.Trying(name))
    time.sleep(600)


def _raises(settings: Any, connection: Any) -> None:
    connection.send("ValueError: what")
    connection.recv()


def test_a_real_worker_that_dies_hangs_or_raises() -> None:
    worker = run.Worker(SETTINGS, _dies)
    assert worker.ask(GEMM, 60) == {"state": "crashed", "reason": "the worker process ended with code -9"}
    worker.end()
    worker = run.Worker(SETTINGS, _hangs)
    assert worker.ask(GEMM, 0.1) == {"state": "timeout", "reason": "no answer within 0 seconds"}
    worker.end()
    assert not worker._process.is_alive()
    worker = run.Worker(SETTINGS, _hangs_in_one)
    assert worker._connection.poll(60)  # it has started
    assert worker.ask(GEMM, 0.5)["by"] == "second"
    worker.end()
    worker = run.Worker(SETTINGS, _raises)
    assert worker.ask(GEMM, 60) == {"state": "crashed", "reason": "ValueError: what"}
    worker.end()


def test_a_real_worker_measures(tmp_path: Path) -> None:
    settings = lab.Settings("cpu", compare=(), seconds=0.0, rounds=3, ceilings=False)
    results = run.run([GEMM], settings, run.Results(tmp_path / "results.json"), budget=600)
    (row,) = results.rows
    assert row["results"][0]["state"] == "ok"
    assert results.machine["device"] == "cpu"


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    if backends.available()["cuda"] == "ready":
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendUnavailable, match="cuda:"):
        run.run([GEMM], lab.Settings("cuda"), run.Results(tmp_path / "results.json"), budget=600)
    assert not list(tmp_path.iterdir())


# --- reports ----------------------------------------------------------------------------------------------------------


def some_results(path: Path) -> run.Results:
    conv = Case("conv2d", "vgg16", "conv3_2", "float16", CONV)
    relu = Case("relu", "vgg16", "relu1_2", "float32", dict(N=2, C=3, H=4))
    results = run.Results(path, dict(MACHINE), {}, left=5)
    results.rows = [
        {"case": run.describe(GEMM)} | FINE,
        {
            "case": run.describe(conv),
            "results": [timed("dlgpu", 10.0, True, conv), timed("torch", 30.0, False, conv)],
            "cached": False,
        },
        {
            "case": run.describe(relu),
            "results": [
                {"by": "dlgpu", "ours": True, "state": "WRONG", "reason": "relative error 0.5"},
                {"by": "torch", "ours": False, "state": "not available", "reason": "because"},
            ],
            "cached": False,
        },
        {"case": run.describe(ITS[1]), "state": "timeout", "reason": "no answer within 3 seconds"},
    ]
    return results


def test_ratio_and_share_of_the_roofline(tmp_path: Path) -> None:
    results = some_results(tmp_path / "results.json")
    (gemm,), (conv,), (relu,), (hung,) = (list(report.lines(r, report.ceilings(results))) for r in results.rows)
    assert gemm.ratio == pytest.approx(0.5)
    assert conv.ratio == pytest.approx(3.0)
    assert gemm.roofline == pytest.approx(max(GEMM.flops / 100e3, GEMM.bytes / 10e3) / 10.0)
    assert conv.roofline is None  # no float16 ceiling was measured
    assert relu.ratio is relu.roofline is None
    assert hung.ours["state"] == "timeout"
    emulated = replace(gemm, ours=gemm.ours | {"how": "emulated"})
    assert emulated.ratio is None


def test_markdown(tmp_path: Path) -> None:
    text = report.markdown(some_results(tmp_path / "results.json"))
    for part in (
        "# a machine\n",
        "copy 10 GB/s",
        "- torch: not installed",
        "4 cases measured, 5 more left for lack of time",
        "- relu vgg16 relu1_2 x2 float32: dlgpu: WRONG: relative error 0.5",
        "- gemm test 1 float32: timeout: no answer within 3 seconds",
        "| gemm test case float32 | numpy | 10.0 µs | 1% | 4.80 GFLOP/s |",
        "| 5.00 µs torch | 0.50x |",
        "torch not available (because)",
        "| conv2d | float16 | dlgpu | 1 | 1 | 3.00x | 3.00x | 3.00x | - |",
    ):
        assert part in text, part
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables}
    assert widths == {10, 12}  # the summary and the tables of the ops: every row as wide as its head
    assert "None" not in text


def test_goals_of_a_gpu(tmp_path: Path) -> None:
    results = run.Results(tmp_path / "results.json", MACHINE | {"device": "cuda", "backend": "cuda:native"})
    results.rows = []
    for batch, ours in ((32, 10.0), (64, 40.0)):
        sizes = dict(N=batch, C=128, H=28, K=128, R=3, stride=1, padding=1, groups=1)
        it = Case("conv2d_bias_relu", "vgg16", "conv", "float16", sizes)
        by = [timed("dlgpu", ours, True, it), timed("torch channels_last", 20.0, False, it)]
        results.rows.append({"case": run.describe(it), "results": by, "cached": False})
    text = report.markdown(results)
    assert "a machine (cuda:native)" in text
    wanted = (
        "| half conv + bias + ReLU, 3x3, C and K >= 128 | torch channels_last | 1.05x | 1.20x | 2 | 1.00x | 0.50x | "
    )
    assert wanted + "dlgpu | not met |" in text
    assert "| bfloat16 product, 8192 | torch or cublas (CuPy) | 0.95x | 1.02x | 0 | - | - | - | not measured |" in text
    assert "## Goals" not in report.markdown(some_results(tmp_path / "results.json"))


def test_what_stays_in_the_cache_is_marked(tmp_path: Path) -> None:
    (row, *_) = some_results(tmp_path / "results.json").rows
    assert [report.cells(line)[5] for line in report.lines(row, None)] == ["-*"]
    assert [report.cells(line)[5] for line in report.lines(row | {"cached": False}, None)] == ["-"]


def test_pictures(tmp_path: Path) -> None:
    results = some_results(tmp_path / "results.json")
    results.save()
    names = [path.name for path in report.write(results)]
    assert names == ["results.json", "report.md", "roofline.png", "bars.png"]
    for name in names[2:]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    results.rows = results.rows[2:]
    (tmp_path / "roofline.png").unlink()
    assert [path.name for path in report.write(results)] == ["results.json", "report.md"]  # nothing to draw
    results.machine["ceilings"] = None
    results.rows = some_results(tmp_path / "x").rows
    assert [path.name for path in report.write(results)] == ["results.json", "report.md", "bars.png"]


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.0123, "0.0123 µs"),
        (1, "1.00 µs"),
        (45.67, "45.7 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (12_345, "12.3 ms"),
        (2.5e6, "2.50 s"),
        (1e9, "1000 s"),
    ],
)
def test_microseconds(us: float, text: str) -> None:
    assert report.microseconds(us) == text


def test_rates_have_a_unit() -> None:
    assert report.rate({"gflops": 1234.5, "gbs": 1}, {"flops": 5}) == "1.23 TFLOP/s"
    assert report.rate({"gflops": 56.78, "gbs": 1}, {"flops": 5}) == "56.8 GFLOP/s"
    assert report.rate({"gflops": None, "gbs": 4300}, {"flops": 0}) == "4.30 TB/s"


# --- the command ------------------------------------------------------------------------------------------------------


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dlgpu", "bench", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )


def test_command(tmp_path: Path) -> None:
    done = command(tmp_path, "gemm", "--tiny", "--compare", "none", "--device", "cpu", "--output", "here")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gemm ladder 8192 (tiny) float32" in done.stdout
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "bars.png",
        "report.md",
        "results.json",
        "roofline.png",
    ]
    again = command(tmp_path, "gemm", "--tiny", "--compare", "none", "--device", "cpu", "--output", "here", "--resume")
    assert again.returncode == 0
    assert "(tiny)" not in again.stdout  # nothing is measured twice


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["conv3d"], "Did you mean 'conv2d'?"),
        (["--network", "resnet5"], "Did you mean 'resnet50'?"),
        (["--resume"], "got no --output"),
        (["--compare", "touch"], "Did you mean 'torch'?"),
        (["--device", "gpu"], "unknown backend"),
        (["--budget-minutes", "0"], "is not in the range"),
        (["--case-seconds", "-1"], "is not in the range"),
    ],
)
def test_command_errors(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(("error: [", "Usage:"))
    assert text in done.stderr
    assert not list(tmp_path.iterdir())


def test_command_lists_without_measuring(tmp_path: Path) -> None:
    done = command(tmp_path, "conv2d", "--network", "vgg16", "--batch", "64", "--device", "cpu", "--list")
    lines = done.stdout.splitlines()
    assert len(lines) == 9  # VGG16 has nine different layers
    (conv3_2,) = (line for line in lines if line.split()[:3] == ["conv2d", "vgg16", "conv3_2"])
    assert "236.760 GFLOP" in conv3_2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_keeps_what_it_has(tmp_path: Path, number: int, code: int) -> None:
    arguments = ["--compare", "none", "--device", "cpu", "--tiny", "--output", "here", "--budget-minutes", "30"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlgpu", "bench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "float32" in line:
            break
    os.killpg(process.pid, number)  # as a terminal does: the worker gets it too
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (code, "")
    assert "interrupted" in out
    kept = run.Results.read(tmp_path / "here" / "results.json")
    assert kept.rows
    assert kept.left > 0
    assert (tmp_path / "here" / "report.md").exists()
    assert math.isfinite(kept.rows[0]["results"][0]["us"])
