"""Optimizers, in order of increasing complexity, and learning-rate schedules."""

from dlgpu.optim.arena import Arena
from dlgpu.optim.optimizers import OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, Momentum, Nesterov, Optimizer, RMSprop
from dlgpu.optim.schedules import (
    SCHEDULES,
    CosineDecay,
    InverseDecay,
    PowerDecay,
    Schedule,
    StepDecay,
    WarmUp,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Arena",
    "CosineDecay",
    "InverseDecay",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "PowerDecay",
    "RMSprop",
    "Schedule",
    "StepDecay",
    "WarmUp",
]
