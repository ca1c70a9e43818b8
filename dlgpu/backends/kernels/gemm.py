"""Matrix products: plans and ops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlgpu.backends import precision
from dlgpu.backends.contract import Array, Epilogue, check_epilogue
from dlgpu.backends.kernels import gemm_hopper, tiles
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import MOST_YZ, Plan, elementwise
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.kernels.tiles import ANY, Target
from dlgpu.backends.shapes import Gemm, Linear, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError
from dlgpu.threads import slices


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


@dataclass(frozen=True)
class ProductPlan:
    """A product: one launch, or a split one and the sum of its slabs.

    Arrays of `product`: a, b, c or None, bias or None, out, slabs or None; of `sum`: slabs, c, bias, out.
    """

    product: Plan
    sum: Plan | None
    slabs: int  # elements of float32 workspace


def plan(
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
    terms: int = 0,
    aligned: bool = True,
    target: Target = ANY,
) -> ProductPlan:
    """`aligned` says that every array begins at a multiple of 16 bytes; `terms` is what `tensor_terms` gives."""
    m = matrices or Matrices.dense(g, transpose_a, transpose_b)
    extents = [g.M if transpose_a else g.K, g.K if transpose_b else g.N, m.lda, m.ldb]
    extents += [m.stride_a, m.stride_b] if g.B > 1 else []
    if not terms:  # also the output is written in vectors
        extents += [g.N, m.ldo] + ([m.stride_o] if g.B > 1 else [])
    vector = aligned and tiles.fits(dtype, extents)
    tile = tiles.choose(op, tiles.Product(dtype, g.B, g.M, g.N, g.K, vector, terms), target)
    flags = ", ".join(str(flag).lower() for flag in (transpose_a, transpose_b))
    sizes = pack("Gemm", g.M, g.N, g.K, m.lda, m.ldb, m.ldo)
    end = (float(alpha), float(beta), int(relu), g.B, tile.splits)
    kernel = f"dl::gemm{tile.kernels}<{dtype}, {flags}, {tile.types}>"
    args = (sizes, *end, m.stride_a, m.stride_b, m.stride_o)
    product = Plan(kernel, tile.grid, (tile.threads, 1, 1), args, why=tile.why, cycles=tile.cycles)
    if tile.splits == 1:
        return ProductPlan(product, None, 0)
    count = g.B * g.M * g.N
    total = elementwise(op, f"dl::add_slabs<{dtype}>", count, sizes, *end, m.stride_o)
    return ProductPlan(product, total, tile.splits * count)


def sum_plan(count: int, dtype: str, splits: int) -> Plan:
    """Add `splits` slabs of `count` sums in order. Arrays: slabs, None, None, out."""
    sizes = pack("Gemm", 1, count, 0, 0, 0, count)
    return elementwise("add_slabs", f"dl::add_slabs<{dtype}>", count, sizes, 1.0, 0.0, 0, 1, splits, count)


def tensor_terms(dtype: str, transpose_a: bool, transpose_b: bool, capability: int) -> int:
    """How many tensor-core products make one of this type: 0 if tensor cores are not to be used."""
    if transpose_a and transpose_b:  # rare: no kernel
        return 0
    if dtype == "float":
        return {"tf32": 1, "float32x3": 3}.get(precision.current(), 0) if capability >= 80 else 0
    return int(capability >= (75 if dtype == "__half" else 80))


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
        how: dict[str, Any] = dict(transpose_a=transpose_a, transpose_b=transpose_b, alpha=alpha, beta=beta)
        if g.B <= MOST_YZ:
            self.multiply(op, g, a, b, c, bias, out, **how, activation=activation)
            return out
        for part in slices(g.B, MOST_YZ):  # a batch of more matrices than a launch makes
            some = replace(g, B=len(range(g.B)[part]))
            self.multiply(op, some, a[part], b[part], None if c is None else c[part], None, out[part], **how)
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
        aligned = self.aligned(a, b, out, *(() if c is None else (c,)))
        if aligned and (columns := self.target.hopper) is not None and (bias is None or g.B == 1):
            m = matrices or Matrices.dense(g, transpose_a, transpose_b)
            lines, batch = (m.lda, m.ldb, m.ldo), (m.stride_a, m.stride_b, m.stride_o)
            end: dict[str, Any] = dict(alpha=alpha, beta=beta, relu=activation == "relu")
            fast = gemm_hopper.plan(
                g,
                dtype,
                transpose_a,
                transpose_b,
                columns=columns,
                leading=lines,
                strides=batch,
                **end,
                target=self.target,
            )
            if fast is not None:
                self.run_mapped(fast, a, b, out, c, bias)
                return
        chosen = plan(op, g, dtype, transpose_a, transpose_b, **how, terms=terms, aligned=aligned, target=self.target)
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
