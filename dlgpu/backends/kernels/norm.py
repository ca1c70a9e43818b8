"""Normalisation and bias gradients: plans and ops."""

from __future__ import annotations

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array, Epilogue, check_fused
from dlgpu.backends.kernels.gemm import sum_plan
from dlgpu.backends.kernels.geometry import norm
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import MOST_YZ, THREADS, Plan, elementwise
from dlgpu.backends.kernels.sources import storage
from dlgpu.backends.kernels.tiles import Target
from dlgpu.backends.shapes import Norm, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError

SIDE_BY_SIDE = 32  # channels of a block in channels_last, as in kernels/channel_sums.cuh
BLOCKS_PER_SM = 4
LEAST_POSITIONS = 512  # in a part


def block_plan(op: str, kernel: str, x: Array, groups: int, blocks: int, *args: float) -> Plan:
    """A block per sample and group."""
    name = f"dl::{kernel}<{storage(op, x.dtype)}>"
    per_block = x.size // max(blocks, 1)
    return Plan(name, (blocks, 1, 1), (THREADS, 1, 1), (norm(x, groups), *args), why=f"{per_block} elements per block")


def channel_plan(op: str, kernel: str, x: Array, groups: int, target: Target) -> tuple[Plan, int]:
    """-> (plan, parts of the positions) of a sum over each channel. The grid fills the device a few times over."""
    geometry = norm(x, groups)
    C, positions = x.shape[1], x.size // max(1, x.shape[1])
    blocks = -(-C // SIDE_BY_SIDE) if int(geometry["stride_c"]) == 1 else C
    wanted = -(-target.sms * BLOCKS_PER_SM // max(1, blocks))
    parts = max(1, min(wanted, -(-positions // LEAST_POSITIONS), MOST_YZ))
    why = f"{C} channels of {positions} positions in {parts} parts"
    return Plan(
        f"dl::{kernel}<{storage(op, x.dtype)}>", (blocks, parts, 1), (THREADS, 1, 1), (geometry,), why=why
    ), parts


def element_plan(op: str, kernel: str, x: Array, groups: int, *args: float) -> Plan:
    """A thread per element and round."""
    return elementwise(op, f"dl::{kernel}<{storage(op, x.dtype)}>", x.size, norm(x, groups), *args)


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
        moments, parts = channel_plan(op, "batch_norm_moments", x, g.C, self.target)
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
        plan = element_plan(op, "batch_norm_apply", x, x.shape[1], int(activation == "relu"))
        added = None if residual is None else self.dense(residual, layout)
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
        self._channel_sums(op, "batch_norm_sums", g, (dy, x, mean, rstd, y), grad_weight, grad_bias)
        plan = element_plan(op, "batch_norm_grad", x, g.C, int(training))
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
        plan = block_plan(op, "group_norm", x, g.G, g.N * g.G, float(eps), int(activation == "relu"))
        added = None if residual is None else self.dense(residual, memory_format.of(x))
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
        self.run(block_plan(op, "group_norm_grad", x, g.G, g.N * g.G), dy, x, self._vector(weight), mean, rstd, y, dx)
        self._channel_sums(op, "group_norm_sums", g, (dy, x, mean, rstd, y), grad_weight, grad_bias)
        vector = x.dtype if weight is None else weight.dtype
        return dx, grad_weight.astype(vector, copy=False), grad_bias.astype(vector, copy=False)

    def local_response_norm(
        self, x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> tuple[Array, Array]:
        op = "local_response_norm"
        check_floats(op, input=x)
        g = Norm.of_window(op, x.shape, size)
        layout = memory_format.of(x)
        x = self.dense(x, layout)
        y, scale = (memory_format.empty(self.xp, x.shape, dtype, layout) for dtype in (x.dtype, np.dtype(np.float32)))
        self.run(element_plan(op, op, x, g.C, size, float(alpha), float(beta), float(k)), x, y, scale)
        return y, scale

    def local_response_norm_grad(
        self, grad_output: Array, x: Array, scale: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75
    ) -> Array:
        op = "local_response_norm_grad"
        check_floats(op, grad_output=grad_output, input=x)
        g = Norm.of_window(op, x.shape, size)
        check_shape(op, "grad_output", grad_output.shape, x.shape)
        check_shape(op, "scale", scale.shape, x.shape)
        layout = memory_format.of(x)
        dense = (self.dense(a, layout) for a in (grad_output, x, scale))
        dx = memory_format.empty(self.xp, x.shape, x.dtype, layout)
        self.run(element_plan(op, op, dx, g.C, size, float(alpha), float(beta)), *dense, dx)
        return dx

    def grad_bias(self, grad_output: Array, *, axis: int = 1) -> Array:
        op = "grad_bias"
        check_floats(op, grad_output=grad_output)
        if axis % grad_output.ndim != 1:  # a dense layer's rows: (..., K) -> (rows, K)
            grad_output = self.xp.moveaxis(grad_output, axis, -1).reshape(-1, grad_output.shape[axis])
        dy = self.dense(grad_output, memory_format.of(grad_output))
        C = dy.shape[1]
        plan, parts = channel_plan(op, op, dy, C, self.target)
        slabs, out = self.xp.empty(parts * C, np.float32), self.xp.empty(C, dy.dtype)
        self.run(plan, dy, slabs)
        self.run(sum_plan(C, storage(op, dy.dtype), parts), slabs, None, None, out)
        return out

    def _channel_sums(
        self, op: str, kernel: str, g: Norm, arrays: tuple[Array | None, ...], grad_weight: Array, grad_bias: Array
    ) -> None:
        """Gradients of weight and bias. `arrays` are the kernel's, the second of them the input."""
        x = arrays[1]
        assert x is not None
        plan, parts = channel_plan(op, kernel, x, g.G or g.C, self.target)
        slabs = self.xp.empty(parts * g.C * 2, np.float32)
        self.run(plan, *arrays, slabs)
        self.run(elementwise(op, "dl::norm_join_sums", g.C, g.C, parts), slabs, grad_weight, grad_bias)

    def _saved_output(self, op: str, y: Array | None, x: Array, layout: memory_format.MemoryFormat) -> Array | None:
        if y is None:
            return None
        check_shape(op, "y", y.shape, x.shape)
        return self.dense(y, layout)

    def _vector(self, vector: Array | None) -> Array | None:
        return None if vector is None else self.xp.ascontiguousarray(vector, np.float32)
