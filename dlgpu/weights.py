"""Trained weights from files: dlgpu's runs and checkpoints, and what torchvision exports as .safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlgpu import checkpoint, models, nn
from dlgpu.errors import CheckpointError
from dlgpu.nn import Module

# Options that change names or shapes: those with which a network is torchvision's, and others; none is tried too.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "alexnet": ({"variant": "torchvision"},),
    "googlenet": ({"variant": "torchvision", "aux": False}, {"variant": "torchvision"}, {"aux": False}),
    **{name: ({"batch_norm": True},) for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    "squeezenet": ({"version": "1.1"}, {"bypass": "complex"}),
    **{name: ({"trunk": "small"},) for name in ("fcn8s", "fcn16s", "fcn32s")},
}
# Options that are numbers: of which weights' first axis, divided by what. Of all layers the widest, as channels are
# rounded to multiples of 8.
WIDTHS: dict[str, tuple[str, str, int]] = {
    **{f"resnet{depth}": ("width", "conv1.weight", 1) for depth in (18, 34, 50, 101, 152)},
    "mobilenet_v1": ("width_mult", "features.26.0.weight", 1024),
    "mobilenet_v2": ("width_mult", "features.17.conv.2.weight", 320),
}


def load(path: str | os.PathLike[str], model: Module | None = None) -> Module:
    """The network with the trained weights in `path`, in evaluation mode.

    Args:
        path: a run folder (its best checkpoint), one of its checkpoints, or a .safetensors file with the state dict of
            a registered network, such as torchvision's networks export.
        model: takes the weights; by default the network is the run's, or that registered one whose names and shapes
            are the file's, of whatever width. Which one that is does not show strides: networks are made for their
            usual image size, and for 32 x 32 pixels where only that fits.

    Raises:
        CheckpointError: no such file, damaged, or weights of another architecture; missing and unexpected names are
            listed.
    """
    path = Path(path)
    if model is None:
        from dlgpu.run import load_model

        if path.is_dir():
            return load_model(path)[0]
        if path.is_file() and (path.parent / "config.json").is_file():
            return load_model(path.parent, path.stem)[0]
    state = checkpoint.weights(path)
    if model is not None:
        model.load_state_dict(state)
        return model.eval()
    model = _fitting(state, path)
    try:
        model.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; if the network has other options, make it and give it as model=") from error
    return model.eval()


def _fitting(state: Mapping[str, np.ndarray], path: Path) -> Module:
    """The registered network with these names and shapes; else the one with the most of the names."""
    shapes = {name: array.shape for name, array in state.items()}
    best: tuple[int, Module | None] = (0, None)
    for candidate in _candidates(state, path.stem):
        own = {name: t.shape for name, t in (*candidate.named_parameters(), *candidate.named_buffers())}
        if own == shapes:
            return candidate
        shared = len(own.keys() & shapes.keys()) - len(own.keys() ^ shapes.keys())
        if best[1] is None or shared > best[0]:
            best = shared, candidate
    if best[1] is None:
        raise CheckpointError(f"[load] {path} must hold the weights of a network; got {len(state)} arrays")
    return best[1]


def _candidates(state: Mapping[str, np.ndarray], stem: str) -> Iterator[Module]:
    """Registered networks for the file's classes and channels, those that the file is named after first."""
    for name in sorted(models.MODELS, key=lambda name: (not stem.startswith(name), -len(name), name)):
        for size in sorted({models.MODELS[name].image_size, 32}, reverse=True):
            for options in ({}, *VARIANTS.get(name, ())):
                yield _build(name, state, {"image_size": size, **options, **_width(name, state)})


def _width(name: str, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The option for the width with which the network would have the file's channels."""
    option, weight, unit = WIDTHS.get(name, ("", "", 1))
    if weight not in state or state[weight].ndim != 4:
        return {}
    channels = state[weight].shape[0]
    return {option: channels / unit if unit > 1 else channels}


def _build(name: str, state: Mapping[str, np.ndarray], options: dict[str, Any]) -> Module:
    with nn.init.skipped():
        net = models.build(name, **options)
        weights = [key for key, p in net.named_parameters() if p.ndim in (2, 4) and not key.startswith("aux")]
        first, last = state.get(weights[0]), state.get(weights[-1])
        if first is None or last is None:
            return net
        sizes = {"num_classes": last.shape[0]} | ({"in_channels": first.shape[1]} if first.ndim == 4 else {})
        return models.build(name, **options, **sizes)
