"""Writes down what would be launched instead of launching it: `dlgpu kernels plan`, and tests that count launches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.plan import Plan


class Recorder(KernelOps):
    """The ops of the contract on arrays without contents (`phantom`): they make their plans, nothing is computed.

    Args:
        capability, sms: of the device to plan for: 75, 80, 86, 89, 90, 100 or 120; its multiprocessors.
        xp: what makes arrays; by default they have no contents, and must not be read.

    Attributes:
        plans: what would have been launched, in order.
    """

    name, device = "recorder", "host-kernels"

    def __init__(self, capability: int = 90, sms: int = 132, xp: Any = None) -> None:
        phantoms = SimpleNamespace(
            empty=phantom, ndarray=phantom, zeros=phantom, ascontiguousarray=_contiguous, asarray=_contiguous
        )
        super().__init__(SimpleNamespace(xp=xp or phantoms, capability=capability, sms=sms))
        self.plans: list[Plan] = []

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        """Remember the plan."""
        if not plan.empty:
            self.plans.append(plan)


def phantom(
    shape: Any, dtype: Any = np.float32, memory: None = None, strides: tuple[int, ...] | None = None
) -> np.ndarray:
    """An array of any size with the memory of one element, for its shape and strides; called as `cupy.ndarray`."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    item = np.dtype(dtype).itemsize
    strides = strides or tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return np.lib.stride_tricks.as_strided(np.zeros((), dtype), shape, strides, writeable=False)


def _contiguous(x: np.ndarray, dtype: Any = None) -> np.ndarray:
    return x if x.flags.c_contiguous and dtype in (None, x.dtype) else phantom(x.shape, dtype or x.dtype)
