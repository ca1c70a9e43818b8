"""Matrix products: plans and ops."""

from __future__ import annotations

from dataclasses import dataclass

from dlgpu.backends.contract import Array, Epilogue, check_epilogue
from dlgpu.backends.kernels.activation import ActivationOps
from dlgpu.backends.kernels.plan import MOST_YZ, Plan
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import Gemm, Linear, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError

# (BM, BN, BK, TM, TN) of kernels/gemm.cuh, large first
TILES = ((128, 128, 8, 8, 8), (64, 64, 16, 4, 4))
# Blocks from which the large tile fills a GPU; below, smaller tiles give more blocks.
ENOUGH_BLOCKS = 132


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
    matrices: Matrices | None = None,
) -> Plan:
    """The large tile if its blocks fill the GPU, else the small one. Arrays: a, b, c or None, bias or None, out."""
    tile = next((t for t in TILES if _blocks(g, t) >= ENOUGH_BLOCKS), TILES[-1])
    BM, BN = tile[:2]
    types = ", ".join((dtype, *(str(flag).lower() for flag in (transpose_a, transpose_b)), *map(str, tile)))
    rows = -(-g.M // BM)
    if rows > MOST_YZ:
        raise ShapeError(f"[{op}] at most {MOST_YZ * BM} rows; got {g.M}")
    grid = (-(-g.N // BN), rows, min(g.B, MOST_YZ))
    m = matrices or Matrices.dense(g, transpose_a, transpose_b)
    sizes = pack("Gemm", g.M, g.N, g.K, m.lda, m.ldb, m.ldo)
    args = (sizes, float(alpha), float(beta), g.B, m.stride_a, m.stride_b, m.stride_o)
    return Plan(f"dl::gemm<{types}>", grid, (256, 1, 1), args, why=f"{g.B} x {g.M}x{g.N}x{g.K}, tiles {BM}x{BN}")


def _blocks(g: Gemm, tile: tuple[int, ...]) -> int:
    return g.B * -(-g.M // tile[0]) * -(-g.N // tile[1])


class GemmOps(ActivationOps):
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
        out = self._product("gemm", 2, a, b, c, alpha, beta, transpose_a, transpose_b, bias)
        return out if activation is None else self.activation(out, kind=activation)

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
        chosen = plan(op, g, storage(op, a.dtype), transpose_a, transpose_b, alpha, beta)
        dense = (None if m is None else self.xp.ascontiguousarray(m) for m in (a, b, c, bias))
        self.run(chosen, *dense, out)
        return out

    def linear(
        self, x: Array, weight: Array, bias: Array | None = None, *, activation: Epilogue | None = None
    ) -> Array:
        check_epilogue("linear", activation)
        check_floats("linear", input=x, weight=weight, bias=bias)
        g = Linear.of("linear", x.shape, weight.shape, None if bias is None else bias.shape)
        y = self._product("linear", 2, x.reshape(g.rows, g.C), weight, None, 1.0, 1.0, False, True, bias)
        y = y if activation is None else self.activation(y, kind=activation)
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
