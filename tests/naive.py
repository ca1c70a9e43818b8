"""The truths: each op by its definition, one scalar at a time. Slow, and another algorithm than the reference.

No strided views, no matrix products, no vectorised passes. Every sum is kept in the dtype of the arrays given, one term
after the other. So the same function is the truth when it gets wide inputs, and the plain implementation whose error
sets the tolerance (`dlgpu.testing.assert_as_accurate`) when it gets narrow ones.

Geometry is spelt out: pairs for stride and dilation, ((top, bottom), (left, right)) for padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from dlgpu import dtypes
from dlgpu.testing import assert_as_accurate, assert_close, error

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


# The truth's own arithmetic: 80 bits on x86, so that float64 results can be judged too.
WIDE = np.dtype(np.longdouble)


def assert_matches(actual: Any, truth: Callable[..., Any], *arrays: Any, **options: Any) -> None:
    """Require the result (or each result) of an op to be what `truth` says, within a tolerance derived from its dtype.

    The plain implementation that sets the tolerance follows the contract: it adds in float32 or wider and rounds once.
    Where it happens to be luckier than that (few sums, much cancellation), the yardstick is the truth itself on inputs
    moved by one unit in the last place of that accumulation type, three times at random.
    """
    acc = dtypes.accumulator(next(a.dtype for a in arrays if a is not None))
    step, rng = WIDE.type(np.finfo(acc).eps), np.random.default_rng(1)

    def moved(a: Any) -> Any:
        a = _cast(a, WIDE)
        return a * (1 + step * rng.choice([-1, 1], a.shape)) if getattr(a, "dtype", None) == WIDE else a

    ways = (lambda a: _cast(a, WIDE), lambda a: _cast(a, acc), moved, moved, moved)
    results = actual, *(truth(*map(way, arrays), **options) for way in ways)
    each = zip(*results, strict=True) if isinstance(actual, tuple) else [results]
    for index, (got, true, *yardsticks) in enumerate(each):
        what = f"{truth.__name__}, result {index}"
        if dtypes.is_float(got.dtype):
            worst = max((y.astype(got.dtype) for y in yardsticks), key=lambda y: error(y, true))
            assert_as_accurate(got, worst, true, what=what)
        else:
            assert_close(got, true, what=what)


def _cast(a: Any, dtype: np.dtype) -> Any:
    return a.astype(dtype) if isinstance(a, np.ndarray) and dtypes.is_float(a.dtype) else a


def everywhere(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every index of an array of that shape, in row order."""
    return product(*(range(size) for size in shape))


# --- sliding windows ----------------------------------------------------------------------------------------------


def starts(size: int, kernel: int, stride: int, padding: Pair, dilation: int, ceil_mode: bool = False) -> list[int]:
    """Where the windows along one axis begin, in pixels of the input (negative: in the leading padding)."""
    reach, end = dilation * (kernel - 1) + 1, size + padding[1]
    found, at = [], -padding[0]
    while at + reach <= end:
        found.append(at)
        at += stride
    if ceil_mode and found[-1] + reach < end and at < size:  # the last window may stick out, but starts in the input
        found.append(at)
    return found


@cache
def windows(
    image: Pair, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair, ceil_mode: bool = False
) -> list[list[list[tuple[int, int, int, int]]]]:
    """windows(...)[p][q]: the (r, s, h, w) of all real pixels that window (p, q) sees, in row order."""
    rows, cols = (
        [
            [(place, start + place * dilation[axis]) for place in range(kernel[axis])]
            for start in starts(image[axis], kernel[axis], stride[axis], padding[axis], dilation[axis], ceil_mode)
        ]
        for axis in (0, 1)
    )
    H, W = image
    return [
        [[(r, s, h, w) for r, h in row for s, w in col if 0 <= h < H and 0 <= w < W] for col in cols] for row in rows
    ]


def im2col(x: np.ndarray, *, kernel_size: Pair, **geometry: Any) -> np.ndarray:
    (N, C, *image), (R, S) = x.shape, kernel_size
    seen = windows(tuple(image), kernel_size, **geometry)
    P, Q = len(seen), len(seen[0])
    col = np.zeros((N * P * Q, C * R * S), x.dtype)
    for n, c, p, q in everywhere((N, C, P, Q)):
        for r, s, h, w in seen[p][q]:
            col[(n * P + p) * Q + q, (c * R + r) * S + s] = x[n, c, h, w]
    return col


def col2im(col: np.ndarray, *, input_shape: tuple[int, ...], kernel_size: Pair, **geometry: Any) -> np.ndarray:
    (N, C, *image), (R, S) = input_shape, kernel_size
    seen = windows(tuple(image), kernel_size, **geometry)
    P, Q = len(seen), len(seen[0])
    x = np.zeros(input_shape, col.dtype)
    for n, c, p, q in everywhere((N, C, P, Q)):
        for r, s, h, w in seen[p][q]:
            x[n, c, h, w] += col[(n * P + p) * Q + q, (c * R + r) * S + s]
    return x


# --- convolution --------------------------------------------------------------------------------------------------


@cache
def _terms(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, **geometry: Any
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]]:
    """The output's shape, and every product a convolution is made of: (output, input and weight index)."""
    (N, _, *image), (K, per_group, *kernel) = input_shape, weight_shape
    seen = windows(tuple(image), tuple(kernel), **geometry)
    P, Q = len(seen), len(seen[0])
    terms = [
        ((n, k, p, q), (n, k // (K // groups) * per_group + c, h, w), (k, c, r, s))
        for n, k, p, q, c in everywhere((N, K, P, Q, per_group))
        for r, s, h, w in seen[p][q]
    ]
    return (N, K, P, Q), terms


def conv2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, groups: int = 1, **geometry: Any
) -> np.ndarray:
    shape, terms = _terms(x.shape, weight.shape, groups, **geometry)
    y = np.zeros(shape, x.dtype)
    for out, pixel, place in terms:
        y[out] += x[pixel] * weight[place]
    return y if bias is None else _with_bias(y, bias)


def conv2d_grad_input(
    grad_output: np.ndarray, weight: np.ndarray, *, input_shape: tuple[int, ...], groups: int = 1, **geometry: Any
) -> np.ndarray:
    dx = np.zeros(input_shape, grad_output.dtype)
    for out, pixel, place in _terms(input_shape, weight.shape, groups, **geometry)[1]:
        dx[pixel] += grad_output[out] * weight[place]
    return dx


def conv2d_grad_weight(
    grad_output: np.ndarray, x: np.ndarray, *, weight_shape: tuple[int, ...], groups: int = 1, **geometry: Any
) -> np.ndarray:
    dw = np.zeros(weight_shape, grad_output.dtype)
    for out, pixel, place in _terms(x.shape, weight_shape, groups, **geometry)[1]:
        dw[place] += grad_output[out] * x[pixel]
    return dw


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    output_padding: Pair = (0, 0),
    groups: int = 1,
) -> np.ndarray:
    """Each input pixel stamps the filter onto the output, `stride` apart; the padding is cut off afterwards."""
    (N, C, H, W), (_, per_group, R, S) = x.shape, weight.shape
    sizes = [
        (size - 1) * stride[axis] + dilation[axis] * (kernel - 1) + 1 - sum(padding[axis]) + output_padding[axis]
        for axis, (size, kernel) in enumerate(((H, R), (W, S)))
    ]
    y = np.zeros((N, per_group * groups, *sizes), x.dtype)
    for n, c, h, w, k, r, s in everywhere((N, C, H, W, per_group, R, S)):
        p = h * stride[0] + r * dilation[0] - padding[0][0]
        q = w * stride[1] + s * dilation[1] - padding[1][0]
        if 0 <= p < sizes[0] and 0 <= q < sizes[1]:
            y[n, c // (C // groups) * per_group + k, p, q] += x[n, c, h, w] * weight[c, k, r, s]
    return y if bias is None else _with_bias(y, bias)


def _with_bias(y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    for n, k, p, q in everywhere(y.shape):
        y[n, k, p, q] += bias[k]
    return y


# --- matrix products ----------------------------------------------------------------------------------------------


def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> np.ndarray:
    f = a.dtype.type
    M, K = a.shape[::-1] if transpose_a else a.shape
    N = b.shape[0] if transpose_b else b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for m, n in everywhere((M, N)):
        for k in range(K):
            out[m, n] += (a[k, m] if transpose_a else a[m, k]) * (b[n, k] if transpose_b else b[k, n])
        out[m, n] *= f(alpha)
        if c is not None:
            out[m, n] += f(beta) * c[m, n]
    return out


def grad_bias(grad_output: np.ndarray, *, axis: int = 1) -> np.ndarray:
    axis %= grad_output.ndim
    out = np.zeros(grad_output.shape[axis], grad_output.dtype)
    for index in everywhere(grad_output.shape):
        out[index[axis]] += grad_output[index]
    return out


# --- pooling ------------------------------------------------------------------------------------------------------


def max_pool2d(
    x: np.ndarray, *, kernel_size: Pair, stride: Pair, padding: Sides, dilation: Pair, ceil_mode: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """-> (y, offsets): the first NaN, else the first maximum, of the real pixels; (-inf, 0) where there are none."""
    (N, C, *image) = x.shape
    seen = windows(tuple(image), kernel_size, stride, padding, dilation, ceil_mode)
    y = np.full((N, C, len(seen), len(seen[0])), -np.inf, x.dtype)
    argmax = np.zeros(y.shape, np.uint8 if kernel_size[0] * kernel_size[1] <= 256 else np.uint16)
    for n, c, p, q in everywhere(y.shape):
        chosen = None
        for r, s, h, w in seen[p][q]:
            value = x[n, c, h, w]
            if chosen is None or (not np.isnan(chosen) and (np.isnan(value) or value > chosen)):
                chosen, argmax[n, c, p, q] = value, r * kernel_size[1] + s
        if chosen is not None:
            y[n, c, p, q] = chosen
    return y, argmax


def max_pool2d_grad(
    grad_output: np.ndarray,
    argmax: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Sides,
    dilation: Pair,
    ceil_mode: bool = False,
) -> np.ndarray:
    seen = windows(tuple(input_shape[2:]), kernel_size, stride, padding, dilation, ceil_mode)
    dx = np.zeros(input_shape, grad_output.dtype)
    for n, c, p, q in everywhere(grad_output.shape):
        for r, s, h, w in seen[p][q]:
            if argmax[n, c, p, q] == r * kernel_size[1] + s:
                dx[n, c, h, w] += grad_output[n, c, p, q]
    return dx


def _avg_windows(
    image: Sequence[int], kernel: Pair, stride: Pair, padding: Sides, ceil_mode: bool, count_include_pad: bool
) -> tuple[list[list[list[tuple[int, int, int, int]]]], Callable[[int, int], int]]:
    """The windows, and how many places of window (p, q) count: real pixels, or pixels and padding."""
    seen = windows((image[0], image[1]), kernel, stride, padding, (1, 1), ceil_mode)
    first = [
        starts(size, k, step, side, 1, ceil_mode)
        for size, k, step, side in zip(image, kernel, stride, padding, strict=True)
    ]

    def count(p: int, q: int) -> int:
        if not count_include_pad:
            return len(seen[p][q])
        inside = 1
        for axis, start in enumerate((first[0][p], first[1][q])):
            bordered = range(-padding[axis][0], image[axis] + padding[axis][1])
            inside *= sum(start + place in bordered for place in range(kernel[axis]))
        return inside

    return seen, count


def avg_pool2d(
    x: np.ndarray,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Sides,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    (N, C, *image) = x.shape
    seen, count = _avg_windows(image, kernel_size, stride, padding, ceil_mode, count_include_pad)
    y = np.zeros((N, C, len(seen), len(seen[0])), x.dtype)
    for n, c, p, q in everywhere(y.shape):
        for _, _, h, w in seen[p][q]:
            y[n, c, p, q] += x[n, c, h, w]
        y[n, c, p, q] /= x.dtype.type(count(p, q))
    return y


def avg_pool2d_grad(
    grad_output: np.ndarray,
    *,
    input_shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Sides,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    seen, count = _avg_windows(input_shape[2:], kernel_size, stride, padding, ceil_mode, count_include_pad)
    dx = np.zeros(input_shape, grad_output.dtype)
    for n, c, p, q in everywhere(grad_output.shape):
        for _, _, h, w in seen[p][q]:
            dx[n, c, h, w] += grad_output[n, c, p, q] / grad_output.dtype.type(count(p, q))
    return dx


# --- normalisation ------------------------------------------------------------------------------------------------


def _mean(values: Sequence[Any]) -> Any:
    total = values[0] - values[0]
    for value in values:
        total = total + value
    return total / type(total)(len(values))


def _sets(shape: Sequence[int], groups: int | None) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """(key of the statistics, indices) for each set of elements normalised together.

    Batch norm (groups None): a set per channel, key (c,). Group norm: one per sample and group, key (n, g).
    """
    sets: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in everywhere(shape):
        key = (index[1],) if groups is None else (index[0], index[1] // (shape[1] // groups))
        sets.setdefault(key, []).append(index)
    return list(sets.items())


def norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, *, groups: int | None, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Batch norm (groups None) or group norm -> (y, mean, rstd, unbiased variance)."""
    f = x.dtype.type
    y = np.zeros(x.shape, x.dtype)
    shape = (x.shape[1],) if groups is None else (x.shape[0], groups)
    mean, rstd, unbiased = (np.zeros(shape, x.dtype) for _ in range(3))
    for key, indices in _sets(x.shape, groups):
        mean[key] = _mean([x[i] for i in indices])
        var = _mean([(x[i] - mean[key]) * (x[i] - mean[key]) for i in indices])
        rstd[key] = f(1) / np.sqrt(var + f(eps))
        if len(indices) > 1:
            unbiased[key] = var * f(len(indices)) / f(len(indices) - 1)
        for i in indices:
            y[i] = (x[i] - mean[key]) * rstd[key]
            if weight is not None:
                y[i] *= weight[i[1]]
            if bias is not None:
                y[i] += bias[i[1]]
    return y, mean, rstd, unbiased


def norm_grad(
    grad_output: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    *,
    groups: int | None,
    constant: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (grad_input, grad_weight, grad_bias). `constant` statistics (inference) do not depend on x."""
    dx = np.zeros(x.shape, x.dtype)
    dw, db = np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    for key, indices in _sets(x.shape, groups):
        hat = [(x[i] - mean[key]) * rstd[key] for i in indices]
        dhat = [grad_output[i] if weight is None else grad_output[i] * weight[i[1]] for i in indices]
        level, slope = _mean(dhat), _mean([d * h for d, h in zip(dhat, hat, strict=True)])
        for i, d, h in zip(indices, dhat, hat, strict=True):
            dw[i[1]] += grad_output[i] * h
            db[i[1]] += grad_output[i]
            dx[i] = (d if constant else d - level - h * slope) * rstd[key]
    return dx, dw, db


def local_response_norm(
    x: np.ndarray, *, size: int, alpha: float, beta: float, k: float
) -> tuple[np.ndarray, np.ndarray]:
    f = x.dtype.type
    scale = np.zeros(x.shape, x.dtype)
    y = np.zeros(x.shape, x.dtype)
    for n, c, *rest in everywhere(x.shape):
        total = f(0)
        for other in range(c - size // 2, c + (size - 1) // 2 + 1):
            if 0 <= other < x.shape[1]:
                total += x[(n, other, *rest)] * x[(n, other, *rest)]
        at = (n, c, *rest)
        scale[at] = f(k) + f(alpha / size) * total
        y[at] = x[at] / scale[at] ** f(beta)
    return y, scale


# --- activations, softmax, loss -----------------------------------------------------------------------------------


def _cdf(v: float) -> float:
    return math.erfc(-v / math.sqrt(2)) / 2


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v > -700 else 0.0


# kind: (value, slope) at x with parameter a
ACTIVATIONS: dict[str, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "relu": (lambda v, a: max(v, 0.0), lambda v, a: float(v > 0)),
    "relu6": (lambda v, a: min(max(v, 0.0), 6.0), lambda v, a: float(0 < v < 6)),
    "leaky_relu": (lambda v, a: v if v > 0 else a * v, lambda v, a: 1.0 if v > 0 else a),
    "elu": (lambda v, a: v if v > 0 else a * math.expm1(v), lambda v, a: 1.0 if v > 0 else a * math.exp(v)),
    "sigmoid": (lambda v, a: _sigmoid(v), lambda v, a: _sigmoid(v) * _sigmoid(-v)),
    "tanh": (lambda v, a: math.tanh(v), lambda v, a: 1 - math.tanh(v) ** 2),
    "gelu": (
        lambda v, a: v * _cdf(v),
        lambda v, a: _cdf(v) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi),
    ),
    "silu": (lambda v, a: v * _sigmoid(v), lambda v, a: _sigmoid(v) * (1 + v * _sigmoid(-v))),
    "softplus": (lambda v, a: max(v, 0.0) + math.log1p(math.exp(-abs(v))), lambda v, a: _sigmoid(v)),
}


def activation(x: np.ndarray, *, kind: str, alpha: float = 0.01) -> np.ndarray:
    """In float64 whatever the dtype: `math` knows no other."""
    return _each(x, lambda v: ACTIVATIONS[kind][0](v, alpha))


def slope(x: np.ndarray, *, kind: str, alpha: float = 0.01) -> np.ndarray:
    return _each(x, lambda v: ACTIVATIONS[kind][1](v, alpha))


def _each(x: np.ndarray, f: Callable[[float], float]) -> np.ndarray:
    return np.array([f(float(v)) for v in x.reshape(-1)], np.float64).reshape(x.shape)


def log_softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    y = np.zeros(x.shape, x.dtype)
    axis %= x.ndim
    for index in everywhere([1 if i == axis else size for i, size in enumerate(x.shape)]):
        line = [(*index[:axis], i, *index[axis + 1 :]) for i in range(x.shape[axis])]
        peak = max(x[i] for i in line)
        total = x.dtype.type(0)
        for i in line:
            total += np.exp(x[i] - peak)
        for i in line:
            y[i] = x[i] - peak - np.log(total)
    return y


def softmax(x: np.ndarray, *, axis: int = -1) -> np.ndarray:
    y = log_softmax(x, axis=axis)
    for i in everywhere(y.shape):
        y[i] = np.exp(y[i])
    return y


def cross_entropy(
    logits: np.ndarray, target: np.ndarray, *, label_smoothing: float = 0.0, ignore_index: int = -100
) -> np.ndarray:
    """-> loss per sample: minus the log-probabilities weighted with the (smoothed) target distribution."""
    f, classes = logits.dtype.type, logits.shape[1]
    logp = log_softmax(logits, axis=1)
    loss = np.zeros(target.shape, logits.dtype)
    for n, *pixel in everywhere(target.shape):
        if target[(n, *pixel)] != ignore_index:
            for c in range(classes):
                wanted = label_smoothing / classes + (1 - label_smoothing) * (c == target[(n, *pixel)])
                loss[(n, *pixel)] -= f(wanted) * logp[(n, c, *pixel)]
    return loss


def cross_entropy_grad(
    grad_loss: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> np.ndarray:
    f, classes = logits.dtype.type, logits.shape[1]
    p = softmax(logits, axis=1)
    grad = np.zeros(logits.shape, logits.dtype)
    for n, c, *pixel in everywhere(logits.shape):
        if target[(n, *pixel)] != ignore_index:
            wanted = label_smoothing / classes + (1 - label_smoothing) * (c == target[(n, *pixel)])
            grad[(n, c, *pixel)] = f(grad_loss[(n, *pixel)]) * (p[(n, c, *pixel)] - f(wanted))
    return grad


# --- dropout ------------------------------------------------------------------------------------------------------


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Ten rounds of Philox4x32 on Python ints (Salmon, Moraes, Dror and Shaw, SC 2011, section 3.3)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * a, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c, 1 << 32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return a, b, c, d


def kept(index: int, *, p: float, seed: int, offset: int) -> bool:
    """Whether dropout keeps the element with this row-major index."""
    block = (offset + index // 4) % (1 << 64)
    words = philox4x32_10((block % (1 << 32), block >> 32, 0, 0), (seed % (1 << 32), seed >> 32))
    return (words[index % 4] >> 8) * 2.0**-24 >= p


# --- optimizer steps, for one number: (param, grad, state) -> (param, state) ---------------------------------------

State = tuple[Any, ...]
Step = tuple[Any, State]


def sgd(p: Any, g: Any, state: State, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Step:
    f = type(p)
    g = g + f(weight_decay) * p
    if not momentum:
        return p - f(lr) * g, ()
    old = state[0]
    new = f(momentum) * old - f(lr) * g
    # Nesterov in the change of variables of the notes: p is the look-ahead point.
    return p + (-f(momentum) * old + f(1 + momentum) * new if nesterov else new), (new,)


def adagrad(p: Any, g: Any, state: State, *, lr: float, eps: float, weight_decay: float) -> Step:
    f = type(p)
    g = g + f(weight_decay) * p
    total = state[0] + g * g
    return p - f(lr) * g / (np.sqrt(total) + f(eps)), (total,)


def rmsprop(p: Any, g: Any, state: State, *, lr: float, alpha: float, eps: float, weight_decay: float) -> Step:
    f = type(p)
    g = g + f(weight_decay) * p
    average = f(alpha) * state[0] + f(1 - alpha) * g * g
    return p - f(lr) * g / (np.sqrt(average) + f(eps)), (average,)


def adam(
    p: Any,
    g: Any,
    state: State,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Step:
    f = type(p)
    decay = f(lr * weight_decay) * p if decoupled else f(0)
    if not decoupled:
        g = g + f(weight_decay) * p
    m = f(beta1) * state[0] + f(1 - beta1) * g
    v = f(beta2) * state[1] + f(1 - beta2) * g * g
    corrected_m, corrected_v = m / f(1 - beta1**step), v / f(1 - beta2**step)
    return p - decay - f(lr) * corrected_m / (np.sqrt(corrected_v) + f(eps)), (m, v)
