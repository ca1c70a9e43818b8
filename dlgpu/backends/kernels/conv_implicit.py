"""Convolution as implicit GEMM in channels_last: plans, and the algorithm `implicit_gemm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.kernels.gemm import CHUNK_BYTES, ITEMSIZE, tensor_terms, tensor_tile
from dlgpu.backends.kernels.geometry import conv
from dlgpu.backends.kernels.plan import MOST_YZ, Plan, check_count, elementwise
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import Conv2d
from dlgpu.errors import ShapeError

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps


def forward_plan(g: Conv2d, dtype: str, terms: int, *, relu: bool, pooled: bool, aligned: bool) -> Plan:
    """Rows are output pixels (pooled: whole 2x2 windows only). Arrays: x, weight, residual, bias, y, argmax."""
    rows = g.N * (g.P // 2) * (g.Q // 2) * 4 if pooled else g.N * g.P * g.Q
    filters, depth = g.K // g.G, g.R * g.S * (g.C // g.G)
    tile = _tile(
        "conv2d", g, dtype, terms, g.G, rows, filters, depth, aligned and _fits(dtype, g.C // g.G), split=False
    )
    return tile.plan("dl::conv2d_tc", conv(g), int(relu))


def grad_input_plan(g: Conv2d, dtype: str, terms: int, *, aligned: bool) -> Plan:
    """Rows are the input pixels of one phase of the strides. Arrays: dy, weight, dx."""
    phases = g.stride[0] * g.stride[1]
    rows = g.N * -(-g.H // g.stride[0]) * -(-g.W // g.stride[1])
    depth = g.R * g.S * (g.K // g.G) // phases
    vector = aligned and _fits(dtype, g.K // g.G) and _fits(dtype, g.C // g.G)
    tile = _tile("conv2d_grad_input", g, dtype, terms, g.G * phases, rows, g.C // g.G, depth, vector, split=False)
    return tile.plan("dl::conv2d_grad_input_tc", conv(g))


def grad_weight_plan(g: Conv2d, dtype: str, terms: int, *, aligned: bool) -> tuple[Plan, int]:
    """-> (plan, parts of the depth, which runs over output pixels). Arrays: dy, x, slabs, bias slabs or None."""
    rows, weights, depth = g.K // g.G, g.R * g.S * (g.C // g.G), g.N * g.P * g.Q
    vector = aligned and _fits(dtype, g.K // g.G) and _fits(dtype, g.C // g.G)
    tile = _tile("conv2d_grad_weight", g, dtype, terms, g.G, rows, weights, depth, vector, split=True)
    return tile.plan("dl::conv2d_grad_weight_tc", conv(g), tile.splits), tile.splits


def sum_plan(count: int, dtype: str, splits: int) -> Plan:
    """Add `splits` slabs of `count` sums in order. Arrays: slabs, None, None, out."""
    sizes = pack("Gemm", 1, count, 0, 0, 0, count)
    return elementwise("conv2d_grad_weight", f"dl::add_slabs<{dtype}>", count, sizes, 1.0, 0.0, 0, 1, splits, count)


@dataclass(frozen=True)
class _Tile:
    grid: tuple[int, int, int]
    types: str
    splits: int
    why: str

    def plan(self, kernel: str, *args: object) -> Plan:
        return Plan(f"{kernel}<{self.types}>", self.grid, (256, 1, 1), args, why=self.why)


def _tile(
    op: str,
    g: Conv2d,
    dtype: str,
    terms: int,
    batches: int,
    rows: int,
    columns: int,
    depth: int,
    vector: bool,
    *,
    split: bool,
) -> _Tile:
    for count in (g.N * g.C * g.H * g.W, g.N * g.K * g.P * g.Q, g.K * (g.C // g.G) * g.R * g.S):
        check_count(op, count)
    edge, splits = tensor_tile(batches, rows, columns, depth * ITEMSIZE[dtype] if split else 0, vector)
    down = -(-rows // edge)
    if down > MOST_YZ or batches * splits > MOST_YZ:
        raise ShapeError(f"[{op}] at most {MOST_YZ * edge} rows and {MOST_YZ} groups; got {rows} and {batches}")
    grid = (-(-columns // edge), down, batches * splits)
    why = f"{batches} x {rows}x{columns}x{depth}, tiles {edge}x{edge}"
    why += (f", depth in {splits}" if splits > 1 else "") + ("" if vector else ", element by element")
    return _Tile(grid, f"{dtype}, {edge}, {edge}, {str(vector).lower()}, {terms}", splits, why)


def _fits(dtype: str, channels: int) -> bool:
    return channels % (CHUNK_BYTES // ITEMSIZE[dtype]) == 0


class ImplicitGemm(ConvAlgorithm):
    """`algorithm="implicit_gemm"`."""

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> str | None:
        if not tensor_terms(storage(op, dtype), False, False, capability):
            return f"{dtype} products on sm_{capability} have no tensor cores in this precision; got it asked for"
        return None

    def forward(
        self,
        ops: ConvOps,
        x: Array,
        weight: Array,
        bias: Array | None,
        residual: Array | None,
        g: Conv2d,
        activation: Epilogue | None,
    ) -> Array:
        x, weight = ops.dense(x, "channels_last"), ops.dense(weight, "channels_last")
        residual = None if residual is None else ops.dense(residual, "channels_last")
        y = memory_format.empty(ops.xp, g.output_shape, x.dtype, "channels_last")
        dtype, terms = _storage(ops, x)
        aligned = ops.aligned(x, weight)
        plan = forward_plan(g, dtype, terms, relu=activation == "relu", pooled=False, aligned=aligned)
        ops.run(plan, x, weight, residual, bias, y, None)
        return y

    def forward_pooled(
        self, ops: ConvOps, x: Array, weight: Array, bias: Array | None, g: Conv2d
    ) -> tuple[Array, Array]:
        x, weight = ops.dense(x, "channels_last"), ops.dense(weight, "channels_last")
        shape = g.N, g.K, g.P // 2, g.Q // 2
        y = memory_format.empty(ops.xp, shape, x.dtype, "channels_last")
        argmax = memory_format.empty(ops.xp, shape, np.dtype(np.uint8), "channels_last")
        dtype, terms = _storage(ops, x)
        plan = forward_plan(g, dtype, terms, relu=True, pooled=True, aligned=ops.aligned(x, weight))
        ops.run(plan, x, weight, None, bias, y, argmax)
        return y, argmax

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        dy, weight = ops.dense(grad_output, "channels_last"), ops.dense(weight, "channels_last")
        dx = memory_format.empty(ops.xp, g.input_shape, dy.dtype, "channels_last")
        dtype, terms = _storage(ops, dy)
        ops.run(grad_input_plan(g, dtype, terms, aligned=ops.aligned(dy, weight)), dy, weight, dx)
        return dx

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        dy, x = ops.dense(grad_output, "channels_last"), ops.dense(x, "channels_last")
        dw = memory_format.empty(ops.xp, g.weight_shape, x.dtype, "channels_last")
        db = ops.xp.empty(g.K, x.dtype) if with_bias else None
        dtype, terms = _storage(ops, x)
        plan, splits = grad_weight_plan(g, dtype, terms, aligned=ops.aligned(dy, x))
        slabs = ops.xp.empty((splits, dw.size), np.float32)
        bias_slabs = ops.xp.empty((splits, g.K), np.float32) if with_bias else None
        ops.run(plan, dy, x, slabs, bias_slabs)
        ops.run(sum_plan(dw.size, dtype, splits), slabs, None, None, dw)
        if db is not None:
            ops.run(sum_plan(g.K, dtype, splits), bias_slabs, None, None, db)
        return dw, db


def _storage(ops: ConvOps, x: Array) -> tuple[str, int]:
    dtype = storage("conv2d", x.dtype)
    return dtype, tensor_terms(dtype, False, False, ops.launcher.capability)
