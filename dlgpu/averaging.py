"""Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407): the mean of the weights of the last epochs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlgpu import nn
from dlgpu.autograd import no_grad
from dlgpu.data import DataLoader
from dlgpu.errors import ShapeError, TrainingError
from dlgpu.tensor import tensor
from dlgpu.train import Callback, Row, Trainer


class WeightAveraging(Callback):
    """Averages the model's parameters after each epoch from `start` on (1 is the first epoch).

    Train with a constant or cyclic learning rate over those epochs. `apply` puts the mean into a model.
    """

    def __init__(self, start: int) -> None:
        if start < 1:
            raise ShapeError(f"[WeightAveraging] start must be an epoch >= 1; got {start}")
        self.start, self.count = start, 0
        self._means: dict[str, np.ndarray] = {}

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        if row["epoch"] < self.start:
            return
        self.count += 1
        for name, parameter in trainer.model.named_parameters():
            values = parameter.numpy().astype(np.float64)
            mean = self._means.setdefault(name, np.zeros_like(values))
            mean += (values - mean) / self.count

    def state_dict(self) -> dict[str, np.ndarray]:
        """The means so far, by parameter name."""
        return dict(self._means)

    def load_state_dict(self, means: Mapping[str, np.ndarray], count: int) -> None:
        """Go on from the means over `count` epochs."""
        self._means, self.count = {name: np.array(mean, np.float64) for name, mean in means.items()}, count

    def apply(self, model: nn.Module, batches: DataLoader) -> None:
        """Load the mean into `model`, and renew the running statistics of its batch normalisation on `batches`."""
        if not self.count:
            raise TrainingError(f"[WeightAveraging] there must be an epoch to average from {self.start} on; got none")
        model.load_state_dict({**model.state_dict(), **self._means})
        renew_statistics(model, batches)


def renew_statistics(model: nn.Module, batches: DataLoader) -> None:
    """Set the running statistics of every `BatchNorm2d` to the means over one pass: averaged weights need new ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    before, training = [norm.momentum for norm in norms], model.training
    device = next(iter(model.parameters())).device
    model.train()
    try:
        for index, (images, _) in enumerate(batches.epoch(0)):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # running += momentum * (batch - running): the plain mean
            with no_grad():
                model(tensor(images, device=device))
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.train(training)
