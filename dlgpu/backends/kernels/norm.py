"""Normalisation and bias gradients: plans and ops."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue, check_fused
from dlgpu.backends.kernels.gemm import sum_plan
from dlgpu.backends.kernels.geometry import norm
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import MOST_YZ, THREADS, Plan, elementwise, vector
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.tiles import Target
from dlgpu.backends.shapes import Norm, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError

WARP = 32
BLOCKS_PER_SM = 4
LEAST_VECTORS = 512  # of positions, in a part


class Walk:
    """How kernels walk over an array (N, C, ...), dense in its format: in which vectors, along which channels."""

    def __init__(self, x: Array, groups: int, *, aligned: bool) -> None:
        self.x, self.geometry = x, norm(x, groups)
        self.side_by_side = int(self.geometry["stride_c"]) == 1
        # A vector is of one group, and where channels are apart, of one channel.
        extent = x.shape[1] // max(1, groups) if self.side_by_side else int(self.geometry["spatial"])
        self.width = vector(x.dtype) if aligned and extent % vector(x.dtype) == 0 else 1

    def kernel(self, op: str, name: str) -> str:
        return f"dl::{name}<{storage(op, self.x.dtype)}, {self.width}>"

    def blocks(self, op: str, kernel: str, blocks: int, *args: float) -> Plan:
        """A block per sample and group."""
        why = f"{self.x.size // max(blocks, 1)} elements per block"
        return Plan(self.kernel(op, kernel), (blocks, 1, 1), (THREADS, 1, 1), (self.geometry, *args), why=why)

    def channels(self, op: str, kernel: str, target: Target) -> tuple[Plan, int]:
        """-> (plan, parts of the positions) of a sum over each channel. The grid fills the device a few times over."""
        C = self.x.shape[1]
        positions = self.x.size // max(1, C)
        vectors, each = (C // self.width, positions) if self.side_by_side else (C, positions // self.width)
        # A warp reads along memory: over channels, if they lie so; of few it takes several pixels.
        across = min(WARP, 1 << max(0, vectors - 1).bit_length()) if self.side_by_side else 1
        blocks = -(-vectors // across)
        wanted = -(-target.sms * BLOCKS_PER_SM // max(1, blocks))
        parts = max(1, min(wanted, -(-each // LEAST_VECTORS), MOST_YZ))
        return Plan(
            self.kernel(op, kernel),
            (blocks, parts, 1),
            (THREADS, 1, 1),
            (self.geometry, across),
            why=f"{C} channels of {positions} positions in {parts} parts",
        ), parts

    def elements(self, op: str, kernel: str, *args: float) -> Plan:
        """A vector per thread and round."""
        return elementwise(op, self.kernel(op, kernel), self.x.size // self.width, self.geometry, *args)


def local_plan(op: str, x: Array, *args: float) -> Plan:
    """A thread per element and round: its neighbours are other channels."""
    return elementwise(op, f"dl::{op}<{storage(op, x.dtype)}>", x.size, norm(x, 1), *args)


class NormOps(Launching):
    """Normalisation of the contract."""

    def batch_norm_train(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        residual: Array | None = None,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> tuple[Array, Array, Array]:
        op = "batch_norm_train"
        check_fused(op, x, residual, activation)
        g = Norm.of(op, x.shape, None, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
        if g.N * g.spatial == 1:
            raise ShapeError(f"[{op}] needs more than one value per channel; got input {x.shape}")
        if g.N * g.spatial == 0:  # no statistics, and the running ones stay
            return x.copy(), self.xp.zeros(g.C, np.float32), self.xp.ones(g.C, np.float32)
        x = self.dense(x, memory_format.of(x))
        mean, rstd = (self.xp.empty(g.C, np.float32) for _ in range(2))
        moments, parts = self._walk(x, 1).channels(op, "batch_norm_moments", self.target)
        slabs = self.xp.empty(parts * g.C * 3, np.float32)
        self.run(moments, x, slabs)
        chosen = elementwise(op, "dl::batch_norm_statistics", g.C, g.C, parts, float(momentum), float(eps))
        self.run(chosen, slabs, mean, rstd, running_mean, running_var)
        return self._batch_norm(op, x, weight, bias, mean, rstd, residual, activation), mean, rstd

    def batch_norm_infer(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array,
        var: Array,
        residual: Array | None = None,
        *,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> Array:
        op = "batch_norm_infer"
        check_fused(op, x, residual, activation)
        Norm.of(op, x.shape, None, weight=weight, bias=bias, mean=mean, var=var)
        rstd = 1 / self.xp.sqrt(self._vector(var) + np.float32(eps))
        x, wide = self.dense(x, memory_format.of(x)), self._vector(mean)
        return self._batch_norm(op, x, weight, bias, wide, rstd, residual, activation)

    def _batch_norm(
        self,
        op: str,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        mean: Array,
        rstd: Array,
        residual: Array | None,
        activation: Epilogue | None,
    ) -> Array:
        layout = memory_format.of(x)
        y = memory_format.empty(self.xp, x.shape, x.dtype, layout)
        added = None if residual is None else self.dense(residual, layout)
        plan = self._walk(x, 1, added, y).elements(op, "batch_norm_apply", int(activation == "relu"))
        self.run(plan, x, self._vector(weight), self._vector(bias), mean, rstd, added, y)
        return y

    def batch_norm_grad(
        self,
        grad_output: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        y: Array | None = None,
        *,
        training: bool = True,
    ) -> tuple[Array, Array, Array]:
        op = "batch_norm_grad"
        check_floats(op, grad_output=grad_output, input=x, output=y)
        g = Norm.of(op, x.shape, None, weight=weight, mean=mean, rstd=rstd)
        check_shape(op, "grad_output", grad_output.shape, x.shape)
        layout = memory_format.of(x)
        x, dy = self.dense(x, layout), self.dense(grad_output, layout)
        mean, rstd = self._vector(mean), self._vector(rstd)
        grad_weight, grad_bias = (self.xp.empty(g.C, np.float32) for _ in range(2))
        dx = memory_format.empty(self.xp, x.shape, x.dtype, layout)
        y = self._saved_output(op, y, x, layout)
        walk = self._walk(x, 1, dy, y, dx)
        self._channel_sums(op, "batch_norm_sums", walk, (dy, x, mean, rstd, y), grad_weight, grad_bias)
        plan = walk.elements(op, "batch_norm_grad", int(training))
        self.run(plan, dy, x, self._vector(weight), mean, rstd, grad_weight, grad_bias, y, dx)
        vector = x.dtype if weight is None else weight.dtype
        return dx, grad_weight.astype(vector, copy=False), grad_bias.astype(vector, copy=False)

    def group_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None = None,
        *,
        num_groups: int,
        eps: float = 1e-5,
        activation: Epilogue | None = None,
    ) -> tuple[Array, Array, Array]:
        op = "group_norm"
        check_fused(op, x, residual, activation)
        g = Norm.of(op, x.shape, num_groups, weight=weight, bias=bias)
        x = self.dense(x, memory_format.of(x))
        y = memory_format.empty(self.xp, x.shape, x.dtype, memory_format.of(x))
        mean, rstd = (self.xp.empty((g.N, g.G), np.float32) for _ in range(2))
        added = None if residual is None else self.dense(residual, memory_format.of(x))
        walk = self._walk(x, g.G, added, y)
        plan = walk.blocks(op, "group_norm", g.N * g.G, float(eps), int(activation == "relu"))
        self.run(plan, x, self._vector(weight), self._vector(bias), added, y, mean, rstd)
        return y, mean, rstd

    def group_norm_grad(
        self,
        grad_output: Array,
        x: Array,
        weight: Array | None,
        mean: Array,
        rstd: Array,
        y: Array | None = None,
        *,
        num_groups: int,
    ) -> tuple[Array, Array, Array]:
        op = "group_norm_grad"
        check_floats(op, grad_output=grad_output, input=x, output=y)
        g = Norm.of(op, x.shape, num_groups, weight=weight)
        check_shape(op, "grad_output", grad_output.shape, x.shape)
        layout = memory_format.of(x)
        x, dy = self.dense(x, layout), self.dense(grad_output, layout)
        dx = memory_format.empty(self.xp, x.shape, x.dtype, layout)
        grad_weight, grad_bias = (self.xp.empty(g.C, np.float32) for _ in range(2))
        y = self._saved_output(op, y, x, layout)
        walk = self._walk(x, g.G, dy, y, dx)
        plan = walk.blocks(op, "group_norm_grad", g.N * g.G)
        self.run(plan, dy, x, self._vector(weight), mean, rstd, y, dx)
        self._channel_sums(op, "group_norm_sums", walk, (dy, x, mean, rstd, y), grad_weight, grad_bias)
        vector = x.dtype if weight is None else weight.dtype
        return dx, grad_weight.astype(vector, copy=False), grad_bias.astype(vector, copy=False)

    def local_response_norm(
        self, x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> tuple[Array, Array]:
        op = "local_response_norm"
        check_floats(op, input=x)
        Norm.of_window(op, x.shape, size)
        layout = memory_format.of(x)
        x = self.dense(x, layout)
        y, scale = (memory_format.empty(self.xp, x.shape, dtype, layout) for dtype in (x.dtype, np.dtype(np.float32)))
        self.run(local_plan(op, x, size, float(alpha), float(beta), float(k)), x, y, scale)
        return y, scale

    def local_response_norm_grad(
        self, grad_output: Array, x: Array, scale: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75
    ) -> Array:
        op = "local_response_norm_grad"
        check_floats(op, grad_output=grad_output, input=x)
        Norm.of_window(op, x.shape, size)
        check_shape(op, "grad_output", grad_output.shape, x.shape)
        check_shape(op, "scale", scale.shape, x.shape)
        layout = memory_format.of(x)
        dense = (self.dense(a, layout) for a in (grad_output, x, scale))
        dx = memory_format.empty(self.xp, x.shape, x.dtype, layout)
        self.run(local_plan(op, dx, size, float(alpha), float(beta)), *dense, dx)
        return dx

    def grad_bias(self, grad_output: Array, *, axis: int = 1) -> Array:
        op = "grad_bias"
        check_floats(op, grad_output=grad_output)
        if axis % grad_output.ndim != 1:  # a dense layer's rows: (..., K) -> (rows, K)
            grad_output = self.xp.moveaxis(grad_output, axis, -1).reshape(-1, grad_output.shape[axis])
        dy = self.dense(grad_output, memory_format.of(grad_output))
        C = dy.shape[1]
        plan, parts = self._walk(dy, 1).channels(op, op, self.target)
        slabs, out = self.xp.empty(parts * C, np.float32), self.xp.empty(C, dy.dtype)
        self.run(plan, dy, slabs)
        self.run(sum_plan(C, storage(op, dy.dtype), parts), slabs, None, None, out)
        return out

    def _walk(self, x: Array, groups: int, *others: Array | None) -> Walk:
        """Over `x` and other arrays that lie like it."""
        return Walk(x, groups, aligned=self.aligned(x, *(a for a in others if a is not None)))

    def _channel_sums(
        self, op: str, kernel: str, walk: Walk, arrays: tuple[Array | None, ...], grad_weight: Array, grad_bias: Array
    ) -> None:
        """Gradients of weight and bias from the kernel's arrays."""
        plan, parts = walk.channels(op, kernel, self.target)
        slabs = self.xp.empty(parts * grad_weight.size * 2, np.float32)
        self.run(plan, *arrays, slabs)
        joined = elementwise(op, "dl::norm_join_sums", grad_weight.size, grad_weight.size, parts)
        self.run(joined, slabs, grad_weight, grad_bias)

    def _saved_output(self, op: str, y: Array | None, x: Array, layout: memory_format.MemoryFormat) -> Array | None:
        if y is None:
            return None
        check_shape(op, "y", y.shape, x.shape)
        return self.dense(y, layout)

    def _vector(self, vector: Array | None) -> Array | None:
        return None if vector is None else self.xp.ascontiguousarray(vector, np.float32)
