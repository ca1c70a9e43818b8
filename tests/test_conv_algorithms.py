"""Every convolution algorithm of the reference against a loop over the definition, through the three ops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlgpu.backends.reference import conv, conv_fft, conv_winograd
from dlgpu.backends.reference.conv_winograd import Winograd
from dlgpu.backends.shapes import Conv2d
from dlgpu.errors import ShapeError, UnknownName

ALGORITHMS = ("im2col", "implicit_gemm", "direct", "fft", "winograd2", "winograd4")
OPS = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Case:
    """One geometry; padding is ((top, bottom), (left, right))."""

    N: int = 2
    C: int = 4
    H: int = 6
    W: int = 6
    K: int = 6
    R: int = 3
    S: int = 3
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def winograd(self) -> bool:
        return (self.R, self.S, self.stride, self.dilation) == (3, 3, (1, 1), (1, 1))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.groups, self.R, self.S

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Counts the places where the window starts."""
        (top, bottom), (left, right) = self.padding
        P = len(range(0, top + self.H + bottom - self.dilation[0] * (self.R - 1), self.stride[0]))
        Q = len(range(0, left + self.W + right - self.dilation[1] * (self.S - 1), self.stride[1]))
        return self.N, self.K, P, Q

    @property
    def options(self) -> dict[str, Any]:
        names = "stride", "padding", "dilation", "groups"
        return {name: getattr(self, name) for name in names}


NONE = ((0, 0), (0, 0))
CASES = {
    # Outputs that end in every place of a 2x2 and of a 4x4 tile (3x3 with padding 1: P, Q = H, W).
    **{f"tiles {H}x{W}": Case(H=H, W=W) for H, W in ((1, 9), (2, 8), (3, 7), (4, 5), (5, 4), (7, 3), (8, 2), (9, 1))},
    **{f"tiles {size}x{size}": Case(H=size, W=size) for size in (1, 2, 3, 4, 5, 7, 8, 9)},
    "no padding": Case(H=7, W=8, padding=NONE),
    "one output": Case(H=3, W=3, padding=NONE),
    "asymmetric padding": Case(H=5, W=7, padding=((0, 2), (2, 1))),
    "padding beyond the filter": Case(H=3, W=2, padding=((3, 0), (4, 5))),
    "no rows": Case(H=0, W=5, padding=((3, 3), (1, 1))),
    "primes": Case(N=3, C=5, H=11, W=13, K=7),
    "one channel": Case(C=1, K=3),
    "one filter": Case(C=3, K=1),
    "two groups": Case(groups=2, padding=((1, 0), (0, 1))),
    "depthwise": Case(C=4, K=4, groups=4),
    "depthwise, two filters each": Case(C=3, K=6, groups=3),
    "empty batch": Case(N=0, groups=2),
    "1x1": Case(R=1, S=1, padding=NONE),
    "1x1, stride 2, padding": Case(R=1, S=1, stride=(2, 2)),
    "5x5": Case(H=7, W=11, R=5, S=5, padding=((2, 2), (2, 2))),
    "filter as large as the image": Case(H=5, W=4, R=5, S=4, padding=NONE),
    "2x5": Case(H=5, W=7, R=2, S=5, padding=((0, 1), (3, 2))),
    "stride 2": Case(H=7, W=8, stride=(2, 2)),
    "stride 2, last rows unread": Case(H=8, W=6, R=1, S=3, stride=(3, 2), padding=NONE),
    "stride 1x3, asymmetric padding": Case(H=5, W=9, stride=(1, 3), padding=((2, 0), (0, 1))),
    "dilation 2": Case(H=7, W=8, dilation=(2, 2), padding=((2, 2), (2, 2))),
    "stride 2, dilation 2x3": Case(H=9, W=10, stride=(2, 2), dilation=(2, 3), padding=((1, 2), (3, 0)), groups=2),
    "empty batch, stride 2, dilation 2": Case(N=0, H=9, W=9, stride=(2, 2), dilation=(2, 2)),
}
RUNS = [
    pytest.param(case, algorithm, id=f"{name}-{algorithm}")
    for name, case in CASES.items()
    for algorithm in ALGORITHMS
    if case.winograd or not algorithm.startswith("winograd")
]

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def operands(case: Case, dtype: type = np.float64) -> Arrays:
    """Random input, weight and gradient of the output. float64 ones hold float32 values, so both types see the same."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype)

    return draw(case.input_shape), draw(case.weight_shape), draw(case.output_shape)


def by_definition(case: Case, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> Arrays:
    """Output, input gradient and weight gradient: for every output, what its window holds."""
    N, C, H, W = case.input_shape
    (top, bottom), (left, right) = case.padding
    big = np.zeros((N, C, top + H + bottom, left + W + right))
    big[:, :, top : top + H, left : left + W] = x
    y, dbig, dw = np.zeros(dy.shape), np.zeros(big.shape), np.zeros(w.shape)
    for n, k, p, q in np.ndindex(dy.shape):
        group = k // (case.K // case.groups)
        channels = range(group * w.shape[1], (group + 1) * w.shape[1])
        rows = [p * case.stride[0] + r * case.dilation[0] for r in range(case.R)]
        columns = [q * case.stride[1] + s * case.dilation[1] for s in range(case.S)]
        window = (n, *np.ix_(channels, rows, columns))
        y[n, k, p, q] = np.sum(big[window] * w[k])
        dbig[window] += dy[n, k, p, q] * w[k]
        dw[k] += dy[n, k, p, q] * big[window]
    return y, dbig[:, :, top : top + H, left : left + W], dw


@cache
def expected(case: Case) -> Arrays:
    return by_definition(case, *operands(case))


def run(case: Case, algorithm: Any, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> Arrays:
    """The three ops."""
    options = {**case.options, "algorithm": algorithm}
    return (
        conv.conv2d(x, w, **options),
        conv.conv2d_grad_input(dy, w, input_shape=case.input_shape, **options),
        conv.conv2d_grad_weight(dy, x, weight_shape=case.weight_shape, **options),
    )


@pytest.mark.parametrize(("case", "algorithm"), RUNS)
def test_float64_agrees_with_the_definition(case: Case, algorithm: str) -> None:
    given_arrays = operands(case)
    copies = [a.copy() for a in given_arrays]
    for got, want in zip(run(case, algorithm, *given_arrays), expected(case), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    for array, copy in zip(given_arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("case", "algorithm"), RUNS)
def test_gradients_are_adjoints(case: Case, algorithm: str) -> None:
    """<conv(x, w), dy> = <x, grad_input(dy)> = <w, grad_weight(dy)>: the output is linear in x and in w."""
    x, w, dy = operands(case)
    y, dx, dw = run(case, algorithm, x, w, dy)
    want, size = np.vdot(y, dy), np.linalg.norm(y) * np.linalg.norm(dy)
    assert np.vdot(x, dx) == pytest.approx(want, rel=1e-12, abs=1e-12 * size)
    assert np.vdot(w, dw) == pytest.approx(want, rel=1e-12, abs=1e-12 * size)


# Rounding in float32. A rounding is off by at most u (relative), with a standard deviation of u / sqrt(3) if its errors
# are spread evenly; errors of independent roundings add as squares (Higham and Mary, "A New Approach to Probabilistic
# Rounding Error Analysis", 2019). The scale of an output is what its terms come to if their signs are independent,
# sqrt(sum of (x w)^2), here at its largest place. The bound on the largest error of an algorithm is
#     2 * (error of im2col) + 4 standard deviations * sigma(algorithm) * u * scale.
u = 2.0**-24


def winograd_growth(m: int, op: str) -> float:
    """How much larger than the output the terms are that Winograd's last transform cancels against each other.

    For random x and w of size 1, place k of a row of the transformed tiles has the size |G_k| |B^T_k| (norms of the
    rows), and output i adds these with the weights A^T_ik: sqrt(sum_k (A^T_ik |G_k| |B^T_k|)^2), where direct summation
    has sqrt(3). The two axes multiply. In grad_weight G and A^T change their parts, and m stands for 3. It is the
    product of norms of Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
    Neural Networks" (arXiv:1803.10986), in squares instead of worst cases: 1.7 (grad_weight 2.0) for F(2x2), 31 (24)
    for F(4x4).
    """
    t = Winograd(m)
    one, last, terms = (t.AT.T, t.G.T, m) if op == "grad_weight" else (t.G, t.AT, 3)
    places = np.linalg.norm(one, axis=1) * np.linalg.norm(t.BT, axis=1)
    return float(np.linalg.norm(last * places, axis=1).max() ** 2 / terms)


def sigma(algorithm: str, op: str, case: Case) -> float:
    """The standard deviation of an algorithm's own rounding, in units of u * scale."""
    if algorithm == "fft":
        # Three transforms of log2(h w) stages, u / sqrt(3) each.
        (top, bottom), (left, right) = case.padding
        return float(np.sqrt(np.log2((top + case.H + bottom) * (left + case.W + right))))
    if algorithm.startswith("winograd"):
        # A dozen roundings on the way through the three transforms of two axes: sqrt(12 / 3) = 2.
        return 2 * winograd_growth(int(algorithm[-1]), op)
    return 1.0 if algorithm == "direct" else 0.0  # the same sum in another order; the very same sum


@cache
def scales(case: Case) -> list[float]:
    """For each op, the scale of its output."""
    squares = by_definition(case, *(a * a for a in operands(case)))
    return [np.sqrt(np.max(a, initial=0.0)) for a in squares]


@cache
def float32_errors(case: Case, algorithm: str) -> list[float]:
    """For each op, the largest error."""
    results = run(case, algorithm, *operands(case, np.float32))
    assert all(got.dtype == np.float32 for got in results)
    return [np.max(np.abs(got - want), initial=0.0) for got, want in zip(results, expected(case), strict=True)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_float32_im2col_keeps_the_bound_of_summation(case: Case) -> None:
    """|error| <= n u sum |x w| for n terms in any order (Higham, "Accuracy and Stability", 3.1), for every output."""
    terms = by_definition(case, *(np.abs(a) for a in operands(case)))
    N, K, P, Q = case.output_shape
    counts = case.C // case.groups * case.R * case.S, K // case.groups * case.R * case.S, N * P * Q
    results = run(case, "im2col", *operands(case, np.float32))
    for got, want, size, n in zip(results, expected(case), terms, counts, strict=True):
        assert got.dtype == np.float32
        assert np.all(np.abs(got - want) <= 1.001 * n * u * size)


@pytest.mark.parametrize(("case", "algorithm"), [run for run in RUNS if run.values[1] != "im2col"])
def test_float32_rounds_little_more_than_im2col(case: Case, algorithm: str) -> None:
    rows = zip(OPS, float32_errors(case, algorithm), float32_errors(case, "im2col"), scales(case), strict=True)
    for op, error, im2col_error, scale in rows:
        assert error <= 2 * im2col_error + 4 * sigma(algorithm, op, case) * u * scale, op


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_channels_last_arrays(algorithm: str) -> None:
    """The memory order of the arguments changes nothing but that of the results."""
    case = CASES["two groups"]
    arrays = operands(case)
    last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in arrays]
    for got, want in zip(run(case, algorithm, *last), expected(case), strict=True):
        assert got.transpose(0, 2, 3, 1).flags.c_contiguous
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
def test_winograd_one_image_at_a_time(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_winograd, "WORKSPACE_BYTES", 1)
    case = CASES["primes"]
    for got, want in zip(run(case, algorithm, *operands(case)), expected(case), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("algorithm", [conv_fft, Winograd(2), Winograd(4)], ids=["fft", "winograd2", "winograd4"])
def test_results_have_the_type_of_the_arguments(algorithm: Any) -> None:
    """No step widens to float64: the ops would round that away and nobody would see."""
    x, w, dy = operands(CASES["no padding"], np.float32)
    g = Conv2d.of("conv2d", x.shape, w.shape, None, stride=1, padding=0, dilation=1, groups=1)
    assert algorithm.forward(x, w, g).dtype == np.float32
    assert algorithm.grad_input(dy, w, g).dtype == np.float32
    assert algorithm.grad_weight(dy, x, g).dtype == np.float32


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any geometry, or (half of them) one that Winograd takes."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    side = st.tuples(st.integers(0, 4), st.integers(0, 4))
    if draw(st.booleans()):
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    else:
        kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(pair), draw(pair)
    padding, groups = draw(st.tuples(side, side)), draw(st.integers(1, 3))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    H, W = (draw(st.integers(size, size + 9)) for size in least)
    C, K = (groups * draw(st.integers(1, 3)) for _ in range(2))
    return Case(draw(st.integers(0, 3)), C, H, W, K, *kernel, stride, padding, dilation, groups)


@given(cases())
@settings(deadline=None, max_examples=100)
def test_all_algorithms_agree(case: Case) -> None:
    arrays = operands(case)
    want = run(case, "direct", *arrays)
    for algorithm in ALGORITHMS:
        if case.winograd or not algorithm.startswith("winograd"):
            for got, direct in zip(run(case, algorithm, *arrays), want, strict=True):
                np.testing.assert_allclose(got, direct, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize(
    ("case", "got"),
    [
        (Case(R=5, S=5, padding=((2, 2), (2, 2))), r"filter 5x5, stride \(1, 1\), dilation \(1, 1\)"),
        (Case(R=1, S=3), r"filter 1x3, stride \(1, 1\), dilation \(1, 1\)"),
        (Case(stride=(1, 2)), r"filter 3x3, stride \(1, 2\), dilation \(1, 1\)"),
        (Case(dilation=(2, 2)), r"filter 3x3, stride \(1, 1\), dilation \(2, 2\)"),
    ],
)
def test_winograd_refuses(case: Case, got: str, algorithm: Any) -> None:
    x, w, dy = operands(case)
    options = {**case.options, "algorithm": algorithm}
    rule = rf"^\[conv2d {algorithm}\] needs a 3x3 filter with stride 1 and dilation 1; got {got}$"
    with pytest.raises(ShapeError, match=rule):
        conv.conv2d(x, w, **options)
    with pytest.raises(ShapeError, match=rule):
        conv.conv2d_grad_input(dy, w, input_shape=x.shape, **options)
    with pytest.raises(ShapeError, match=rule):
        conv.conv2d_grad_weight(dy, x, weight_shape=w.shape, **options)


def test_unknown_algorithm() -> None:
    case = CASES["no padding"]
    x, w, dy = operands(case)
    options: dict[str, Any] = {**case.options, "algorithm": "winograd3"}
    with pytest.raises(UnknownName, match=r"^\[conv2d\] unknown algorithm 'winograd3'; Did you mean 'winograd"):
        conv.conv2d(x, w, **options)
    with pytest.raises(UnknownName, match=r"^\[conv2d_grad_input\] unknown algorithm"):
        conv.conv2d_grad_input(dy, w, input_shape=x.shape, **options)
    with pytest.raises(UnknownName, match=r"^\[conv2d_grad_weight\] unknown algorithm"):
        conv.conv2d_grad_weight(dy, x, weight_shape=w.shape, **options)
