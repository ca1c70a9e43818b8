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


@pytest.mark.parametrize("device", ["cpu", "host-kernels"])
@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((0, 4), (4, 3)), ((2, 0, 4), (4, 3))],
)
def test_matrix_products_of_tensors(device: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """`@` is the backend's own product; leading axes broadcast, and their gradients are summed."""
    x, y = (dlgpu.rand(*shape, device=device).requires_grad_() for shape in (a, b))
    product = x @ y
    np.testing.assert_allclose(product.numpy(), x.numpy() @ y.numpy(), rtol=1e-5)
    product.sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    ones = np.ones(product.shape, np.float32)
    for grad, t, full in (
        (x.grad, x, ones @ y.numpy().swapaxes(-1, -2)),
        (y.grad, y, x.numpy().swapaxes(-1, -2) @ ones),
    ):
        lead = tuple(range(full.ndim - t.ndim))
        kept = tuple(i for i, size in enumerate(t.shape) if size == 1 and full.shape[len(lead) + i] != 1)
        expected = full.sum(axis=(*lead, *(len(lead) + i for i in kept))).reshape(t.shape)
        np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose((x.T @ x).numpy(), x.numpy().T @ x.numpy(), rtol=1e-5) if len(a) == 2 else None
