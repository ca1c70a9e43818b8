"""Winograd convolution: F(2x2) fused and batched, F(4x4), the three products, against float64 with derived bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conv_algorithms import u, winograd_growth
from test_kernels import DTYPES, LAYOUTS, kernels, rounding, values  # noqa: F401  # a fixture
from test_kernels_conv_implicit import wide
from test_kernels_gemm import checked

from dlgpu import memory_format
from dlgpu.backends import reference, tuning
from dlgpu.backends.kernels.recorder import Recorder
from dlgpu.backends.kernels.sources import folder
from dlgpu.errors import ShapeError

ALGORITHMS = ("winograd2", "winograd4")


def check(got: np.ndarray, op: str, algorithm: str, arrays: tuple[np.ndarray, ...], terms: int, **how: Any) -> None:
    """Against float64: what summation in float32 may lose, and six standard deviations of what the transforms lose.

    The growth factor and the dozen roundings are those of test_conv_algorithms.py, scaled by the root of the sum of the
    squared products at the output's largest place. Storing rounds once more.
    """
    call = getattr(reference, op)
    truth = call(*wide(*arrays), **how)
    size = call(*wide(*map(abs, arrays)), **how)
    scale = np.sqrt(call(*(a * a for a in wide(*arrays)), **how).max(initial=0.0))
    growth = winograd_growth(int(algorithm[-1]), "grad_weight" if op == "conv2d_grad_weight" else "forward")
    bound = size * (terms + 3) * 2 * u + 6 * 2 * growth * u * scale + rounding(truth, got.dtype)
    assert got.shape == truth.shape
    difference = np.abs(got.astype(np.float64) - truth)
    assert (difference <= bound).all(), f"{np.nanmax(difference / np.maximum(bound, 1e-300))} times the bound"


# input shape, K, padding, groups
GEOMETRIES = [
    ((1, 1, 3, 3), 1, 0, 1),
    ((2, 3, 5, 4), 7, 1, 1),
    ((1, 8, 6, 7), 9, ((0, 2), (3, 1)), 1),
    ((2, 9, 9, 8), 33, 1, 1),
    ((1, 33, 14, 10), 65, 1, 1),
    ((3, 7, 8, 9), 32, 3, 1),  # tiles that see nothing but padding
    ((1, 8, 7, 9), 12, 1, 4),
    ((1, 4, 4, 6), 4, 2, 2),
    ((0, 3, 5, 5), 4, 1, 1),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "out", "padding", "groups"), GEOMETRIES)
def test_the_three_products(
    kernels: Any,  # noqa: F811
    algorithm: str,
    dtype: Any,
    layout: Any,
    shape: Any,
    out: int,
    padding: Any,
    groups: int,
) -> None:
    how: dict[str, Any] = dict(padding=padding, groups=groups)
    fast: dict[str, Any] = dict(how, algorithm=algorithm)
    x, w = values(1, shape, dtype, layout), values(2, (out, shape[1] // groups, 3, 3), dtype, layout)
    b = values(3, (out,), dtype)
    got = kernels.conv2d(x, w, b, **fast)
    check(got, "conv2d", algorithm, (x, w, b), w[0].size, **how)
    assert memory_format.of(got) == layout or got.shape[2:] == (1, 1) or not got.size
    dy = values(4, got.shape, dtype, layout)
    dx = kernels.conv2d_grad_input(dy, w, input_shape=shape, **fast)
    check(dx, "conv2d_grad_input", algorithm, (dy, w), w.size // groups, input_shape=shape, **how)
    dw, db = kernels.conv2d_grad_weight_bias(dy, x, weight_shape=w.shape, **fast)
    check(dw, "conv2d_grad_weight", algorithm, (dy, x), dy.size // out, weight_shape=w.shape, **how)
    wide = dy.astype(np.float64)  # added in the order of the format that the convolution works in
    bound = np.abs(wide).sum((0, 2, 3)) * (dy.size // out + 3) * 2.0**-23
    total = wide.sum((0, 2, 3))
    assert (np.abs(db.astype(np.float64) - total) <= bound + rounding(total, db.dtype)).all()
    np.testing.assert_array_equal(kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **fast), dw)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("groups", [1, 2])  # fused and batched F(2x2)
@pytest.mark.parametrize("size", [(6, 6), (9, 7), (5, 12)])
def test_epilogues(kernels: Any, algorithm: str, groups: int, size: tuple[int, int]) -> None:  # noqa: F811
    x, w = values(1, (2, 8, *size), np.float32), values(2, (12, 8 // groups, 3, 3), np.float32)
    b, added = values(3, (12,), np.float32), values(4, (2, 12, *size), np.float32)
    how: dict[str, Any] = dict(padding=1, groups=groups, algorithm=algorithm)
    plain = kernels.conv2d(x, w, **how)
    everything = kernels.conv2d(x, w, b, added, activation="relu", **how)
    np.testing.assert_allclose(everything, np.maximum(plain + added + b[:, None, None], 0), rtol=1e-6, atol=1e-5)
    single = kernels.conv2d(x, w, b, activation="relu", **how)
    expected = reference.max_pool2d(single, kernel_size=2)
    for mine, theirs in zip(kernels.conv2d_relu_max_pool2d(x, w, b, **how), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)  # the same sums, so the same maxima


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_image_at_a_time(kernels: Any, algorithm: str) -> None:  # noqa: F811
    x, w = values(5, (3, 4, 8, 9), np.float32), values(6, (6, 2, 3, 3), np.float32)
    dy = values(7, (3, 6, 8, 9), np.float32)
    how: dict[str, Any] = dict(padding=1, groups=2, algorithm=algorithm)
    whole = kernels.conv2d(x, w, **how), kernels.conv2d_grad_input(dy, w, input_shape=x.shape, **how)
    with tuning.workspace_limit(1):
        np.testing.assert_array_equal(kernels.conv2d(x, w, **how), whole[0])
        np.testing.assert_array_equal(kernels.conv2d_grad_input(dy, w, input_shape=x.shape, **how), whole[1])
        dw = kernels.conv2d_grad_weight(dy, x, weight_shape=w.shape, **how)
    check(dw, "conv2d_grad_weight", algorithm, (dy, x), 216, weight_shape=w.shape, padding=1, groups=2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_stays_in_the_tiles_that_see_it(kernels: Any, algorithm: str) -> None:  # noqa: F811
    m = int(algorithm[-1])
    x, w = np.ones((1, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32)
    x[0, 3, 9, 9] = np.nan
    got = np.isnan(kernels.conv2d(x, w, padding=1, algorithm=algorithm))[0, 0]
    sees = [i for i in range(16) if i // m * m - 1 <= 9 <= i // m * m + m]  # rows of tiles whose inputs hold row 9
    assert set(np.flatnonzero(got.any(1))) <= set(sees)
    assert got[8:11, 8:11].all()


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_random_geometry(kernels: Any, data: st.DataObject) -> None:  # noqa: F811
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    padding = tuple((draw(0, 4), draw(0, 4)) for _ in range(2))
    groups = draw(1, 2)
    shape = draw(1, 2), groups * draw(1, 6), draw(3, 12), draw(3, 12)
    w = values(2, (groups * draw(1, 6), shape[1] // groups, 3, 3), np.float32)
    x, algorithm = values(1, shape, np.float32), data.draw(st.sampled_from(ALGORITHMS))
    how: dict[str, Any] = dict(padding=padding, groups=groups)
    got = kernels.conv2d(x, w, **how, algorithm=algorithm)
    check(got, "conv2d", algorithm, (x, w), w[0].size, **how)
    dy = values(3, got.shape, np.float32)
    dx = kernels.conv2d_grad_input(dy, w, input_shape=shape, **how, algorithm=algorithm)
    check(dx, "conv2d_grad_input", algorithm, (dy, w), w.size // groups, input_shape=shape, **how)


def test_what_runs() -> None:
    ops = Recorder()
    x, w = ops.xp.empty((8, 64, 56, 56)), ops.xp.empty((64, 64, 3, 3))
    ops.conv2d(x, w, padding=1, algorithm="winograd2")
    names = [plan.kernel.split("<")[0] for plan in ops.plans if "dl::transpose" not in plan.kernel]
    assert names == ["dl::winograd2_fused_filter", "dl::winograd2_fused"]
    ops.plans.clear()
    ops.conv2d(x, w, padding=1, algorithm="winograd4")
    names = [plan.kernel.split("<")[0] for plan in ops.plans if "dl::transpose" not in plan.kernel]
    assert names == ["dl::winograd_filter", "dl::winograd_input", "dl::gemm_simt", "dl::winograd_output"]
    for wrong in (dict(stride=2), dict(dilation=2)):
        with pytest.raises(ShapeError, match=r"\[conv2d winograd2\] needs a 3x3 filter with stride 1 and dilation 1"):
            ops.conv2d(x, w, algorithm="winograd2", **wrong)


@pytest.mark.parametrize("filters", [32, 64])
def test_no_bank_conflicts(filters: int) -> None:
    """Every access of the fused kernel to shared memory touches every bank once, but for the table of 32 corners."""
    backend = checked()
    x, w = values(1, (2, 16, 8, 8), np.float32, "channels_last"), np.zeros((filters, 16, 3, 3), np.float32)
    backend.conv2d(x, w, padding=1, algorithm="winograd2")
    ratios = {line.rsplit("/", 1)[-1]: ratio for line, ratio in backend.launcher.bank_conflicts().items()}
    assert {line.split(":")[0] for line in ratios} >= {"winograd_fused.cuh", "simt.cuh", "vector.cuh"}
    source = (folder() / "winograd_fused.cuh").read_text().splitlines()
    corners = {f"winograd_fused.cuh:{i}" for i, line in enumerate(source, 1) if "corners[" in line}
    assert all(ratio == 1 for line, ratio in ratios.items() if line not in corners), ratios
