"""All op families of the kernel backend together."""

from __future__ import annotations

from dlgpu.backends.kernels.conv import ConvOps
from dlgpu.backends.kernels.dropout import DropoutOps
from dlgpu.backends.kernels.movement import MovementOps
from dlgpu.backends.kernels.optim import OptimOps
from dlgpu.backends.kernels.softmax import SoftmaxOps


class KernelOps(ConvOps, SoftmaxOps, DropoutOps, OptimOps, MovementOps):
    """Every op of the contract: checks, plans, launches."""
