"""Convolution as implicit GEMM in channels_last: plans, and the algorithm `implicit_gemm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.kernels import conv_hopper, tiles
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.kernels.gemm import sum_plan, tensor_terms
from dlgpu.backends.kernels.geometry import conv
from dlgpu.backends.kernels.plan import Plan, check_count
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.tiles import ANY, Target
from dlgpu.backends.shapes import Conv2d

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps


def forward_plan(
    g: Conv2d, dtype: str, terms: int, *, relu: bool, pooled: bool, aligned: bool, target: Target = ANY
) -> Plan:
    """Rows are output pixels (pooled: whole 2x2 windows only). Arrays: x, weight, residual, bias, y, argmax."""
    rows = g.N * (g.P // 2) * (g.Q // 2) * 4 if pooled else g.N * g.P * g.Q
    filters, depth = g.K // g.G, g.R * g.S * (g.C // g.G)
    extents = (g.C // g.G,) if terms else (g.C // g.G, filters)  # without tensor cores outputs are vectors too
    vector = aligned and tiles.fits(dtype, extents)
    tile = _tile("conv2d", g, dtype, terms, g.G, rows, filters, depth, vector, target, split=False)
    return _plan("conv2d", dtype, tile, conv(g), int(relu))


def grad_input_plan(g: Conv2d, dtype: str, terms: int, *, aligned: bool, target: Target = ANY) -> Plan:
    """Rows are the input pixels of one phase of the strides. Arrays: dy, weight, dx."""
    phases = g.stride[0] * g.stride[1]
    rows = g.N * -(-g.H // g.stride[0]) * -(-g.W // g.stride[1])
    depth = g.R * g.S * (g.K // g.G) // phases
    vector = aligned and tiles.fits(dtype, (g.K // g.G, g.C // g.G))
    tile = _tile(
        "conv2d_grad_input", g, dtype, terms, g.G * phases, rows, g.C // g.G, depth, vector, target, split=False
    )
    return _plan("conv2d_grad_input", dtype, tile, conv(g))


def grad_weight_plan(g: Conv2d, dtype: str, terms: int, *, aligned: bool, target: Target = ANY) -> tuple[Plan, int]:
    """-> (plan, parts of the depth, which runs over output pixels). Arrays: dy, x, slabs, bias slabs or None."""
    rows, weights, depth = g.K // g.G, g.R * g.S * (g.C // g.G), g.N * g.P * g.Q
    vector = aligned and tiles.fits(dtype, (g.K // g.G, g.C // g.G))
    tile = _tile("conv2d_grad_weight", g, dtype, terms, g.G, rows, weights, depth, vector, target, split=True)
    return _plan("conv2d_grad_weight", dtype, tile, conv(g), tile.splits), tile.splits


def _plan(op: str, dtype: str, tile: tiles.Tile, *args: object) -> Plan:
    kernel = f"dl::{op}{tile.kernels}<{dtype}, {tile.types}>"
    return Plan(kernel, tile.grid, (tile.threads, 1, 1), args, why=tile.why, cycles=tile.cycles)


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
    target: Target,
    *,
    split: bool,
) -> tiles.Tile:
    for count in (g.N * g.C * g.H * g.W, g.N * g.K * g.P * g.Q, g.K * (g.C // g.G) * g.R * g.S):
        check_count(op, count)
    product = tiles.Product(dtype, batches, rows, columns, depth, vector, terms, split, gathered=True)
    return tiles.choose(op, product, target)


class ImplicitGemm(ConvAlgorithm):
    """`algorithm="implicit_gemm"`."""

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> str | None:
        if dtype != np.float32 and not tensor_terms(storage(op, dtype), False, False, capability):
            return f"{dtype} products need tensor cores that multiply it; got sm_{capability}"
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
        aligned = ops.aligned(x, weight, *(() if residual is None else (residual,)))
        if aligned and (columns := ops.target.hopper) is not None:
            fast = conv_hopper.forward_plan(g, dtype, columns=columns, relu=activation == "relu", target=ops.target)
            if fast is not None:
                ops.run_mapped(fast, x, weight, y, residual, bias)
                return y
        plan = forward_plan(
            g, dtype, terms, relu=activation == "relu", pooled=False, aligned=aligned, target=ops.target
        )
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
        aligned = ops.aligned(x, weight)
        if aligned and (columns := ops.target.hopper) is not None:
            fast = conv_hopper.pooled_plan(g, dtype, columns=columns, target=ops.target)
            if fast is not None:
                ops.run_mapped(fast, x, weight, y, argmax, bias)
                return y, argmax
        plan = forward_plan(g, dtype, terms, relu=True, pooled=True, aligned=aligned, target=ops.target)
        ops.run(plan, x, weight, None, bias, y, argmax)
        return y, argmax

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        dy, weight = ops.dense(grad_output, "channels_last"), ops.dense(weight, "channels_last")
        dx = memory_format.empty(ops.xp, g.input_shape, dy.dtype, "channels_last")
        dtype, terms = _storage(ops, dy)
        aligned = ops.aligned(dy, weight)
        if aligned and (columns := ops.target.hopper) is not None:
            fast = conv_hopper.grad_input_plans(g, dtype, columns=columns, target=ops.target)
            if fast is not None:
                for phase in fast:
                    ops.run_mapped(phase, dy, weight, dx)
                return dx
        ops.run(grad_input_plan(g, dtype, terms, aligned=aligned, target=ops.target), dy, weight, dx)
        return dx

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        dy, x = ops.dense(grad_output, "channels_last"), ops.dense(x, "channels_last")
        dw = memory_format.empty(ops.xp, g.weight_shape, x.dtype, "channels_last")
        dtype, terms = _storage(ops, x)
        aligned = ops.aligned(dy, x)
        if aligned and (columns := ops.target.hopper) is not None:
            fast = conv_hopper.grad_weight_plan(g, dtype, columns=columns, target=ops.target)
            if fast is not None:
                slabs = ops.xp.empty((fast[1], dw.size), np.float32)
                ops.run_mapped(fast[0], dy, x, slabs)
                ops.run(sum_plan(dw.size, dtype, fast[1]), slabs, None, None, dw)
                return dw, ops.grad_bias(dy) if with_bias else None
        db = ops.xp.empty(g.K, x.dtype) if with_bias else None
        plan, splits = grad_weight_plan(g, dtype, terms, aligned=aligned, target=ops.target)
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
