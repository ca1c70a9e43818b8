"""The layer table: rows, operations counted by hand, and a model left as it was."""

from __future__ import annotations

import numpy as np
import pytest

import dlgpu
from dlgpu import Tensor, models, nn
from dlgpu.errors import ShapeError
from dlgpu.nn.summary import LayerRow, layer_rows, summary


def test_rows_of_simple_convnet() -> None:
    """2 operations per multiply-accumulate: 24 * 24 * 30 * 25, 4320 * 100 and 100 * 10 of them."""
    assert layer_rows(models.simple_convnet(), (1, 1, 28, 28)) == [
        LayerRow("conv1", "Conv2d", (1, 30, 24, 24), 780, 2 * 24 * 24 * 30 * 25),
        LayerRow("relu1", "ReLU", (1, 30, 24, 24), 0, 0),
        LayerRow("pool1", "MaxPool2d", (1, 30, 12, 12), 0, 0),
        LayerRow("flatten", "Flatten", (1, 4320), 0, 0),
        LayerRow("affine1", "Linear", (1, 100), 432_100, 2 * 4320 * 100),
        LayerRow("relu2", "ReLU", (1, 100), 0, 0),
        LayerRow("affine2", "Linear", (1, 10), 1010, 2 * 100 * 10),
    ]


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Conv2d(4, 6, (3, 5), (2, 1), 1, groups=2), (3, 4, 9, 8), 2 * 3 * 6 * 5 * 6 * 2 * 15),  # 5 x 6 out
        (nn.Conv2d(4, 6, 3, dilation=2, padding="same", bias=False), (1, 4, 7, 7), 2 * 6 * 49 * 4 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 5, 5), 2 * 8 * 9 * 9),
        # each input pixel meets every weight of its group
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (3, 4, 5, 7), 2 * 3 * 4 * 5 * 7 * 3 * 9),
        (nn.ConvTranspose2d(4, 6, (2, 3), 3, output_padding=1), (1, 4, 5, 5), 2 * 4 * 25 * 6 * 6),
        (nn.Linear(5, 3), (7, 5), 2 * 7 * 5 * 3),
        (nn.Linear(5, 3), (2, 7, 5), 2 * 2 * 7 * 5 * 3),
        (nn.BatchNorm2d(4), (2, 4, 3, 3), 0),
    ],
    ids=str,
)
def test_flops_by_hand(layer: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    (row,) = layer_rows(nn.Sequential(layer), shape)
    assert row.flops == flops
    assert row.output_shape == layer(dlgpu.zeros(*shape)).shape


def test_table_has_every_layer_and_the_totals() -> None:
    net = models.simple_convnet()
    net.affine1.requires_grad_(False)
    text = net.summary((2, 1, 28, 28))
    assert text == summary(net, (2, 1, 28, 28))
    for word in ("Sequential, input (2, 1, 28, 28)", "7 layers", "2 × 30 × 24 × 24", "433,890 (1,790 trained)"):
        assert word in text
    for row in layer_rows(net, (2, 1, 28, 28)):
        assert row.name in text
        assert row.kind in text
        assert f"{row.flops / 1e6:,.2f}" in text or not row.flops
    assert "3.46" in text  # 2 * (864,000 + 864,000 + 2,000) operations: conv1, affine1, affine2


def test_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2))
    net[2].eval()
    modes = [module.training for module in net.modules()]
    state, random_state = net.state_dict(), dlgpu.random.get_state()
    layer_rows(net, (4, 1, 4, 4))
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert dlgpu.random.get_state() == random_state  # dropout drew nothing
    assert all((value == state[name]).all() for name, value in net.state_dict().items())


def test_model_is_left_as_it_was_when_forward_raises() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).train()
    own_hook = net[0].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ShapeError):
        layer_rows(net, (1, 4))
    assert all(module.training for module in net.modules())
    assert [len(module._forward_hooks) for module in net.modules()] == [0, 1, 0]
    own_hook()


def test_a_layer_used_twice_has_a_row_for_each_use() -> None:
    shared = nn.Linear(3, 3)
    rows = layer_rows(nn.Sequential(shared, nn.ReLU(), shared), (1, 3))
    assert [(row.name, row.flops) for row in rows] == [("0", 18), ("1", 0), ("0", 18)]


def test_rows_of_a_model_in_another_dtype() -> None:
    rows = layer_rows(models.lenet5().to(dtype="float64", memory_format="channels_last"), (1, 1, 28, 28))
    assert rows == layer_rows(models.lenet5(), (1, 1, 28, 28))


def test_layers_with_several_inputs() -> None:
    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * b

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.product = nn.Sigmoid(), Product()

        def forward(self, x: Tensor) -> Tensor:
            return self.product(x, self.gate(x))

    assert [row.kind for row in layer_rows(Gated(), (1, 3))] == ["Sigmoid", "Product"]


def test_nothing_is_read_from_memory_that_nobody_wrote() -> None:
    """A transposed convolution adds its bias to what the recorder gave it: zeros, not the NaN that lay there."""
    outputs = 3 * 6 * 11 * 15
    memory = [np.full(outputs, 0x7FA00000, np.uint32) for _ in range(20)]
    del memory[::2]  # holes of this size
    layer_rows(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2)), (3, 4, 5, 7))
