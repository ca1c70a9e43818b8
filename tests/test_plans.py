"""Plans and sources: launch choices are pure functions of shapes, checked without any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlgpu import memory_format
from dlgpu.backends.kernels import gemm, im2col, pool, sources
from dlgpu.backends.kernels.geometry import window
from dlgpu.backends.kernels.plan import MOST_BLOCKS, MOST_ELEMENTS, MOST_YZ, THREADS, elementwise
from dlgpu.backends.kernels.recorder import Recorder
from dlgpu.backends.shapes import Gemm, Pool2d, Window2d
from dlgpu.errors import BackendUnavailable, DtypeError, ShapeError, UnknownName

EDGES = (1, 63, 64, 65, 127, 128, 129, 1000)


def test_every_instantiation_has_readable_parameters() -> None:
    for names in sources.families().values():
        assert len(names) == len(set(names))
        for name in names:
            assert sources.parameters(name), name
            assert all(p.pointer or p.type is not None for p in sources.parameters(name))


def test_structs_match_their_static_asserts() -> None:
    text = "\n".join(path.read_text() for path in sources.folder().glob("*.cuh"))
    for name, fields in (("Strides", 4), ("Window2d", 14), ("AvgPool", 18), ("Gemm", 6)):
        assert sources.struct(name).itemsize == 4 * fields
        assert f"static_assert(sizeof({name}) == {fields} * 4" in text


def test_window_fields_arrive_under_their_names() -> None:
    w = Window2d.make("t", (2, 3, 11, 13), (3, 5), (2, 1), ((1, 0), (2, 3)), (1, 2))
    packed = window(w)
    for name in "NCHWRSPQ":
        assert packed[name] == getattr(w, name)
    assert [int(packed[f]) for f in ("stride_h", "stride_w", "pad_top", "pad_left")] == [2, 1, 1, 2]
    assert [int(packed[f]) for f in ("dilation_h", "dilation_w")] == [1, 2]


@pytest.mark.parametrize("count", [0, 1, THREADS - 1, THREADS, THREADS + 1, MOST_BLOCKS * THREADS + 1, MOST_ELEMENTS])
def test_elementwise_grids_cover_every_element(count: int) -> None:
    plan = elementwise("op", "kernel", count)
    blocks = plan.grid[0]
    assert plan.empty == (count == 0)
    assert blocks <= MOST_BLOCKS
    assert blocks * THREADS >= count or blocks == MOST_BLOCKS  # the loop goes round again


def test_too_many_elements() -> None:
    with pytest.raises(ShapeError, match=r"\[op\] kernels index with 32 bits"):
        elementwise("op", "kernel", MOST_ELEMENTS + 1)


@pytest.mark.parametrize("m", EDGES)
@pytest.mark.parametrize("n", EDGES)
def test_gemm_tiles_cover_the_output(m: int, n: int) -> None:
    plan = gemm.plan("gemm", Gemm(3, m, n, 17), "float", False, True).product
    edge = int(plan.kernel.split(", ")[3])
    assert plan.grid[0] * edge >= n > (plan.grid[0] - 1) * edge
    assert plan.grid[1] * edge >= m > (plan.grid[1] - 1) * edge
    assert plan.grid[2] == 3
    assert plan.block == (edge * edge // 64, 1, 1)
    assert plan.kernel in sources.families()["gemm"]


def test_what_decides_the_simt_kernel() -> None:
    def kernel(*sizes: int, dtype: str = "float", flags: tuple[bool, bool] = (False, False), **how: Any) -> str:
        return gemm.plan("gemm", Gemm(*sizes), dtype, *flags, **how).product.kernel

    assert kernel(1, 4096, 4096, 64) == "dl::gemm_simt<float, false, false, 128, 128, 4>"
    assert kernel(1, 512, 512, 64) == "dl::gemm_simt<float, false, false, 64, 64, 4>"
    assert kernel(1, 4096, 64, 64) == "dl::gemm_simt<float, false, false, 64, 64, 4>"
    assert kernel(1, 4096, 4096, 64, aligned=False) == "dl::gemm_simt<float, false, false, 64, 64, 1>"
    for flags, odd in (
        ((False, False), (1, 64, 64, 66)),
        ((False, False), (1, 64, 66, 64)),
        ((True, True), (1, 66, 64, 64)),
    ):
        assert kernel(*odd, flags=flags).endswith(" 1>"), odd
    assert kernel(1, 66, 64, 64) == "dl::gemm_simt<float, false, false, 64, 64, 4>"  # rows of a are not contiguous
    assert kernel(1, 64, 64, 64, dtype="__nv_bfloat16") == "dl::gemm_simt<__nv_bfloat16, false, false, 64, 64, 1>"


def test_long_products_are_split() -> None:
    g = Gemm(1, 64, 64, 65_536)
    chosen = gemm.plan("gemm", g, "float", True, False)
    splits = chosen.product.grid[2]
    assert splits > 100
    assert chosen.slabs == splits * 64 * 64
    assert chosen.sum is not None
    assert gemm.plan("gemm", Gemm(1, 64, 64, 128), "float", True, False).sum is None


def test_gemm_beyond_the_grid_limits() -> None:
    for sizes in ((1, MOST_YZ * 64 + 1, 1, 8), (MOST_YZ + 1, 8, 8, 8)):
        with pytest.raises(ShapeError, match="a launch makes at most"):
            gemm.plan("gemm", Gemm(*sizes), "float", False, False)
    ops = Recorder()
    assert ops.batched_gemm(ops.xp.empty((70_000, 8, 8)), ops.xp.empty((70_000, 8, 8))).shape == (70_000, 8, 8)
    assert [plan.grid[2] for plan in ops.plans] == [MOST_YZ, 70_000 - MOST_YZ]


def test_plans_print_themselves() -> None:
    x = np.zeros((2, 3, 8, 8), np.float32)
    w = Window2d.make("im2col", x.shape, 3, 1, 0, 1)
    text = str(im2col.plan("im2col", "im2col", w, x))
    assert text.startswith("dl::im2col<float> on grid ")
    assert "block 256x1x1" in text


def test_wide_windows_take_two_byte_places() -> None:
    x = np.zeros((1, 1, 20, 20), np.float32)
    g = Pool2d.of("max_pool2d", x.shape, 17, 1, 0, 1, False)
    argmax = np.zeros(g.output_shape, g.argmax_dtype)
    assert pool.max_plan("max_pool2d", g, x, argmax, x, x).kernel == "dl::max_pool2d<float, unsigned short, 1>"


def test_unknown_kernels_and_dtypes() -> None:
    with pytest.raises(UnknownName, match="unknown kernel"):
        sources.parameters("dl::im2coll<float>")
    with pytest.raises(DtypeError, match=r"\[conv2d\] kernels take float32, float16, bfloat16; got float64"):
        sources.storage("conv2d", np.dtype(np.float64))


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
def test_recorder_plans_without_memory(algorithm: str) -> None:
    """Arrays of several gigabytes: nothing may look inside them."""
    ops = Recorder()
    x, w = ops.xp.empty((64, 512, 256, 128)), ops.xp.empty((512, 512, 3, 3))
    y = ops.conv2d(x, w, ops.xp.empty(512), padding=1, algorithm=algorithm)
    assert y.shape == x.shape
    assert any("gemm" in plan.kernel or "conv" in plan.kernel for plan in ops.plans)
    assert all(plan.why for plan in ops.plans)


def test_recorder_sees_layout_copies() -> None:
    ops = Recorder()
    x = memory_format.empty(ops.xp, (2, 8, 6, 6), np.dtype(np.float32), "channels_last")
    ops.to_memory_format(x, "channels_last")
    assert not ops.plans
    assert ops.to_memory_format(x, "contiguous").shape == x.shape
    assert [plan.kernel for plan in ops.plans] == ["dl::transpose<float>"]
    ops.plans.clear()
    y = ops.cast(x, np.float16)
    ops.copied("both at once", y, np.dtype(np.float32), "contiguous")
    ops.copied("no format", y[:, ::2], y.dtype, "contiguous")
    assert [plan.kernel for plan in ops.plans] == [
        "dl::cast<float, __half>",
        "dl::copy<__half, float>",
        "dl::copy<__half, __half>",
    ]


def test_pooling_takes_vectors_where_channels_lie_side_by_side() -> None:
    def kernels(channels: int, layout: memory_format.MemoryFormat, dtype: Any = np.float16, size: int = 2) -> list[str]:
        ops = Recorder()
        x = memory_format.empty(ops.xp, (2, channels, 20, 20), np.dtype(dtype), layout)
        y, argmax = ops.max_pool2d(x, kernel_size=size)
        ops.max_pool2d_grad(y, argmax, input_shape=x.shape, kernel_size=size)
        ops.avg_pool2d_grad(ops.avg_pool2d(x, kernel_size=size), input_shape=x.shape, kernel_size=size)
        return [plan.kernel.rsplit(", ", 1)[1] for plan in ops.plans]

    assert kernels(16, "channels_last") == ["8>"] * 4
    assert kernels(12, "channels_last", np.float32) == ["4>"] * 4
    assert kernels(12, "channels_last") == ["1>"] * 4
    assert kernels(16, "contiguous") == ["1>"] * 4
    assert kernels(16, "channels_last", size=17)[0] == "1>"  # places of two bytes


def test_normalisation_takes_vectors_along_memory() -> None:
    def kernels(shape: tuple[int, ...], layout: memory_format.MemoryFormat, groups: int = 1) -> list[str]:
        ops = Recorder()
        x = memory_format.empty(ops.xp, shape, np.dtype(np.float16), layout)
        w = ops.xp.empty(shape[1])
        y, mean, rstd = ops.batch_norm_train(x, w, w, None, None)
        ops.batch_norm_grad(y, x, w, mean, rstd)
        y, mean, rstd = ops.group_norm(x, w, w, num_groups=groups)
        ops.group_norm_grad(y, x, w, mean, rstd, num_groups=groups)
        ops.grad_bias(y)
        return [plan.kernel.split(", ")[1] for plan in ops.plans if plan.kernel.endswith((" 1>", " 8>"))]

    batch, group, bias = 4, 3, 1  # launches
    assert kernels((2, 16, 3, 3), "channels_last") == ["8>"] * (batch + group + bias)
    assert kernels((2, 16, 3, 3), "channels_last", groups=4) == ["8>"] * batch + ["1>"] * group + ["8>"]
    assert kernels((2, 12, 4, 4), "channels_last") == ["1>"] * (batch + group + bias)
    assert kernels((2, 12, 4, 4), "contiguous", groups=4) == ["8>"] * (batch + group + bias)
    assert kernels((2, 16, 3, 3), "contiguous") == ["1>"] * (batch + group + bias)


def test_channel_sums_read_along_memory() -> None:
    """Threads side by side cover the channels of a pixel, or a warp's worth of them; of few, several pixels."""

    def plan(channels: int, layout: memory_format.MemoryFormat) -> Any:
        ops = Recorder()
        ops.grad_bias(memory_format.empty(ops.xp, (64, channels, 56, 56), np.dtype(np.float16), layout))
        return ops.plans[0]

    assert [plan(c, "channels_last").args[1] for c in (3, 8, 64, 72, 4096)] == [4, 1, 8, 16, 32]
    assert plan(64, "contiguous").args[1] == 1
    assert plan(4096, "channels_last").grid[0] == 16
    assert plan(64, "contiguous").grid[0] == 64


def test_softmax_rows_are_shared_by_as_many_threads_as_have_work() -> None:
    def plan(*shape: int, layout: memory_format.MemoryFormat = "contiguous") -> tuple[int, int]:
        ops = Recorder()
        x = memory_format.empty(ops.xp, shape, np.dtype(np.float32), layout)
        ops.cross_entropy_with_grad(x, ops.xp.empty((shape[0], *shape[2:]), np.int64))
        assert len(ops.plans) == 1  # loss and gradient, without a change of format
        return int(ops.plans[0].args[0]["sharing"]), ops.plans[0].grid[0]

    assert plan(64, 10) == (32, 8)
    assert plan(64, 1024) == (32, 8)
    assert plan(64, 1025) == (256, 64)
    assert plan(2, 21, 8, 64) == (1, 4)  # pixels lie side by side
    assert plan(2, 21, 8, 64, layout="channels_last") == (32, 128)  # classes do


def test_conv2d_algorithms_are_chosen_by_name() -> None:
    ops = Recorder()
    x, w = ops.xp.empty((1, 4, 5, 5)), ops.xp.empty((4, 4, 3, 3))
    with pytest.raises(UnknownName, match="Did you mean 'im2col'"):
        ops.conv2d(x, w, algorithm="im2cal")
    with pytest.raises(BackendUnavailable, match=r"\[conv2d\] 'fft' has no kernel yet"):
        ops.conv2d(x, w, algorithm="fft")
