"""`backward` against numerical differentiation."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from dlgpu.autograd import no_grad
from dlgpu.tensor import Tensor

# The longest step along the unit direction. Below, the two Richardson values have truncation errors of order STEP**4
# (about 1e-12 times the fifth derivative), and rounding adds about 1e-16 * |output| / STEP.
STEP = 1e-3


def gradcheck(fn: Callable[..., Tensor], *inputs: Tensor, seed: int = 0) -> None:
    """Compare the gradients of `fn` with central differences, along one random unit direction for each input.

    The output is weighted with a random cotangent, so the cost does not grow with the number of elements and a
    transposed or badly scaled gradient still shows.

    With D(h) the central difference, R(h) = (4 D(h/2) - D(h)) / 3 is exact up to h**4 (Richardson). R is taken at two
    steps: their distance measures the truncation error, and with a bound on the rounding error of `fn` it is the
    tolerance. Where the two are far apart `fn` is not smooth at this point, and that is an error too.

    Args:
        fn: a function of float64 Tensors that returns one Tensor; it must be deterministic.
        inputs: where to differentiate; keep kinks (ReLU at 0, ties in a pool) farther than `STEP`.

    Raises:
        AssertionError: naming the input whose gradient is wrong, missing, or has another shape or dtype.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.array(t.numpy()) for t in inputs]
    assert all(a.dtype == np.float64 for a in arrays), f"gradcheck needs float64; got {[str(a.dtype) for a in arrays]}"
    leaves = [Tensor(a.copy(order="K"), t.backend, requires_grad=True) for a, t in zip(arrays, inputs, strict=True)]
    output = fn(*leaves)
    cotangent = rng.standard_normal(output.shape)
    output.backward(cotangent)
    # Each output element is a sum of products; 2**6 rounding units of the whole weighted sum cover those made here.
    rounding = 2**6 * np.finfo(np.float64).eps * float(np.abs(cotangent * output.numpy()).sum()) / STEP

    for index, (name, leaf) in enumerate(zip(_names(fn, len(inputs)), leaves, strict=True)):
        assert leaf.grad is not None, f"gradcheck: {name} got no gradient"
        grad = leaf.grad.numpy()
        assert grad.shape == leaf.shape, f"gradcheck: {name} has shape {leaf.shape}, its gradient {grad.shape}"
        assert grad.dtype == np.float64, f"gradcheck: the gradient of {name} has dtype {grad.dtype}"
        if not grad.size:
            continue
        direction = rng.standard_normal(leaf.shape)
        direction /= np.sqrt(np.square(direction).sum())

        def weighted(t: float, index: int = index, direction: np.ndarray = direction) -> float:
            moved = [a + t * direction if i == index else a for i, a in enumerate(arrays)]
            with no_grad():
                y = fn(*(Tensor(a, leaf.backend) for a, leaf in zip(moved, leaves, strict=True)))
            return float((cotangent * y.numpy()).sum())

        coarse, fine = (_richardson(weighted, h) for h in (STEP, STEP / 2))
        analytic = float((grad * direction).sum())
        spread, size = abs(coarse - fine), max(abs(fine), abs(analytic), float(np.abs(cotangent).max()))
        assert spread <= 1e-6 * size + rounding, (
            f"gradcheck: the function is not smooth in {name} here: "
            f"differences {coarse:.12g} and {fine:.12g} at two steps"
        )
        off = abs(analytic - fine)
        assert off <= spread + rounding, (
            f"gradcheck: wrong gradient of {name} (shape {leaf.shape}) along a random direction: "
            f"backward {analytic:.12g}, differences {fine:.12g}; off by {off:.3g}, allowed {spread + rounding:.3g}"
        )


def _richardson(f: Callable[[float], float], h: float) -> float:
    wide, narrow = ((f(step) - f(-step)) / (2 * step) for step in (h, h / 2))
    return (4 * narrow - wide) / 3


def _names(fn: Callable[..., Tensor], count: int) -> list[str]:
    """The parameters' names, where the function has that many."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    try:
        named = [repr(p.name) for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):  # callables written in C
        named = []
    return [named[i] if i < len(named) else f"input {i}" for i in range(count)]
