"""Convolution by its definition in channels_last: plans, and the algorithm `direct`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.kernels.gemm import sum_plan
from dlgpu.backends.kernels.geometry import conv
from dlgpu.backends.kernels.plan import MOST_YZ, THREADS, Plan, check_count, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import Conv2d

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps

STRIP, FILTERS = 4, 4  # kernels/direct.cuh: neighbouring pixels and filters of a thread
MOST_CHANNELS = 4  # per filter: up to here, `auto` prefers this to a matrix product
ENOUGH_BLOCKS = 132 * 4


def forward_plan(g: Conv2d, dtype: str, *, relu: bool) -> Plan:
    """Four pixels by four filters per thread. Arrays: x, weight (R, S, C/G, K), residual, bias, y."""
    check_count("conv2d", g.N * g.K * g.P * g.Q)
    per_group = g.K // g.G
    sees = "own" if g.C == g.G == g.K else "same" if g.G == 1 or per_group % FILTERS == 0 else "any"
    count = g.N * g.P * -(-g.Q // STRIP) * -(-g.K // FILTERS)
    return elementwise("conv2d", f"dl::direct<{dtype}, dl::Sees::{sees}>", count, conv(g), int(relu), count)


def grad_input_plan(g: Conv2d, dtype: str) -> Plan:
    """One input element per thread. Arrays: dy, weight (R, S, C/G, K), dx."""
    count = g.N * g.C * g.H * g.W
    return elementwise("conv2d_grad_input", f"dl::direct_grad_input<{dtype}>", count, conv(g), count)


def grad_weight_plan(g: Conv2d, dtype: str) -> tuple[Plan, int]:
    """-> (plan, parts of the output rows), one weight per thread and part. Arrays: dy, x, slabs, bias slabs or None."""
    check_count("conv2d_grad_weight", g.N * g.C * g.H * g.W)
    weights = g.K * (g.C // g.G) * g.R * g.S
    blocks = -(-weights // THREADS)
    splits = max(1, min(g.N * g.P, -(-ENOUGH_BLOCKS // blocks), MOST_YZ))
    why = f"{weights} weights, {g.N * g.P} rows in {splits} parts"
    args = (conv(g), weights, splits)
    return Plan(f"dl::direct_grad_weight<{dtype}>", (blocks, splits, 1), (THREADS, 1, 1), args, why=why), splits


class Direct(ConvAlgorithm):
    """`algorithm="direct"`."""

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> None:
        return None

    def preferred(self, op: str, g: Conv2d) -> bool:
        """Few channels per filter leave a matrix product little to reuse; its input gradient has the filters to sum."""
        few = g.C // g.G <= MOST_CHANNELS
        return few and (op != "conv2d_grad_input" or g.K // g.G <= MOST_CHANNELS)

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
        x = ops.dense(x, "channels_last")
        residual = None if residual is None else ops.dense(residual, "channels_last")
        y = memory_format.empty(ops.xp, g.output_shape, x.dtype, "channels_last")
        plan = forward_plan(g, storage("conv2d", x.dtype), relu=activation == "relu")
        ops.run(plan, x, _filters_last(ops, weight), residual, bias, y)
        return y

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        dy = ops.dense(grad_output, "channels_last")
        dx = memory_format.empty(ops.xp, g.input_shape, dy.dtype, "channels_last")
        ops.run(grad_input_plan(g, storage("conv2d_grad_input", dy.dtype)), dy, _filters_last(ops, weight), dx)
        return dx

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        dy, x = ops.dense(grad_output, "channels_last"), ops.dense(x, "channels_last")
        dtype = storage("conv2d_grad_weight", x.dtype)
        plan, splits = grad_weight_plan(g, dtype)
        dw = ops.xp.empty((g.R, g.S, g.C // g.G, g.K), x.dtype)
        db = ops.xp.empty(g.K, x.dtype) if with_bias else None
        slabs = ops.xp.empty((splits, dw.size), np.float32)
        bias_slabs = ops.xp.empty((splits, g.K), np.float32) if with_bias else None
        ops.run(plan, dy, x, slabs, bias_slabs)
        ops.run(sum_plan(dw.size, dtype, splits), slabs, None, None, dw)
        if db is not None:
            ops.run(sum_plan(g.K, dtype, splits), bias_slabs, None, None, db)
        return dw.transpose(3, 2, 0, 1), db


def _filters_last(ops: ConvOps, weight: Array) -> Array:
    """(K, C/G, R, S) -> (R, S, C/G, K): a warp's lanes take neighbouring filters."""
    turned = weight.transpose(2, 3, 1, 0)
    return turned if turned.flags.c_contiguous else ops.copied("layout", turned, weight.dtype, "contiguous")
