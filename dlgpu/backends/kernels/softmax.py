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

WARP = 32
WARP_CLASSES = 1024  # more make a row long enough for a block: each of a warp's threads would read 32 or more


def rows(op: str, x: Array, axis: int) -> tuple[int, int, int]:
    """(outer, classes, inner): how an axis of an array that is dense in its memory format lies in memory."""
    check_count(op, x.size)
    (at,) = axes(op, x.shape, axis)
    order = [0, 2, 3, 1] if memory_format.of(x) == "channels_last" else list(range(x.ndim))
    sizes, at = [x.shape[i] for i in order], order.index(at)
    return math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :])


def sharing(classes: int, inner: int) -> int:
    """Threads that share a row: neighbours in a warp always read neighbours in memory."""
    if classes > WARP_CLASSES:
        return THREADS
    return 1 if inner >= WARP else WARP


def row_plan(kernel: str, sizes: tuple[int, int, int], *args: float) -> Plan:
    """As many rows per block and round as its threads can share."""
    outer, classes, inner = sizes
    count, threads = outer * inner, sharing(classes, inner)
    return Plan(
        kernel,
        (min(-(-count * threads // THREADS), MOST_BLOCKS), 1, 1),
        (THREADS, 1, 1),
        (pack("Rows", *sizes, threads), *args),
        why=f"{count} rows of {classes}, {threads} threads each",
    )


class SoftmaxOps(Launching):
    """Softmax, log-softmax and cross-entropy of the contract."""

    def softmax(self, x: Array, *, axis: int = -1) -> Array:
        return self._forward("softmax", "false", x, axis)

    def log_softmax(self, x: Array, *, axis: int = -1) -> Array:
        return self._forward("log_softmax", "true", x, axis)

    def _forward(self, op: str, log: str, x: Array, axis: int) -> Array:
        check_floats(op, input=x)
        chosen = row_plan(f"dl::softmax<{storage(op, x.dtype)}, {log}>", rows(op, x, axis))
        y = memory_format.empty(self.xp, x.shape, x.dtype, memory_format.of(x))
        self.run(chosen, self.dense(x, memory_format.of(x)), y)
        return y

    def softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        return self._backward("softmax_grad", "false", grad_output, y, axis)

    def log_softmax_grad(self, grad_output: Array, y: Array, *, axis: int = -1) -> Array:
        return self._backward("log_softmax_grad", "true", grad_output, y, axis)

    def _backward(self, op: str, log: str, grad_output: Array, y: Array, axis: int) -> Array:
        check_floats(op, grad_output=grad_output, output=y)
        check_shape(op, "grad_output", grad_output.shape, y.shape)
        chosen = row_plan(f"dl::softmax_grad<{storage(op, y.dtype)}, {log}>", rows(op, y, axis))
        layout = memory_format.of(y)
        dx = memory_format.empty(self.xp, y.shape, y.dtype, layout)
        self.run(chosen, self.dense(grad_output, layout), self.dense(y, layout), dx)
        return dx

    def cross_entropy(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        op = "cross_entropy"
        check_floats(op, logits=logits)
        check_target(op, logits.shape, target, label_smoothing)
        kernel, sizes = f"dl::{op}<{storage(op, logits.dtype)}>", rows(op, logits, 1)
        loss, lse = (self.xp.empty(target.shape, np.float32) for _ in range(2))
        chosen = row_plan(kernel, sizes, float(label_smoothing), ignore_index)
        self.run(chosen, self.dense(logits, memory_format.of(logits)), self._classes(target), loss, lse)
        return loss, lse

    def cross_entropy_with_grad(
        self, logits: Array, target: Array, *, label_smoothing: float = 0.0, ignore_index: int = -100
    ) -> tuple[Array, Array]:
        op = "cross_entropy_with_grad"
        check_floats(op, logits=logits)
        check_target(op, logits.shape, target, label_smoothing)
        sizes = rows(op, logits, 1)
        chosen = row_plan(f"dl::{op}<{storage(op, logits.dtype)}>", sizes, float(label_smoothing), ignore_index)
        layout = memory_format.of(logits)
        loss = self.xp.empty(target.shape, np.float32)
        grad = memory_format.empty(self.xp, logits.shape, logits.dtype, layout)
        self.run(chosen, self.dense(logits, layout), self._classes(target), loss, grad)
        return loss, grad

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
        sizes = pack("Rows", *rows(op, logits, 1), 1)
        kernel = f"dl::{op}<{storage(op, logits.dtype)}>"
        chosen = elementwise(op, kernel, logits.size, sizes, float(label_smoothing), ignore_index)
        layout = memory_format.of(logits)
        dx = memory_format.empty(self.xp, logits.shape, logits.dtype, layout)
        weights = self.xp.ascontiguousarray(grad_loss, np.float32)
        dense = self.dense(logits, layout)
        self.run(chosen, weights, dense, self._classes(target), self.xp.ascontiguousarray(lse), dx)
        return dx

    def _classes(self, target: Array) -> Array:
        return self.xp.ascontiguousarray(target, np.int64)
