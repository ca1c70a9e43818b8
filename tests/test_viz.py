"""The pictures: valid PNGs, the same bytes twice, clear errors, and an earlier picture that survives them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from dlgpu import viz
from dlgpu.errors import DtypeError, ShapeError

Draw = Callable[[Path], None]


def history(epochs: int, split: str = "test") -> list[dict[str, float]]:
    return [
        {
            "epoch": e,
            "train_loss": 0.5 / e,
            "train_accuracy": 1 - 0.1 / e,
            f"{split}_loss": 0.1 / e,
            f"{split}_accuracy": 1 - 0.05 / e,
            "lr": 0.1,
            "seconds": 2.5,
        }
        for e in range(1, epochs + 1)
    ]


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


NAMES = [f"a long name, ${i}_" for i in range(40)]

PICTURES: dict[str, Draw] = {
    "curves": lambda path: viz.curves(history(5), path, "MNIST"),
    "curves-1": lambda path: viz.curves(history(1), path),
    "curves-200": lambda path: viz.curves(history(200, "valid"), path),
    "filters-grey": lambda path: viz.filters(normal(6, 1, 5, 5), normal(6, 1, 5, 5), path, "LeNet, $5"),
    "filters-rgb": lambda path: viz.filters(normal(96, 3, 7, 7), normal(96, 3, 7, 7), path),
    "filters-mean": lambda path: viz.filters(
        normal(7, 4, 3, 1, dtype=ml_dtypes.bfloat16), normal(7, 4, 3, 1, dtype=np.float16), path
    ),
    "filters-constant": lambda path: viz.filters(np.zeros((2, 1, 3, 3)), np.full((2, 1, 3, 3), math.inf), path),
    "confusion": lambda path: viz.confusion(np.eye(10, dtype=np.int64) * 1000, NAMES[:10], path, "CIFAR-10"),
    "confusion-1": lambda path: viz.confusion(np.zeros((1, 1)), ["only"], path),
    "confusion-40": lambda path: viz.confusion(np.eye(40) * 7.5, NAMES, path),
    "activations": lambda path: viz.activations(
        np.abs(normal(3, 8, 8)), {"a": normal(6, 8, 8), "b $ c": normal(40, 3, 5)}, path, "a $ title"
    ),
    "activations-1": lambda path: viz.activations(normal(1, 9, 7), {"dead": np.zeros((1, 2, 2))}, path),
    "saliency": lambda path: viz.saliency(np.abs(normal(5, 1, 9, 9)), np.abs(normal(5, 9, 9)), path, NAMES[:5]),
    "saliency-rgb": lambda path: viz.saliency(np.full((2, 3, 8, 8), 9, np.uint8), np.zeros((2, 8, 8)), path),
    "grid": lambda path: viz.image_grid(normal(11, 3, 8, 8), path, NAMES[:11], title="a $ title"),
    "grid-uint8": lambda path: viz.image_grid(np.full((2, 1, 28, 28), 128, np.uint8), path),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_a_png_of_sensible_size_and_the_same_bytes_twice(draw: Draw, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw(first)
    draw(second)
    height, width, _ = pixels(first).shape
    assert 100 < height < 3000
    assert 100 < width < 3000
    assert pixels(first).min() < 200  # there is ink on the paper
    assert first.read_bytes() == second.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png"}  # no temporary file is left


def test_no_ink_touches_the_border(tmp_path: Path) -> None:
    for name, draw in PICTURES.items():
        draw(tmp_path / name)
        picture = pixels(tmp_path / name)
        for border in picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]:
            assert (border == 255).all(), f"{name} is cut off"


FAILURES: dict[str, Draw] = {
    "no rows": lambda path: viz.curves([], path),
    "no epoch": lambda path: viz.curves([{"train_loss": 1.0}], path),
    "no known key": lambda path: viz.curves([{"epoch": 1, "loss": 1.0}], path),
    "filters of rank 3": lambda path: viz.filters(normal(4, 3, 3), normal(4, 3, 3), path),
    "two shapes": lambda path: viz.filters(normal(4, 1, 3, 3), normal(4, 1, 5, 5), path),
    "no filters": lambda path: viz.filters(normal(0, 1, 3, 3), normal(0, 1, 3, 3), path),
    "not square": lambda path: viz.confusion(np.zeros((2, 3)), ["a", "b"], path),
    "matrix of rank 1": lambda path: viz.confusion(np.zeros(4), ["a", "b"], path),
    "no classes": lambda path: viz.confusion(np.zeros((0, 0)), [], path),
    "names missing": lambda path: viz.confusion(np.eye(3), ["a", "b"], path),
    "negative": lambda path: viz.confusion(-np.eye(2), ["a", "b"], path),
    "NaN count": lambda path: viz.confusion(np.full((2, 2), math.nan), ["a", "b"], path),
    "image of rank 4": lambda path: viz.activations(normal(1, 1, 8, 8), {"a": normal(6, 8, 8)}, path),
    "no layers": lambda path: viz.activations(normal(1, 8, 8), {}, path),
    "maps of rank 2": lambda path: viz.activations(normal(1, 8, 8), {"a": normal(8, 8)}, path),
    "maps of another size": lambda path: viz.saliency(normal(2, 1, 8, 8), normal(2, 8, 9), path),
    "images of rank 3": lambda path: viz.image_grid(normal(4, 8, 8), path),
    "no images": lambda path: viz.image_grid(normal(0, 1, 8, 8), path),
    "two channels": lambda path: viz.image_grid(normal(4, 2, 8, 8), path),
    "captions missing": lambda path: viz.image_grid(normal(4, 1, 8, 8), path, ["one"]),
    "mask of rank 3": lambda path: viz.mask(np.zeros((1, 2, 2), int), 3, path),
    "mask without pixels": lambda path: viz.mask(np.zeros((0, 2), int), 3, path),
    "a class too many": lambda path: viz.mask(np.full((2, 2), 3), 3, path),
    "a class below 0": lambda path: viz.mask(np.full((2, 2), -100), 3, path),
    "too many classes": lambda path: viz.mask(np.zeros((2, 2), int), 257, path),
    "no columns": lambda path: viz.image_grid(normal(4, 1, 8, 8), path, columns=0),
}


@pytest.mark.parametrize("draw", FAILURES.values(), ids=FAILURES)
def test_wrong_input_is_one_line_and_leaves_the_picture(draw: Draw, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"earlier")
    with pytest.raises(ShapeError, match=r"^\[viz\.\w+\] .*; got .*$") as caught:
        draw(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"earlier"


def test_wrong_dtypes(tmp_path: Path) -> None:
    ints = np.ones((2, 1, 3, 3), np.int64)
    with pytest.raises(DtypeError, match=r"\[viz.filters\] .*; got int64 and int64"):
        viz.filters(ints, ints, tmp_path / "a.png")
    with pytest.raises(DtypeError, match=r"\[viz.image_grid\] .*; got int64"):
        viz.image_grid(ints, tmp_path / "a.png")
    with pytest.raises(DtypeError, match=r"\[viz.mask\] .*; got float64"):
        viz.mask(np.zeros((2, 2)), 3, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_an_error_while_drawing_leaves_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: object, file: Any, **kwargs: object) -> None:
        file.write(b"half a pict")
        raise OSError("No space left on device")

    path = tmp_path / "a.png"
    viz.curves(history(2), path)
    earlier = path.read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(OSError, match="No space"):
        viz.curves(history(3), path)
    assert path.read_bytes() == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_value_that_is_no_number_is_left_out(bad: Any, rows: int, tmp_path: Path) -> None:
    """A history row without the value draws the same picture as one that holds NaN."""
    broken, absent = history(6), history(6)
    for b, a in zip(broken[:rows], absent[:rows], strict=True):
        b["test_loss"] = b["train_accuracy"] = bad
        del a["test_loss"], a["train_accuracy"]
    viz.curves(broken, tmp_path / "broken.png")
    viz.curves(absent, tmp_path / "absent.png")
    same = (tmp_path / "broken.png").read_bytes() == (tmp_path / "absent.png").read_bytes()
    assert same


def test_nothing_but_nan(tmp_path: Path) -> None:
    viz.curves([{"epoch": 1, "train_loss": math.nan, "train_accuracy": math.nan}], tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").min() < 100


def test_an_image_pixel_is_a_block_of_exact_colour(tmp_path: Path) -> None:
    images = np.zeros((1, 3, 2, 2), np.uint8)
    images[0, :, 0, 1] = 200, 10, 30
    viz.image_grid(images, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    assert (picture == (200, 10, 30)).all(axis=2).sum() == 70 * 70
    assert (picture == 0).all(axis=2).sum() == 3 * 70 * 70


def test_a_mask_holds_classes_and_shows_colours(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 256, (5, 7))
    viz.mask(classes, 256, tmp_path / "a.png", size=(15, 7))
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), classes.repeat(3, axis=0))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[::3], viz.class_colours(256)[classes])
    # VOC's development kit: background, aeroplane, bicycle, bird, ..., cat (8), ..., tv/monitor (20)
    voc = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128)}
    for number, colour in voc.items():
        assert tuple(viz.class_colours(21)[number]) == colour
    assert len({tuple(colour) for colour in viz.class_colours(256)}) == 256


def test_floats_are_clipped_and_nan_is_black(tmp_path: Path) -> None:
    wild = np.array([-3, 0, math.nan, 0.5], np.float32).reshape(1, 1, 2, 2)
    tame = np.array([0, 0, 0, 0.5], np.float32).reshape(1, 1, 2, 2)
    viz.image_grid(wild, tmp_path / "wild.png")
    viz.image_grid(tame, tmp_path / "tame.png")
    np.testing.assert_array_equal(pixels(tmp_path / "wild.png"), pixels(tmp_path / "tame.png"))


def test_a_side_of_filters_has_one_scale(tmp_path: Path) -> None:
    """Black is the smallest weight of the side, white the largest, also when they sit in different filters."""
    before = np.zeros((2, 1, 1, 1), np.float32)
    before[1] = 5
    viz.filters(before, before[::-1], tmp_path / "a.png")
    row = pixels(tmp_path / "a.png")[-2 * viz.MARGIN - 50]
    colours = [tuple(colour) for i, colour in enumerate(row.tolist()) if i == 0 or colour != row[i - 1].tolist()]
    paper, black, edge = (255, 255, 255), (0, 0, 0), tuple(int(255 * c) for c in viz.EDGE)
    # Paper, then (edge, black, edge), paper, (edge, white, edge), paper; the right side the other way round.
    kinds = ["edge" if max(abs(a - b) for a, b in zip(c, edge, strict=True)) < 2 else c for c in colours]
    first, last = ["edge", black, "edge"], ["edge", paper, "edge"]
    assert kinds == [paper, *first, paper, *last, paper, *last, paper, *first, paper]


def test_importing_and_drawing_touch_no_global_state(tmp_path: Path) -> None:
    script = (
        "import sys, numpy; from dlgpu import viz; assert 'matplotlib' not in sys.modules\n"
        f"viz.image_grid(numpy.zeros((1, 1, 4, 4)), {str(tmp_path / 'a.png')!r}, ['x'], title='y')\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
