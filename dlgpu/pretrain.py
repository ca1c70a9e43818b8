"""Greedy layer-wise supervised pre-training: train a shallow network, add layers, go on.

Bengio et al. 2007, "Greedy layer-wise training of deep networks", in its supervised form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dlgpu import nn
from dlgpu.errors import ShapeError

Fit = Callable[[nn.Module], Any]


def greedy(stages: Sequence[nn.Module], head: Callable[[int], nn.Module], fit: Fit, freeze: bool = False) -> nn.Module:
    """Train `stages[0]` with a head of its own, then stages 0 and 1 with a new head, and so on.

    Args:
        stages: the network in pieces, first to last; their weights are trained in place.
        head: `head(k)` makes a fresh classifier for the output of stage k.
        fit: trains the network that it is given; makes its own optimizer.
        freeze: train only the newest stage and the head of each round; otherwise everything so far.

    Returns the last round's network: `Sequential(*stages, head(last))`, all of it trainable again.
    """
    if not stages:
        raise ShapeError("[greedy] there must be at least one stage; got none")
    for last in range(len(stages)):
        for stage in stages[:last]:
            stage.requires_grad_(not freeze)
        network = nn.Sequential(*stages[: last + 1], head(last))
        fit(network)
    return network.requires_grad_()
