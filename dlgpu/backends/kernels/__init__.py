"""The kernel backend: ops of the contract as plans, which a launcher runs; one file per family."""

from __future__ import annotations

from dlgpu.backends.kernels.activation import ActivationOps
from dlgpu.backends.kernels.conv import ConvOps
from dlgpu.backends.kernels.dropout import DropoutOps
from dlgpu.backends.kernels.gemm import GemmOps
from dlgpu.backends.kernels.launching import Launcher
from dlgpu.backends.kernels.movement import MovementOps
from dlgpu.backends.kernels.norm import NormOps
from dlgpu.backends.kernels.optim import OptimOps
from dlgpu.backends.kernels.pool import PoolOps
from dlgpu.backends.kernels.softmax import SoftmaxOps


class KernelBackend(ConvOps, GemmOps, PoolOps, NormOps, ActivationOps, SoftmaxOps, DropoutOps, OptimOps, MovementOps):
    """Every op of the contract, on the arrays of one launcher."""

    def __init__(self, name: str, device: str, launcher: Launcher) -> None:
        super().__init__(launcher)
        self.name, self.device = name, device
