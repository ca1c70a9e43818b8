"""Matrix products: NumPy's matmul, in float32 or wider."""

from __future__ import annotations

import math

import numpy as np

from dlgpu.backends.contract import Epilogue, check_epilogue
from dlgpu.backends.reference.common import finish, widen
from dlgpu.backends.shapes import Gemm, Linear, check_shape
from dlgpu.dtypes import check_floats
from dlgpu.errors import ShapeError
from dlgpu.threads import one_blas_thread, parallel, slices

# Products of at least this many multiply-accumulates are cut into pieces for the threads. Both numbers are fixed, so
# that results do not depend on how many threads there are.
LARGE = 1 << 23
PIECES = 4


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
    activation: Epilogue | None = None,
) -> np.ndarray:
    check_epilogue("gemm", activation)
    check_floats("gemm", a=a, bias=bias)
    out = _product("gemm", 2, a, b, c, alpha, beta, transpose_a, transpose_b)
    if bias is not None:
        check_shape("gemm", "bias", bias.shape, out.shape[1:])
        out += widen(bias)
    return finish(_activate(out, activation), a.dtype)


def batched_gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> np.ndarray:
    return finish(_product("batched_gemm", 3, a, b, c, alpha, beta, transpose_a, transpose_b), a.dtype)


def _product(
    op: str,
    rank: int,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None,
    alpha: float,
    beta: float,
    transpose_a: bool,
    transpose_b: bool,
) -> np.ndarray:
    check_floats(op, a=a, b=b, c=c)
    if a.ndim != rank:
        raise ShapeError(f"[{op}] a and b must have {rank} axes; got {a.shape} and {b.shape}")
    g = Gemm.of(op, a.shape, b.shape, transpose_a, transpose_b)
    left = widen(a).swapaxes(-1, -2) if transpose_a else widen(a)
    right = widen(b).swapaxes(-1, -2) if transpose_b else widen(b)
    out = product(left, right)  # (..., M, N)
    if alpha != 1.0:
        out *= out.dtype.type(alpha)
    if c is not None:
        check_shape(op, "c", c.shape, (g.M, g.N) if rank == 2 else (g.B, g.M, g.N))
        if beta != 0:  # as in BLAS, c is not read then: it may hold anything
            out += out.dtype.type(beta) * widen(c)
    return out


def _activate(out: np.ndarray, activation: Epilogue | None) -> np.ndarray:
    return np.maximum(out, 0, out=out) if activation == "relu" else out


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., M, K) @ (..., K, N) -> (..., M, N), a large one in pieces of its longer side."""
    (M, K), N = a.shape[-2:], b.shape[-1]
    if a.ndim > 2 or M * N * K < LARGE:
        with one_blas_thread():
            return np.matmul(a, b)
    out = np.empty((M, N), a.dtype)
    pieces = slices(max(M, N), -(-max(M, N) // PIECES))

    def piece(index: int) -> None:
        at = pieces[index]
        if M > N:
            np.matmul(a[at], b, out=out[at])
        else:
            np.matmul(a, b[:, at], out=out[:, at])

    parallel(piece, len(pieces))
    return out


def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, activation: Epilogue | None = None
) -> np.ndarray:
    check_epilogue("linear", activation)
    check_floats("linear", input=x, weight=weight, bias=bias)
    g = Linear.of("linear", x.shape, weight.shape, None if bias is None else bias.shape)
    out = product(widen(x).reshape(g.rows, g.C), widen(weight).T)  # (rows, K)
    if bias is not None:
        out += widen(bias)
    return finish(_activate(out, activation).reshape(*x.shape[:-1], g.K), x.dtype)


def linear_grad_input(grad_output: np.ndarray, weight: np.ndarray) -> np.ndarray:
    check_floats("linear_grad_input", grad_output=grad_output, weight=weight)
    g = Linear.of("linear_grad_input", grad_output.shape, weight.shape[::-1], None)
    out = product(widen(grad_output).reshape(g.rows, g.C), widen(weight))
    return finish(out.reshape(*grad_output.shape[:-1], g.K), weight.dtype)


def linear_grad_weight(grad_output: np.ndarray, x: np.ndarray) -> np.ndarray:
    check_floats("linear_grad_weight", grad_output=grad_output, input=x)
    check_shape("linear_grad_weight", "leading axes of grad_output", grad_output.shape[:-1], x.shape[:-1])
    rows = int(np.prod(x.shape[:-1]))
    # (K, rows) @ (rows, C)
    out = product(widen(grad_output).reshape(rows, grad_output.shape[-1]).T, widen(x).reshape(rows, x.shape[-1]))
    return finish(out, x.dtype)


def grad_bias(grad_output: np.ndarray, *, axis: int = 1) -> np.ndarray:
    check_floats("grad_bias", grad_output=grad_output)
    shape, keep = grad_output.shape, axis % grad_output.ndim
    # (before, K, after): the last axis first, because NumPy adds it pairwise, which keeps the rounding error small.
    grouped = widen(grad_output).reshape(math.prod(shape[:keep]), shape[keep], math.prod(shape[keep + 1 :]))
    return finish(grouped.sum(axis=2).sum(axis=0), grad_output.dtype)
