"""The larger networks: published counts and sizes, blocks by hand and by differentiation, weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import dlgpu
from dlgpu import functional as F
from dlgpu import models, nn
from dlgpu.data import Resize
from dlgpu.errors import CheckpointError, DlgpuError, ShapeError
from dlgpu.models.googlenet import inception
from dlgpu.models.mobilenet import InvertedResidual
from dlgpu.models.resnet import BasicBlock, Bottleneck
from dlgpu.models.squeezenet import Fire
from dlgpu.nn.summary import layer_rows
from dlgpu.testing import assert_close, gradcheck
from dlgpu.train import auxiliary_loss

# Parameters at 1000 classes. torchvision: the num_params of its weights' tables. BN-Inception: 11,295,240 as
# distributed for Caffe, which has a useless bias in front of each of its 10,016 normalised channels.
COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("alexnet", {}, 60_965_224),  # the paper's "60 million"
    ("alexnet", {"variant": "torchvision"}, 61_100_840),
    ("vgg11", {"batch_norm": True}, 132_868_840),
    ("vgg13", {"batch_norm": True}, 133_053_736),
    ("vgg16", {"batch_norm": True}, 138_365_992),
    ("vgg19", {"batch_norm": True}, 143_678_248),
    ("googlenet", {"aux": False}, 6_998_552),  # as distributed for Caffe
    ("googlenet", {"variant": "torchvision", "aux": False}, 6_624_904),
    ("inception_v2", {}, 11_295_240 - 10_016),
    ("resnet18", {}, 11_689_512),
    ("resnet34", {}, 21_797_672),
    ("resnet50", {}, 25_557_032),
    ("resnet101", {}, 44_549_160),
    ("resnet152", {}, 60_192_808),
    ("mobilenet_v1", {}, 4_231_976),  # the paper's 4.2, 2.6, 1.3 and 0.5 million
    ("mobilenet_v1", {"width_mult": 0.75}, 2_585_560),
    ("mobilenet_v1", {"width_mult": 0.5}, 1_331_592),
    ("mobilenet_v1", {"width_mult": 0.25}, 470_072),
    ("mobilenet_v2", {}, 3_504_872),
    ("squeezenet", {}, 1_248_424),
    ("squeezenet", {"bypass": "simple"}, 1_248_424),
    ("squeezenet", {"version": "1.1"}, 1_235_496),
]


@pytest.mark.parametrize(("name", "options", "expected"), COUNTS)
def test_parameter_counts(name: str, options: dict[str, Any], expected: int) -> None:
    with nn.init.skipped():
        assert sum(p.size for p in models.build(name, **options).parameters()) == expected


def outputs(name: str, size: int = 224, **options: Any) -> dict[str, tuple[int, ...]]:
    """Shapes without the batch axis, by layer."""
    with nn.init.skipped():
        return {
            r.name: r.output_shape[1:]
            for r in layer_rows(models.build(name, image_size=size, **options), (1, 3, size, size))
        }


def test_sizes_are_the_papers() -> None:
    alex = outputs("alexnet")
    convs = [shape for name, shape in alex.items() if name in ("features.0", "features.4", "features.8")]
    assert convs == [(96, 55, 55), (256, 27, 27), (384, 13, 13)]
    google = outputs("googlenet")
    assert google["conv1.conv"] == (64, 112, 112)
    assert google["maxpool2"] == (192, 28, 28)
    assert google["maxpool3"] == (480, 14, 14)
    assert google["maxpool4"] == (832, 7, 7)
    assert google["avgpool"] == (1024, 1, 1)
    squeeze = outputs("squeezenet", 227)
    assert squeeze["features.0"] == (96, 111, 111)
    assert [squeeze[f"features.{i}"][1] for i in (2, 6, 11)] == [55, 27, 13]
    for name in ("resnet18", "resnet50"):
        rows = outputs(name)
        assert rows["maxpool"][1:] == (56, 56)
        assert [rows[f"layer{i}.1.conv2"][1] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]
    assert outputs("inception_v2")["inception5b.branch4.1.conv"] == (128, 7, 7)
    assert len([n for n in outputs("mobilenet_v1") if n.endswith(".0")]) == 28  # layers with weights


@pytest.mark.parametrize(("size", "millions"), [(224, 569), (192, 418), (160, 290), (128, 186)])
def test_resolution_multiplier_of_mobilenet(size: int, millions: int) -> None:
    """Howard et al. 2017, table 7: multiply-adds."""
    with nn.init.skipped():
        rows = layer_rows(models.mobilenet_v1(image_size=size), (1, 3, size, size))
    assert sum(row.flops for row in rows) / 2e6 == pytest.approx(millions, abs=1)


# --- blocks -------------------------------------------------------------------------------------------------------

BLOCKS = {
    "basic": lambda: BasicBlock(4, 4, 1),
    "basic, downsampled": lambda: BasicBlock(4, 6, 2),
    "bottleneck": lambda: Bottleneck(4, 2, 2),
    "inception": lambda: inception(4, (2, 3, 4, 2, 3, 2), 5, True),
    "inverted residual": lambda: InvertedResidual(4, 4, 1, 2),
    "fire": lambda: Fire(4, 2, 3, nn.Conv2d(4, 6, 1)),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_of_blocks(kind: str) -> None:
    dlgpu.manual_seed(0)
    block = BLOCKS[kind]().to(dtype="float64").eval()
    for p in block.parameters():
        if p.ndim == 1:  # with a bias of 0, dead inputs would lie on ReLU's kink
            nn.init.uniform_(p, 0.5, 1.5)
    x = dlgpu.randn(1, 4, 4, 4, dtype="float64")
    places = [(module, name) for module in block.modules() for name in tuple(module._parameters)]

    def run(x: dlgpu.Tensor, *parameters: dlgpu.Tensor) -> dlgpu.Tensor:
        for (module, name), value in zip(places, parameters, strict=True):
            delattr(module, name)
            setattr(module, name, value)
        return block(x)

    gradcheck(run, x, *[p.detach() for p in block.parameters()])


def test_blocks_that_add_nothing() -> None:
    x = dlgpu.randn(2, 4, 5, 5)
    basic = BasicBlock(4, 4, 1)
    nn.init.zeros_(basic.bn2.weight)
    assert_close(basic(x), F.relu(x))
    down = Bottleneck(4, 2, 2)
    nn.init.zeros_(down.bn3.weight)
    assert_close(down(x), F.relu(down.downsample(x)))
    inverted = InvertedResidual(4, 4, 1, 6)
    nn.init.zeros_(inverted.conv[-1].weight)
    assert_close(inverted(x), x)
    fire = Fire(4, 2, 2, nn.Identity())
    for layer in (fire.expand1x1, fire.expand3x3):
        nn.init.zeros_(layer.weight)
    assert_close(fire(x), x)


def test_auxiliary_classifiers() -> None:
    net, x, labels = models.googlenet(10, image_size=32, dropout=0.0), dlgpu.rand(2, 3, 32, 32), np.array([1, 2])
    logits, second, first = net(x)
    total = auxiliary_loss(F.cross_entropy, (logits, second, first), labels)
    parts = [F.cross_entropy(t, labels).item() for t in (logits, second, first)]
    assert total.item() == pytest.approx(parts[0] + 0.3 * (parts[1] + parts[2]), rel=1e-6)
    assert net.eval()(x).shape == (2, 10)


SMALL: list[tuple[str, dict[str, Any]]] = [
    ("alexnet", {}),
    ("googlenet", {}),
    ("inception_v2", {}),
    ("resnet18", {"width": 8}),
    ("resnet50", {"width": 8}),
    ("mobilenet_v1", {"width_mult": 0.25}),
    ("mobilenet_v2", {"width_mult": 0.25}),
    ("squeezenet", {"bypass": "complex"}),
]


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(("name", "options"), SMALL)
def test_small_grey_images_reach_every_parameter(name: str, options: dict[str, Any], size: int) -> None:
    dlgpu.manual_seed(0)
    net = models.build(name, num_classes=10, in_channels=1, image_size=size, **options)
    auxiliary_loss(F.cross_entropy, net(dlgpu.rand(4, 1, size, size)), np.array([0, 1, 2, 3])).backward()
    for layer, p in net.named_parameters():
        assert p.grad is not None, layer
        assert np.isfinite(p.grad.numpy()).all(), layer
        assert p.grad.numpy().any(), layer


# --- weights from elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("mobilenet_v2", {}),
        ("squeezenet", {"version": "1.1"}),
        ("googlenet", {"variant": "torchvision"}),
        ("resnet50", {"width": 8}),
        ("mobilenet_v1", {"width_mult": 0.25}),
        ("mobilenet_v1", {"width_mult": 0.3}),  # 9.6 channels, rounded to 8, ... 307.2, rounded to 304
        ("mobilenet_v2", {"width_mult": 0.35}),
        ("mobilenet_v2", {"width_mult": 1.4}),
        ("fcn16s", {"trunk": "small"}),
    ],
)
def test_load_finds_the_network(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = models.build(name, num_classes=7, **options).eval()
    state = net.state_dict() | {"bn.num_batches_tracked": np.array(3)}
    save_file(state, tmp_path / "unnamed.safetensors")
    loaded = dlgpu.load(tmp_path / "unnamed.safetensors")
    assert type(loaded) is type(net)
    x = dlgpu.rand(1, 3, 64, 64)
    assert_close(loaded(x), net(x))


def test_load_names_what_does_not_fit(tmp_path: Path) -> None:
    state = models.resnet18(num_classes=5, image_size=32).state_dict()
    state["extra"] = state.pop("layer1.0.bn1.weight")
    save_file(state, tmp_path / "resnet18.safetensors")
    with pytest.raises(CheckpointError, match=r"got missing: layer1\.0\.bn1\.weight; unexpected: extra"):
        dlgpu.load(tmp_path / "resnet18.safetensors")
    save_file(models.resnet18(num_classes=5, image_size=32).state_dict(), tmp_path / "resnet18.safetensors")
    ten = models.resnet18(num_classes=10, image_size=32)
    with pytest.raises(CheckpointError, match=r"must have shape \(10, 512\); got \(5, 512\)$"):
        dlgpu.load(tmp_path / "resnet18.safetensors", ten)


def test_load_says_how_when_it_cannot_guess(tmp_path: Path) -> None:
    net = models.vgg11(num_classes=5, image_size=64)  # neither 224 nor 32
    save_file(net.state_dict(), tmp_path / "vgg11.safetensors")
    with pytest.raises(
        CheckpointError, match=r"got .*; if the network has other options, make it and give it as model=$"
    ):
        dlgpu.load(tmp_path / "vgg11.safetensors")
    loaded = dlgpu.load(tmp_path / "vgg11.safetensors", models.vgg11(num_classes=5, image_size=64))
    assert_close(loaded.features[0].weight, net.features[0].weight)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_load_takes_half_precision_and_foreign_metadata(dtype: Any, tmp_path: Path) -> None:
    net = models.resnet18(num_classes=5, image_size=32, width=8)
    state = {name: value.astype(dtype) for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors", metadata={"format": "pt", "author": "someone"})
    loaded = dlgpu.load(tmp_path / "half.safetensors").state_dict()
    for name, value in state.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], value.astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg11_bn", "googlenet", "resnet18", "resnet50", "mobilenet_v2", "squeezenet1_0", "squeezenet1_1"],
)
def test_torchvisions_networks_load_and_agree(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with torchvision, which is not installed")
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision, which is not installed")
    from safetensors.torch import save_file as save_torch

    torch.manual_seed(0)
    more = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    theirs = getattr(torchvision.models, name)(num_classes=10, **more)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    theirs.eval()
    save_torch(theirs.state_dict(), tmp_path / f"{name}.safetensors")
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.double()(torch.from_numpy(x).double()).numpy()
        plain = theirs.float()(torch.from_numpy(x)).numpy()
    got = dlgpu.load(tmp_path / f"{name}.safetensors")(dlgpu.tensor(x)).numpy()
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() <= 4 * np.abs(plain - expected).max() + 1e-6 * scale


@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        ("alexnet", "alexnet", {"variant": "torchvision"}),
        *((f"vgg{depth}", f"vgg{depth}", {}) for depth in (11, 13, 16, 19)),
        *((f"vgg{depth}_bn", f"vgg{depth}", {"batch_norm": True}) for depth in (11, 13, 16, 19)),
        ("googlenet", "googlenet", {"variant": "torchvision"}),
        *((f"resnet{depth}", f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)),
        ("mobilenet_v2", "mobilenet_v2", {}),
        ("squeezenet1_0", "squeezenet", {}),
        ("squeezenet1_1", "squeezenet", {"version": "1.1"}),
    ],
)
def test_names_and_shapes_are_torchvisions(theirs: str, ours: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with torchvision, which is not installed")
    torchvision = pytest.importorskip("torchvision", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):  # shapes without numbers
        more = {"init_weights": False} if theirs == "googlenet" else {}
        state = getattr(torchvision.models, theirs)(**more).state_dict()
    expected = {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}
    with nn.init.skipped():
        net = models.build(ours, **options)
    assert {name: t.shape for name, t in (*net.named_parameters(), *net.named_buffers())} == expected


# --- what they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("alexnet", dict(image_size=14), "[alexnet] image_size must be at least 15; got 14"),
        ("googlenet", dict(image_size=19), "[googlenet] image_size must be at least 20; got 19"),
        ("resnet50", dict(image_size=7), "[resnet50] image_size must be at least 8; got 7"),
        ("resnet34", dict(num_classes=0), "[resnet34] num_classes must be an int >= 1; got 0"),
        ("mobilenet_v1", dict(width_mult=0.0), "[mobilenet_v1] width_mult must be in (0, 4]; got 0.0"),
        ("mobilenet_v2", dict(width_mult=float("nan")), "[mobilenet_v2] width_mult must be in (0, 4]; got nan"),
        ("squeezenet", dict(bypass="half"), "[squeezenet] unknown bypass 'half'"),
        ("alexnet", dict(variant="papers"), "[alexnet] unknown variant 'papers'; Did you mean 'paper'?"),
    ],
)
def test_bad_arguments(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(DlgpuError) as caught:
        models.build(name, **config)
    assert str(caught.value).startswith(message)


def test_options_as_text() -> None:
    assert models.parse_options("mobilenet_v1", ["width_mult=0.25"]) == {"width_mult": 0.25}
    assert models.parse_options("googlenet", ["aux=false", "variant=paper"]) == {"aux": False, "variant": "paper"}
    assert models.parse_options("mlp", ["hidden=50,20"]) == {"hidden": (50, 20)}
    with pytest.raises(ShapeError, match=r"width_mult must be given as width_mult=<float>; got 'width_mult=wide'"):
        models.parse_options("mobilenet_v1", ["width_mult=wide"])
    with pytest.raises(ShapeError, match=r"\[resnet18\] takes .*; got \['widht'\]"):
        models.parse_options("resnet18", ["widht=16"])


def test_resize_keeps_constants_and_means() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 28, 28), np.float32)
    assert Resize(28)(images, rng) is images
    for size in (14, 32, 56):
        assert Resize(size)(images, rng).shape == (2, 3, size, size)
        np.testing.assert_allclose(Resize(size)(np.ones_like(images), rng), 1, rtol=1e-6)
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32), (1, 1, 4, 4))
    np.testing.assert_allclose(Resize(8)(ramp, rng)[0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], rtol=1e-6)
