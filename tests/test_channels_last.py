"""channels_last end to end: which kernels a training step launches, and that none of them turns images unasked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import backends, memory_format, nn, optim
from dlgpu.errors import BackendUnavailable


def features() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),  # depthwise
        nn.Conv2d(16, 32, 1),
        nn.Dropout(0.5),
        nn.LocalResponseNorm(3),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.AvgPool2d(2),
    ]


def launches(net: nn.Module, layout: memory_format.MemoryFormat, precision: str, monkeypatch: Any) -> Counter[str]:
    """How often a training step launches each kernel (its name alone)."""
    try:
        launcher = backends.get("host").launcher  # type: ignore[attr-defined]
    except BackendUnavailable as error:
        pytest.skip(str(error))
    names: Counter[str] = Counter()
    launch = launcher.launch

    def counted(kernel: str, *args: Any, **how: Any) -> None:
        names[kernel.split("<")[0].removeprefix("dl::")] += 1
        launch(kernel, *args, **how)

    net.to("host-kernels", memory_format=layout)
    sgd = optim.SGD(net.parameters(), lr=0.1)
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    x = dlgpu.tensor(images).to("host-kernels", memory_format=layout)
    monkeypatch.setattr(launcher, "launch", counted)
    with dlgpu.amp.autocast("float16", enabled=precision == "float16"):
        loss = F.cross_entropy(net(x), np.array([1, 3]))
    loss.backward()
    sgd.step()
    return names


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_image_is_turned(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    names = launches(net, "channels_last", precision, monkeypatch)
    assert names["transpose"] == 0
    # The filters of the two direct convolutions, into the order their kernels read and, as gradients, back.
    assert names["copy"] == 2 * 2 + 1, names  # one more: the depthwise input gradient reads them too


def test_pixels_are_turned_once_for_a_dense_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flatten takes elements in logical order, (N, C, H, W): forwards once, backwards once."""
    net = nn.Sequential(*features(), nn.Flatten(), nn.Linear(32 * 4, 10))
    assert launches(net, "channels_last", "float32", monkeypatch)["transpose"] == 2


def test_contiguous_images_pay_at_every_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests are about: the same network in the other format."""
    net = nn.Sequential(*features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    assert launches(net, "contiguous", "float32", monkeypatch)["transpose"] > 8
