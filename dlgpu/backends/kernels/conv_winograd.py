"""Convolution by Winograd's minimal filtering, `winograd2` and `winograd4`: plans and ops (docs/winograd.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue
from dlgpu.backends.kernels.conv_algorithm import ConvAlgorithm
from dlgpu.backends.kernels.geometry import strides
from dlgpu.backends.kernels.plan import MOST_YZ, Plan, elementwise
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import Conv2d, Gemm
from dlgpu.threads import slices

if TYPE_CHECKING:
    from dlgpu.backends.kernels.conv import ConvOps

FUSED_TILES, FUSED_CHANNELS = 32, 8  # kernels/winograd_fused.cuh: of a block; loaded at a time


@dataclass(frozen=True)
class Product:
    """What a forward convolution and the gradient of its input have in common: an image by 3x3 filters.

    (N, inputs, H, W) seen from tiles that begin at (i * m + first_h, j * m + first_w) gives (N, outputs, P, Q).
    """

    N: int
    inputs: int
    H: int
    W: int
    outputs: int
    P: int
    Q: int
    G: int
    first_h: int
    first_w: int
    turned: bool

    @staticmethod
    def forward(g: Conv2d) -> Product:
        return Product(g.N, g.C, g.H, g.W, g.K, g.P, g.Q, g.G, -g.padding[0][0], -g.padding[1][0], False)

    @staticmethod
    def grad_input(g: Conv2d) -> Product:
        """The gradient of the output by turned filters; padding p becomes 2 - p."""
        return Product(g.N, g.K, g.P, g.Q, g.C, g.H, g.W, g.G, g.padding[0][0] - 2, g.padding[1][0] - 2, True)

    def tiles(self, m: int, images: int, *, of_output: bool) -> np.ndarray:
        """`dl::Tiles` of the image, or of the output."""
        grid = self.G, -(-self.P // m), -(-self.Q // m)
        if of_output:
            return pack("Tiles", images, self.P, self.Q, self.outputs, *grid, 0, 0)
        return pack("Tiles", images, self.H, self.W, self.inputs, *grid, self.first_h, self.first_w)

    def tile_count(self, m: int) -> int:
        """Tiles of one image."""
        return -(-self.P // m) * -(-self.Q // m)


@dataclass(frozen=True)
class Fused:
    """F(2x2) of one group in one kernel."""

    product: Product
    dtype: str

    @property
    def filters(self) -> int:
        """Filters of a block."""
        return 64 if self.product.outputs > 32 else 32

    @property
    def blocks(self) -> int:
        """That all filters fill."""
        return -(-self.product.outputs // self.filters)

    @property
    def transformed(self) -> tuple[int, ...]:
        """The transformed filters, padded to full blocks: as the kernel reads them, four channels at a time."""
        steps = -(-self.product.inputs // FUSED_CHANNELS) * 2
        return self.blocks, steps, 16, FUSED_CHANNELS // 2, self.filters

    def filter_plan(self, op: str, weight: Array) -> Plan:
        w, count = self.product, math.prod(self.transformed) // 16
        args = (w.outputs, w.inputs, int(w.turned), strides(weight), count)
        return elementwise(op, f"dl::winograd2_fused_filter<{self.dtype}, {self.filters}>", count, *args)

    def plan(self, relu: bool) -> Plan:
        w, filters = self.product, self.filters
        tiles = w.N * w.tile_count(2)
        grid = -(-tiles // FUSED_TILES), self.blocks, 1
        args = w.tiles(2, w.N, of_output=False), w.tiles(2, w.N, of_output=True), int(relu)
        images, weights = 16 * FUSED_CHANNELS * FUSED_TILES * 4, 16 * FUSED_CHANNELS // 2 * filters * 4
        why = f"{tiles} tiles of 2x2, {w.outputs} filters; transformed tiles stay in shared memory"
        return Plan(
            f"dl::winograd2_fused<{self.dtype}, {filters}>", grid, (256, 1, 1), args, 2 * (images + weights), why
        )


class Winograd(ConvAlgorithm):
    """`algorithm="winograd2"` and `"winograd4"`: F(m x m, 3 x 3) for m = 2 or 4.

    Transformed tiles are float32 whatever the images are stored as.
    """

    def __init__(self, m: int) -> None:
        self.m, self.places = m, (m + 2) ** 2

    def unsupported(self, op: str, g: Conv2d, dtype: np.dtype, capability: int) -> str | None:
        if (g.R, g.S, g.stride, g.dilation) != (3, 3, (1, 1), (1, 1)):
            return (
                f"needs a 3x3 filter with stride 1 and dilation 1; "
                f"got filter {g.R}x{g.S}, stride {g.stride}, dilation {g.dilation}"
            )
        return None

    def preferred(self, op: str, g: Conv2d) -> bool:
        """Never by itself: it rounds differently, and no GPU has yet said from which sizes on it is faster."""
        return False

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
        residual = None if residual is None else ops.dense(residual, "channels_last")
        self._run("conv2d", ops, Product.forward(g), x, weight, bias, residual, y, None, activation == "relu")
        return y

    def forward_pooled(
        self, ops: ConvOps, x: Array, weight: Array, bias: Array | None, g: Conv2d
    ) -> tuple[Array, Array]:
        shape = g.N, g.K, g.P // 2, g.Q // 2
        y = memory_format.empty(ops.xp, shape, x.dtype, "channels_last")
        argmax = memory_format.empty(ops.xp, shape, np.dtype(np.uint8), "channels_last")
        self._run("conv2d", ops, Product.forward(g), x, weight, bias, None, y, argmax, True)
        return y, argmax

    def grad_input(self, ops: ConvOps, grad_output: Array, weight: Array, g: Conv2d) -> Array:
        dx = memory_format.empty(ops.xp, g.input_shape, grad_output.dtype, "channels_last")
        self._run("conv2d_grad_input", ops, Product.grad_input(g), grad_output, weight, None, None, dx, None, False)
        return dx

    def _run(
        self,
        op: str,
        ops: ConvOps,
        w: Product,
        x: Array,
        weight: Array,
        bias: Array | None,
        residual: Array | None,
        y: Array,
        argmax: Array | None,
        relu: bool,
    ) -> None:
        x, dtype = ops.dense(x, "channels_last"), storage(op, x.dtype)
        fused = Fused(w, dtype)
        if self.m == 2 and w.G == 1 and fused.blocks <= MOST_YZ:
            u = ops.xp.empty(fused.transformed, np.float32)
            ops.run(fused.filter_plan(op, weight), weight, u)
            ops.run(fused.plan(relu), x, u, residual, bias, y, argmax)
            return
        u = ops.xp.empty((self.places, weight.size // 9), np.float32)
        ops.run(self._filter_plan(op, w, dtype, weight), weight, u)
        for images in self._rounds(w, ops.target.workspace):
            part = x[images]
            v = self._transformed(ops, op, "winograd_input", w, part)
            products = ops.xp.empty((self.places, len(part) * w.tile_count(self.m), w.outputs), np.float32)
            rows = len(part) * w.tile_count(self.m)
            sizes = Gemm(self.places * w.G, rows, w.outputs // w.G, w.inputs // w.G)
            ops.multiply(op, sizes, v, u, None, None, products, transpose_b=True)
            count, added = rows * w.outputs, None if residual is None else residual[images]
            args = (w.tiles(self.m, len(part), of_output=True), int(relu), count)
            plan = elementwise(op, f"dl::winograd_output<{dtype}, {self.m}>", count, *args)
            places = None if argmax is None else argmax[images]
            ops.run(plan, products, added, bias, y[images], places)

    def grad_weight(
        self, ops: ConvOps, grad_output: Array, x: Array, g: Conv2d, *, with_bias: bool
    ) -> tuple[Array, Array | None]:
        op, w = "conv2d_grad_weight", Product.forward(g)
        dy, x = ops.dense(grad_output, "channels_last"), ops.dense(x, "channels_last")
        du = ops.xp.zeros((self.places, g.K * g.C // g.G), np.float32)
        for images in self._rounds(w, ops.target.workspace):
            v = self._transformed(ops, op, "winograd_input", w, x[images])
            products = self._transformed(ops, op, "winograd_gradient", w, dy[images])
            rows = len(x[images]) * w.tile_count(self.m)
            sizes = Gemm(self.places * g.G, g.K // g.G, g.C // g.G, rows)
            # The rounds add up in place, one after the other.
            ops.multiply(op, sizes, products, v, du, None, du, transpose_a=True)
        dw = ops.xp.empty(g.weight_shape, x.dtype)
        count = dw.size // 9
        kernel = f"dl::winograd_filter_gradient<{storage(op, x.dtype)}, {self.m}>"
        ops.run(elementwise(op, kernel, count, count), du, dw)
        return dw, ops.grad_bias(dy) if with_bias else None

    def _filter_plan(self, op: str, w: Product, dtype: str, weight: Array) -> Plan:
        count, (K, per_group) = weight.size // 9, weight.shape[:2]
        args = (K, per_group * w.G, w.G, int(w.turned), strides(weight), count)
        return elementwise(op, f"dl::winograd_filter<{dtype}, {self.m}>", count, *args)

    def _transformed(self, ops: ConvOps, op: str, kernel: str, w: Product, part: Array) -> Array:
        """Images or gradients (n, channels, ., .) -> (places, tiles * channels)."""
        of_output = kernel == "winograd_gradient"
        count = len(part) * w.tile_count(self.m) * part.shape[1]
        args = (w.tiles(self.m, len(part), of_output=of_output), count)
        out = ops.xp.empty((self.places, count), np.float32)
        ops.run(elementwise(op, f"dl::{kernel}<{storage(op, part.dtype)}, {self.m}>", count, *args), part, out)
        return out

    def _rounds(self, w: Product, workspace: int) -> list[slice]:
        per_image = 4 * self.places * w.tile_count(self.m) * (w.inputs + w.outputs)
        return slices(w.N, max(1, workspace // max(1, per_image)))
