"""Pooling: plans and ops."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.geometry import strides, window
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, elementwise, vector
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import Padding2d, Pool2d, Size2d, check_shape
from dlgpu.dtypes import check_floats

_ARGMAX = {1: "unsigned char", 2: "unsigned short"}


def max_plan(op: str, g: Pool2d, x: Array, argmax: Array, *others: Array, vectors: bool = False) -> Plan:
    """Some channels of one pixel written per thread; `others` are the arrays whose strides follow the geometry.

    vectors: every array is channels_last and begins at a multiple of 16 bytes.
    """
    width = _width(g, x.dtype, vectors and argmax.itemsize == 1)
    kernel = f"dl::{op}<{storage(op, x.dtype)}, {_ARGMAX[argmax.itemsize]}, {width}>"
    count = int(np.prod(g.output_shape if op == "max_pool2d" else g.input_shape)) // width
    return elementwise(op, kernel, count, window(g), *map(strides, others))


def avg_plan(
    op: str, g: Pool2d, count_include_pad: bool, first: Array, second: Array, *, vectors: bool = False
) -> Plan:
    """As `max_plan`. What counts towards the divisor travels with the geometry."""
    (top, bottom), (left, right) = g.padding if count_include_pad else ((0, 0), (0, 0))
    geometry = pack("AvgPool", window(g)[()], -top, g.H + bottom, -left, g.W + right)
    width = _width(g, first.dtype, vectors)
    kernel = f"dl::{op}<{storage(op, first.dtype)}, {width}>"
    count = int(np.prod(g.output_shape if op == "avg_pool2d" else g.input_shape)) // width
    return elementwise(op, kernel, count, geometry, strides(first), strides(second))


def _width(g: Pool2d, dtype: np.dtype, vectors: bool) -> int:
    """Channels per thread: 16 bytes of them where they lie side by side and come out even."""
    return vector(dtype) if vectors and g.C % vector(dtype) == 0 else 1


class PoolOps(Launching):
    """The pooling family of the contract."""

    def max_pool2d(
        self,
        x: Array,
        *,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        ceil_mode: bool = False,
    ) -> tuple[Array, Array]:
        check_floats("max_pool2d", input=x)
        g = Pool2d.of("max_pool2d", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
        layout = memory_format.of(x)
        y = memory_format.empty(self.xp, g.output_shape, x.dtype, layout)
        argmax = memory_format.empty(self.xp, g.output_shape, g.argmax_dtype, layout)
        vectors = self._vectors(x, y, argmax)
        self.run(max_plan("max_pool2d", g, x, argmax, x, y, vectors=vectors), x, y, argmax)
        return y, argmax

    def max_pool2d_grad(
        self,
        grad_output: Array,
        argmax: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
        ceil_mode: bool = False,
        layout: memory_format.MemoryFormat | None = None,
    ) -> Array:
        op = "max_pool2d_grad"
        check_floats(op, grad_output=grad_output)
        g = Pool2d.of(op, input_shape, kernel_size, stride, padding, dilation, ceil_mode)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        check_shape(op, "argmax", argmax.shape, g.output_shape)
        dx = memory_format.empty(self.xp, g.input_shape, grad_output.dtype, layout or memory_format.of(grad_output))
        vectors = self._vectors(grad_output, argmax, dx)
        plan = max_plan(op, g, dx, argmax, grad_output, argmax, dx, vectors=vectors)
        self.run(plan, grad_output, argmax, dx)
        return dx

    def avg_pool2d(
        self,
        x: Array,
        *,
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Array:
        check_floats("avg_pool2d", input=x)
        g = Pool2d.of("avg_pool2d", x.shape, kernel_size, stride, padding, 1, ceil_mode)
        y = memory_format.empty(self.xp, g.output_shape, x.dtype, memory_format.of(x))
        plan = avg_plan("avg_pool2d", g, count_include_pad, x, y, vectors=self._vectors(x, y))
        self.run(plan, x, y)
        return y

    def avg_pool2d_grad(
        self,
        grad_output: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d | None = None,
        padding: Padding2d = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        layout: memory_format.MemoryFormat | None = None,
    ) -> Array:
        op = "avg_pool2d_grad"
        check_floats(op, grad_output=grad_output)
        g = Pool2d.of(op, input_shape, kernel_size, stride, padding, 1, ceil_mode)
        check_shape(op, "grad_output", grad_output.shape, g.output_shape)
        dx = memory_format.empty(self.xp, g.input_shape, grad_output.dtype, layout or memory_format.of(grad_output))
        plan = avg_plan(op, g, count_include_pad, grad_output, dx, vectors=self._vectors(grad_output, dx))
        self.run(plan, grad_output, dx)
        return dx

    def _vectors(self, *arrays: Array) -> bool:
        return all(memory_format.is_stored(a, "channels_last") for a in arrays) and self.aligned(*arrays)
