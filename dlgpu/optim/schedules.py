"""Learning-rate schedules: pure functions of time, so that nothing about them has to be saved.

A schedule maps a time t (epochs, fractions allowed) to a factor of the base learning rate; `apply` sets it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlgpu.errors import ShapeError
from dlgpu.optim.optimizers import Optimizer


class Schedule:
    """Base class: subclasses define `factor`."""

    def factor(self, t: float) -> float:
        """What the base learning rate is multiplied with at time t >= 0."""
        raise NotImplementedError

    def apply(self, optimizer: Optimizer, base_lrs: list[float], t: float) -> None:
        """Set the learning rate of each group to its base times the factor."""
        for group, base in zip(optimizer.groups, base_lrs, strict=True):
            group.settings["lr"] = base * self.factor(t)


def _need(cls: type, rule: str, ok: bool, got: object) -> None:
    if not ok:
        raise ShapeError(f"[{cls.__name__}] {rule}; got {got}")


@dataclass(frozen=True)
class InverseDecay(Schedule):
    """1 / (1 + d * t)."""

    d: float = 0.1

    def __post_init__(self) -> None:
        _need(type(self), "d must be >= 0", self.d >= 0, self.d)

    def factor(self, t: float) -> float:
        return 1 / (1 + self.d * t)


@dataclass(frozen=True)
class PowerDecay(Schedule):
    """1 / t^d for t >= 1, and 1 before."""

    d: float = 0.5

    def __post_init__(self) -> None:
        _need(type(self), "d must be >= 0", self.d >= 0, self.d)

    def factor(self, t: float) -> float:
        return 1 / max(t, 1.0) ** self.d


@dataclass(frozen=True)
class StepDecay(Schedule):
    """gamma ** (number of whole periods passed)."""

    period: float = 10
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _need(type(self), "period must be > 0 and gamma in (0, 1]", self.period > 0 and 0 < self.gamma <= 1, self)

    def factor(self, t: float) -> float:
        return self.gamma ** int(t // self.period)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From 1 down to `final` over `length`, along half a cosine (Loshchilov and Hutter 2017)."""

    length: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _need(type(self), "length must be > 0 and final in [0, 1]", self.length > 0 and 0 <= self.final <= 1, self)

    def factor(self, t: float) -> float:
        done = min(t / self.length, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly from near 0 to 1 over `length`, then follow another schedule, whose time starts there."""

    length: float
    after: Schedule | None = None

    def __post_init__(self) -> None:
        _need(type(self), "length must be > 0", self.length > 0, self.length)

    def factor(self, t: float) -> float:
        if t < self.length:
            return max(t, 1e-3 * self.length) / self.length
        return self.after.factor(t - self.length) if self.after else 1.0


# The command line's --schedule NAME: how to make each for a run of `epochs`.
SCHEDULES = {
    "constant": lambda epochs: StepDecay(period=max(epochs, 1), gamma=1.0),
    "inverse": lambda epochs: InverseDecay(),
    "power": lambda epochs: PowerDecay(),
    "step": lambda epochs: StepDecay(period=max(epochs / 3, 1)),
    "cosine": lambda epochs: CosineDecay(length=max(epochs, 1)),
    "warmup-cosine": lambda epochs: WarmUp(1.0, CosineDecay(length=max(epochs - 1, 1))),
}
