"""The networks against their published tables: sizes, parameter counts, names; and that they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import Tensor, models, nn
from dlgpu.errors import DlgpuError, ShapeError, UnknownName
from dlgpu.models import MODELS
from dlgpu.models.lenet import PartlyConnected, ScaledTanh, Subsample
from dlgpu.models.vgg import CHANNELS
from dlgpu.nn.summary import layer_rows
from dlgpu.testing import assert_close, error, gradcheck
from dlgpu.train import auxiliary_loss

VGG_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # the paper's table 1
ROUNDING = 2**12 * float(np.finfo(np.float64).eps)


@pytest.fixture
def lazy_weights() -> Iterator[None]:
    """Weights that are never written take no memory: 550 MB each otherwise."""
    with nn.init.skipped():
        yield


def count(model: nn.Module) -> int:
    return sum(p.size for p in model.parameters())


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lazy_weights")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", 79_510),  # 784 * 100 + 100 + 100 * 10 + 10
        ("simple_convnet", 433_890),
        ("lenet5", 61_706),
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
    ],
)
def test_parameter_counts(name: str, expected: int) -> None:
    assert count(models.build(name)) == expected


def test_lenet5_1998_counts() -> None:
    """The paper's layers: C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164; then ours, 84 -> 10 dense."""
    net = models.lenet5_1998()
    counts = {layer: count(module) for layer, module in net.named_modules() if layer and count(module)}
    assert counts == {"0": 156, "1": 12, "3": 2416, "4": 32, "6": 48_120, "9": 10_164, "11": 850}
    c3 = net[3]
    assert int(c3.mask.numpy().sum()) == 60  # connections of table I
    assert int(c3.mask.numpy().sum()) * 25 + c3.bias.size == 1516


SIZES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[tuple[int, ...]]]] = {
    "lenet5": (models.lenet5, (1, 28, 28), [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,), (10,)]),
    "lenet5, 32x32": (
        lambda: models.lenet5(image_size=32, in_channels=3, num_classes=7),
        (3, 32, 32),
        [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,), (7,)],
    ),
    "lenet5_1998": (
        models.lenet5_1998,
        (1, 32, 32),
        [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,)],
    ),
    "lenet5_1998, 28x28": (
        lambda: models.lenet5_1998(image_size=28),
        (1, 28, 28),
        [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,)],
    ),
    "simple_convnet": (models.simple_convnet, (1, 28, 28), [(30, 24, 24), (30, 12, 12), (100,), (10,)]),
    "mlp": (lambda: models.mlp(hidden=(50, 20)), (1, 28, 28), [(50,), (20,), (10,)]),
    "deep_convnet": (
        models.deep_convnet,
        (1, 28, 28),
        [
            *((16, 28, 28), (16, 28, 28), (16, 14, 14)),
            *((32, 14, 14), (32, 16, 16), (32, 8, 8)),
            *((64, 8, 8), (64, 8, 8), (64, 4, 4)),
            (50,),
            (10,),
        ],
    ),
    **{
        f"vgg{depth}": (
            lambda depth=depth: models.build(f"vgg{depth}", image_size=32, num_classes=10),
            (3, 32, 32),
            [
                (width, size // shrink, size // shrink)
                for size, width, convs in zip((32, 16, 8, 4, 2), CHANNELS, blocks, strict=True)
                for shrink in (*[1] * convs, 2)
            ]
            + [(10,)],
        )
        for depth, blocks in VGG_BLOCKS.items()
    },
}
SIZED = nn.Conv2d | nn.Linear | nn.MaxPool2d | Subsample  # the rows of the published tables


@pytest.mark.parametrize("name", SIZES)
def test_layer_sizes(name: str) -> None:
    make, image, expected = SIZES[name]
    net = make()
    kinds = {layer: isinstance(module, SIZED) for layer, module in net.named_modules()}
    rows = [row for row in layer_rows(net, (1, *image)) if kinds[row.name]]
    assert [row.output_shape for row in rows] == [(1, *shape) for shape in expected]


@pytest.mark.parametrize("size", range(18, 34))
def test_deep_convnet_takes_odd_sizes(size: int) -> None:
    assert models.deep_convnet(image_size=size)(dlgpu.zeros(1, 1, size, size)).shape == (1, 10)


# --- VGG ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lazy_weights")
@pytest.mark.parametrize(
    ("batch_norm", "first_blocks"),
    [(False, ["0", "2", "5", "7", "10"]), (True, ["0", "1", "3", "4", "7", "8", "10", "11", "14", "15"])],
)
def test_vgg16_names_are_torchvisions(batch_norm: bool, first_blocks: list[str]) -> None:
    state = [name for name, _ in models.vgg16(batch_norm=batch_norm).named_parameters()]
    expected = [f"features.{i}.{part}" for i in first_blocks for part in ("weight", "bias")]
    assert state[: len(expected)] == expected
    assert state[-6:] == [f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")]
    assert len(state) == 2 * (13 * (1 + batch_norm) + 3)


@pytest.mark.usefixtures("lazy_weights")
def test_vgg16_shapes_at_full_size() -> None:
    shapes = {name: p.shape for name, p in models.vgg16().named_parameters()}
    assert shapes["features.0.weight"] == (64, 3, 3, 3)
    assert shapes["features.28.weight"] == (512, 512, 3, 3)
    assert shapes["classifier.0.weight"] == (4096, 512 * 7 * 7)
    assert shapes["classifier.6.weight"] == (1000, 4096)


@pytest.mark.usefixtures("lazy_weights")
def test_vgg_dropout_is_passed_on() -> None:
    rates = [layer.p for layer in models.vgg11(dropout=0.25).modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.25, 0.25]


# --- LeNet of 1998 ------------------------------------------------------------------------------------------------


def test_c3_connections_are_those_of_the_paper() -> None:
    """Table I of the paper, row by row (input maps 0 to 5, an X for each of the 16 outputs)."""
    table = (
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    )
    expected = np.array([[cell == "X" for cell in row] for row in table]).T
    assert_close(PartlyConnected().mask.numpy()[:, :, 0, 0] != 0, expected)


def test_missing_connections_have_no_effect_and_no_gradient() -> None:
    layer, x = PartlyConnected().to(dtype="float64"), dlgpu.randn(2, 6, 8, 8, dtype="float64")
    missing = np.broadcast_to(layer.mask.numpy() == 0, layer.weight.shape)
    before = layer(x)
    before.backward(dlgpu.randn(*before.shape, dtype="float64"))
    assert not np.any(layer.weight.grad.numpy()[missing])
    assert np.all(layer.weight.grad.numpy()[~missing])
    layer.weight.data[missing] = 1e3
    assert_close(layer(x), before)
    layer.weight.data[~missing] += 1
    assert np.all(layer(x).numpy() != before.numpy())
    assert "mask" in layer.state_dict()
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]  # the mask is not trained


def test_subsampling_and_scaled_tanh_by_hand() -> None:
    layer = Subsample(2)
    nn.init.constant_(layer.weight, 3)
    layer.bias.data[...] = np.array([1, 10], np.float32).reshape(2, 1, 1)
    x = dlgpu.tensor(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2))
    assert_close(layer(x).numpy().ravel(), np.array([3 * 1.5 + 1, 3 * 5.5 + 10], np.float32))
    # "the squashing function is chosen so that f(1) = 1 and f(-1) = -1", with A = 1.7159 given to four decimals
    y = ScaledTanh()(dlgpu.tensor(np.array([-1.0, 0.0, 1.0])))
    assert np.abs(y.numpy() - [-1, 0, 1]).max() < 1e-4


# --- what they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("lenet5", dict(image_size=30), "[lenet5] image_size must be 28 or 32; got 30"),
        ("lenet5_1998", dict(image_size=64), "[lenet5_1998] image_size must be 28 or 32; got 64"),
        ("lenet5", dict(num_classes=0), "[lenet5] num_classes must be an int >= 1; got 0"),
        ("simple_convnet", dict(image_size=5), "[simple_convnet] image_size must be at least 6; got 5"),
        ("simple_convnet", dict(in_channels=0), "[simple_convnet] in_channels must be an int >= 1; got 0"),
        ("deep_convnet", dict(image_size=3), "[deep_convnet] image_size must be at least 4; got 3"),
        ("mlp", dict(hidden=(0,)), "[Linear] out_features must be an int >= 1; got 0"),
        ("mlp", dict(image_size=-1), "[mlp] image_size must be an int >= 1; got -1"),
        ("vgg16", dict(image_size=33), "[vgg16] image_size must be a multiple of 32 (five poolings); got 33"),
        ("vgg11", dict(image_size=16), "[vgg11] image_size must be a multiple of 32"),
        ("vgg19", dict(num_classes=-1), "[vgg19] num_classes must be an int >= 1; got -1"),
        ("lenet5", dict(dropout=0.5), "[lenet5] takes ['image_size', 'in_channels', 'num_classes']; got ['dropout']"),
    ],
)
def test_bad_sizes(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        models.build(name, **config)
    assert str(caught.value).startswith(message)


def test_unknown_model() -> None:
    with pytest.raises(UnknownName, match=r"\[models\] unknown model 'lenet'; Did you mean 'lenet5'\?"):
        models.build("lenet")
    with pytest.raises(DlgpuError, match="unknown model 'transformer'"):
        models.build("transformer")


# --- they train ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, info in MODELS.items() if not info.per_pixel])
def test_finite_gradients_for_all_parameters(name: str) -> None:
    info = MODELS[name]
    size = min(info.image_size, 32)
    net = models.build(name, image_size=size, num_classes=10)
    assert net.eval()(dlgpu.zeros(1, info.in_channels, size, size)).shape == (1, 10)
    outputs = net.train()(dlgpu.rand(2, info.in_channels, size, size))
    loss = auxiliary_loss(nn.CrossEntropyLoss(), outputs, np.array([3, 7]))
    assert np.isfinite(loss.item())
    loss.backward()
    for layer, p in net.named_parameters():
        assert p.grad is not None, layer
        assert np.all(np.isfinite(p.grad.numpy())), layer
        assert np.any(p.grad.numpy()), layer


def test_gradients_of_a_small_network() -> None:
    """Everything at once, against numerical differentiation: convolution, normalisation, pooling, dense, loss."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Residual(nn.Conv2d(3, 3, 3, padding=1, groups=3)),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).to(dtype="float64")
    target, x = np.array([0, 3, 1]), dlgpu.randn(3, 2, 4, 4, dtype="float64")
    places = [(module, name) for module in net.modules() for name in tuple(module._parameters)]

    def loss(x: Tensor, *parameters: Tensor) -> Tensor:
        for (module, name), value in zip(places, parameters, strict=True):
            delattr(module, name)
            setattr(module, name, value)
        return nn.CrossEntropyLoss()(net(x), target)

    gradcheck(loss, x, *[p.detach() for p in net.parameters()])


def test_initial_weights_follow_the_seed() -> None:
    def weights(seed: int) -> dict[str, np.ndarray]:
        dlgpu.manual_seed(seed)
        return models.lenet5().state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    for name, value in first.items():
        assert_close(again[name], value, what=name)
        assert np.any(other[name] != value) or "bias" in name


@pytest.mark.parametrize(
    ("make", "layer", "std"),
    [
        (models.simple_convnet, "affine1.weight", 0.01),
        (lambda: models.simple_convnet(weight_init_std=0.1), "affine1.weight", 0.1),
        (models.mlp, "1.weight", np.sqrt(2 / 784)),
        (models.lenet5, "7.weight", np.sqrt(2 / 400)),
        (models.lenet5_1998, "6.weight", np.sqrt(2 / (400 + 3000))),
        (models.deep_convnet, "12.weight", np.sqrt(2 / (64 * 9))),
        (lambda: models.vgg11(image_size=32), "features.3.weight", np.sqrt(2 / (128 * 9))),
        (lambda: models.vgg11(image_size=32), "classifier.0.weight", 0.01),
    ],
)
def test_initial_standard_deviation(make: Callable[[], nn.Module], layer: str, std: float) -> None:
    dlgpu.manual_seed(0)
    net = make()
    weight = dict(net.named_parameters())[layer].numpy().astype(np.float64)
    assert abs(weight.std() / std - 1) < 4 / np.sqrt(2 * weight.size)  # four standard errors of a Gaussian's
    assert not any(p.numpy().any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_channels_last_gives_the_same_logits() -> None:
    net, x = models.lenet5_1998().to(dtype="float64"), dlgpu.randn(2, 1, 32, 32, dtype="float64")
    plain = net(x)
    assert error(net.to(memory_format="channels_last")(x), plain) <= ROUNDING
