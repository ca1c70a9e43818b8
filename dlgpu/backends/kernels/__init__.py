"""The kernel backend: ops of the contract as plans, which a launcher runs; one file per family."""

from __future__ import annotations

from dlgpu.backends.kernels.conv import ConvOps
from dlgpu.backends.kernels.dropout import DropoutOps
from dlgpu.backends.kernels.launching import Launcher
from dlgpu.backends.kernels.movement import MovementOps
from dlgpu.backends.kernels.optim import OptimOps
from dlgpu.backends.kernels.softmax import SoftmaxOps


class KernelBackend(ConvOps, SoftmaxOps, DropoutOps, OptimOps, MovementOps):
    """Every op of the contract, on the arrays of one launcher."""

    def __init__(self, name: str, device: str, launcher: Launcher) -> None:
        super().__init__(launcher)
        self.name, self.device = name, device
