"""A training step of each larger network on the kernels gives the gradients that the reference gives in float64.

Networks are narrow and images few and small, because the emulated kernels are slow. Then single ReLUs and maxima decide
over percents of a gradient: where rounding moves one across its kink, NumPy's own float32 differs from its float64 as
much as the kernels do (ResNet-50 on eight images of 20 x 20: by 4 % and by 8 %). The seeds below keep away from kinks.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, models, nn
from dlgpu import functional as F
from dlgpu.errors import BackendUnavailable
from dlgpu.train import auxiliary_loss

NETWORKS: list[tuple[str, dict[str, Any], int, int]] = [  # name, options, image size, seed
    ("alexnet", {"dropout": 0.0}, 15, 0),
    ("googlenet", {"dropout": 0.0}, 20, 0),
    ("inception_v2", {}, 16, 0),
    ("resnet18", {"width": 8}, 12, 0),
    ("resnet50", {"width": 8}, 12, 1),
    ("mobilenet_v1", {"width_mult": 0.25}, 20, 0),
    ("mobilenet_v2", {"width_mult": 0.25, "dropout": 0.0}, 12, 1),
    ("squeezenet", {"bypass": "complex", "dropout": 0.0}, 12, 0),
]
IMAGES = 4


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels in the inception modules."""
    for family in ("googlenet", "inception_v2"):
        module = importlib.import_module(f"dlgpu.models.{family}")
        rows = {name: tuple(v if isinstance(v, str) else v // 8 for v in row) for name, row in module.MODULES.items()}
        monkeypatch.setattr(module, "MODULES", rows)


def gradients(
    name: str, options: dict[str, Any], size: int, seed: int, device: str, dtype: str, moved: int = 0
) -> dict[str, np.ndarray]:
    """Of one step from float32 weights. `moved`: each weight by one unit in its last place, up or down by this seed."""
    dlgpu.manual_seed(seed)
    net = models.build(name, num_classes=5, in_channels=1, image_size=size, **options)
    rng = np.random.default_rng(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):  # at 1 and 0, the next normalisation would cancel much of what they do
            layer.weight.data[...] = rng.uniform(0.5, 1.5, layer.weight.shape)
            layer.bias.data[...] = rng.normal(0, 0.3, layer.bias.shape)
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
    net = net.to(dtype=dtype).to(device)
    if moved:
        signs = np.random.default_rng(moved)
        for p in net.parameters():
            p.data[...] *= 1 + np.finfo(np.float32).eps * signs.choice([-1, 1], p.shape)
    x = rng.standard_normal((IMAGES, 1, size, size)).astype(np.float32).astype(dtype)
    auxiliary_loss(F.cross_entropy, net(dlgpu.tensor(x, device=device)), np.arange(IMAGES)).backward()
    return {key: p.grad.numpy() for key, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("device", ["host-kernels", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("name", "options", "size", "seed"), NETWORKS)
def test_gradients_are_the_references(
    name: str, options: dict[str, Any], size: int, seed: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        backends.get(device)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    narrow(monkeypatch)
    case = name, options, size, seed
    true = gradients(*case, "cpu", "float64")
    largest = {key: np.abs(grad).max() for key, grad in true.items()}
    # Biases whose effect the next normalisation takes away have none: there, the network's gradients are the unit.
    units = {key: max(value, 1e-3 * max(largest.values())) for key, value in largest.items()}

    def worst(grads: dict[str, np.ndarray]) -> float:
        assert grads.keys() == true.keys()
        return max(np.abs(grads[key] - true[key]).max() / units[key] for key in true)

    # No float32 step can be nearer than what rounding the weights once more does; it rounds after every layer, forward
    # and backward, sums of up to a hundred terms (that adds up like the square root).
    condition = max(worst(gradients(*case, "cpu", "float64", moved)) for moved in (1, 2))
    assert condition < 5e-4  # no kink in between: the comparison means something
    assert worst(gradients(*case, device, "float32")) <= 16 * condition
