"""Training through every real kernel gives what the reference gives, to rounding."""

from __future__ import annotations

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, data, models, optim
from dlgpu import functional as F
from dlgpu.errors import BackendUnavailable


def losses(device: str, steps: int) -> list[float]:
    """LeNet-5 from one seed, Adam, batches of 32."""
    dlgpu.manual_seed(0)
    model = models.build("lenet5").to(device)
    adam = optim.Adam(model.parameters())
    batches = data.DataLoader(data.mnist().subset(slice(32 * steps)), 32, shuffle=True, prefetch=0)
    found = []
    for images, labels in batches.epoch(0):
        adam.zero_grad()
        loss = F.cross_entropy(model(dlgpu.tensor(images, device=device)), labels)
        loss.backward()
        adam.step()
        found.append(float(loss))
    return found


@pytest.mark.parametrize("device", ["host-kernels", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_lenet5_has_the_same_losses(device: str) -> None:
    try:
        backends.get(device)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    expected, got = losses("cpu", 20), losses(device, 20)
    assert expected[-1] < 0.6 * expected[0]  # it learns
    # float32 rounding, amplified by twenty steps of Adam, whose update hardly depends on a gradient's size
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4)


def test_channels_last_trains_alike() -> None:
    images, labels = next(data.DataLoader(data.mnist().subset(slice(32)), 32, prefetch=0).epoch(0))
    found = []
    for layout in ("contiguous", "channels_last"):
        dlgpu.manual_seed(0)
        model = models.build("deep_convnet").to(memory_format=layout)
        loss = F.cross_entropy(model(dlgpu.tensor(images).contiguous(layout)), labels)
        loss.backward()
        found.append((float(loss), next(iter(model.parameters())).grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    np.testing.assert_allclose(found[0][1].numpy(), found[1][1].numpy(), rtol=1e-3, atol=1e-5)
