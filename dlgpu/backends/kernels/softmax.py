"""Softmax and cross-entropy: plans and ops."""

from __future__ import annotations

import math

import numpy as np

from dlgpu import memory_format
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.launching import Launching
from dlgpu.backends.kernels.plan import MOST_BLOCKS, THREADS, Plan, check_count, elementwise
from dlgpu.backends.kernels.sources import pack, storage
from dlgpu.backends.shapes import axes, check_shape, check_target
from dlgpu.dtypes import check_floats


def rows(op: str, shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(outer, classes, inner): how an axis of a contiguous array lies in memory."""
    check_count(op, math.prod(shape))
    (at,) = axes(op, shape, axis)
    return math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :])


def row_plan(kernel: str, sizes: tuple[int, int, int], *args: float) -> Plan:
    """A block per row and round."""
    count = sizes[0] * sizes[2]
    return Plan(
        kernel,
        (min(count, MOST_BLOCKS), 1, 1),
        (THREADS, 1, 1),
        (pack("Rows", *sizes), *args),
        why=f"{count} rows of {sizes[1]}",
    )


class SoftmaxOps(Launching):
    """Softmax, log-softmax and cross-entropy of the contract."""

    def softmax(self, x: Array, *, axis: int = -1) -> Array:
        return self._forward("softmax", "false", x, axis)

    def log_softmax(self, x: Array, *, axis: int = -1) -> Array:
        return self._forward("log_softmax", "true", x, axis)

    def _forward(self, op: str, log: str, x: Array, axis: int) -> Array:
        check_floats(op, input=x)
        chosen = row_plan(f"dl::softmax<{storage(op, x.dtype)}, {log}>", rows(op, x.shape, axis))
        dense = self.dense(x, "contiguous")
        y = self.xp.empty(x.shape, x.dtype)
        self.run(chosen, dense, y)
        return self.dense(y, memory_format.of(x))

    def softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        return self._backward("softmax_grad", "false", grad_output, y, axis)

    def log_softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        return self._backward("log_softmax_grad", "true", grad_output, y, axis)

    def _backward(self, op: str, log: str, grad_output: Array, y: Array, axis: int) -> Array:
        check_floats(op, grad_output=grad_output, output=y)
        check_shape(op, "grad_output", grad_output.shape, y.shape)
        chosen = row_plan(f"dl::softmax_grad<{storage(op, y.dtype)}, {log}>", rows(op, y.shape, axis))
        dx = self.xp.empty(y.shape, y.dtype)
        self.run(chosen, self.dense(grad_output, "contiguous"), self.dense(y, "contiguous"), dx)
        return self.dense(dx, memory_format.of(y))

    def cross_entropy(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        op = "cross_entropy"
        check_floats(op, logits=logits)
        check_target(op, logits.shape, target, label_smoothing)
        kernel, sizes = f"dl::{op}<{storage(op, logits.dtype)}>", rows(op, logits.shape, 1)
        loss, lse = (self.xp.empty(target.shape, np.float32) for _ in range(2))
        chosen = row_plan(kernel, sizes, float(label_smoothing), ignore_index)
        self.run(chosen, self.dense(logits, "contiguous"), self._classes(target), loss, lse)
        return loss, lse

    def cross_entropy_with_grad(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        op = "cross_entropy_with_grad"
        check_floats(op, logits=logits)
        check_target(op, logits.shape, target, label_smoothing)
        sizes = rows(op, logits.shape, 1)
        chosen = row_plan(f"dl::{op}<{storage(op, logits.dtype)}>", sizes, float(label_smoothing), ignore_index)
        loss, grad = self.xp.empty(target.shape, np.float32), self.xp.empty(logits.shape, logits.dtype)
        self.run(chosen, self.dense(logits, "contiguous"), self._classes(target), loss, grad)
        return loss, self.dense(grad, memory_format.of(logits))

    def cross_entropy_grad(
        self,
        grad_loss: Array,
        logits: Array,
        target: Array,
        lse: Array,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> Array:
        op = "cross_entropy_grad"
        check_floats(op, logits=logits)
        check_target(op, logits.shape, target, label_smoothing)
        check_shape(op, "grad_loss", grad_loss.shape, target.shape)
        check_shape(op, "lse", lse.shape, target.shape)
        sizes = pack("Rows", *rows(op, logits.shape, 1))
        kernel = f"dl::{op}<{storage(op, logits.dtype)}>"
        chosen = elementwise(op, kernel, logits.size, sizes, float(label_smoothing), ignore_index)
        dx = self.xp.empty(logits.shape, logits.dtype)
        weights = self.xp.ascontiguousarray(grad_loss, np.float32)
        dense = self.dense(logits, "contiguous")
        self.run(chosen, weights, dense, self._classes(target), self.xp.ascontiguousarray(lse), dx)
        return self.dense(dx, memory_format.of(logits))

    def _classes(self, target: Array) -> Array:
        return self.xp.ascontiguousarray(target, np.int64)
