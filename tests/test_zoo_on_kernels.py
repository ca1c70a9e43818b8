"""A training step of every network on the kernels gives the loss and gradients that the reference gives in float64.

Networks are as deep as ever, but narrow, and images few and small, because the emulated kernels are slow. Then single
ReLUs and maxima decide over percents of a gradient: where rounding moves one across its kink, NumPy's own float32
differs from its float64 as much as the kernels do (ResNet-50 on eight images of 20 x 20: by 4 % and by 8 %). The seeds
below keep away from kinks.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, models, nn
from dlgpu import functional as F
from dlgpu.errors import BackendUnavailable
from dlgpu.models.alexnet import VARIANTS
from dlgpu.models.fcn import TRUNKS
from dlgpu.models.resnet import Bottleneck
from dlgpu.models.squeezenet import BYPASSES
from dlgpu.train import auxiliary_loss

Case = tuple[str, dict[str, Any], int, int]
NETWORKS: list[Case] = [  # name, options, image size, seed
    ("mlp", {}, 8, 0),
    ("simple_convnet", {}, 12, 0),
    ("lenet5", {}, 28, 0),
    ("lenet5_1998", {}, 28, 0),
    ("deep_convnet", {}, 18, 0),
    ("vgg_small", {}, 8, 0),
    *(("alexnet", {"variant": variant}, 15, 0) for variant in VARIANTS),
    *((f"vgg{depth}", {"batch_norm": norm}, 32, 0) for depth in (11, 13, 16, 19) for norm in (False, True)),
    *(("googlenet", {"variant": variant}, 20, 0) for variant in ("paper", "torchvision")),
    ("inception_v2", {}, 16, 0),
    ("resnet18", {"width": 8}, 12, 0),
    ("resnet34", {"width": 8}, 12, 0),
    ("resnet50", {"width": 8}, 12, 0),
    ("resnet101", {"width": 8}, 12, 0),
    ("resnet152", {"width": 8}, 12, 1),
    ("mobilenet_v1", {"width_mult": 0.25}, 20, 0),
    ("mobilenet_v2", {"width_mult": 0.25}, 12, 1),
    *(("squeezenet", {"bypass": bypass}, 12, 0) for bypass in BYPASSES),
    *((f"fcn{step}s", {"trunk": trunk}, 32, 0) for step in (32, 16, 8) for trunk in TRUNKS),
    ("dcgan", {"width": 4, "latent": 8}, 28, 0),
]
IMAGES, CLASSES = 4, 5


def test_no_network_is_left_out() -> None:
    tested = {name for name, *_ in NETWORKS}
    assert tested == {*models.MODELS, "dcgan"}
    public = {name for name in models.__all__ if name.islower()} - {"build", "parse_options"}
    assert public == tested - {"dcgan"} | {"dcgan_generator", "dcgan_discriminator"}


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels where the networks' own options leave them as they are."""
    alexnet, vgg, googlenet, inception_v2 = (
        importlib.import_module(f"dlgpu.models.{family}") for family in ("alexnet", "vgg", "googlenet", "inception_v2")
    )
    for module in googlenet, inception_v2:
        rows = {name: tuple(v if isinstance(v, str) else v // 8 for v in row) for name, row in module.MODULES.items()}
        monkeypatch.setattr(module, "MODULES", rows)
    variants = {name: (tuple(v // 8 for v in channels), groups) for name, (channels, groups) in VARIANTS.items()}
    monkeypatch.setattr(alexnet, "VARIANTS", variants)
    channels = tuple(v // 8 for v in vgg.CHANNELS)
    monkeypatch.setattr(vgg, "CHANNELS", channels)
    trunk = dataclasses.replace(TRUNKS["vgg16"], widths=channels, classifier=32, kernel_size=3)
    monkeypatch.setitem(TRUNKS, "vgg16", trunk)


def network(name: str, options: dict[str, Any], size: int) -> nn.Module:
    """Of grey images to logits; DCGAN, of noise through both networks to the discriminator's opinion."""
    if name == "dcgan":
        drawn = models.dcgan_generator(size, 1, **options)
        return nn.Sequential(*drawn, *models.dcgan_discriminator(size, 1, options["width"]))
    return models.build(name, num_classes=CLASSES, in_channels=1, image_size=size, **options)


def step(case: Case, device: str, dtype: str, moved: int = 0) -> dict[str, np.ndarray]:
    """The loss, and the gradient of each parameter, of one step from float32 weights.

    `moved`: each weight by one unit in its last place, up or down by this seed.
    """
    name, options, size, seed = case
    dlgpu.manual_seed(seed)
    net = network(name, options, size)
    rng = np.random.default_rng(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):  # at 1 and 0, the next normalisation would cancel much of what they do
            layer.weight.data[...] = rng.uniform(0.5, 1.5, layer.weight.shape)
            layer.bias.data[...] = rng.normal(0, 0.3, layer.bias.shape)
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, nn.Conv2d) and not layer.weight.data.any():  # FCN's scores: nothing would come back
            layer.weight.data[...] = rng.normal(0, 0.5, layer.weight.shape)
    for block in net.modules():
        if isinstance(block, Bottleneck):  # fifty blocks that each add a lot amplify rounding a thousandfold
            block.bn3.weight.data[...] *= 0.1
    net = net.to(dtype=dtype).to(device)
    if moved:
        signs = np.random.default_rng(moved)
        for p in net.parameters():
            p.data[...] *= 1 + np.finfo(np.float32).eps * signs.choice([-1, 1], p.shape)
    shape = (options["latent"], 1, 1) if name == "dcgan" else (1, size, size)
    x = rng.standard_normal((IMAGES, *shape)).astype(np.float32).astype(dtype)
    outputs = net(dlgpu.tensor(x, device=device))
    if name == "dcgan":
        loss = F.binary_cross_entropy_with_logits(outputs, dlgpu.ones(IMAGES, 1, dtype=dtype, device=device))
    else:
        places = (IMAGES, size, size) if models.MODELS[name].per_pixel else (IMAGES,)
        loss = auxiliary_loss(F.cross_entropy, outputs, rng.integers(0, CLASSES, places))
    loss.backward()
    found = {key: p.grad.numpy() for key, p in net.named_parameters() if p.requires_grad}
    return found | {"loss": loss.numpy()}


@pytest.mark.parametrize("device", ["host-kernels", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def test_a_step_is_the_references(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        backends.get(device)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    narrow(monkeypatch)
    true = step(case, "cpu", "float64")
    largest = {key: np.abs(value).max() for key, value in true.items()}
    # Biases whose effect the next normalisation takes away have no gradient, only what is left when sums cancel: there,
    # the network's largest gradient is the unit.
    strongest = max(value for key, value in largest.items() if key != "loss")
    units = {key: value if value > 1e-9 * strongest else strongest for key, value in largest.items()}

    def worst(found: dict[str, np.ndarray]) -> float:
        assert found.keys() == true.keys()
        return max(np.abs(found[key] - true[key]).max() / units[key] for key in true)

    # No float32 step can be nearer than what rounding the weights once more does; it rounds after every layer, forward
    # and backward, sums of up to a hundred terms (that adds up like the square root).
    condition = max(worst(step(case, "cpu", "float64", moved)) for moved in (1, 2))
    assert condition < 5e-4  # no kink in between: the comparison means something
    assert worst(step(case, device, "float32")) <= 16 * condition
