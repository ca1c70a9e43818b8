"""Convolution by im2col and matrix products: any geometry, at the price of a column matrix in memory.

The products run over images as rows: (N*P*Q, C*R*S) columns times filters gives (N*P*Q, K), which is the output in
channels_last. Groups are the batch of the product; they lie side by side inside the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.kernels import gemm, im2col
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.shapes import Conv2d, Gemm, Window2d
from dlgpu.threads import slices

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps


class Im2col(ConvAlgorithm):
    """`algorithm="im2col"`."""

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> None:
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
        y = memory_format.empty(ops.xp, g.output_shape, x.dtype, "channels_last")
        filters = ops.dense(weight, "contiguous")
        extra = None if residual is None else ops.dense(residual, "channels_last")
        matrices = _side_by_side(g, "out")
        for images in _rounds(g, x.itemsize, ops.target.workspace):
            rows, added = _rows(y[images]), None if extra is None else _rows(extra[images])
            product = Gemm(g.G, len(rows), g.K // g.G, _depth(g))
            how: dict[str, Any] = dict(transpose_b=True, activation=activation, matrices=matrices)
            ops.multiply("conv2d", product, _columns(ops, x[images], g), filters, added, bias, rows, **how)
        return y

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        op = "conv2d_grad_input"
        dx = memory_format.empty(ops.xp, g.input_shape, grad_output.dtype, memory_format.of(grad_output, weight))
        filters, dy = ops.dense(weight, "contiguous"), ops.dense(grad_output, "channels_last")
        for images in _rounds(g, dx.itemsize, ops.target.workspace):
            rows = _rows(dy[images])
            product = Gemm(g.G, len(rows), _depth(g), g.K // g.G)
            columns = ops.xp.empty((len(rows), g.G * _depth(g)), dx.dtype)
            ops.multiply(op, product, rows, filters, None, None, columns, matrices=_side_by_side(g, "a"))
            part = dx[images]
            window = Window2d.make(op, part.shape, **_window(g))
            ops.run(im2col.plan(op, "col2im", window, part), columns, part)
        return dx

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        op = "conv2d_grad_weight"
        dy = ops.dense(grad_output, "channels_last")
        total: Array | None = None
        for images in _rounds(g, x.itemsize, ops.target.workspace):
            rows = _rows(dy[images])
            product = Gemm(g.G, g.K // g.G, _depth(g), len(rows))
            part = ops.xp.empty(g.weight_shape, x.dtype)
            how: dict[str, Any] = dict(transpose_a=True, matrices=_side_by_side(g, "ab"))
            ops.multiply(op, product, rows, _columns(ops, x[images], g), None, None, part, **how)
            total = part if total is None else total.astype(np.float32, copy=False) + part
        if total is None:  # no images
            total = ops.xp.zeros(g.weight_shape, x.dtype)
        return total.astype(x.dtype, copy=False), ops.grad_bias(dy) if with_bias else None


def _columns(ops: ConvOps, x: Array, g: Conv2d) -> Array:
    return ops.im2col(x, **_window(g))


def _window(g: Conv2d) -> dict[str, Any]:
    return dict(kernel_size=(g.R, g.S), stride=g.stride, padding=g.padding, dilation=g.dilation)


def _depth(g: Conv2d) -> int:
    """Elements of one filter: the inner size of the product."""
    return g.C // g.G * g.R * g.S


def _rows(y: Array) -> Array:
    """A dense channels_last (n, K, P, Q) array as (n*P*Q, K): a view."""
    n, k, p, q = y.shape
    return y.transpose(0, 2, 3, 1).reshape(n * p * q, k)


def _rounds(g: Conv2d, itemsize: int, workspace: int) -> list[slice]:
    """Images whose columns fit into the workspace."""
    per_image = max(1, g.P * g.Q * g.G * _depth(g) * itemsize)
    return slices(g.N, max(1, workspace // per_image))


def _side_by_side(g: Conv2d, rows: str) -> gemm.Matrices:
    """Columns and rows hold all groups next to each other; filters one group after the other.

    `rows` says which matrices are rows: the output (then a is columns), a (then the output is columns), or both factors
    of a weight gradient.
    """
    depth, per_group = _depth(g), g.K // g.G
    filters = per_group * depth
    if rows == "out":
        return gemm.Matrices(g.G * depth, depth, g.K, depth, filters, per_group)
    if rows == "a":
        return gemm.Matrices(g.K, depth, g.G * depth, per_group, filters, depth)
    return gemm.Matrices(g.K, g.G * depth, depth, per_group, depth, filters)
