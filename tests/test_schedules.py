"""Learning-rate schedules at points computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from dlgpu.errors import ShapeError
from dlgpu.optim import SCHEDULES, CosineDecay, InverseDecay, PowerDecay, Schedule, StepDecay, WarmUp

EPS = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (InverseDecay(0.5), {0: 1, 1: Fraction(2, 3), 2: Fraction(1, 2), 6: Fraction(1, 4)}),  # 1 / (1 + d t)
        (InverseDecay(0), {0: 1, 100: 1}),
        (PowerDecay(0.5), {0: 1, 0.5: 1, 1: 1, 4: Fraction(1, 2), 9: Fraction(1, 3)}),  # 1 / t^d
        (PowerDecay(2), {1: 1, 2: Fraction(1, 4), 10: Fraction(1, 100)}),
        (StepDecay(3, 0.5), {0: 1, 2.99: 1, 3: Fraction(1, 2), 5.5: Fraction(1, 2), 6: Fraction(1, 4)}),
        (StepDecay(2.5, 0.1), {2.4: 1, 2.5: Fraction(1, 10), 5: Fraction(1, 100)}),
        (CosineDecay(6), {0: 1, 2: Fraction(3, 4), 3: Fraction(1, 2), 4: Fraction(1, 4), 6: 0, 7: 0}),
        (CosineDecay(6, 0.2), {0: 1, 2: Fraction(8, 10), 3: Fraction(6, 10), 4: Fraction(4, 10), 6: Fraction(1, 5)}),
        (WarmUp(4), {0: Fraction(1, 1000), 1: Fraction(1, 4), 2: Fraction(1, 2), 3: Fraction(3, 4), 4: 1, 50: 1}),
        # the second schedule's time starts where the warm-up ends
        (WarmUp(2, CosineDecay(6)), {1: Fraction(1, 2), 2: 1, 4: Fraction(3, 4), 5: Fraction(1, 2), 8: 0, 9: 0}),
        (WarmUp(2, InverseDecay(0.5)), {2: 1, 4: Fraction(1, 2)}),
    ],
    ids=str,
)
def test_by_hand(schedule: Schedule, points: dict[float, float]) -> None:
    # Factors are at most 1 and take a handful of operations, each off by half an eps at most.
    got = {t: schedule.factor(t) for t in points}
    assert got == {t: pytest.approx(float(factor), rel=0, abs=4 * EPS) for t, factor in points.items()}


@pytest.mark.parametrize("after", [None, CosineDecay(5), InverseDecay(0.3), PowerDecay(0.5), StepDecay(2)], ids=str)
def test_warm_up_ends_without_a_jump(after: Schedule | None) -> None:
    schedule = WarmUp(3.0, after)
    assert schedule.factor(3.0) == 1
    assert abs(schedule.factor(math.nextafter(3.0, 0)) - 1) <= EPS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseDecay(-0.1), "[InverseDecay] d must be >= 0; got -0.1"),
        (lambda: InverseDecay(math.nan), "[InverseDecay] d must be >= 0; got nan"),
        (lambda: PowerDecay(-1), "[PowerDecay] d must be >= 0; got -1"),
        (
            lambda: StepDecay(0),
            "[StepDecay] period must be > 0 and gamma in (0, 1]; got StepDecay(period=0, gamma=0.1)",
        ),
        (
            lambda: StepDecay(3, 0),
            "[StepDecay] period must be > 0 and gamma in (0, 1]; got StepDecay(period=3, gamma=0)",
        ),
        (lambda: StepDecay(3, 1.5), "[StepDecay] period must be"),
        (lambda: CosineDecay(0), "[CosineDecay] length must be > 0 and final in [0, 1]; got CosineDecay(length=0"),
        (lambda: CosineDecay(3, -0.1), "[CosineDecay] length must be"),
        (lambda: CosineDecay(3, 1.1), "[CosineDecay] length must be"),
        (lambda: CosineDecay(math.nan), "[CosineDecay] length must be"),
        (lambda: WarmUp(0), "[WarmUp] length must be > 0; got 0"),
    ],
)
def test_bad_arguments(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("epochs", [1, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_registered_schedules_stay_in_range(name: str, epochs: int) -> None:
    """Over a whole run the factors are in (0, 1]; only at the very end may a cosine reach 0."""
    schedule = SCHEDULES[name](epochs)
    factors = [schedule.factor(t) for t in np.linspace(0, epochs, 101)]
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert 0 <= factors[-1] <= 1
    assert factors[-1] > 0 or "cosine" in name
    assert max(factors) >= 0.99
    if name == "constant":
        assert set(factors) == {1.0}
    elif epochs > 1:
        assert factors[-1] < 0.6


def test_base_class_asks_for_a_factor() -> None:
    with pytest.raises(NotImplementedError):
        Schedule().factor(0)
