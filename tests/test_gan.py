"""Two networks against each other: what a step means, the same bits twice, and `dlgpu gan` as a user meets it."""

# ruff: noqa: F811  # `cli` is a fixture
from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import COMMAND, Cli, cli, failed, signalled, succeeded  # noqa: F401
from test_run import cached_mnist, metrics, pictures, quick_data, timeless  # noqa: F401  # an autouse fixture

import dlgpu
from dlgpu import checkpoint, data, gan, nn
from dlgpu.data import DataLoader
from dlgpu.errors import CheckpointError, ShapeError, TrainingError
from dlgpu.run import Config, Run

OPTIONS = dict(image_size=28, in_channels=1, latent=3, width=4)
TINY = ["gan", "train", "--width", 4, "--latent", 3, "--limit", 64, "-b", 32]


def fresh(seed: int = 0) -> gan.Networks:
    dlgpu.manual_seed(seed)
    return gan.dcgan(**OPTIONS)


def digits(batch_size: int = 32) -> DataLoader:
    return DataLoader(cached_mnist(True, None).subset(slice(64)), batch_size, shuffle=True)


def bits(networks: gan.Networks) -> list[bytes]:
    return [array.tobytes() for net in networks for array in net.state_dict().values()]


# --- training -----------------------------------------------------------------------------------------------------


def test_training_is_reproducible_to_the_bit() -> None:
    results = []
    for _ in range(2):
        networks, batches = fresh(), []
        rows = list(gan.train(*networks, digits(), 2, after_batch=lambda done=batches: done.append(1)))
        assert len(batches) == 4
        results.append(([timeless(row) for row in rows], bits(networks)))
    assert results[0] == results[1]
    assert [row["epoch"] for row in results[0][0]] == [1, 2]
    assert all(row["seconds"] >= 0 for row in rows)
    assert bits(networks) != bits(fresh())
    assert np.isfinite([[row["discriminator_loss"], row["generator_loss"]] for row in rows]).all()


class Shift(nn.Module):
    """Adds one number to everything: a generator of a single pixel whose gradients can be worked out by hand."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.shift = nn.Parameter(np.full((1, 1, 1, 1), value, np.float32))

    def forward(self, x: dlgpu.Tensor) -> dlgpu.Tensor:
        return x * 0 + self.shift


class Slope(nn.Module):
    """Logits: the pixel times one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(np.full((1, 1), value, np.float32))

    def forward(self, x: dlgpu.Tensor) -> dlgpu.Tensor:
        return x.reshape(-1, 1) @ self.slope


def adam(lr: float) -> Callable[[float], float]:
    """The steps of one number's Adam with betas (0.5, 0.999), from its gradients."""
    moments = np.zeros(2)
    count = 0

    def step(gradient: float) -> float:
        nonlocal count
        count += 1
        moments[:] = 0.5 * moments[0] + 0.5 * gradient, 0.999 * moments[1] + 0.001 * gradient**2
        return -lr * moments[0] / (1 - 0.5**count) / (math.sqrt(moments[1] / (1 - 0.999**count)) + 1e-8)

    return step


def test_steps_by_hand() -> None:
    """Grey pixels against forgeries that are all `g`, told apart by the logits `d * x`: each a network of one number.

    Losses are -log sigmoid(d x) - log(1 - sigmoid(d g)), then -log sigmoid(d g) by the new d.
    """
    grey = data.Dataset(np.full((5, 1, 1, 1), 204, np.uint8), np.zeros(5, np.int64), ("x",), "grey")
    x, g, d, lr = 2 * 204 / 255 - 1, 0.25, 0.5, 0.125
    generator, discriminator = Shift(g), Slope(d)
    sigmoid, make, judge = (lambda z: 1 / (1 + math.exp(-z))), adam(lr), adam(lr)
    for row in gan.train(generator, discriminator, DataLoader(grey, 5), 4, lr=lr):
        judged = -math.log(sigmoid(d * x)) - math.log(1 - sigmoid(d * g))
        d += judge(-x * sigmoid(-d * x) + g * sigmoid(d * g))
        deceived = -math.log(sigmoid(d * g))
        g += make(-d * sigmoid(-d * g))
        # five images' rounding, a few units of 2**-24 each, in four steps of lr
        assert row["discriminator_loss"] == pytest.approx(judged, rel=1e-5)
        assert row["generator_loss"] == pytest.approx(deceived, rel=1e-5)
        assert discriminator.slope.numpy().item() == pytest.approx(d, rel=1e-5)
        assert generator.shift.numpy().item() == pytest.approx(g, rel=1e-5)


def test_a_picture_depends_on_its_noise_alone() -> None:
    generator, discriminator = fresh()
    next(gan.train(generator, discriminator, digits(), 1))
    noise, before = gan.noise(generator, 4), bits((generator, discriminator))
    images = gan.draw(generator, noise)
    assert (images.shape, images.dtype) == ((4, 1, 28, 28), np.float32)
    assert 0 <= images.min() < images.max() <= 1
    np.testing.assert_allclose(gan.draw(generator, noise[1:2]), images[1:2], rtol=0, atol=1e-6)
    assert bits((generator, discriminator)) == before
    assert generator.training


def test_bad_settings_are_refused_at_once() -> None:
    networks = fresh()
    with pytest.raises(ShapeError, match=r"^\[gan\] epochs must be an int >= 1; got 0"):
        gan.train(*networks, digits(), 0)
    with pytest.raises(ShapeError, match=r"^\[Adam\] lr must be a finite number >= 0; got -1"):
        gan.train(*networks, digits(), 1, lr=-1)
    with pytest.raises(ShapeError, match=r"^\[gan\] count must be an int >= 1; got 0"):
        gan.noise(networks[0], 0)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    generator, discriminator = fresh()
    discriminator[0].weight.data[0] = np.nan
    with pytest.raises(TrainingError, match=r"^\[gan\] the losses must stay finite; got nan and nan in epoch 1, batch"):
        list(gan.train(generator, discriminator, digits(), 1))


# --- files --------------------------------------------------------------------------------------------------------


def test_saved_networks_make_the_same_pictures(tmp_path: Path) -> None:
    networks = fresh()
    list(gan.train(*networks, digits(), 1))
    gan.save(tmp_path, networks, OPTIONS, epoch=1)
    loaded, noise = gan.load(tmp_path), gan.noise(networks[0], 5)
    assert bits(loaded) == bits(networks)
    assert gan.draw(loaded[0], noise).tobytes() == gan.draw(networks[0], noise).tobytes()
    assert not any(net.training for net in loaded)

    kept = (tmp_path / gan.FILE).read_bytes()
    networks[1][0].weight.data[0] = np.inf
    with pytest.raises(TrainingError, match=r"got inf or NaN in discriminator\.0\.weight"):
        gan.save(tmp_path, networks, OPTIONS)
    assert (tmp_path / gan.FILE).read_bytes() == kept


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^\[gan\] the folder must hold a GAN's run \(gan\.safetensors\); got"):
        gan.load(tmp_path)
    checkpoint.save(tmp_path / gan.FILE, {"model.w": np.zeros(2)}, {"epoch": 1})
    with pytest.raises(CheckpointError, match=r"must hold the two networks of a DCGAN; got model\.w$"):
        gan.load(tmp_path)
    gan.save(tmp_path, fresh(), OPTIONS | {"width": 5})
    with pytest.raises(CheckpointError, match=r"^\[load_state_dict\] 0\.weight must have shape \(3, 10, 7, 7\); got"):
        gan.load(tmp_path)
    damaged = bytearray((tmp_path / gan.FILE).read_bytes())
    damaged[-1] ^= 1
    (tmp_path / gan.FILE).write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged"):
        gan.load(tmp_path)


# --- the command --------------------------------------------------------------------------------------------------


def test_help(cli: Cli) -> None:
    assert re.search(r"^  gan +Draw pictures .+$", succeeded(cli("--help")), re.MULTILINE)
    for command in ("train", "sample"):
        assert re.search(rf"^  {command} +.+\.$", succeeded(cli("gan", "-h")), re.MULTILINE)
        assert f"\n  dlgpu gan {command}" in succeeded(cli("gan", command, "-h"))


def test_train_and_sample(cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):  # the next free folder
        lines = succeeded(cli(*TINY, "-e", 2)).splitlines()
        folder = tmp_path / f"runs/dcgan-{number}"
        assert lines[0] == "dcgan: 2,766 parameters, mnist: 64 images of 28 x 28"
        assert lines[2] == f"writing runs/dcgan-{number}/"
        assert [line.split()[0] for line in lines[4:7]] == ["epoch", "1", "2"]
        assert len({len(line) for line in lines[4:7]}) == 1
        assert lines[-1] == f"more pictures: dlgpu gan sample runs/dcgan-{number}"
        assert {path.name for path in folder.iterdir()} == {"gan.safetensors", "metrics.jsonl", "samples.png"}
        assert [row["epoch"] for row in metrics(folder)] == [1, 2]
    first, second = tmp_path / "runs/dcgan-1", tmp_path / "runs/dcgan-2"
    for name in ("gan.safetensors", "samples.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert metrics(first) == metrics(second)
    _, info = checkpoint.load(first / gan.FILE)
    assert (info["dcgan"], info["epoch"], info["dataset"]) == (OPTIONS, 2, "mnist")

    assert succeeded(cli("gan", "sample", first, "-o", "a.png")) == "a.png\n"
    assert succeeded(cli("gan", "sample", "runs/dcgan-2")) == "runs/dcgan-2/samples-seed1.png\n"
    succeeded(cli("gan", "sample", first, "--count", 3, "--seed", 2, "-o", "b.png"))
    assert (tmp_path / "a.png").read_bytes() == (second / "samples-seed1.png").read_bytes()
    with Image.open(tmp_path / "a.png") as many, Image.open(tmp_path / "b.png") as few:
        assert many.height > 4 * few.height


def test_images_of_a_folder_are_scaled(cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", (20, 20))
    train = [*TINY, "--data", folder, "-e", 1, "--run", "r"]
    assert failed(cli(*train)) == "[dcgan_generator] image_size must be one of 28, 32, 64; got 20"
    assert "images of 32 x 32\n" in succeeded(cli(*train, "--image-size", 32))
    generator, _ = gan.load(tmp_path / "r")
    assert gan.draw(generator, gan.noise(generator, 1)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnits"], "[data.load] unknown data set, nor an existing folder 'mnits'; Did you mean 'mnist'?"),
        (["--image-size", 30], "[dcgan_generator] image_size must be one of 28, 32, 64; got 30"),
        (["--image-size", 0], "[dcgan_generator] image_size must be one of 28, 32, 64; got 0"),
        (["--epochs", 0], "[gan] epochs must be an int >= 1; got 0"),
        (["--batch-size", 0], "[gan] batch_size must be an int >= 1; got 0"),
        (["--width", 0], "[dcgan_generator] width must be an int >= 1; got 0"),
        (["--latent", -1], "[dcgan_generator] latent must be an int >= 1; got -1"),
        (["--lr", "nan"], "[Adam] lr must be a finite number >= 0; got nan"),
        (["--seed", -1], "[random] seed must be in [0, 2**64); got -1"),
        (["--device", "gpu"], "[backends] unknown backend 'gpu'"),
    ],
)
def test_bad_values_are_one_line(cli: Cli, tmp_path: Path, arguments: list[object], message: str) -> None:
    assert failed(cli("gan", "train", "--limit", 64, *arguments)).startswith(message)
    assert list(tmp_path.iterdir()) == []  # no run folder is left behind


def test_pictures_must_be_square(cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", (8, 9))
    for size in ([], ["--image-size", 32]):
        message = failed(cli(*TINY, "--data", folder, "--run", "r", *size))
        assert message == "[Dataset] images must be square; got 8 x 9 in train"
    assert not (tmp_path / "r").exists()


def test_nothing_is_replaced(cli: Cli, tmp_path: Path) -> None:
    Run.create("mlp", Config("mlp", dataset="mnist", limit=20, epochs=1))
    succeeded(cli(*TINY, "-e", 1, "--run", "r"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for folder in ("mlp", "r", "r/samples.png"):
        message = failed(cli(*TINY, "-e", 1, "--run", folder))
        assert message == f"[gan] --run must name a new or an empty folder; got {folder}"
    message = failed(cli("gan", "sample", "r", "-o", "r/gan.safetensors"))
    assert message == "[gan] --output must name a new file; got r/gan.safetensors"
    message = failed(cli("gan", "sample", "mlp"))
    assert message == "[gan] the folder must hold a GAN's run (gan.safetensors); got mlp"
    assert failed(cli("gan", "sample", "r", "--count", 0)) == "[gan] count must be an int >= 1; got 0"
    assert failed(cli("eval", "r")) == "[run] the folder must hold a run (config.json); got r"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_training_keeps_whole_epochs(tmp_path: Path, number: signal.Signals) -> None:
    command = [*COMMAND, *map(str, TINY), "-e", "100000", "--run", "r"]
    code, rest, err = signalled(command, tmp_path, "    2 ", number)
    assert (code, err) == (128 + number, "")
    last = re.fullmatch(r"interrupted; kept in r/: all up to epoch (\d+)", rest.splitlines()[-1])
    assert last is not None
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert 0 <= int(last[1]) - len(epochs) <= 1
    gan.load(tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"gan.safetensors", "metrics.jsonl", "samples.png"}
