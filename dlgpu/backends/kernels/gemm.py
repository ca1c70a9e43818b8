"""Matrix products: plans and ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlgpu.backends import precision
from dlgpu.backends.contract import Array, Epilogue, check_epilogue
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import MOST_YZ, Plan, elementwise
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import Gemm, Linear, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError

# (BM, BN, BK, TM, TN) of kernels/gemm.cuh, large first
TILES = ((128, 128, 8, 8, 8), (64, 64, 16, 4, 4))
# Blocks from which the large tile fills a GPU; below, smaller tiles give more blocks.
ENOUGH_BLOCKS = 132

# kernels/tensor_tile.cuh: bytes copied at a time, and bytes of a row in one tile
CHUNK_BYTES, TILE_BYTES = 16, 64
LEAST_TILES = 8  # of depth, in each part of a split product
SLAB_BYTES = 1 << 26  # most workspace for the parts of a split product
ITEMSIZE = {"float": 4, "__half": 2, "__nv_bfloat16": 2}


@dataclass(frozen=True)
class Matrices:
    """How a batch lies in memory: elements between rows (ld) and between matrices (stride) of each array."""

    lda: int
    ldb: int
    ldo: int
    stride_a: int
    stride_b: int
    stride_o: int

    @staticmethod
    def dense(g: Gemm, transpose_a: bool, transpose_b: bool) -> Matrices:
        """Matrices without gaps, one after the other."""
        lda, ldb = g.M if transpose_a else g.K, g.K if transpose_b else g.N
        return Matrices(lda, ldb, g.N, g.M * g.K, g.K * g.N, g.M * g.N)


def plan(
    op: str,
    g: Gemm,
    dtype: str,
    transpose_a: bool,
    transpose_b: bool,
    alpha: float = 1.0,
    beta: float = 1.0,
    relu: bool = False,
    matrices: Matrices | None = None,
) -> Plan:
    """Without tensor cores: the large tile if its blocks fill the GPU, else the small one.

    Arrays: a, b, c or None, bias or None, out.
    """
    tile = next((t for t in TILES if _blocks(g, t) >= ENOUGH_BLOCKS), TILES[-1])
    BM, BN = tile[:2]
    types = ", ".join((dtype, *(str(flag).lower() for flag in (transpose_a, transpose_b)), *map(str, tile)))
    rows = _tile_rows(op, g, BM)
    grid = (-(-g.N // BN), rows, min(g.B, MOST_YZ))
    m = matrices or Matrices.dense(g, transpose_a, transpose_b)
    args = (_sizes(g, m), float(alpha), float(beta), int(relu), g.B, m.stride_a, m.stride_b, m.stride_o)
    return Plan(f"dl::gemm<{types}>", grid, (256, 1, 1), args, why=f"{g.B} x {g.M}x{g.N}x{g.K}, tiles {BM}x{BN}")


@dataclass(frozen=True)
class TensorPlan:
    """A product on tensor cores: one launch, or a split one and the sum of its slabs.

    Arrays of `product`: a, b, c or None, bias or None, out, slabs or None; of `sum`: slabs, c, bias, out.
    """

    product: Plan
    sum: Plan | None
    slabs: int  # elements of float32 workspace


def tensor_plan(
    op: str,
    g: Gemm,
    dtype: str,
    transpose_a: bool,
    transpose_b: bool,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    relu: bool = False,
    matrices: Matrices | None = None,
    terms: int = 1,
    aligned: bool = True,
) -> TensorPlan:
    """Large tiles if they fill the GPU; a long depth is split where the output alone has too few tiles.

    `aligned` says that every matrix begins at a multiple of 16 bytes. `terms` is 3 for "float32x3".
    """
    m = matrices or Matrices.dense(g, transpose_a, transpose_b)
    chunk = CHUNK_BYTES // ITEMSIZE[dtype]
    extents = [g.M if transpose_a else g.K, g.K if transpose_b else g.N, m.lda, m.ldb]
    if g.B > 1:
        extents += [m.stride_a, m.stride_b]
    vector = aligned and all(extent % chunk == 0 for extent in extents)
    edge, splits = tensor_tile(g.B, g.M, g.N, g.K * ITEMSIZE[dtype], vector)
    if g.B * splits > MOST_YZ:
        raise ShapeError(f"[{op}] at most {MOST_YZ} matrices in a batch; got {g.B}")
    flags = (str(flag).lower() for flag in (transpose_a, transpose_b))
    types = ", ".join((dtype, *flags, str(edge), str(edge), str(vector).lower(), str(terms)))
    grid = (-(-g.N // edge), _tile_rows(op, g, edge), g.B * splits)
    end = (float(alpha), float(beta), int(relu), g.B, splits)
    args = (_sizes(g, m), *end, m.stride_a, m.stride_b, m.stride_o)
    why = f"{g.B} x {g.M}x{g.N}x{g.K}, tiles {edge}x{edge}" + (f", depth in {splits}" if splits > 1 else "")
    product = Plan(f"dl::gemm_tc<{types}>", grid, (256, 1, 1), args, why=why)
    if splits == 1:
        return TensorPlan(product, None, 0)
    count = g.B * g.M * g.N
    total = elementwise(op, f"dl::add_slabs<{dtype}>", count, _sizes(g, m), *end, m.stride_o)
    return TensorPlan(product, total, splits * count)


def tensor_tile(batches: int, rows: int, columns: int, depth_bytes: int, vector: bool) -> tuple[int, int]:
    """(edge of the square tile, splits of the depth) for products on tensor cores."""

    def blocks(edge: int) -> int:
        return batches * -(-rows // edge) * -(-columns // edge)

    tiles = -(-depth_bytes // TILE_BYTES)
    # A block should have enough tiles of depth to hide its start and its epilogue.
    most = max(1, min(tiles // LEAST_TILES, SLAB_BYTES // max(4, 4 * batches * rows * columns), MOST_YZ // batches))
    large = vector and rows > 64 and columns > 64 and blocks(128) * most >= ENOUGH_BLOCKS
    edge = 128 if large else 64
    return edge, max(1, min(most, ENOUGH_BLOCKS * 2 // max(1, blocks(edge))))


def tensor_terms(dtype: str, transpose_a: bool, transpose_b: bool, capability: int) -> int:
    """How many tensor-core products make one of this type: 0 if tensor cores are not to be used."""
    if transpose_a and transpose_b:  # rare: no kernel
        return 0
    if dtype == "float":
        return {"float32": 0, "tf32": 1, "float32x3": 3}[precision.current()] if capability >= 80 else 0
    return int(capability >= (75 if dtype == "__half" else 80))


def _sizes(g: Gemm, m: Matrices) -> np.ndarray:
    return pack("Gemm", g.M, g.N, g.K, m.lda, m.ldb, m.ldo)


def _tile_rows(op: str, g: Gemm, edge: int) -> int:
    rows = -(-g.M // edge)
    if rows > MOST_YZ:
        raise ShapeError(f"[{op}] at most {MOST_YZ * edge} rows; got {g.M}")
    return rows


def _blocks(g: Gemm, tile: tuple[int, ...]) -> int:
    return g.B * -(-g.M // tile[0]) * -(-g.N // tile[1])


class GemmOps(Launching):
    """Matrix products of the contract."""

    def gemm(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        bias: Array | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transpose_a: bool = False,
        transpose_b: bool = False,
        activation: Epilogue | None = None,
    ) -> Array:
        check_epilogue("gemm", activation)
        return self._product("gemm", 2, a, b, c, alpha, beta, transpose_a, transpose_b, bias, activation)

    def batched_gemm(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> Array:
        return self._product("batched_gemm", 3, a, b, c, alpha, beta, transpose_a, transpose_b)

    def _product(
        self,
        op: str,
        rank: int,
        a: Array,
        b: Array,
        c: Array | None,
        alpha: float,
        beta: float,
        transpose_a: bool,
        transpose_b: bool,
        bias: Array | None = None,
        activation: Epilogue | None = None,
    ) -> Array:
        check_floats(op, a=a, b=b, c=c, bias=bias)
        if a.ndim != rank:
            raise ShapeError(f"[{op}] a and b must have {rank} axes; got {a.shape} and {b.shape}")
        g = Gemm.of(op, a.shape, b.shape, transpose_a, transpose_b)
        shape = (g.M, g.N) if rank == 2 else (g.B, g.M, g.N)
        if c is not None:
            check_shape(op, "c", c.shape, shape)
            c = c if beta != 0 else None  # as in BLAS, c is not read then: it may hold anything
        if bias is not None:
            check_shape(op, "bias", bias.shape, (g.N,))
        out = self.xp.empty(shape, a.dtype)
        a, b, c, bias = (None if m is None else self.xp.ascontiguousarray(m) for m in (a, b, c, bias))
        self.multiply(op, g, a, b, c, bias, out, transpose_a, transpose_b, alpha, beta, activation)
        return out

    def multiply(
        self,
        op: str,
        g: Gemm,
        a: Array,
        b: Array,
        c: Array | None,
        bias: Array | None,
        out: Array,
        transpose_a: bool = False,
        transpose_b: bool = False,
        alpha: float = 1.0,
        beta: float = 1.0,
        activation: Epilogue | None = None,
        matrices: Matrices | None = None,
    ) -> None:
        """Write activation(alpha * op(a) @ op(b) + beta * c + bias) into `out`, on tensor cores where they fit.

        Arrays are dense or as `matrices` says; bias holds N values per matrix of the batch.
        """
        dtype = storage(op, a.dtype)
        terms = tensor_terms(dtype, transpose_a, transpose_b, self.launcher.capability)
        how: dict[str, Any] = dict(alpha=alpha, beta=beta, relu=activation == "relu", matrices=matrices)
        if not terms:
            self.run(plan(op, g, dtype, transpose_a, transpose_b, **how), a, b, c, bias, out)
            return
        chosen = tensor_plan(op, g, dtype, transpose_a, transpose_b, **how, terms=terms, aligned=self.aligned(a, b))
        slabs = self.xp.empty(chosen.slabs, np.float32) if chosen.sum is not None else None
        self.run(chosen.product, a, b, c, bias, out, slabs)
        if chosen.sum is not None:
            self.run(chosen.sum, slabs, c, bias, out)

    def linear(
        self, x: Array, weight: Array, bias: Array | None = None, *, activation: Epilogue | None = None
    ) -> Array:
        check_epilogue("linear", activation)
        check_floats("linear", input=x, weight=weight, bias=bias)
        g = Linear.of("linear", x.shape, weight.shape, None if bias is None else bias.shape)
        y = self._product("linear", 2, x.reshape(g.rows, g.C), weight, None, 1.0, 1.0, False, True, bias, activation)
        return y.reshape(*x.shape[:-1], g.K)

    def linear_grad_input(self, grad_output: Array, weight: Array) -> Array:
        op = "linear_grad_input"
        check_floats(op, grad_output=grad_output, weight=weight)
        g = Linear.of(op, grad_output.shape, weight.shape[::-1], None)
        dx = self._product(op, 2, grad_output.reshape(g.rows, g.C), weight, None, 1.0, 1.0, False, False)
        return dx.reshape(*grad_output.shape[:-1], g.K)

    def linear_grad_weight(self, grad_output: Array, x: Array) -> Array:
        op = "linear_grad_weight"
        check_floats(op, grad_output=grad_output, input=x)
        check_shape(op, "leading axes of grad_output", grad_output.shape[:-1], x.shape[:-1])
        dy, rows = grad_output.reshape(-1, grad_output.shape[-1]), x.reshape(-1, x.shape[-1])
        return self._product(op, 2, dy, rows, None, 1.0, 1.0, True, False)
