"""Initialisers: their distributions, fans and gains, and that the seed decides every value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import dlgpu
from dlgpu import Tensor, memory_format, nn
from dlgpu.errors import AutogradError, ShapeError, UnknownName
from dlgpu.nn import Parameter, init
from dlgpu.testing import assert_close

SHAPE = (96, 32, 5, 5)
FAN_IN, FAN_OUT = 32 * 25, 96 * 25
NORMAL, UNIFORM = 3.0, 9 / 5  # kurtosis


def parameter(shape: tuple[int, ...] = SHAPE, dtype: str = "float32") -> Parameter:
    return Parameter(np.full(shape, np.nan, dtype))


CASES: dict[str, tuple[Callable[[Tensor], Tensor], float, float, float]] = {  # fill, mean, std, kurtosis
    "normal": (init.normal_, 0, 1, NORMAL),
    "normal with settings": (lambda t: init.normal_(t, -3.0, 0.01), -3, 0.01, NORMAL),
    "uniform": (init.uniform_, 1 / 2, 1 / math.sqrt(12), UNIFORM),
    "uniform with settings": (lambda t: init.uniform_(t, -1.0, 5.0), 2, 6 / math.sqrt(12), UNIFORM),
    "xavier normal": (init.xavier_normal_, 0, math.sqrt(2 / (FAN_IN + FAN_OUT)), NORMAL),
    "xavier uniform": (init.xavier_uniform_, 0, math.sqrt(2 / (FAN_IN + FAN_OUT)), UNIFORM),
    "xavier with gain": (lambda t: init.xavier_uniform_(t, 5 / 3), 0, 5 / 3 * math.sqrt(2 / 3200), UNIFORM),
    "he normal": (init.he_normal_, 0, math.sqrt(2 / FAN_IN), NORMAL),
    "he uniform": (init.he_uniform_, 0, math.sqrt(2 / FAN_IN), UNIFORM),
    "he normal, fan out": (lambda t: init.he_normal_(t, "fan_out"), 0, math.sqrt(2 / FAN_OUT), NORMAL),
    "he uniform, fan out, tanh": (
        lambda t: init.he_uniform_(t, "fan_out", "tanh"),
        0,
        5 / 3 / math.sqrt(FAN_OUT),
        UNIFORM,
    ),
    "he normal, linear": (lambda t: init.kaiming_normal_(t, nonlinearity="linear"), 0, 1 / math.sqrt(FAN_IN), NORMAL),
    "Conv2d": (lambda t: _taken(t, nn.Conv2d(32, 96, 5).weight), 0, 1 / math.sqrt(3 * FAN_IN), UNIFORM),
}


def _taken(target: Tensor, source: Tensor) -> Tensor:
    target.data[...] = source.data
    return target


@pytest.mark.parametrize("name", CASES)
def test_distribution(name: str) -> None:
    """Mean and standard deviation within four standard errors; a uniform one has its bound, and reaches it."""
    fill, mean, std, kurtosis = CASES[name]
    dlgpu.manual_seed(0)
    tensor = parameter()
    assert fill(tensor) is tensor
    values, count = tensor.numpy().astype(np.float64), tensor.size
    assert abs(values.mean() - mean) < 4 * std / math.sqrt(count)
    assert abs(values.std() / std - 1) < 4 * math.sqrt((kurtosis - 1) / (4 * count))
    moment = (((values - mean) / std) ** 4).mean()
    # The eighth moment gives the fourth one's standard error: 105 for a Gaussian, 9 for a uniform distribution.
    assert abs(moment - kurtosis) < 4 * math.sqrt(((105 if kurtosis == NORMAL else 9) - kurtosis**2) / count)
    if kurtosis == UNIFORM:
        reach = np.abs(values - mean).max() / (std * math.sqrt(3))
        assert 1 - 20 / count < reach <= 1 + np.finfo(np.float32).eps  # the left one fails once in e**20


@pytest.mark.parametrize(
    ("fill", "value"), [(init.zeros_, 0), (init.ones_, 1), (lambda t: init.constant_(t, -2.5), -2.5)]
)
def test_constants(fill: Callable[[Tensor], Tensor], value: float) -> None:
    tensor = parameter((3, 4))
    assert fill(tensor) is tensor
    assert_close(tensor, np.full((3, 4), value, np.float32))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (lambda: nn.Linear(7, 3).weight, (7, 3)),
        (lambda: nn.Conv2d(8, 12, (3, 5)).weight, (8 * 15, 12 * 15)),
        (lambda: nn.Conv2d(8, 12, (3, 5), groups=4).weight, (2 * 15, 12 * 15)),  # an output sees only its group
        (lambda: nn.Conv2d(8, 8, 3, groups=8).weight, (9, 8 * 9)),
        (lambda: parameter((2, 3, 4)), (12, 8)),
    ],
)
def test_fans(weight: Callable[[], Tensor], expected: tuple[int, int]) -> None:
    assert init.fans(weight()) == expected


@pytest.mark.parametrize("fill", [init.xavier_normal_, init.xavier_uniform_, init.he_normal_, init.he_uniform_])
def test_vectors_have_no_fans(fill: Callable[[Tensor], Tensor]) -> None:
    tensor = parameter((5,))
    with pytest.raises(ShapeError, match=r"\[init\] fans need at least two axes; got shape \(5,\)"):
        fill(tensor)


def test_gains_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    assert {name: torch.nn.init.calculate_gain(name) for name in init.GAINS} == init.GAINS


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match=r"\[init\] unknown nonlinearity 'rellu'; Did you mean 'relu'\?"):
        init.he_normal_(parameter(), nonlinearity="rellu")
    with pytest.raises(UnknownName, match=r"\[init\] unknown mode 'fan_ou'; Did you mean 'fan_out'\?"):
        init.he_uniform_(parameter(), "fan_ou")  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", [init.normal_, init.uniform_, init.xavier_uniform_, init.he_normal_])
def test_the_seed_decides(fill: Callable[[Tensor], Tensor]) -> None:
    def draw(seed: int | None, dtype: str = "float32", layout: memory_format.MemoryFormat = "contiguous") -> np.ndarray:
        if seed is not None:
            dlgpu.manual_seed(seed)
        tensor = Parameter(memory_format.convert(np, parameter((4, 3, 5, 5), dtype).data, layout))
        return fill(tensor).numpy()

    first, next_one = draw(5), draw(None)
    assert np.all(first != next_one)
    assert np.all(first != draw(6))
    assert_close(draw(5), first)
    assert_close(draw(None), next_one)
    assert_close(draw(5, layout="channels_last"), first)  # values go by logical place
    assert_close(draw(5, "float64").astype(np.float32), first)


def test_autograd_notices() -> None:
    x, weight = dlgpu.randn(2, 2, requires_grad=True), parameter((2, 2))
    for fill in (init.normal_, init.zeros_):
        y = x @ weight
        fill(weight)
        with pytest.raises(AutogradError, match="changed in place"):
            y.sum().backward()
