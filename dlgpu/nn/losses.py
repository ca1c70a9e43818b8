"""Losses as modules: `loss(prediction, target)` calls the function of the same name in `dlgpu.functional`."""

from __future__ import annotations

from typing import Any

from dlgpu import functional as F
from dlgpu.functional import LossReduction
from dlgpu.nn.module import Module
from dlgpu.tensor import Tensor


class _Loss(Module):
    def __init__(self, reduction: LossReduction = "mean") -> None:
        super().__init__()
        self.reduction: LossReduction = reduction


class CrossEntropyLoss(_Loss):
    """Softmax and negative log-likelihood of integer classes."""

    def __init__(
        self, ignore_index: int = -100, reduction: LossReduction = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__(reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(input, target, self.ignore_index, self.reduction, self.label_smoothing)


class NLLLoss(_Loss):
    """Minus the log-probability of integer classes."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.nll_loss(input, target, reduction=self.reduction)


class MSELoss(_Loss):
    """Squared difference."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """Absolute difference."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.l1_loss(input, target, self.reduction)


class SmoothL1Loss(_Loss):
    """Quadratic near zero, linear beyond `beta`."""

    def __init__(self, reduction: LossReduction = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.smooth_l1_loss(input, target, self.reduction, self.beta)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, self.reduction)
