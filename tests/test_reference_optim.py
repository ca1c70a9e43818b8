"""The reference's optimizer steps against the same formulas for one number at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import naive
import numpy as np
import pytest

from dlgpu import dtypes
from dlgpu.backends.reference.optim import BLOCK
from dlgpu.errors import DtypeError, ShapeError
from dlgpu.testing import assert_as_accurate, assert_close


def options(**choices: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


DECAY = [0.0, 0.25]
CASES: dict[str, tuple[Callable[..., naive.Step], int, list[dict[str, Any]]]] = {
    "sgd_step": (
        naive.sgd,
        1,
        options(lr=[0.1], momentum=[0.9], nesterov=[False, True], weight_decay=DECAY)
        + options(lr=[0.1], momentum=[0.0], nesterov=[False], weight_decay=DECAY),
    ),
    "adagrad_step": (naive.adagrad, 1, options(lr=[0.1], eps=[1e-2], weight_decay=DECAY)),
    "rmsprop_step": (naive.rmsprop, 1, options(lr=[0.1], alpha=[0.75], eps=[1e-2], weight_decay=DECAY)),
    "adam_step": (
        naive.adam,
        2,
        options(lr=[0.1], beta1=[0.8], beta2=[0.9], eps=[1e-2], weight_decay=DECAY, decoupled=[False, True]),
    ),
}
EACH = [(op, values) for op, (_, _, many) in CASES.items() for values in many]


def start(op: str, values: dict[str, Any], size: int, dtype: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """A parameter and the optimizer's fresh state."""
    count = 0 if values.get("momentum") == 0.0 else CASES[op][1]
    param = np.random.default_rng(5).standard_normal(size).astype(dtype)
    return param, [np.zeros(size, dtype) for _ in range(count)]


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("size", [0, 1, 37])
@pytest.mark.parametrize(("op", "values"), EACH, ids=str)
def test_step(ops: Any, rng: np.random.Generator, op: str, values: dict[str, Any], size: int, name: str) -> None:
    """Five steps on one state, so that the state counts."""
    dtype = dtypes.FLOATS[name]
    param, states = start(op, values, size, dtype)
    numbers = {d: [(f, (d.type(0),) * len(states)) for f in param.astype(d)] for d in (dtype, naive.WIDE)}
    for step in range(1, 6):
        grad = rng.standard_normal(size).astype(dtype)
        now = values | ({"step": step} if op == "adam_step" else {})
        getattr(ops, op)(param, grad, *(states or [None] * CASES[op][1]), **now)
        for d in numbers:
            numbers[d] = [CASES[op][0](p, d.type(g), s, **now) for (p, s), g in zip(numbers[d], grad, strict=True)]
    plain, exact = (np.array([p for p, _ in numbers[d]], d) for d in (dtype, naive.WIDE))
    assert_as_accurate(param, plain, exact, what=op, factor=4)  # every step adds its own rounding
    for index, state in enumerate(states):
        plain, exact = (np.array([s[index] for _, s in numbers[d]], d) for d in (dtype, naive.WIDE))
        assert_as_accurate(state, plain, exact, what=f"{op}, state {index}", factor=4)


@pytest.mark.parametrize(("op", "values"), EACH, ids=str)
def test_blocks_do_not_show(ops: Any, rng: np.random.Generator, op: str, values: dict[str, Any]) -> None:
    """An arena longer than a block is stepped as its parts would be, to the bit."""
    size = BLOCK + 3
    values = values | ({"step": 3} if op == "adam_step" else {})
    param, states = start(op, values, size, np.float32)
    grad = rng.standard_normal(size).astype(np.float32)
    parts = [slice(0, 5), slice(5, BLOCK + 1), slice(BLOCK + 1, size)]
    copies = [(param[p].copy(), grad[p].copy(), *(s[p].copy() for s in states)) for p in parts]
    none = [None] * (CASES[op][1] - len(states))
    getattr(ops, op)(param, grad, *states, *none, **values)
    for part, copy in zip(parts, copies, strict=True):
        getattr(ops, op)(*copy, *none, **values)
        assert_close(param[part], copy[0], what=f"{op} {part}")


def test_by_hand(ops: Any) -> None:
    """From x = 1 with g = 2: the formulas of the notes, all numbers exact in binary."""

    def stepped(op: str, *states: float, **values: Any) -> list[float]:
        arrays = [np.array([float(v)]) for v in (1, 2, *states)]
        getattr(ops, op)(*arrays, *([None] if op == "sgd_step" and not states else []), **values)
        return [float(a[0]) for a in arrays]

    assert stepped("sgd_step", lr=0.25) == [0.5, 2]
    assert stepped("sgd_step", 4, lr=0.25, momentum=0.5) == [2.5, 2, 1.5]  # v = 0.5 * 4 - 0.25 * 2
    # Nesterov: x += -a * v_old + (1 + a) * v_new = -2 + 2.25
    assert stepped("sgd_step", 4, lr=0.25, momentum=0.5, nesterov=True) == [1.25, 2, 1.5]
    assert stepped("sgd_step", lr=0.25, weight_decay=2) == [0, 2]  # g = 2 + 2 * 1
    assert stepped("adagrad_step", 12, lr=0.5, eps=4) == [0.875, 2, 16]  # 1 - 0.5 * 2 / (4 + 4)
    assert stepped("rmsprop_step", 28, lr=0.5, alpha=0.5, eps=4) == [0.875, 2, 16]
    # m = 3, v = 3, corrected 3 / 0.75 = 4 and 3 / 0.75 = 4: x -= 0.25 * 4 / (2 + 2)
    values = dict(step=2, lr=0.25, beta1=0.5, beta2=0.5, eps=2)
    assert stepped("adam_step", 4, 2, **values) == [0.75, 2, 3, 3]
    # decoupled: x - 0.25 * 2 * 1 - 0.25, and the moments know nothing of it
    assert stepped("adam_step", 4, 2, weight_decay=2, decoupled=True, **values) == [0.25, 2, 3, 3]


def test_refusals(ops: Any) -> None:
    x = np.zeros(3, np.float32)
    for options in (dict(momentum=0.9), dict(momentum=0.0)):
        with pytest.raises(ShapeError, match=r"^\[sgd_step\] velocity is needed iff momentum"):
            ops.sgd_step(x, x.copy(), x.copy() if options["momentum"] == 0 else None, lr=0.1, **options)
    with pytest.raises(ShapeError, match=r"^\[adam_step\] step counts from 1; got 0"):
        ops.adam_step(x, x.copy(), x.copy(), x.copy(), step=0, lr=0.1)
    with pytest.raises(DtypeError, match=r"^\[adagrad_step\] arenas must all be float32 or all float64"):
        ops.adagrad_step(x, x.astype(np.float64), x.copy(), lr=0.1)
    with pytest.raises(DtypeError, match=r"^\[rmsprop_step\] .*float16"):
        ops.rmsprop_step(*(np.zeros(3, np.float16) for _ in range(3)), lr=0.1)
    with pytest.raises(ShapeError, match=r"^\[sgd_step\] arena must have shape \(3,\)"):
        ops.sgd_step(x, np.zeros(4, np.float32), None, lr=0.1)
    with pytest.raises(ShapeError, match=r"^\[sgd_step\] "):
        ops.sgd_step(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), None, lr=0.1)
