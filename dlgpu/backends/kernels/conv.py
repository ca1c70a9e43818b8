"""Convolution by im2col and matrix products: plans and ops.

The products run over images as rows: (N*P*Q, C*R*S) columns times filters gives (N*P*Q, K), which is the output in
channels_last. Groups are the batch of the product; they lie side by side inside the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import ALGORITHMS, Algorithm, Array
from dlgpu.backends.kernels import gemm, im2col
from dlgpu.backends.kernels.im2col import Im2colOps
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import Conv2d, Gemm, Padding2d, Size2d, Window2d, check_shape, conv_transpose
from dlgpu.dtypes import check_floats
from dlgpu.errors import BackendUnavailable, UnknownName
from dlgpu.threads import slices

# Most bytes of column matrix at a time; images beyond go in further rounds.
WORKSPACE_BYTES = 1 << 28


def product_plan(op: str, g: Conv2d, rows: int, dtype: np.dtype) -> Plan:
    """The forward product of `rows` windows with the filters."""
    product = Gemm(g.G, rows, g.K // g.G, _depth(g))
    return gemm.plan(op, product, storage(op, dtype), False, True, matrices=_side_by_side(g, "out"))


def forward_plans(op: str, g: Conv2d, dtype: np.dtype) -> list[tuple[slice, list[Plan]]]:
    """What the forward pass launches, round by round: (images, plans)."""
    found = []
    for images in _rounds(g, dtype.itemsize):
        count = len(range(g.N)[images])
        x = np.broadcast_to(np.empty((), dtype), (count, g.C, g.H, g.W))  # plans look at shapes, not at values
        window = Window2d.make(op, x.shape, (g.R, g.S), g.stride, g.padding, g.dilation)
        unfold = im2col.plan(op, "im2col", window, x)
        found.append((images, [unfold, product_plan(op, g, count * g.P * g.Q, dtype)]))
    return found


class ConvOps(Im2colOps):
    """The convolutions of the contract."""

    def conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv2d"
        check_floats(op, input=x, weight=weight, bias=bias)
        bias_shape = None if bias is None else bias.shape
        g = Conv2d.of(op, x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
        _check_algorithm(op, algorithm)
        y = memory_format.empty(self.xp, g.output_shape, x.dtype, "channels_last")
        filters = self.dense(weight, "contiguous")
        for images in _rounds(g, x.itemsize):
            rows = _rows(y[images])
            self.run(product_plan(op, g, len(rows), x.dtype), self._columns(x[images], g), filters, None, bias, rows)
        return self.dense(y, memory_format.of(x, weight))

    def conv2d_grad_input(
        self,
        grad_output: Array,
        weight: Array,
        *,
        input_shape: tuple[int, ...],
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv2d_grad_input"
        check_floats(op, grad_output=grad_output, weight=weight)
        g = Conv2d.of(op, input_shape, weight.shape, None, stride, padding, dilation, groups)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        _check_algorithm(op, algorithm)
        return self._grad_input(op, grad_output, weight, g)

    def _grad_input(self, op: str, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        dx = memory_format.empty(self.xp, g.input_shape, grad_output.dtype, memory_format.of(grad_output, weight))
        filters, dy = self.dense(weight, "contiguous"), self.dense(grad_output, "channels_last")
        for images in _rounds(g, dx.itemsize):
            rows = _rows(dy[images])
            product = Gemm(g.G, len(rows), _depth(g), g.K // g.G)
            columns = self.xp.empty((len(rows), g.G * _depth(g)), dx.dtype)
            plan = gemm.plan(op, product, storage(op, dx.dtype), False, False, matrices=_side_by_side(g, "a"))
            self.run(plan, rows, filters, None, None, columns)
            dx[images] = self.col2im(columns, input_shape=dx[images].shape, **_window(g))
        return dx

    def conv2d_grad_weight(
        self,
        grad_output: Array,
        x: Array,
        *,
        weight_shape: tuple[int, ...],
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv2d_grad_weight"
        check_floats(op, grad_output=grad_output, input=x)
        g = Conv2d.of(op, x.shape, weight_shape, None, stride, padding, dilation, groups)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        _check_algorithm(op, algorithm)
        total = self.xp.zeros(g.weight_shape, np.float32)
        dy = self.dense(grad_output, "channels_last")
        for images in _rounds(g, x.itemsize):
            rows = _rows(dy[images])
            product = Gemm(g.G, g.K // g.G, _depth(g), len(rows))
            part = self.xp.empty(g.weight_shape, x.dtype)
            plan = gemm.plan(op, product, storage(op, x.dtype), True, False, matrices=_side_by_side(g, "ab"))
            self.run(plan, rows, self._columns(x[images], g), None, None, part)
            total += part
        return self.dense(total.astype(x.dtype, copy=False), memory_format.of(grad_output, x))

    def conv_transpose2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        output_padding: Size2d = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        algorithm: Algorithm = "auto",
    ) -> Array:
        op = "conv_transpose2d"
        check_floats(op, input=x, weight=weight, bias=bias)
        bias_shape = None if bias is None else bias.shape
        g = conv_transpose(op, x.shape, weight.shape, bias_shape, stride, padding, output_padding, dilation, groups)
        _check_algorithm(op, algorithm)
        y = self._grad_input(op, x, weight, g)
        if bias is not None:
            y += bias[:, None, None]
        return y

    def _columns(self, x: Array, g: Conv2d) -> Array:
        return self.im2col(x, **_window(g))


def _check_algorithm(op: str, algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise UnknownName(op, "algorithm", algorithm, ALGORITHMS)
    if algorithm not in ("auto", "im2col"):
        raise BackendUnavailable(f"[{op}] {algorithm!r} has no kernel yet; got it asked for: use 'auto' or 'im2col'")


def _window(g: Conv2d) -> dict[str, Any]:
    return dict(kernel_size=(g.R, g.S), stride=g.stride, padding=g.padding, dilation=g.dilation)


def _depth(g: Conv2d) -> int:
    """Elements of one filter: the inner size of the product."""
    return g.C // g.G * g.R * g.S


def _rows(y: Array) -> Array:
    """A dense channels_last (n, K, P, Q) array as (n*P*Q, K): a view."""
    n, k, p, q = y.shape
    return y.transpose(0, 2, 3, 1).reshape(n * p * q, k)


def _rounds(g: Conv2d, itemsize: int) -> list[slice]:
    per_image = max(1, g.P * g.Q * g.G * _depth(g) * itemsize)
    return slices(g.N, max(1, WORKSPACE_BYTES // per_image))


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
