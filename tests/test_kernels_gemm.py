"""Products against float64, at the edges of every tile: strict float32, and half, bfloat16, tf32 and three-term tf32 on
tensor cores."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import kernels, rounding, values  # noqa: F401  # a fixture

from dlgpu.backends import precision
from dlgpu.backends.kernels import KernelBackend, gemm, tiles
from dlgpu.backends.kernels.plan import MOST_YZ
from dlgpu.backends.launchers.host import HostLauncher
from dlgpu.backends.shapes import Gemm
from dlgpu.errors import ShapeError

HALVES = (np.float16, ml_dtypes.bfloat16)
# dtype and precision of every kind of product; what rounding a factor loses, relatively, at most
KINDS = {
    "float32": (np.float32, "float32", 0.0),
    "float16": (np.float16, "float32", 0.0),
    "bfloat16": (ml_dtypes.bfloat16, "float32", 0.0),
    "tf32": (np.float32, "tf32", 2.0**-11),
    "float32x3": (np.float32, "float32x3", 2.0**-22),
}


def check_product(
    got: np.ndarray, a: np.ndarray, b: np.ndarray, rest: Any = 0.0, loss: float = 0.0, relu: bool = False
) -> None:
    """got = a @ b + rest within rounding: of factors (`loss`), of sums in float32, of the result.

    A factor off by `loss` moves each product by at most 2 * loss + loss^2 of its size. The hardware adds in float32,
    each addition off by at most 2^-23 of the partial sum (tensor cores may cut off instead of round), and there are no
    more additions than products; partial sums are at most the sum of the sizes.
    """
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    truth, size = wide_a @ wide_b + rest, np.abs(wide_a) @ np.abs(wide_b) + np.abs(rest)
    if relu:
        truth = np.maximum(truth, 0)
    terms = a.shape[-1] + 3
    bound = size * (2.1 * loss + terms * 2.0**-23) + rounding(truth, got.dtype)
    assert (np.abs(got.astype(np.float64) - truth) <= bound).all(), (np.abs(got - truth) / bound).max()


# Around 64 and 128, and around the tile depths of 8 and 16 floats and 32 halves; multiples of 8 (of 4 for float32) take
# the vector copies.
SIZES = [(1, 1, 1), (8, 8, 8), (63, 65, 15), (64, 64, 32), (65, 72, 33), (72, 56, 40), (128, 136, 64), (16, 200, 31)]
SIZES += [(4, 4, 4), (60, 68, 12)]
TRANSPOSES = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_gemm(kernels: Any, kind: str, transpose_a: bool, transpose_b: bool, m: int, n: int, k: int) -> None:  # noqa: F811
    dtype, chosen, loss = KINDS[kind]
    a, b = values(1, (k, m) if transpose_a else (m, k), dtype), values(2, (n, k) if transpose_b else (k, n), dtype)
    c, bias = values(3, (m, n), dtype), values(4, (n,), dtype)
    how = dict(transpose_a=transpose_a, transpose_b=transpose_b)
    left, right = a.T if transpose_a else a, b.T if transpose_b else b
    with precision.use(chosen):
        check_product(kernels.gemm(a, b, **how), left, right, loss=loss)
        got = kernels.gemm(a, b, c, bias, alpha=1.0, beta=-2.0, activation="relu", **how)
        check_product(got, left, right, bias.astype(np.float64) - 2.0 * c.astype(np.float64), loss, relu=True)


@pytest.mark.parametrize("kind", KINDS)
def test_large_tiles(kernels: Any, kind: str) -> None:  # noqa: F811
    """Enough blocks for the 128 x 128 tiles, a batch of them, ragged at every edge."""
    dtype, chosen, loss = KINDS[kind]
    a, b = values(5, (34, 136, 72), dtype), values(6, (34, 72, 200), dtype)
    with precision.use(chosen):
        for transpose_a, transpose_b in TRANSPOSES:
            left, right = a.swapaxes(1, 2) if transpose_a else a, b.swapaxes(1, 2) if transpose_b else b
            check_product(
                kernels.batched_gemm(left, right, transpose_a=transpose_a, transpose_b=transpose_b), a, b, loss=loss
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_split_depth(kernels: Any, kind: str, batch: int) -> None:  # noqa: F811
    """A long depth is added in parts, always in the same order."""
    dtype, chosen, loss = KINDS[kind]
    a, b = values(7, (batch, 2500, 24), dtype), values(8, (batch, 2500, 40), dtype)
    with precision.use(chosen):
        got = kernels.batched_gemm(a, b, transpose_a=True)
        check_product(got, a.swapaxes(1, 2), b, loss=loss)
        for _ in range(2):
            np.testing.assert_array_equal(kernels.batched_gemm(a, b, transpose_a=True), got)


def test_three_terms_are_nearly_float32(kernels: Any) -> None:  # noqa: F811
    """The error of each way against float64, as multiples of float32's."""
    a, b = values(9, (64, 256), np.float32), values(10, (256, 64), np.float32)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    errors = {}
    for name in ("float32", "tf32", "float32x3"):
        with precision.use(name):
            errors[name] = np.abs(kernels.gemm(a, b) - truth).mean()
    assert errors["float32x3"] < 3 * errors["float32"]
    assert errors["tf32"] > 100 * errors["float32"]


def test_nan_and_infinity_pass(kernels: Any) -> None:  # noqa: F811
    for kind, (dtype, chosen, _) in KINDS.items():
        a, b = np.ones((9, 40), dtype), np.ones((40, 17), dtype)
        a[3, 39], a[5, 0] = np.nan, np.inf
        with precision.use(chosen):
            got = kernels.gemm(a, b, activation="relu").astype(np.float64)
        assert np.isnan(got[3]).all(), kind
        if kind != "float32x3":  # there inf - inf is lost in the remainder
            assert np.isposinf(got[5]).all(), kind
        assert np.isfinite(np.delete(got, [3, 5], 0)).all(), kind


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_misaligned_arrays_are_copied_element_by_element(kernels: Any, dtype: Any) -> None:  # noqa: F811
    flat = values(11, (64 * 64 + 1,), dtype)
    b = values(12, (64, 64), dtype)
    a = flat[1:].reshape(64, 64)
    check_product(kernels.backend.gemm(a, b) if kernels.backend.name == "host" else kernels.gemm(a, b), a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(
    sizes=st.tuples(st.integers(1, 150), st.integers(1, 150), st.integers(1, 200)),
    whole=st.booleans(),
    batch=st.integers(1, 3),
    transposed=st.sampled_from(TRANSPOSES),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_random_sizes(
    kernels: Any,  # noqa: F811
    dtype: Any,
    sizes: tuple[int, int, int],
    whole: bool,
    batch: int,
    transposed: tuple[bool, bool],
    seed: int,
) -> None:
    m, n, k = (-(-size // 8) * 8 for size in sizes) if whole else sizes
    a = values(seed, (batch, k, m) if transposed[0] else (batch, m, k), dtype)
    b = values(10, (batch, n, k) if transposed[1] else (batch, k, n), dtype)
    got = kernels.batched_gemm(a, b, transpose_a=transposed[0], transpose_b=transposed[1])
    check_product(got, a.swapaxes(1, 2) if transposed[0] else a, b.swapaxes(1, 2) if transposed[1] else b)


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "chosen", "capability", "terms"),
    [
        ("__half", "float32", 75, 1),
        ("__nv_bfloat16", "float32", 75, 0),
        ("__nv_bfloat16", "float32", 80, 1),
        ("float", "float32", 90, 0),
        ("float", "tf32", 80, 1),
        ("float", "tf32", 75, 0),
        ("float", "float32x3", 90, 3),
    ],
)
def test_tensor_cores_where_the_device_has_them(dtype: str, chosen: Any, capability: int, terms: int) -> None:
    with precision.use(chosen):
        assert gemm.tensor_terms(dtype, False, True, capability) == terms
        assert gemm.tensor_terms(dtype, True, True, capability) == 0


@pytest.mark.parametrize("m", [1, 64, 65, 128, 129, 4096])
@pytest.mark.parametrize("n", [1, 64, 65, 128, 129, 4096])
@pytest.mark.parametrize("k", [1, 32, 33, 9216])
def test_tiles_cover_output_and_depth(m: int, n: int, k: int) -> None:
    chosen = gemm.plan("gemm", Gemm(3, m, n, k), "__half", False, True, terms=1)
    edge = int(chosen.product.kernel.split(", ")[3])
    x, y, z = chosen.product.grid
    assert x * edge >= n > (x - 1) * edge
    assert y * edge >= m > (y - 1) * edge
    splits = z // 3
    assert z % 3 == 0
    assert chosen.slabs == (splits * 3 * m * n if splits > 1 else 0)
    assert chosen.slabs * 4 <= tiles.WORKSPACE_BYTES
    assert splits == 1 or k * 2 >= splits * tiles.LEAST_DEPTH_BYTES
    assert (chosen.sum is None) == (splits == 1)


def test_what_decides_the_tensor_kernel() -> None:
    def kernel(*sizes: int, **how: Any) -> str:
        return gemm.plan("gemm", Gemm(*sizes), "__half", False, False, terms=1, **how).product.kernel

    assert kernel(1, 4096, 4096, 64) == "dl::gemm_tc<__half, false, false, 128, 128, true, 1>"
    assert kernel(1, 512, 512, 64) == "dl::gemm_tc<__half, false, false, 64, 64, true, 1>"
    assert kernel(1, 4096, 4096, 60) == "dl::gemm_tc<__half, false, false, 64, 64, false, 1>"
    assert kernel(1, 4096, 4096, 64, aligned=False) == "dl::gemm_tc<__half, false, false, 64, 64, false, 1>"
    assert gemm.plan("gemm", Gemm(1, 64, 64, 65536), "__half", False, False, terms=1).product.grid[2] > 100
    with pytest.raises(ShapeError, match="a launch makes at most"):
        kernel(MOST_YZ + 1, 8, 8, 8)


# --- shared memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize("batch", [1, 40])
def test_no_bank_conflicts(kind: str, transpose_a: bool, transpose_b: bool, batch: int) -> None:
    """Copies and fragments touch every bank once (one tile is 64 wide, with a large batch 128)."""
    dtype, chosen, _ = KINDS[kind]
    backend = checked()
    a, b = np.zeros((batch, 128, 128), dtype), np.zeros((batch, 128, 256), dtype)
    if transpose_b:
        b = np.zeros((batch, 256, 128), dtype)
    with precision.use(chosen):
        backend.batched_gemm(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    conflicts = backend.launcher.bank_conflicts()
    assert conflicts  # the loop was watched
    assert {line: ratio for line, ratio in conflicts.items() if ratio != 1} == {}


def checked() -> KernelBackend:
    """The kernels in the flavour that watches shared memory."""
    if not _checked:
        _checked.append(KernelBackend("host", "host-kernels", HostLauncher("check")))
    return _checked[0]


_checked: list[KernelBackend] = []
