"""The larger networks from the command line: their options and sizes, and segmentation from training to report."""

# ruff: noqa: F811  # `cli` is a fixture
from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import Cli, cli, failed, succeeded  # noqa: F401
from test_run import quick_data  # noqa: F401  # an autouse fixture

import dlgpu
from dlgpu import data, viz
from dlgpu.run import Config, Run, load_model, read_config

SMALL_MOBILE = ["--image-size", 8, "--model-option", "width_mult=0.25"]
few_shapes = cache(lambda train, root: data.shapes(train, root).subset(slice(20)))


@pytest.fixture(autouse=True)
def quick_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "shapes", few_shapes)


def test_train_with_options_and_size(cli: Cli, tmp_path: Path) -> None:
    arguments = ["train", "mobilenet_v1", "--data", "mnist", "--limit", 20, "-e", 1, "-b", 10, "--run", "r"]
    out = succeeded(cli(*arguments, *SMALL_MOBILE))
    assert "\nwriting r/\n" in out
    assert out.startswith("mobilenet_v1: 2")  # 217,... thousand parameters, not four million
    model, config = load_model(tmp_path / "r")
    assert (config.image_size, config.model_options) == (8, ("width_mult=0.25",))
    assert model.classifier[0].weight.shape == (10, 256)
    assert re.search(r"^test accuracy \d+\.\d\d%", succeeded(cli("eval", "r")), re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "mobilenet_v1", "--model-option", "width_mult=9"],
            "[mobilenet_v1] width_mult must be in (0, 4]; got 9.0",
        ),
        (
            ["train", "mobilenet_v2", "--model-option", "width_mult=half"],
            "[mobilenet_v2] width_mult must be given as width_mult=<float>; got 'width_mult=half'",
        ),
        (
            ["train", "resnet18", "--model-option", "widht=8"],
            "[resnet18] takes ['image_size', 'in_channels', 'num_classes', 'width']; got ['widht']",
        ),
        (
            ["train", "squeezenet", "--model-option", "bypass=half"],
            "[squeezenet] unknown bypass 'half'",
        ),
        (["train", "alexnet", "--image-size", "14"], "[alexnet] image_size must be at least 15; got 14"),
        (["train", "vgg11", "--image-size", "20"], "[vgg11] image_size must be a multiple of 32"),
        (["models", "googlenet", "--image-size", "19"], "[googlenet] image_size must be at least 20; got 19"),
        (
            ["train", "mlp", "--model-option", "num_classes=7"],
            "[run] num_classes, in_channels, image_size must come from the data",
        ),
        (
            ["train", "mlp", "--lr-scale", "1=-2"],
            "[run] lr_scale must be given as PART=FACTOR, with a factor >= 0; got '1=-2'",
        ),
        (
            ["train", "mlp", "--lr-scale", "1"],
            "[run] lr_scale must be given as PART=FACTOR, with a factor >= 0; got '1'",
        ),
        (
            ["train", "mlp", "--layerwise", "-1"],
            "[run] layerwise must be epochs >= 0 that begin with fresh weights; got -1",
        ),
        (
            ["train", "mlp", "--layerwise", "1", "--from", "r"],
            "[run] layerwise must be epochs >= 0 that begin with fresh",
        ),
        (["train", "resnet18", "--layerwise", "1"], "[pretrain] the model must be a Sequential of two or more "),
        (["train", "mlp", "--lr-scale", "head=2"], "[transfer] unknown part of the model 'head'"),
        (["models", "resnet50", "--num-classes", "0"], "[resnet50] num_classes must be an int >= 1; got 0"),
        (["models", "fcn8s", "--image-size", "48"], "[fcn8s] height and width must be multiples of 32"),
        (["models", "fcn8s", "--model-option", "trunk=smal"], "[fcn8s] unknown trunk 'smal'; Did you mean 'small'?"),
        (["train", "fcn8s", "--data", "mnist"], "[run] fcn8s learns a label per pixel; got labels per image in mnist"),
        (["train", "mlp", "--data", "shapes"], "[run] mlp learns a label per image; got labels per pixel in shapes"),
        (
            ["train", "fcn8s", "--augment", "flip"],
            "[run] with labels per pixel, images must stay as they are; got flip",
        ),
        (
            ["train", "fcn8s", "--image-size", "32"],
            "[run] with labels per pixel, images must stay as they are; got image size 32",
        ),
    ],
)
def test_bad_values_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    if arguments[0] == "train" and "--data" not in arguments and not arguments[1].startswith("fcn"):
        arguments = [*arguments, "--data", "mnist"]
    assert failed(cli(*arguments)).startswith(message)
    assert list(tmp_path.iterdir()) == []  # no run folder is left behind


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        (["alexnet"], "60,965,224"),
        (["googlenet", "--model-option", "variant=torchvision", "--model-option", "aux=false"], "6,624,904"),
        (["inception_v2", "--num-classes", "10", "--image-size", "32"], None),
        (["resnet34", "--model-option", "width=16", "--image-size", "32"], None),
        (["mobilenet_v1", "--model-option", "width_mult=0.25"], "470,072"),
        (["mobilenet_v2"], "3,504,872"),
        (["squeezenet", "--model-option", "bypass=complex"], "1,589,672"),
        (["fcn32s", "--model-option", "trunk=small", "--image-size", "64"], None),
        (["fcn8s"], None),
    ],
)
def test_layer_tables(cli: Cli, arguments: list[str], parameters: str | None) -> None:
    out = succeeded(cli("models", *arguments))
    assert "Conv2d" in out
    if parameters is not None:
        assert parameters in out.splitlines()[-1]


def test_segmentation_from_training_to_report(cli: Cli, tmp_path: Path) -> None:
    train = ["train", "fcn8s", "--model-option", "trunk=small", "--limit", 12, "-e", 1, "-b", 6, "--mixup", 0.2]
    assert "fcn8s: 194,636 parameters, shapes: 12 images" in succeeded(cli(*train, "--run", "r"))
    assert read_config(tmp_path / "r").classes == ("background", "disc", "square", "triangle")
    judged = succeeded(cli("eval", "r", "--which", "last"))
    assert judged.split()[:4] == ["class", "pixels", "correct", "accuracy"]
    assert re.search(r"^test accuracy \d+\.\d\d% \([\d,]+ of 81,920\)$", judged, re.MULTILINE)  # 20 * 64 * 64
    assert re.search(r"^mean IoU \d+\.\d\d%$", judged, re.MULTILINE)
    for kind in ("confusion", "activations", "filters"):
        succeeded(cli("viz", kind, "r"))
        assert (tmp_path / "r" / f"{kind}.png").exists()
    succeeded(cli("report", "r"))
    page = (tmp_path / "r/report.html").read_text()
    assert "<span>mean IoU</span>" in page
    assert "istakes" not in page
    once = "the network must give one class per image; got fcn8s, one per pixel"
    assert failed(cli("viz", "saliency", "r")) == f"[viz saliency] {once}"
    assert failed(cli("eval", "r", "--data", "mnist")).startswith("[run] fcn8s learns a label per pixel")


def test_predict_colours_every_pixel(cli: Cli, tmp_path: Path) -> None:
    run = Run.create("r", Config("fcn8s", model_options=("trunk=small",), limit=12, epochs=1, batch_size=6))
    scores = run.trainer.model.scores[1].weight.data  # without these, two steps would call everything background
    scores[...] = np.random.default_rng(0).normal(0, 5, scores.shape)
    run.fit()
    images = data.shapes(train=False).images[:2].transpose(0, 2, 3, 1)
    for name, image in zip(("a.png", "b.png"), images, strict=True):
        Image.fromarray(image).resize((128, 192)).save(tmp_path / name)
    lines = succeeded(cli("predict", "r", "a.png", "b.png", "--top", 4)).splitlines()
    assert [lines[0], lines[5], lines[6], lines[11]] == ["a.png", "  r/a-classes.png", "b.png", "  r/b-classes.png"]
    model, config = load_model("r")
    colours = viz.class_colours(4)
    for name, block in (("a", lines[1:5]), ("b", lines[7:11])):
        with Image.open(tmp_path / "r" / f"{name}-classes.png") as picture:
            assert picture.size == (128, 192)
            classes, shown = np.asarray(picture), np.asarray(picture.convert("RGB"))
        pixels = data.load_image(tmp_path / f"{name}.png", 64)[None] / np.float32(255)
        batch = config.transform(augment=False)(pixels, np.random.default_rng(0))
        expected = model(dlgpu.tensor(batch)).argmax(1).numpy()[0]
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(classes, expected.repeat(3, axis=0).repeat(2, axis=1))
        np.testing.assert_array_equal(shown, colours[classes])
        shares = {line.split()[1]: line.split() for line in block}
        for number, label in enumerate(config.classes):
            percent, _, colour = shares[label]
            assert percent == f"{(expected == number).mean():.2%}"
            assert colour == f"#{bytes(colours[number]).hex()}"
    succeeded(cli("predict", "r", "a.png", "-o", "new/mask.png"))
    assert (tmp_path / "new/mask.png").read_bytes() == (tmp_path / "r/a-classes.png").read_bytes()


def test_predict_replaces_nothing(cli: Cli, tmp_path: Path) -> None:
    Run.create("r", Config("fcn8s", model_options=("trunk=small",), limit=2, epochs=1)).fit()
    Run.create("mlp", Config("mlp", dataset="mnist", limit=20, epochs=1)).fit()
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    replaced = "[predict] what is written must not replace a picture; got"
    for arguments, message in (
        (["r", "a.png", "-o", "a.png"], f"{replaced} a.png"),
        (["r", "a.png", "x/a.png"], f"{replaced} r/a-classes.png, r/a-classes.png"),
        (["r", "a.png", "b.png", "-o", "c.png"], "[predict] --output takes the classes of one picture; got 2"),
        (
            ["mlp", "a.png", "-o", "c.png"],
            "[predict] --output is for segmentation networks; got one class per image, mlp",
        ),
        (["r", "c.png"], "[load_image] c.png must be a readable picture; got "),
    ):
        assert failed(cli("predict", *arguments)).startswith(message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_train_says_what_other_weights_lack(cli: Cli, tmp_path: Path) -> None:
    Run.create("old", Config("mlp", dataset="mnist", limit=20, epochs=1)).fit()
    other = ["train", "mlp", "--model-option", "hidden=100,50", "--limit", 20, "-e", 1, "--from", "old"]
    out = succeeded(cli(*other, "--lr-scale", "1=0.1", "--run", "new"))
    assert "\nweights of old; fresh: 3.weight, 3.bias, 5.weight, 5.bias\nwriting new/\n" in out
    before = sorted(tmp_path.iterdir())
    message = failed(cli("train", "simple_convnet", "--limit", 20, "--from", "old", "--run", "none"))
    assert message == (
        "[load_matching] some weights must fit Sequential by name and shape; got missing: affine1.bias, "
        "affine1.weight, affine2.bias, affine2.weight, conv1.bias and 1 more; "
        "unexpected: 1.bias, 1.weight, 3.bias, 3.weight; of another shape: none"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_train_from_the_bottom_up(cli: Cli) -> None:
    few = ["--limit", 20, "-e", 1, "-b", 10, "--validation", 5]
    lines = succeeded(cli("train", "simple_convnet", *few, "--layerwise", 1, "--run", "r")).splitlines()
    for number in (1, 2):
        assert re.fullmatch(rf"layer {number}: valid accuracy \d+\.\d\d%, \d+\.\d\d s", lines[3 + number])
    assert lines[6].startswith("epoch ")
    assert read_config("r").layerwise == 1
