"""Greedy layer-wise supervised pre-training: train a shallow network, add layers, go on.

Bengio et al. 2007, "Greedy layer-wise training of deep networks", in its supervised form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from dlgpu import nn
from dlgpu.autograd import no_grad
from dlgpu.errors import ShapeError
from dlgpu.tensor import Tensor

Fit = Callable[[nn.Sequential], Any]


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


def layerwise(model: nn.Module, image: Tensor, fit: Fit) -> None:
    """`greedy` for a `Sequential` as it is: trained in place, in each round one convolution or dense layer more.

    The newest layer is trained under a dense one made for it; the last but one under the last, which is the model's
    head. `image`: any of (1, C, H, W), on the model's device. Raises `ShapeError` as `stages` does.
    """
    *body, top = stages(model)
    with no_grad():
        classes = model.eval()(image).shape[1]

    def head(last: int) -> nn.Module:
        if last == len(body) - 1:
            return top
        with no_grad():
            features = nn.Sequential(*body[: last + 1]).eval()(image).size
        return nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).to(image.device)

    greedy(body, head, fit)


def stages(model: nn.Module) -> list[nn.Sequential]:
    """`model` in pieces of one convolution or dense layer each, with what follows it; they hold the model's own layers.

    Raises `ShapeError` unless it is a `Sequential` with at least two such layers.
    """
    layers = list(model) if isinstance(model, nn.Sequential) else []
    starts = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    if len(starts) < 2:
        raise ShapeError(
            "[pretrain] the model must be a Sequential of two or more convolutions and dense layers; "
            f"got {type(model).__name__} with {len(starts)}"
        )
    return [nn.Sequential(*layers[first:end]) for first, end in pairwise([0, *starts[1:], len(layers)])]
