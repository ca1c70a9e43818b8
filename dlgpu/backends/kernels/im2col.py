"""im2col and col2im: plans and ops."""

from __future__ import annotations

from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.geometry import strides, window
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import Plan, check_count, elementwise, vector
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.shapes import Padding2d, Size2d, Window2d, check_shape
from dlgpu.dtypes import check_floats


def plan(op: str, direction: str, w: Window2d, x: Array) -> Plan:
    """A vector of the columns per thread for im2col, a pixel for col2im."""
    columns = w.N * w.P * w.Q * w.C * w.R * w.S
    count = -(-columns // vector(x.dtype)) if direction == "im2col" else w.N * w.C * w.H * w.W
    check_count(op, columns)  # both directions index them
    return elementwise(op, f"dl::{direction}<{storage(op, x.dtype)}>", count, window(w), strides(x))


class Im2colOps(Launching):
    """The im2col family of the contract."""

    def im2col(
        self, x: Array, *, kernel_size: Size2d, stride: Size2d = 1, padding: Padding2d = 0, dilation: Size2d = 1
    ) -> Array:
        check_floats("im2col", input=x)
        w = Window2d.make("im2col", x.shape, kernel_size, stride, padding, dilation)
        col = self.xp.empty((w.N * w.P * w.Q, w.C * w.R * w.S), x.dtype)
        self.run(plan("im2col", "im2col", w, x), x, col)
        return col

    def col2im(
        self,
        col: Array,
        *,
        input_shape: tuple[int, ...],
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Padding2d = 0,
        dilation: Size2d = 1,
    ) -> Array:
        check_floats("col2im", col=col)
        w = Window2d.make("col2im", input_shape, kernel_size, stride, padding, dilation)
        check_shape("col2im", "col", col.shape, (w.N * w.P * w.Q, w.C * w.R * w.S))
        x = self.xp.empty(w.input_shape, col.dtype)
        self.run(plan("col2im", "col2im", w, x), self.xp.ascontiguousarray(col), x)
        return x
