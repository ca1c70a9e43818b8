"""Is a result right? float64 truth for a sample of the outputs, and a bound on how far off they may be.

Convolutions and products would take too long in float64 as a whole, so single outputs are computed: corners, and
others drawn at random. Other ops give a few images, channels or rows to the NumPy reference in float64, which is
tested against naive loops elsewhere. In both cases *every* output must also be finite: buffers are filled with NaN
before the call where the array library lets us, so an element that nobody wrote is noticed.

The bound, for a sum of n terms t_i of random sign stored with unit roundoff eps:

    2 eps |truth| + 32 * 2^-24 * sqrt(n) * sqrt(sum t_i^2)

A float32 sum of n such terms is off by about 2^-25 sqrt(n) sqrt(sum t_i^2) (each of n additions rounds a partial sum
that has grown to sqrt(sum t_i^2)); F(4x4) Winograd loses up to ten times as much (Lavin and Gray 2015, table 3); the
32 covers its worst element. One missing product of average size is 1/sqrt(n) of sqrt(sum t_i^2): far outside. TF32
rounds each factor to 11 bits: + 2^-10 |truth| + 4 * 2^-10 sqrt(sum t_i^2); in three terms ("float32x3") to twice as
many: + 2^-20 |truth| + 4 * 2^-20 sqrt(sum t_i^2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from dlgpu.backends import reference
from dlgpu.bench.cases import Case
from dlgpu.bench.ops import Arrays, Draw, Independent, Sizes, output_size

Index = Any  # what a[index] takes
EXPONENT = {"float32": 0x7F80_0000, "float16": 0x7C00, "bfloat16": 0x7F80}
ROUNDING = {"tf32": 2.0**-10, "float32x3": 2.0**-20}
INEXACT = 0.05  # a baseline farther off than this computes something else
SAMPLE_ELEMENTS = 1 << 20


@dataclass
class Truth:
    """Some outputs in float64: `pick` takes them from a result; `deviation` is sqrt(sum of squared terms) of each."""

    pick: Callable[[Any], Any]
    values: np.ndarray
    deviation: np.ndarray
    terms: int
    rounding: float  # of a product, because its factors were rounded


@dataclass(frozen=True)
class Verdict:
    """How far off a result is: the worst element in units of its bound (right up to 1), and |got - truth| / |truth|."""

    worst: float
    relative: float

    @property
    def right(self) -> bool:
        return self.worst <= 1  # NaN is not


def compare(truths: list[Truth], results: tuple[Any, ...]) -> Verdict:
    """Every result (there may be fewer than truths) against its truth; the worst counts."""
    worst = relative = 0.0
    for truth, result in zip(truths, results, strict=False):
        got, eps = to_float64(truth.pick(result)), _eps(result.dtype)
        off = np.abs(got - truth.values)
        size = np.abs(truth.values)
        bound = 2 * eps * size + 32 * 2.0**-24 * truth.terms**0.5 * truth.deviation
        bound += truth.rounding * (size + 4 * truth.deviation)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(off == 0, 0, off / bound)
        here = float(ratio.max(initial=0)) if all_finite(result) else float("nan")
        norm = float(np.linalg.norm(truth.values))
        worst, relative = _most(worst, here), _most(relative, float(np.linalg.norm(off)) / norm if norm else here)
    return Verdict(worst, relative)


def _most(a: float, b: float) -> float:
    return float(np.maximum(a, b))  # NaN wins


def _eps(dtype: Any) -> float:
    return float(ml_dtypes.finfo(dtype).eps) if str(dtype) in EXPONENT else 0.0


def to_float64(a: Any) -> np.ndarray:
    """A NumPy or CuPy array as float64 on the CPU."""
    return np.asarray(a.get() if hasattr(a, "get") else a).astype(np.float64)


def all_finite(a: Any) -> bool:
    """No NaN and no infinity, told from the bits: works for every element type of every array library."""
    mask = EXPONENT.get(str(a.dtype))
    if mask is None:
        return True  # integers
    bits = a.view(f"uint{8 * a.itemsize}")
    return not bool(((bits & mask) == mask).any())


def truths(xp: Any, case: Case, arrays: Arrays, seed: int = 0) -> list[Truth]:
    """The float64 truth of a case on `arrays`, computed by `xp` (on the GPU, if they are there) or the reference."""
    how = case.what.truth
    rng = np.random.default_rng(seed)
    if isinstance(how, Independent):
        return _by_reference(case, how, arrays)
    values, deviation, index = _SAMPLED[case.op](xp, arrays, case.sizes, rng)

    def pick(y: Any) -> Any:
        return y[tuple(_library(y).asarray(i) for i in index)]

    return [Truth(pick, values, deviation, case.what.terms(case.sizes), ROUNDING.get(case.dtype, 0.0))]


def _library(a: Any) -> Any:
    """The module that an array belongs to: numpy or cupy."""
    return sys.modules[type(a).__module__.partition(".")[0]]


# --- a few independent parts, by the reference ------------------------------------------------------------------------


def _by_reference(case: Case, how: Independent, arrays: Arrays) -> list[Truth]:
    length = case.sizes[how.letter]
    largest = max(a.size for name, a in arrays.items() if name in how.inputs)
    count = int(np.clip(SAMPLE_ELEMENTS * length // max(largest, 1), 1, length))
    chosen = np.arange(count) if how.prefix else np.unique(np.linspace(0, length - 1, count).astype(int))
    part = {}
    for name, a in arrays.items():
        kept = _take(a, chosen, how.inputs[name]) if name in how.inputs else a
        kept = kept.get() if hasattr(kept, "get") else kept
        part[name] = np.array(kept, np.float64 if str(kept.dtype) in EXPONENT else None)  # a copy: steps change it
    sizes = dict(case.sizes) | {how.letter: len(chosen)}
    part |= case.what.saved(reference, part, sizes)
    found = case.what.call(reference, part, sizes)
    terms = case.what.terms(case.sizes)
    truths = []
    for values in found if isinstance(found, tuple) else (found,):
        axis = min(how.output, values.ndim - 1)
        typical = np.full(values.shape, np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        truths.append(
            Truth(_taker(chosen, axis), np.asarray(values, np.float64), typical, terms, ROUNDING.get(case.dtype, 0.0))
        )
    return truths


def _take(a: Any, chosen: np.ndarray, axis: int) -> Any:
    return a[(slice(None),) * axis + (_library(a).asarray(chosen),)]


def _taker(chosen: np.ndarray, axis: int) -> Callable[[Any], Any]:
    return lambda y: _take(y, chosen, axis)


# --- single outputs ---------------------------------------------------------------------------------------------------

Sampled = tuple[np.ndarray, np.ndarray, Index]  # truth, deviation, where in the output


def _ends(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """Both ends and others at random: at most `count` different numbers below `length`."""
    return np.unique(np.concatenate([[0, length - 1], rng.integers(0, length, max(count - 2, 0))]))


def _spots(rng: np.random.Generator, lengths: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Four corners (all low, all high, and both alternations) and others at random."""
    last = [length - 1 for length in lengths]
    even, odd = ([end * ((axis + shift) % 2) for axis, end in enumerate(last)] for shift in (0, 1))
    spots = [tuple(0 for _ in last), tuple(last), tuple(even), tuple(odd)]
    spots += [tuple(int(rng.integers(0, length)) for length in lengths) for _ in range(count)]
    return list(dict.fromkeys(spots))


def _sums(xp: Any, products: Any, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return to_float64(products.sum(axes)), to_float64(xp.sqrt((products * products).sum(axes)))


def _wide(xp: Any, a: Any) -> Any:
    return xp.asarray(a).astype(xp.float64)


def _patch(xp: Any, image: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """image[:, rows][:, :, columns] in float64; zeros where a row or column is outside."""
    H, W = image.shape[1:]
    inside = ((rows >= 0) & (rows < H))[:, None] & ((columns >= 0) & (columns < W))[None]
    taken = image[:, xp.asarray(rows.clip(0, H - 1))][:, :, xp.asarray(columns.clip(0, W - 1))]
    return _wide(xp, taken) * _wide(xp, inside)


def _conv2d(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator, fused: bool = False) -> Sampled:
    P, window = output_size(s), np.arange(s["R"])
    ks = _ends(rng, s["K"], 16)
    per_group = s["K"] // s["groups"]
    filters = _wide(xp, a["w"][xp.asarray(ks)])
    truth, deviation, where = [], [], []
    for n, p, q in _spots(rng, (s["N"], P, P), 6):
        patch = _patch(
            xp, a["x"][n], p * s["stride"] - s["padding"] + window, q * s["stride"] - s["padding"] + window
        ).reshape(s["groups"], s["C"] // s["groups"], s["R"], s["R"])
        values, spread = _sums(xp, patch[xp.asarray(ks // per_group)] * filters, (1, 2, 3))
        truth.append(values)
        deviation.append(spread)
        where += [(n, k, p, q) for k in ks]
    values, spread = np.concatenate(truth), np.concatenate(deviation)
    index = tuple(np.array(where).T)
    if fused:
        bias = to_float64(a["b"])[index[1]]
        values, spread = np.maximum(values + bias, 0), np.hypot(spread, bias)
    return values, spread, index


def _conv2d_bias_relu(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator) -> Sampled:
    return _conv2d(xp, a, s, rng, fused=True)


def _conv2d_grad_input(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator) -> Sampled:
    P, H = output_size(s), s["H"]
    cs = _ends(rng, s["C"], 8)
    C, K = s["C"] // s["groups"], s["K"] // s["groups"]

    def reaching(h: int) -> np.ndarray:
        """For each filter row the output row that sees pixel row h through it, or -1."""
        steps = h + s["padding"] - np.arange(s["R"])
        return np.where((steps % s["stride"] == 0) & (steps >= 0) & (steps < P * s["stride"]), steps // s["stride"], -1)

    truth, deviation, where = [], [], []
    for n, h, w in _spots(rng, (s["N"], H, H), 6):
        patch = _patch(xp, a["dy"][n], reaching(h), reaching(w))  # (K, R, S)
        for c in cs:
            filters = slice(c // C * K, (c // C + 1) * K)
            value, spread = _sums(xp, patch[filters] * _wide(xp, a["w"][filters, c % C]), (0, 1, 2))
            truth.append(value)
            deviation.append(spread)
            where.append((n, c, h, w))
    return np.array(truth), np.array(deviation), tuple(np.array(where).T)


def _conv2d_grad_weight(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator) -> Sampled:
    P, C, K = output_size(s), s["C"] // s["groups"], s["K"] // s["groups"]
    truth, deviation, where = [], [], []
    for k, c in _spots(rng, (s["K"], C), 2):
        pad = s["padding"]
        x = xp.pad(_wide(xp, a["x"][:, k // K * C + c]), ((0, 0), (pad, pad), (pad, pad)))
        dy = _wide(xp, a["dy"][:, k])
        reach = s["stride"] * (P - 1) + 1
        for r, q in _spots(rng, (s["R"], s["R"]), 2):
            seen = x[:, r : r + reach : s["stride"], q : q + reach : s["stride"]]
            value, spread = _sums(xp, seen * dy, (0, 1, 2))
            truth.append(value)
            deviation.append(spread)
            where.append((k, c, r, q))
    return np.array(truth), np.array(deviation), tuple(np.array(where).T)


def _product(xp: Any, a: Any, b: Any, rng: np.random.Generator, bias: Any = None) -> Sampled:
    """Some elements of a @ b: whole sampled rows times whole sampled columns, of the first and last product."""
    rows, columns = _ends(rng, a.shape[-2], 16), _ends(rng, b.shape[-1], 16)
    index: Index = (rows[:, None], columns[None])
    if a.ndim == 3:
        batch = np.unique([0, a.shape[0] - 1])
        a, b = a[xp.asarray(batch)], b[xp.asarray(batch)]
        index = (batch[:, None, None], *index)
    left, right = _wide(xp, a[..., xp.asarray(rows), :]), _wide(xp, b[..., xp.asarray(columns)])
    values, spread = to_float64(left @ right), to_float64(xp.sqrt((left * left) @ (right * right)))
    if bias is not None:
        shift = to_float64(bias)[columns]
        values, spread = values + shift, np.hypot(spread, shift)
    return values, spread, index


def _gemm(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator) -> Sampled:
    return _product(xp, a["a"], a["b"], rng)


def _linear(xp: Any, a: Arrays, s: Sizes, rng: np.random.Generator) -> Sampled:
    return _product(xp, a["a"], a["b"].T, rng, a["bias"])


_SAMPLED: dict[str, Callable[[Any, Arrays, Sizes, np.random.Generator], Sampled]] = {
    "conv2d": _conv2d,
    "conv2d_bias_relu": _conv2d_bias_relu,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "gemm": _gemm,
    "linear": _linear,
    "batched_gemm": _gemm,
}


# --- inputs -----------------------------------------------------------------------------------------------------------


def draw(xp: Any, draws: dict[str, Draw], storage: Any, seed: int) -> Arrays:
    """Random arrays on the device of `xp`, contiguous. Fresh numbers for every seed."""
    rng = xp.random.default_rng(seed)
    found = {}
    for name, want in draws.items():
        if want.kind == "classes":
            found[name] = rng.integers(0, want.below, want.shape, dtype=xp.int64)
            continue
        values = rng.standard_normal(want.shape, dtype=xp.float32)
        values = xp.abs(values) if want.kind == "positive" else values
        found[name] = values.astype(want.dtype or storage, copy=False)
    return found
