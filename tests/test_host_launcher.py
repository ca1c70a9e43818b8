"""The host launcher itself: correct kernels pass in every flavour, order and copy timing; seeded bugs are named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlgpu.backends.launchers import host as launcher
from dlgpu.backends.launchers.host import HostLauncher
from dlgpu.errors import BackendUnavailable, DlgpuError, UnknownName

FOLDER = Path(__file__).parent / "host_kernels"
SOURCES = [FOLDER / "bugs.cu", FOLDER / "correct.cu"]
FLAVOUR = os.environ.get("DLGPU_HOST_FLAVOUR")  # set where this file runs in a process for one flavour
FLAVOURS = [FLAVOUR] if FLAVOUR else ["fast", "ubsan", "check"]
ORDERS = [("forward", "late"), ("forward", "early"), ("reverse", "late"), ("random", "early"), ("random", "random")]


@pytest.fixture(scope="module")
def built() -> Callable[[str], HostLauncher]:
    launchers: dict[str, HostLauncher] = {}

    def get(flavour: str) -> HostLauncher:
        if flavour not in launchers:
            try:
                launchers[flavour] = HostLauncher(flavour, SOURCES, project_kernels=False)
            except BackendUnavailable as error:
                pytest.skip(str(error))
        launchers[flavour].configure()
        return launchers[flavour]

    return get


@pytest.fixture(params=FLAVOURS)
def host(request: pytest.FixtureRequest, built: Callable[[str], HostLauncher]) -> HostLauncher:
    return built(request.param)


@pytest.fixture
def any_host(built: Callable[[str], HostLauncher]) -> HostLauncher:
    return built(FLAVOURS[0])


def floats(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- correct kernels ----


def sgemm(host: HostLauncher) -> None:
    for m, n, k in [(64, 64, 16), (65, 70, 33), (1, 1, 1), (30, 128, 50)]:
        a, b, c = floats(m, k), floats(k, n), np.full((m, n), np.nan, np.float32)
        host.launch("sgemm", (-(-n // 64), -(-m // 64), 1), (256, 1, 1), (a, b, c, m, n, k))
        np.testing.assert_allclose(c, a.astype(np.float64) @ b, atol=1e-5 * k**0.5, rtol=0)


def tensor_gemm(host: HostLauncher) -> None:
    for dtype, name in [(np.float16, "__half"), (ml_dtypes.bfloat16, "__nv_bfloat16")]:
        for m, n, k in [(64, 64, 32), (64, 128, 160)]:
            a, b, c = floats(m, k, dtype=dtype), floats(k, n, dtype=dtype), np.full((m, n), np.nan, np.float32)
            shared = 3 * (64 * 40 + 32 * 72) * 2
            host.launch(f"tensor_gemm<{name}>", (n // 64, m // 64, 1), (128, 1, 1), (a, b, c, n, k), shared)
            np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), atol=1e-5 * k**0.5, rtol=0)


def small_mma(host: HostLauncher) -> None:
    a, b, c = floats(16, 8), floats(8, 8), np.zeros((16, 8), np.float32)
    host.launch("mma_tf32", (1, 1, 1), (32, 1, 1), (a, b, c))
    np.testing.assert_allclose(c, a @ b, atol=8 * 2**-10)
    assert (c != a @ b).any()  # tf32 has ten bits
    half_a, half_b = a.astype(np.float16), b.astype(np.float16)
    host.launch("mma_f16_k8", (1, 1, 1), (32, 1, 1), (half_a, half_b, c))
    np.testing.assert_allclose(c, half_a.astype(np.float64) @ half_b.astype(np.float64), atol=1e-5)


def row_sum(host: HostLauncher) -> None:
    for threads in (32, 96, 1024):
        x, out = floats(3, 100), np.zeros(3, np.float32)
        host.launch("row_sum", (3, 1, 1), (threads, 1, 1), (x, out, 100))
        np.testing.assert_allclose(out, x.sum(1), atol=1e-5)


def warp_sum(host: HostLauncher) -> None:
    x, out = floats(64), np.zeros(1, np.float32)
    host.launch("warp_sum", (1, 1, 1), (32, 1, 1), (x, out))
    np.testing.assert_allclose(out, x.sum(), atol=1e-5)


def histogram(host: HostLauncher) -> None:
    values, counts = np.random.default_rng(0).integers(0, 16, 500, np.int32), np.zeros(16, np.int32)
    host.launch("histogram", (3, 1, 1), (64, 1, 1), (values, counts, 500))
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=16))


def transpose(host: HostLauncher) -> None:
    x, y = floats(64, 64), np.zeros((64, 64), np.float32)
    for padding in (0, 1):
        host.launch(f"transpose<{padding}>", (2, 2, 1), (32, 8, 1), (x, y, 64))
        np.testing.assert_array_equal(y, x.T)


def warp_words(host: HostLauncher) -> None:
    out, lane = np.zeros((32, 8), np.int32), np.arange(32)
    host.launch("warp_words", (1, 1, 1), (32, 1, 1), (out,))
    expected = [
        lane // 8 * 8 + 5,
        np.where(lane % 16 < 2, lane, lane - 2),
        np.where(lane + 3 < 32, lane + 3, lane),
        lane ^ 1,
        np.full(32, sum(1 << i for i in range(0, 32, 3)), np.int64).astype(np.int32),
        lane < 16,
        np.full(32, -1),
        (lane ^ 16) + 1,
    ]
    np.testing.assert_array_equal(out, np.array(expected).T)


def block_votes(host: HostLauncher) -> None:
    out = np.full((70, 2), -1, np.int32)
    host.launch("block_votes", (1, 1, 1), (70, 1, 1), (out,))
    np.testing.assert_array_equal(out, [[1, 0]] * 70)


def functions(host: HostLauncher) -> None:
    x = np.array([0.5, 1.0, 2.5, 3.75, 7.0], np.float32)  # exact in bfloat16 too
    out = np.zeros((5, 6), np.float32)
    host.launch("functions", (1, 1, 1), (32, 1, 1), (x, out, 5))
    rounded = (x * x).astype(ml_dtypes.bfloat16).astype(np.float32) + x  # after each operation
    expected = [x * x + 1, rounded.astype(ml_dtypes.bfloat16), x, np.minimum(x, 2), np.maximum(np.arange(5), 2), x]
    np.testing.assert_array_equal(out.T, [np.asarray(column, np.float32) for column in expected])


def good_twins(host: HostLauncher) -> None:
    """Each kernel of bugs.cu with its bug switched off."""
    for name, case in CASES.items():
        args = case.args()
        host.launch(f"{name}<{case.good}>", case.grid, case.block, args, case.shared_bytes)
        assert np.isfinite(args[case.result]).all(), name


CORRECT = [sgemm, tensor_gemm, small_mma, row_sum, warp_sum, histogram, transpose, warp_words, block_votes]
CORRECT += [functions, good_twins]


@pytest.mark.parametrize("run", CORRECT, ids=lambda run: run.__name__)
def test_correct_in_every_order(run: Callable[[HostLauncher], None], host: HostLauncher) -> None:
    for seed, (order, copies) in enumerate(ORDERS):
        host.configure(order, order, copies, seed)
        run(host)


def test_geometry_and_strides(any_host: HostLauncher) -> None:
    """A kernel gets the data pointer of any view; a 3-D launch covers what a 1-D launch does."""
    line = np.zeros((), [("slope", np.float32), ("offset", np.float32), ("count", np.int32)])
    line[...] = (2, 1, 20)
    for dtype, name in [(np.float32, "float"), (np.float16, "__half"), (ml_dtypes.bfloat16, "__nv_bfloat16")]:
        whole = np.arange(80).astype(dtype).reshape(2, 40)
        out = np.zeros(50, dtype)
        any_host.launch(f"affine<{name}>", (2, 1, 1), (7, 1, 1), (whole[1, 10:], out[5:], line[()]))
        np.testing.assert_array_equal(out[5:25].astype(np.float32), 2 * np.arange(50, 70) + 1)
        assert not out[25:].any()
        assert not out[:5].any()
    any_host.launch("affine<float>", (1, 1, 1), (32, 1, 1), (np.ones(20, np.float32), f := np.zeros(20, np.float32),
                                                              line.tobytes()))  # fmt: skip
    assert (f == 3).all()


# ---- seeded bugs ----


class Case:
    """How to run a kernel of bugs.cu, and what each flavour says of the bug; "" if it sees nothing."""

    def __init__(
        self,
        blocks: int,
        threads: int,
        args: Callable[[], tuple[Any, ...]],
        *,
        every: str = "",
        check: str = "",
        ubsan: str = "",
        nan: bool = False,
        bug: str = "true",
        good: str = "false",
        result: int = -1,
        shared_bytes: int = 0,
    ) -> None:
        self.grid, self.block, self.args, self.shared_bytes = (blocks, 1, 1), (threads, 1, 1), args, shared_bytes
        self.bug, self.good, self.result, self.nan = bug, good, result, nan
        # check and asan include what ubsan finds
        self.messages = {
            "fast": every,
            "ubsan": every or ubsan,
            "asan": every or ubsan,
            "check": every or check or ubsan,
        }


def zeros(n: int) -> Any:
    return np.zeros(n, np.float32)


def neighbours() -> tuple[Any, ...]:
    return floats(256), zeros(256)


AT = r"\S+bugs.cu:\d+"
CASES = {
    "missing_syncthreads": Case(1, 256, neighbours, nan=True, check=rf"read of uninitialised s \(shared\).*{AT}"),
    "missing_second_syncthreads": Case(
        1, 256, neighbours, check=rf"race on s .*thread \(0,0,0\) writes it at {AT}, thread \(255,0,0\) read it at {AT}"
    ),
    "reader_writes": Case(
        1, 256, neighbours, check=rf"race on s .*\(254,0,0\) writes it at {AT}, thread \(253,0,0\) read it at {AT}"
    ),
    "missing_syncwarp": Case(1, 32, lambda: (floats(32), zeros(32)), nan=True, check="read of uninitialised"),
    "missing_atomic": Case(
        2,
        64,
        lambda: (np.arange(128, dtype=np.int32) % 7, np.zeros(7, np.int32)),
        check=r"race on argument 1 \(int\*\)",
    ),
    "blocks_overlap": Case(
        3,
        32,
        lambda: (zeros(96),),
        check=r"race on argument 0 .* of block \(0,0,0\) wrote it .*, and blocks have no order",
    ),
    "global_overrun": Case(
        1,
        256,
        lambda: (floats(200), zeros(200), 200),
        check=rf"\(200,0,0\): out of bounds: writes 4 bytes at {AT}, 0 bytes past the end of argument 1",
    ),
    "global_read_overrun": Case(
        1,
        256,
        lambda: (floats(200), zeros(200), 200),
        check=r"reads 4 bytes .* past the end of argument 0 \(const float\*\)",
    ),
    "shared_overrun": Case(1, 96, lambda: (zeros(96), 64), ubsan=rf"index 64 out of bounds of 'float \[64\]' at {AT}"),
    "inner_overrun": Case(1, 32, lambda: (zeros(32), 16), ubsan=r"index 16 out of bounds of 'float \[16\]'"),
    "dynamic_overrun": Case(
        1, 32, lambda: (zeros(32),), shared_bytes=128, check="writes 4 bytes .* 0 bytes past the end of dynamic shared"
    ),
    "uninitialised": Case(1, 64, lambda: (zeros(64),), nan=True, check=r"read of uninitialised s \(shared\) \+ \d+"),
    "divergent_barrier": Case(
        1, 64, lambda: (zeros(64),), every=rf"divergent barrier: .* at __syncthreads \({AT}\) while .* waits at"
    ),
    "early_return": Case(
        1, 64, lambda: (zeros(64), 50), every=rf"14 ended, .*; 50 wait at __syncthreads \({AT}\), thread \(0,0,0\)"
    ),
    "absent_lane": Case(1, 32, lambda: (zeros(32),), every=rf"__shfl_sync \({AT}\): lane 0 reads lane 20, which does"),
    "divergent_shuffle": Case(
        1, 64, lambda: (zeros(64),), every=rf"16 wait at __shfl_xor_sync \(mask 0xffffffff, {AT}\).*; 48 wait at"
    ),
    "misaligned_vector": Case(
        1, 32, lambda: (floats(132), zeros(32)), ubsan="misaligned access to 'const struct float4'"
    ),
    "too_much_shared": Case(1, 32, lambda: (zeros(32),), every=r"too much shared memory at variable b: 52000 bytes"),
    "pipeline": Case(
        1,
        256,
        lambda: (floats(1280), zeros(256), 5),
        good="0",
        bug="3",
        result=1,
        every=rf"ends with a cp.async in flight \(issued at {AT}\)",
    ),
}
FATAL = {  # what AddressSanitizer says before it ends the process
    "global_overrun": "heap-buffer-overflow",
    "global_read_overrun": "heap-buffer-overflow",
    "dynamic_overrun": "use-after-poison",
}


@pytest.mark.parametrize("name", CASES)
def test_bug_is_named(name: str, host: HostLauncher) -> None:
    case = CASES[name]
    args = case.args()
    run = (f"{name}<{case.bug}>", case.grid, case.block, args, case.shared_bytes)
    if host.flavour == "asan" and name in FATAL:
        pytest.skip("ends the process: see test_this_file_under_address_sanitizer")
    if message := case.messages[host.flavour]:
        with pytest.raises(RuntimeError, match=message) as caught:
            host.launch(*run)
        assert str(caught.value).startswith(f"[{name}<{case.bug}>] block (")
    elif case.nan:  # shared memory is poisoned
        host.launch(*run)
        assert np.isnan(args[-1]).any()


@pytest.mark.parametrize("bug", [1, 2])
@pytest.mark.parametrize("copies", ["late", "early", "random"])
def test_pipeline_bugs(bug: int, copies: str, host: HostLauncher) -> None:
    """A copy never waited for, and one into a stage still read: wrong results, or named by the check flavour."""
    host.configure(copies=copies)
    x, y, expected = floats(1280), zeros(256), np.zeros(256, np.float32)
    host.launch("pipeline<0>", (1, 1, 1), (256, 1, 1), (x, expected, 5))
    np.testing.assert_allclose(expected, np.roll(x.reshape(5, 256).sum(0), -1), atol=1e-5)
    if host.flavour == "check":
        message = [r"while a cp.async to it is in flight \(issued at", r"writes \(cp.async\) it at .* read it at"][
            bug - 1
        ]
        with pytest.raises(RuntimeError, match=message):
            host.launch(f"pipeline<{bug}>", (1, 1, 1), (256, 1, 1), (x, y, 5))
        return
    host.launch(f"pipeline<{bug}>", (1, 1, 1), (256, 1, 1), (x, y, 5))
    if (bug, copies) != (1, "early"):  # then the data happened to be there
        assert not np.array_equal(y, expected)


def test_the_launcher_survives_an_error(host: HostLauncher) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match="divergent barrier"):
            host.launch("divergent_barrier<true>", (1, 1, 1), (64, 1, 1), (zeros(64),))
        sgemm(host)


def test_bank_conflicts(built: Callable[[str], HostLauncher]) -> None:
    if FLAVOUR:
        pytest.skip(f"this process runs the {FLAVOUR} flavour")
    host = built("check")
    worst = {}
    for padding in (0, 1):
        host.launch(
            f"transpose<{padding}>", (1, 1, 1), (32, 8, 1), (floats(32, 32), np.zeros((32, 32), np.float32), 32)
        )
        found = host.bank_conflicts()
        assert len(found) == 2  # the store and the load
        assert all("correct.cu:" in line for line in found)
        worst[padding] = max(found.values())
    assert worst == {0: 32.0, 1: 1.0}
    shared = 3 * (64 * 40 + 32 * 72) * 2
    args = floats(64, 32, dtype=np.float16), floats(32, 64, dtype=np.float16), np.zeros((64, 64), np.float32), 64, 32
    host.launch("tensor_gemm<__half>", (1, 1, 1), (128, 1, 1), args, shared)
    assert set(host.bank_conflicts().values()) == {1.0}


# ---- the interface ----


def test_names_and_signatures(any_host: HostLauncher) -> None:
    assert {"sgemm", "affine<__nv_bfloat16>", "transpose<1>"} <= set(any_host.kernels())
    assert any_host.signature(" affine< __half >") == ["const __half*", "__half*", "Line"]
    with pytest.raises(UnknownName, match="Did you mean 'sgemm'"):
        any_host.signature("sgem")
    with pytest.raises(UnknownName, match="Did you mean 'row_sum'"):
        any_host.launch("row_sums", (1, 1, 1), (1, 1, 1), ())
    with pytest.raises(UnknownName, match="Did you mean 'fast'"):
        HostLauncher("fst")


def test_scalars_are_converted(any_host: HostLauncher) -> None:
    out = np.zeros(7)
    any_host.launch("scalars", (1, 1, 1), (1, 1, 1), (out, -5, 255, -(2**40), 3, True, 0.5, None))
    np.testing.assert_array_equal(out, [-5, 255, -(2**40), 3, 1, 0.5, 0])
    numbers = (np.int64(2**31 - 1), np.uint8(7), np.int8(-1), np.float32(0.25), 0, np.float16(2), np.zeros(1, np.uint8))
    any_host.launch("scalars", (1, 1, 1), (1, 1, 1), (out, *numbers))
    np.testing.assert_array_equal(out, [2**31 - 1, 7, -1, 0.25, 0, 2, 1])


@pytest.mark.parametrize(
    ("index", "value", "error", "message"),
    [
        (0, zeros(7), TypeError, r"argument 0 is double*; got an array of float32"),
        (0, [0.0], TypeError, "argument 0 is double*; got list [0.0]"),
        (1, 1.0, TypeError, "argument 1 is int; got float 1.0"),
        (1, 2**31, OverflowError, "argument 1 is int; got 2147483648"),
        (2, -1, OverflowError, "argument 2 is unsigned char; got -1"),
        (3, 2**63, OverflowError, "argument 3 is long long int; got 9223372036854775808"),
        (4, "x", TypeError, "argument 4 is float; got str 'x'"),
        (4, 1e39, OverflowError, "argument 4 is float; got 1e+39"),
        (5, 2, OverflowError, "argument 5 is bool; got 2"),
        (6, 70000.0, OverflowError, "argument 6 is __half; got 70000.0"),
        (7, 3, TypeError, "argument 7 is const void*; got int 3"),
    ],
)
def test_wrong_arguments(index: int, value: Any, error: type, message: str, any_host: HostLauncher) -> None:
    args: list[Any] = [np.zeros(7), 1, 1, 1, 1.0, True, 1.0, None]
    args[index] = value
    with pytest.raises(error, match=re.escape("[scalars] " + message)):
        any_host.launch("scalars", (1, 1, 1), (1, 1, 1), tuple(args))


def test_wrong_counts_structs_and_limits(any_host: HostLauncher) -> None:
    x = zeros(4)
    with pytest.raises(TypeError, match=re.escape("[sgemm] takes 6 arguments; got 2")):
        any_host.launch("sgemm", (1, 1, 1), (1, 1, 1), (x, x))
    with pytest.raises(ValueError, match=re.escape("argument 2 is Line; got 8 bytes instead of 12")):
        any_host.launch("affine<float>", (1, 1, 1), (1, 1, 1), (x, x, bytes(8)))
    read_only = zeros(4)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=re.escape("argument 1 is float*; got a read-only array")):
        any_host.launch("affine<float>", (1, 1, 1), (1, 1, 1), (read_only, read_only, bytes(12)))
    for grid, block, shared, rule in [
        ((0, 1, 1), (1, 1, 1), 0, "a grid has 1 to"),
        ((1, 65536, 1), (1, 1, 1), 0, "a grid has 1 to"),
        ((1, 1, 1), (1025, 1, 1), 0, "1024 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "at most 64 along z"),
        ((1, 1, 1), (1, 1, 1), 232449, "at most 232448 bytes of shared memory; asked for 232449"),
    ]:
        with pytest.raises(RuntimeError, match=rule):
            any_host.launch("blocks_overlap<false>", grid, block, (x,), shared)
    with pytest.raises(UnknownName, match="unknown order 'up'"):
        any_host.configure(order="up")


# ---- building ----


def test_a_compile_error_shows_what_the_compiler_said(tmp_path: Path, any_host: HostLauncher) -> None:
    source = tmp_path / "broken.cu"
    source.write_text('#include "common.cuh"\n__global__ void f(float* x) { __shared__ float s[4]; x[0] = s[0]; }\n')
    with pytest.raises(
        DlgpuError, match=r"broken.cu does not compile:\n.*error: .*declare shared memory with DL_SHARED"
    ):
        HostLauncher(None, [source], project_kernels=False)


def test_only_what_changed_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_host: HostLauncher) -> None:
    made: list[str] = []
    produce = launcher._produce

    def spy(target: Path, command: list[str]) -> None:
        made.append(re.split("[-.]", target.name)[0])
        produce(target, command)

    monkeypatch.setattr(launcher, "_produce", spy)
    for value in ("1.f", "1.f", "2.f"):
        (tmp_path / "own.cuh").write_text(f"#define VALUE {value}\n")
        (tmp_path / "own.cu").write_text(
            '#include "common.cuh"\n#include "own.cuh"\n__global__ void f(float* x) { *x = VALUE; }\nDL_KERNEL(f)\n'
        )
        host = HostLauncher(None, [tmp_path / "own.cu"], project_kernels=False)
        host.launch("f", (1, 1, 1), (1, 1, 1), (x := zeros(1),))
        assert f"{x[0]}f" == f"{float(value[0])}f"
    assert [name for name in made if name == "own"] == ["own", "own"]
    assert set(made) == {"own", "dlgpu_host"}


def test_missing_tools_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if FLAVOUR != "asan":
        with pytest.raises(BackendUnavailable, match="--flavour asan -- COMMAND"):
            HostLauncher("asan")
    monkeypatch.setattr(launcher.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendUnavailable, match=r"needs g\+\+"):
        launcher._compiler.__wrapped__()
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(launcher.Path, "is_file", lambda _: False)
    with pytest.raises(BackendUnavailable, match=r'pip install "dlgpu\[test\]"'):
        launcher._cuda_includes.__wrapped__()


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_the_same_source_compiles_for_a_gpu(arch: str) -> None:
    """Without warnings and without spills: arch.cuh, and what the tests above call correct."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        nvrtc.nvrtcVersion()
        includes = [flag.replace("-isystem", "-I").encode() for flag in launcher._cuda_includes()]
    except (RuntimeError, OSError, BackendUnavailable) as error:
        pytest.skip(str(error))
    source = (FOLDER / "correct.cu").read_text()
    program = nvrtc.nvrtcCreateProgram(source.encode(), b"correct.cu", 0, [], [])[1]
    for name in re.findall(r"^DL_KERNEL\((.*)\)", source, re.MULTILINE):
        nvrtc.nvrtcAddNameExpression(program, f"&{name}".encode())
    options = [f"-arch={arch}".encode(), b"-std=c++17", b"--ptxas-options=-v", f"-I{launcher.KERNELS}".encode()]
    status = nvrtc.nvrtcCompileProgram(program, len(options + includes), options + includes)[0]
    log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
    nvrtc.nvrtcGetProgramLog(program, log)
    assert int(status) == 0, log.decode()
    assert b"warning" not in log, log.decode()
    spills = re.findall(rb"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert set(spills) == {(b"0", b"0")}


# ---- AddressSanitizer, in processes of its own ----


def in_own_process(*command: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    python = [sys.executable, "-m", "dlgpu.backends.launchers.host", "--flavour", "asan", "--", sys.executable]
    return subprocess.run([*python, *command], cwd=root, capture_output=True, text=True)


@pytest.mark.skipif(FLAVOUR is not None, reason="already in a process of its own")
def test_this_file_under_address_sanitizer(built: Callable[[str], HostLauncher]) -> None:
    built("fast")  # skips where nothing can be built
    result = in_own_process(
        "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__, "-k", "correct or bug or survives"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
    for name, message in FATAL.items():
        result = in_own_process(__file__, name)
        assert f"AddressSanitizer: {message}" in result.stderr, result.stderr
        assert re.search(rf"in .*{name}<true>", result.stderr)
        assert re.search(rf"\[{name}<true>\] block \(0,0,0\) thread \(\d+,0,0\)", result.stderr)


if __name__ == "__main__":  # what the test above runs to see it die
    fatal, case = sys.argv[1], CASES[sys.argv[1]]
    HostLauncher("asan", SOURCES, project_kernels=False).launch(
        f"{fatal}<true>", case.grid, case.block, case.args(), case.shared_bytes
    )
