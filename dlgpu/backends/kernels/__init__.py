"""The kernel backend: ops of the contract as plans, which a launcher runs; one file per family."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dlgpu.backends import tuning
from dlgpu.backends.contract import OPS
from dlgpu.backends.kernels.autotune import Clock, DeviceClock, Tuned, tunable
from dlgpu.backends.kernels.launching import Launcher
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.programs import MOST_PROGRAMS, NOT_REPLAYED, Call, Program, Replayed, build
from dlgpu.backends.kernels.symbol import Unrecordable


class KernelBackend(KernelOps):
    """Every op of the contract, on the arrays of one launcher. An op plans its first call, and replays it from then on.

    Args:
        name, device: see `dlgpu.backends.contract.Contract`.
        launcher: runs the plans.
        clock: what `dlgpu.autotune` measures with; None: events of the device.
    """

    def __init__(self, name: str, device: str, launcher: Launcher, clock: Clock | None = None) -> None:
        super().__init__(launcher)
        self.name, self.device = name, device
        self._clock = clock or DeviceClock(launcher.xp)
        self.program = lru_cache(MOST_PROGRAMS)(self._program)
        faster = getattr(launcher, "replayed", lambda op: op)
        for op in OPS:
            if op not in NOT_REPLAYED:
                setattr(self, op, faster(Replayed(self, op)))

    def _program(
        self, call: tuple[Any, ...], launcher: Any, device: int, chosen: str, settings: tuning.Tuning
    ) -> Program | Tuned | None:
        """The program of a call with the current settings; None if it has none."""
        named = Call(*call)
        try:
            program = build(named, launcher)
        except Unrecordable:
            return None
        return Tuned(named, launcher, self._clock) if settings.autotune and tunable(named) else program
