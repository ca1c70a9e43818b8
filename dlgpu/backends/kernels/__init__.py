"""The kernel backend: ops of the contract as plans, which a launcher runs; one file per family."""

from __future__ import annotations

from functools import lru_cache

from dlgpu.backends.contract import OPS
from dlgpu.backends.kernels.launching import Launcher
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.programs import CHANGING, MOST_PROGRAMS, Replayed, program_for


class KernelBackend(KernelOps):
    """Every op of the contract, on the arrays of one launcher. An op plans its first call, and replays it from then on.

    Args:
        name, device: see `dlgpu.backends.contract.Contract`.
        launcher: runs the plans.
    """

    def __init__(self, name: str, device: str, launcher: Launcher) -> None:
        super().__init__(launcher)
        self.name, self.device = name, device
        self.program = lru_cache(MOST_PROGRAMS)(program_for)
        for op in OPS:
            if op not in CHANGING:
                setattr(self, op, Replayed(self, op))
