"""Several trained networks as one: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from dlgpu import functional as F
from dlgpu import nn
from dlgpu.errors import ShapeError
from dlgpu.tensor import Tensor


class Ensemble(nn.Module):
    """Averages the softmax of its members and returns the logarithm: logits like those of one network.

    Raises `ShapeError` without members, or at the first batch if their numbers of classes differ.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ShapeError("[Ensemble] there must be at least one member; got none")
        self.members = nn.Sequential(*members)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [member(x) for member in self.members]
        classes = {output.shape[1] for output in outputs}
        if len(classes) > 1:
            raise ShapeError(f"[Ensemble] members must know the same number of classes; got {sorted(classes)}")
        # log of the mean of exp(log_softmax), with the largest taken out: tiny probabilities stay apart
        logs = [F.log_softmax(output, dim=1) for output in outputs]
        largest = logs[0]
        for log in logs[1:]:
            largest = largest + F.relu(log - largest)
        total = (logs[0] - largest).exp()
        for log in logs[1:]:
            total = total + (log - largest).exp()
        return largest + (total / len(logs)).log()
