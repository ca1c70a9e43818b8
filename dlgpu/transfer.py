"""Transfer learning: start from trained weights, keep some as they are, train the rest at rates of their own.

model = models.build("lenet5", num_classes=5)
kept = load_matching(model, state_of_another_task)      # all but the head
freeze(model, "features")
optimizer = optim.Momentum(parameter_groups(model, lr=0.01, scales={"classifier": 10}))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlgpu import nn
from dlgpu.errors import CheckpointError, ShapeError, UnknownName
from dlgpu.nn.module import Module, listed


def freeze(model: Module, *prefixes: str) -> list[str]:
    """Stop training every parameter whose dotted name starts with one of `prefixes` ("features", "layer1.0").

    Normalisation layers inside still follow the batch statistics while they are in training mode, as in PyTorch.
    Returns the names; make the optimizer afterwards. Raises `UnknownName` for a prefix that no parameter has.
    """
    frozen = []
    for prefix in prefixes:
        inside = _below(model, prefix)
        for name, parameter in inside.items():
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def parameter_groups(model: Module, lr: float, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """Groups for an optimizer: parameters below each prefix of `scales` learn at `lr` times its factor, others at `lr`.

    The longest prefix that fits decides. Raises `UnknownName` for a prefix that no parameter has.
    """
    for prefix in scales:
        _below(model, prefix)
    groups: dict[str, dict[str, Any]] = {
        prefix: {"params": [], "lr": lr * scales.get(prefix, 1.0)} for prefix in ("", *scales)
    }
    for name, parameter in model.named_parameters():
        fits = [prefix for prefix in scales if _is_below(name, prefix)]
        groups[max(fits, key=len, default="")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def replace_head(model: Module, num_classes: int) -> Module:
    """Put a fresh last layer for `num_classes` classes in place of the last `Linear` or `Conv2d`; returns that layer.

    Weights and bias are drawn as the layer class draws them. Raises `ShapeError` if there is no such layer.
    """
    nn.module.check_positive("replace_head", num_classes=num_classes)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ShapeError(f"[replace_head] the model must have a Linear or Conv2d layer; got {type(model).__name__}")
    path, old = layers[-1]
    head: Module
    if isinstance(old, nn.Linear):
        head = nn.Linear(old.weight.shape[1], num_classes, bias=old.bias is not None)
    else:
        channels = old.weight.shape[1] * old.groups
        how: dict[str, Any] = dict(stride=old.stride, padding=old.padding, dilation=old.dilation)
        head = nn.Conv2d(channels, num_classes, old.weight.shape[2:], bias=old.bias is not None, **how)
    head.to(old.weight.device, old.weight.dtype)
    *parents, last = path.split(".")
    owner = model
    for part in parents:
        owner = getattr(owner, part)
    setattr(owner, last, head)
    return head


def load_matching(model: Module, state: Mapping[str, np.ndarray]) -> list[str]:
    """Copy every entry of `state` that `model` has under the same name and shape; returns the names left as they were.

    Raises `CheckpointError` if nothing fits: the weights belong to another architecture.
    """
    own = model.state_dict()
    fitting = {name: state[name] for name, array in own.items() if name in state and state[name].shape == array.shape}
    if not any(array.ndim > 1 for array in fitting.values()):
        missing, unexpected, other = (
            listed(sorted(names))
            for names in (own.keys() - state, state.keys() - own, own.keys() & state - fitting.keys())
        )
        raise CheckpointError(
            f"[load_matching] some weights must fit {type(model).__name__} by name and shape; "
            f"got missing: {missing}; unexpected: {unexpected}; of another shape: {other}"
        )
    model.load_state_dict({**own, **fitting})
    return [name for name in own if name not in fitting]


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _below(model: Module, prefix: str) -> dict[str, Any]:
    inside = {name: p for name, p in model.named_parameters() if _is_below(name, prefix)}
    if not inside:
        known = {name.rsplit(".", depth)[0] for name, _ in model.named_parameters() for depth in range(3)}
        raise UnknownName("transfer", "part of the model", prefix, sorted(known))
    return inside
