"""Every example runs to its end at a small size, writes its picture, and stays short enough to read at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlgpu.run import Config, Run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

# example: (arguments for a quick try, the picture)
QUICK: dict[str, tuple[list[str], str | None]] = {
    "dcgan": (["--images", "64", "--epochs", "1", "--width", "4", "--batch", "32"], "dcgan.png"),
    "initialisation": (["--images", "300"], "initialisation.png"),
    "layerwise_pretraining": (["--images", "300", "--layers", "2", "--epochs", "1"], "layerwise.png"),
    "mnist": (["--images", "300"], None),
    "optimizers": (["--steps", "3"], "optimizers.png"),
    "regularisation": (["--images", "100", "--epochs", "2"], "regularisation.png"),
    "segmentation": (["--steps", "2", "--batch", "2", "--judged", "3"], "segmentation.png"),
    "style_transfer": (["run", "--size", "16", "--steps", "2"], "style.png"),
    "transfer": (["--source-images", "200", "--few", "1", "2", "--repeats", "1"], "transfer.png"),
    "vgg_cifar": (["--data", "digits", "--images", "40", "--epochs", "1", "--widths", "4", "8"], "vgg.png"),
}


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(QUICK)


def run(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", QUICK)
def test_example(name: str, tmp_path: Path) -> None:
    if name == "style_transfer":
        train_on_colours(tmp_path)
    arguments, picture = QUICK[name]
    done = run(name, arguments, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if picture is not None:
        assert done.stdout.endswith(f"wrote {picture}\n")
        with Image.open(tmp_path / picture) as image:
            image.load()
            assert min(image.size) >= 16


@pytest.mark.parametrize("name", QUICK)
def test_examples_are_short_and_listed(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 150
    assert f"| `{name}.py` |" in (EXAMPLES / "README.md").read_text()


def test_style_transfer_takes_any_two_pictures(tmp_path: Path) -> None:
    train_on_colours(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(tmp_path / name)
    few = ["--size", "16", "--steps", "1"]
    done = run("style_transfer", ["run", "a.png", "b.jpg", *few], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "style-alone.png") as image:
        assert image.size == (16, 16)
    done = run("style_transfer", ["run", "a.png", *few], tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("error: there must be two pictures, a photo and a painting, or none; got 1\n")


def train_on_colours(folder: Path) -> None:
    """A run of a colour network."""
    rng = np.random.default_rng(0)
    for half in ("train", "test"):
        for label in ("dark", "light"):
            (folder / "data" / half / label).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 128, (16, 16, 3)) + 127 * (label == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / half / label / f"{number}.png")
    Run.create(folder / "run", Config("vgg_small", dataset=str(folder / "data"), epochs=1)).fit()
