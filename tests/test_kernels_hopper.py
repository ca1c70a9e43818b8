"""The Hopper kernels (wgmma, TMA) on the CPU, against float64 at the edges of their tiles, in every order of copies;
their plans, and what the compiler made of them. What only a GPU can prove is listed in docs/hopper.md."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_kernels import kernels, values  # noqa: F401  # a fixture
from test_kernels_conv_implicit import check, wide
from test_kernels_gemm import HALVES, check_product

from benchmarks import sass
from dlgpu.backends import reference, tuning
from dlgpu.backends.kernels import conv_hopper, gemm_hopper
from dlgpu.backends.kernels.compile import compile_family
from dlgpu.backends.kernels.launching import HOPPER
from dlgpu.backends.kernels.sources import families
from dlgpu.backends.kernels.tiles import Target
from dlgpu.backends.shapes import Conv2d, Gemm

MAJORS = [(False, False), (False, True), (True, False), (True, True)]
# Around the tiles (128 x 128, 128 x 256, 64 of depth), the panels of 64 x 64, and the vectors of 8.
SIZES = [
    (8, 8, 8),
    (64, 64, 64),
    (72, 136, 200),
    (128, 128, 64),
    (136, 264, 72),
    (200, 64, 328),
    (1, 8, 8),
    (257, 48, 8),
]
COPIES = itertools.cycle(("late", "early", "random"))


@pytest.fixture(params=itertools.product(gemm_hopper.WIDTHS, gemm_hopper.CLUSTERS), ids=str)
def tile(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Its columns, and how many blocks share their loads."""
    return request.param


@pytest.fixture
def launched(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    """The kernels that run; on the CPU copies land at another time in each test."""
    launcher, names = kernels.backend.launcher, []
    if launcher.capability != HOPPER:
        pytest.skip("needs a Hopper GPU")
    start, configure = launcher.launch, getattr(launcher, "configure", None)
    monkeypatch.setattr(launcher, "launch", lambda kernel, *rest: (names.append(kernel), start(kernel, *rest))[1])
    if configure is not None:
        copies = next(COPIES)
        monkeypatch.setattr(launcher, "configure", lambda **how: configure(**how, copies=copies, seed=1))
    return names


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), MAJORS)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_gemm(
    kernels: Any,  # noqa: F811
    launched: list[str],
    dtype: Any,
    transpose_a: bool,
    transpose_b: bool,
    m: int,
    n: int,
    k: int,
    tile: tuple[int, int],
) -> None:
    if transpose_a:
        m = -(-m // 8) * 8
    a, b = values(1, (k, m) if transpose_a else (m, k), dtype), values(2, (n, k) if transpose_b else (k, n), dtype)
    c, bias = values(3, (m, n), dtype), values(4, (n,), dtype)
    how: dict[str, Any] = dict(transpose_a=transpose_a, transpose_b=transpose_b)
    left, right = a.T if transpose_a else a, b.T if transpose_b else b
    with tuning.hopper(*tile):
        check_product(kernels.gemm(a, b, **how), left, right)
        got = kernels.gemm(a, b, c, bias, alpha=1.0, beta=-2.0, activation="relu", **how)
    check_product(got, left, right, bias.astype(np.float64) - 2.0 * c.astype(np.float64), relu=True)
    assert len(launched) == 2
    assert all(name.startswith("dl::gemm_hopper") for name in launched)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), MAJORS)
def test_blocks_make_several_tiles(
    kernels: Any,  # noqa: F811
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    transpose_a: bool,
    transpose_b: bool,
    tile: tuple[int, int],
) -> None:
    """More tiles than blocks, over a batch, with more stages of depth than the pipeline has."""
    monkeypatch.setattr(kernels.backend.launcher, "sms", 5)
    a, b = values(5, (4, 264, 328), dtype), values(6, (4, 328, 136), dtype)  # 3 rows of tiles each, 3 panels of columns
    c = values(7, (4, 264, 136), dtype)
    left, right = a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b
    with tuning.hopper(*tile):
        got = kernels.batched_gemm(left, right, c, transpose_a=transpose_a, transpose_b=transpose_b)
    check_product(got, a, b, c.astype(np.float64))
    assert launched == [
        f"dl::gemm_hopper<{'__half' if dtype == np.float16 else '__nv_bfloat16'}, "
        f"{str(transpose_a).lower()}, {str(transpose_b).lower()}, {tile[0]}, {tile[1]}>"
    ]


def test_nan_stays_where_it_is(kernels: Any, launched: list[str], tile: tuple[int, int]) -> None:  # noqa: F811
    a, b = np.ones((200, 72), np.float16), np.ones((72, 136), np.float16)
    a[3, 71], a[130, 0] = np.nan, np.inf
    with tuning.hopper(*tile):
        got = kernels.gemm(a, b, activation="relu").astype(np.float64)
    assert launched
    assert np.isnan(got[3]).all()
    assert np.isposinf(got[130]).all()
    assert np.isfinite(np.delete(got, [3, 130], 0)).all()


# --- convolution ---------------------------------------------------------------------------------------------------

# input shape, K, filter, stride, padding, dilation
GEOMETRIES = [
    ((2, 8, 9, 7), 16, 3, 1, 1, 1),
    ((2, 16, 9, 10), 24, (3, 2), (2, 1), ((1, 0), (0, 2)), 1),
    ((2, 8, 11, 11), 8, 3, 2, 2, 2),
    ((1, 8, 12, 13), 72, 3, 3, 1, (1, 2)),
    ((3, 72, 6, 7), 264, 1, 1, 0, 1),  # channels, rows and columns beyond one step, one tile
    ((1, 64, 6, 6), 64, 1, 2, 0, 1),
    ((1, 8, 5, 5), 8, 5, 1, 4, 1),  # more padding than image
    ((2, 136, 5, 6), 8, (2, 3), 1, ((0, 1), (2, 0)), (2, 1)),
    ((5, 8, 13, 11), 8, 3, 1, 1, 1),
    ((2, 8, 3, 3), 8, 3, 1, 6, 1),  # windows that see nothing but padding
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "out", "kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_convolution(
    kernels: Any,  # noqa: F811
    launched: list[str],
    dtype: Any,
    shape: Any,
    out: int,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    tile: tuple[int, int],
) -> None:
    how: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation)
    fast: dict[str, Any] = dict(how, algorithm="implicit_gemm")
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    x, w = values(1, shape, dtype, "channels_last"), values(2, (out, shape[1], r, s), dtype, "channels_last")
    b = values(3, (out,), dtype)
    truth, size = (reference.conv2d(*wide(*a), **how) for a in ((x, w, b), (abs(x), abs(w), abs(b))))
    added = values(4, truth.shape, dtype, "channels_last")
    with tuning.hopper(*tile):
        check(kernels.conv2d(x, w, b, **fast), truth, size, w[0].size, 0.0)
        got = kernels.conv2d(x, w, b, added, activation="relu", **fast)
        check(got, np.maximum(truth + wide(added)[0], 0), size + abs(wide(added)[0]), w[0].size + 1, 0.0)
        dx = kernels.conv2d_grad_input(added, w, input_shape=shape, **fast)
    truth, size = (
        reference.conv2d_grad_input(*wide(*a), input_shape=shape, **how) for a in ((added, w), (abs(added), abs(w)))
    )
    check(dx, truth, size, w.size // shape[1], 0.0)
    with tuning.hopper(*tile):
        dw, db = kernels.conv2d_grad_weight_bias(added, x, weight_shape=w.shape, **fast)
    truth, size = (
        reference.conv2d_grad_weight(*wide(*a), weight_shape=w.shape, **how) for a in ((added, x), (abs(added), abs(x)))
    )
    terms = added.size // out
    check(dw, truth, size, terms, 0.0)
    check(db, *(reference.grad_bias(a.astype(np.float64)) for a in (added, abs(added))), terms, 0.0)
    with tuning.hopper(*tile):
        single = kernels.conv2d(x, w, b, activation="relu", **fast)
        pooled = kernels.conv2d_relu_max_pool2d(x, w, b, **fast)
    for mine, theirs in zip(pooled, reference.max_pool2d(single, kernel_size=2), strict=True):
        np.testing.assert_array_equal(mine, theirs)  # the same sums: to the bit
    names = [name.split("<")[0] for name in launched if "conv" in name]
    phases = math.prod(stride) if isinstance(stride, tuple) else stride**2
    backward = ["dl::conv_hopper_grad_input"] * phases
    last = ["dl::conv_hopper_grad_weight", "dl::conv_hopper", "dl::conv_hopper_pooled"]
    assert names == ["dl::conv_hopper", "dl::conv_hopper", *backward, *last]


@pytest.mark.parametrize("dtype", HALVES)
def test_weight_gradients_in_parts(kernels: Any, launched: list[str], dtype: Any, tile: tuple[int, int]) -> None:  # noqa: F811
    """A long depth, whose last part is short, gives the same bits every time."""
    x, dy = values(1, (4, 8, 20, 20), dtype, "channels_last"), values(2, (4, 136, 20, 20), dtype, "channels_last")
    how: dict[str, Any] = dict(weight_shape=(136, 8, 3, 3), padding=1)
    g = Conv2d.of("conv2d", x.shape, (136, 8, 3, 3), None, 1, 1, 1, 1)
    found = conv_hopper.grad_weight_plan(g, "__half", columns=tile[0])
    assert found is not None
    assert found[1] == 3  # of 25 steps, 9 in each
    with tuning.hopper(*tile):
        dw = kernels.conv2d_grad_weight(dy, x, algorithm="implicit_gemm", **how)
        again = kernels.conv2d_grad_weight(dy, x, algorithm="implicit_gemm", **how)
    assert any("hopper" in name for name in launched)
    np.testing.assert_array_equal(dw, again)
    truth, size = (reference.conv2d_grad_weight(*wide(*a), **how) for a in ((dy, x), (abs(dy), abs(x))))
    check(dw, truth, size, 1600, 0.0)


def test_padding_is_zero_whatever_lies_beside_it(kernels: Any, launched: list[str], tile: tuple[int, int]) -> None:  # noqa: F811
    """A NaN reaches exactly the outputs whose windows hold it, also across rows and images."""
    x, w = np.ones((2, 8, 5, 6), np.float16), np.ones((8, 8, 3, 3), np.float16)
    x[0, 0, 4, 5] = np.nan
    expected = np.zeros(x.shape, bool)
    expected[0, :, 3:5, 4:6] = True
    with tuning.hopper(*tile):
        got = kernels.conv2d(x, w, padding=1, algorithm="implicit_gemm")
        dx = kernels.conv2d_grad_input(x, w, input_shape=x.shape, padding=1, algorithm="implicit_gemm")
    assert sum("conv_hopper" in name for name in launched) == 2
    np.testing.assert_array_equal(np.isnan(got), expected)
    np.testing.assert_array_equal(np.isnan(dx), expected)


def test_pooled_ties_and_nan(kernels: Any, launched: list[str], tile: tuple[int, int]) -> None:  # noqa: F811
    """The first maximum wins, the first NaN wins over everything, in each of 16 windows and of 8 channels."""
    x = np.random.default_rng(0).integers(-2, 3, (3, 8, 9, 21)).astype(np.float16)
    x[x == 2] = np.nan
    w = np.eye(8, dtype=np.float16)[:, :, None, None]
    x = x[:, :1].repeat(8, 1)  # NaN * 0 is NaN: in all channels or in none
    with tuning.hopper(*tile):
        pooled = kernels.conv2d_relu_max_pool2d(x, w, algorithm="implicit_gemm")
    assert any("pooled" in name for name in launched)
    for mine, theirs in zip(pooled, reference.max_pool2d(np.maximum(x, 0), kernel_size=2), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("shape", "weight", "how"),
    [
        ((1, 12, 9, 9), (8, 12, 3, 3), {}),  # channels
        ((1, 8, 9, 9), (12, 8, 3, 3), {}),
        ((1, 16, 9, 9), (16, 8, 3, 3), {"groups": 2}),
        ((1, 8, 300, 9), (8, 8, 3, 3), {"padding": (129, 0)}),  # corners are signed bytes
        ((1, 8, 600, 9), (8, 8, 3, 3), {"dilation": (128, 1)}),  # offsets bytes
        ((1, 8, 90, 90), (8, 8, 3, 3), {"stride": 9}),
        ((0, 8, 9, 9), (8, 8, 3, 3), {}),
    ],
)
def test_what_convolution_refuses(shape: Any, weight: Any, how: dict[str, Any]) -> None:
    options: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **how}
    g = Conv2d.of("conv2d", shape, weight, None, *options.values())
    assert conv_hopper.forward_plan(g, "__half") is None


# --- plans --------------------------------------------------------------------------------------------------------


def test_nothing_takes_them_unasked(kernels: Any, launched: list[str]) -> None:  # noqa: F811
    kernels.gemm(np.ones((64, 64), np.float16), np.ones((64, 64), np.float16))
    assert launched
    assert not any("hopper" in name for name in launched)


def test_what_a_plan_says() -> None:
    chosen = gemm_hopper.plan(Gemm(1, 4096, 4096, 4096), "__half", False, True)
    assert chosen is not None
    expected = "dl::gemm_hopper<__half, false, true, 256, 2> on grid 132x1x1, block 384x1x1, 2"
    assert str(chosen.launch).startswith(expected)
    assert [m.box for m in chosen.maps] == [(64, 128, 1), (64, 128, 1), (64, 64, 1)]  # type: ignore[union-attr]
    assert chosen.launch.shared_bytes <= 227 << 10


@pytest.mark.parametrize(
    ("tiles", "sms", "cluster", "blocks"),
    [
        ((1, 32, 16), 132, 2, 132),
        ((1, 4, 4), 13, 2, 12),
        ((1, 1, 16), 132, 1, 16),  # nothing is shared
        ((1, 3, 44), 132, 1, 132),  # a neighbour outside would cost a second wave
        ((2, 3, 11), 132, 2, 88),
    ],
)
def test_when_blocks_share_loads(tiles: tuple[int, int, int], sms: int, cluster: int, blocks: int) -> None:
    batches, rows, columns = tiles
    target = Target(sms)
    g = Gemm(batches, 128 * rows, 256 * columns, 64)
    chosen = gemm_hopper.plan(g, "__half", False, False, columns=256, target=target)
    assert chosen is not None
    assert chosen.launch.kernel == f"dl::gemm_hopper<__half, false, false, 256, {cluster}>"
    assert chosen.launch.grid == (blocks, 1, 1)


@pytest.mark.parametrize(
    ("n", "k", "pixels", "columns", "waves"),
    [
        (64, 512, 14, 128, "2.97 waves of 132"),  # of 256 columns 1.48: two of these cost more than three of those
        (64, 512, 28, 256, "5.94 waves of 132"),
        (64, 64, 56, 128, "11.88 waves of 132"),  # half of a wider tile would be empty
        (256, 512, 14, 256, "5.94 waves of 132"),
    ],
)
def test_the_width_of_tiles_goes_by_waves(n: int, k: int, pixels: int, columns: int, waves: str) -> None:
    g = Conv2d.of("conv2d", (n, k, pixels, pixels), (k, k, 3, 3), None, 1, 1, 1, 1)
    for chosen in (conv_hopper.forward_plan(g, "__half"), *(conv_hopper.grad_input_plans(g, "__half") or ())):
        assert chosen is not None
        assert f"<__half, {columns}, " in chosen.launch.kernel
        assert waves in chosen.launch.why
    asked = conv_hopper.forward_plan(g, "__half", columns=384 - columns)
    assert asked is not None
    assert f"<__half, {384 - columns}, " in asked.launch.kernel


@pytest.mark.parametrize(
    ("sizes", "dtype", "turned"),
    [
        ((1, 64, 64, 60), "__half", (False, False)),
        ((1, 64, 60, 64), "__half", (False, True)),
        ((1, 60, 64, 64), "__half", (True, False)),
        ((1, 64, 64, 64), "float", (False, False)),
        ((1, 60, 64, 64), "__half", (True, True)),
        ((1, 64, 64, 0), "__half", (False, False)),
        ((0, 64, 64, 64), "__half", (False, False)),
    ],
)
def test_what_a_plan_refuses(sizes: tuple[int, ...], dtype: str, turned: tuple[bool, bool]) -> None:
    assert gemm_hopper.plan(Gemm(*sizes), dtype, *turned) is None


# --- machine code -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sass.disassembler() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize("family", ["gemm_hopper", "conv_hopper"])
def test_the_main_loop_is_wgmma_fed_by_tma(family: str) -> None:
    halves = [name for name in families()[family] if "__half" in name]  # bfloat16 differs in one word
    compiled = compile_family(family, "sm_90a", halves)
    code = sass.functions(compiled.cubin)
    for name, mangled in compiled.names.items():
        loop = sass.main_loop(code[mangled], "HGMMA")
        assert sum(op.startswith("HGMMA") for op in loop) == 4, (name, loop)
        assert not any(op.startswith(("LDL", "STL", "HMMA", "FFMA")) for op in loop), (name, loop)
        every = [sass.opcode(line) for line in code[mangled] if not line.endswith(":")]
        stores = () if "grad" in name or "pooled" in name else ("UTMASTG",)
        for needed in ("UTMALDG", *stores, "SYNCS", "USETMAXREG", "WARPGROUP"):
            assert any(op.startswith(needed) for op in every), (name, needed)
        shared = name.endswith(" 2>")
        assert any(op.startswith("UTMALDG") and op.endswith("MULTICAST") for op in every) == shared, name
        assert every.count("UCGABAR_ARV") == every.count("UCGABAR_WAIT") == 2 * shared, name  # first and last
        assert not any(op.startswith(("MEMBAR", "CCTL")) for op in loop), (name, loop)
        assert compiled.resources[name].cluster == (2 if shared else 1), name


def test_bfloat16_is_not_half(kernels: Any, launched: list[str]) -> None:  # noqa: F811
    """Numbers that half cannot hold."""
    a = np.full((64, 64), 2.0**100, ml_dtypes.bfloat16)
    with tuning.hopper():
        got = kernels.gemm(a, np.eye(64).astype(ml_dtypes.bfloat16))
    assert launched
    np.testing.assert_array_equal(got, a)
