"""The seed and counter behind initial weights and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import random
from dlgpu.errors import ShapeError
from dlgpu.testing import assert_close


@pytest.fixture(autouse=True)
def _restore() -> Any:
    state = random.get_state()
    yield
    random.set_state(*state)


DRAWS = {
    "randn": lambda: dlgpu.randn(3, 5),
    "rand": lambda: dlgpu.rand(3, 5),
    "dropout": lambda: F.dropout(dlgpu.ones(3, 5), 0.5),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_fixes_the_numbers(draw: Any) -> None:
    dlgpu.manual_seed(3)
    first, second = draw().numpy(), draw().numpy()
    dlgpu.manual_seed(3)
    assert_close(draw(), first)
    assert_close(draw(), second)
    assert not np.array_equal(first, second)
    dlgpu.manual_seed(4)
    assert not np.array_equal(draw().numpy(), first)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_state_goes_back_and_forth(draw: Any) -> None:
    draw()
    state = random.get_state()
    expected = draw().numpy()
    draw()
    random.set_state(*state)
    assert_close(draw(), expected)


def test_the_state_is_two_integers() -> None:
    dlgpu.manual_seed(9)
    assert random.get_state() == (9, 0)
    F.dropout(dlgpu.ones(9), 0.5)  # nine numbers are three blocks of four
    assert random.get_state() == (9, 3)
    dlgpu.randn(1000)  # one counter value, however many numbers
    assert random.get_state() == (9, 4)


def test_evaluation_draws_nothing() -> None:
    before = random.get_state()
    x = dlgpu.ones(4)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert random.get_state() == before


def test_streams_of_different_draws_never_meet() -> None:
    """Two long draws in a row share no number (they would, were the second one the first moved by a step)."""
    dlgpu.manual_seed(0)
    a, b = (set(dlgpu.rand(4096, dtype="float64").numpy().tolist()) for _ in range(2))
    assert len(a) == len(b) == 4096
    assert not a & b


def test_moments() -> None:
    """Means within four standard errors of what the distributions say."""
    dlgpu.manual_seed(0)
    count = 40_000
    normal, uniform = dlgpu.randn(count).numpy(), dlgpu.rand(count).numpy()
    assert abs(normal.mean()) <= 4 / count**0.5
    assert abs(np.square(normal).mean() - 1) <= 4 * (2 / count) ** 0.5
    assert abs(uniform.mean() - 0.5) <= 4 * (1 / 12 / count) ** 0.5
    assert uniform.min() >= 0
    assert uniform.max() <= 1


def test_rand_stays_below_one_after_rounding() -> None:
    """float64 numbers just below 1 round to 1 in narrow types; [0, 1) must hold all the same."""
    dlgpu.manual_seed(0)
    for dtype in ("float16", "bfloat16"):
        assert float(dlgpu.rand(20_000, dtype=dtype).numpy().astype(np.float64).max()) < 1


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_every_64_bit_state_works(seed: int) -> None:
    random.set_state(seed, 2**64 - 1)
    assert dlgpu.randn(2).shape == (2,)
    random.set_state(seed, 2**64 - 1)
    assert F.dropout(dlgpu.ones(20), 0.5).shape == (20,)
    random.set_state(*random.get_state())  # whatever came of the counter is a state


@pytest.mark.parametrize("state", [(-1, 0), (2**64, 0), (0, -1), (0, 2**64)])
def test_other_states_are_refused(state: tuple[int, int]) -> None:
    before = random.get_state()
    with pytest.raises(ShapeError, match=r"^\[random\] (seed|offset) must be in"):
        random.set_state(*state)
    assert random.get_state() == before
