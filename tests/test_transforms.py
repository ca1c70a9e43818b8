"""Batch transforms against slow, obvious loops over single images. The loops draw the same random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlgpu.data import (
    CenterCrop,
    Compose,
    Cutout,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomShift,
    Transform,
)
from dlgpu.data.transforms import _rotate
from dlgpu.errors import DtypeError, ShapeError

ALL: list[Transform] = [
    Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    RandomShift(3, fill=0.25),
    RandomRotation(30),
    RandomHorizontalFlip(),
    RandomCrop(7, padding=2),
    CenterCrop((5, 4)),
    Cutout(3),
]


def batch(count: int = 12, channels: int = 3, height: int = 9, width: int = 8) -> np.ndarray:
    return np.random.default_rng(5).random((count, channels, height, width), np.float32)


def rng(seed: int = 11) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", [*ALL, Compose(ALL)], ids=lambda t: type(t).__name__)
def test_contract(transform: Transform) -> None:
    """float32 out, input untouched, decided by the generator, and the repr builds the same transform."""
    images = batch()
    before = images.copy()
    out = transform(images, rng())
    assert out.dtype == np.float32
    assert out.shape[:2] == images.shape[:2]
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(transform(images, rng()), out)
    assert eval(repr(transform)) == transform


@pytest.mark.parametrize("transform", ALL, ids=lambda t: type(t).__name__)
def test_wrong_images(transform: Transform) -> None:
    with pytest.raises(DtypeError, match=r"float32; got uint8"):
        transform(np.zeros((2, 3, 9, 8), np.uint8), rng())
    with pytest.raises(ShapeError, match=r"\(N, C, H, W\).*got \(3, 9, 8\)"):
        transform(np.zeros((3, 9, 8), np.float32), rng())


@pytest.mark.parametrize("transform", [t for t in ALL if isinstance(t, RandomShift | RandomRotation | RandomCrop)])
def test_images_differ_in_their_draws(transform: Transform) -> None:
    same = np.broadcast_to(batch(count=1), (12, 3, 9, 8))
    assert len({image.tobytes() for image in transform(same, rng())}) > 3


def test_compose_is_one_after_another() -> None:
    images, generator = batch(), rng()
    expected = images
    for transform in ALL:
        expected = transform(expected, generator)
    np.testing.assert_array_equal(Compose(ALL)(images, rng()), expected)


def test_normalize() -> None:
    images = batch()
    mean, std = images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))
    transform = Normalize(mean, std)
    out = transform(images, rng())
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), 1, rtol=1e-6)
    for channel in range(3):
        np.testing.assert_array_equal(out[:, channel], (images[:, channel] - mean[channel]) / std[channel])
    assert repr(Normalize([0.5], [0.25])) == "Normalize(mean=(0.5,), std=(0.25,))"
    with pytest.raises(ShapeError, match="needs 3 channels"):
        transform(images[:, :1], rng())


def shifted(image: np.ndarray, down: int, right: int, fill: float) -> np.ndarray:
    out = np.full_like(image, fill)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


@pytest.mark.parametrize("pixels", [0, 1, 3, 20])
def test_random_shift(pixels: int) -> None:
    images, generator = batch(), rng()
    out = RandomShift(pixels, fill=0.25)(images, rng())
    down = pixels - generator.integers(2 * pixels + 1, size=len(images))
    right = pixels - generator.integers(2 * pixels + 1, size=len(images))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(out[index], shifted(image, down[index], right[index], 0.25))


def test_random_shift_reaches_all_offsets() -> None:
    images = np.zeros((500, 1, 5, 5), np.float32)
    images[:, 0, 2, 2] = 1
    hits = RandomShift(2)(images, rng()).sum(axis=(0, 1))
    assert hits.sum() == 500
    assert (hits > 0).all()


@pytest.mark.parametrize(("size", "padding"), [(7, 0), ((9, 8), 4), ((11, 3), 1), ((1, 1), 0), (12, 2)])
def test_random_crop(size: int | tuple[int, int], padding: int) -> None:
    images, generator = batch(), rng()
    out = RandomCrop(size, padding)(images, rng())
    height, width = (size, size) if isinstance(size, int) else size
    top = generator.integers(9 + 2 * padding - height + 1, size=len(images))
    left = generator.integers(8 + 2 * padding - width + 1, size=len(images))
    assert out.shape == (12, 3, height, width)
    for index, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        y, x = top[index], left[index]
        np.testing.assert_array_equal(out[index], padded[:, y : y + height, x : x + width])


def test_center_crop() -> None:
    images = batch(height=5, width=6)
    np.testing.assert_array_equal(CenterCrop((3, 4))(images, rng()), images[:, :, 1:4, 1:5])
    np.testing.assert_array_equal(CenterCrop(4)(images, rng()), images[:, :, 0:4, 1:5])  # odd pixel at the end


def test_horizontal_flip() -> None:
    images = batch(count=200)
    np.testing.assert_array_equal(RandomHorizontalFlip(0.0)(images, rng()), images)
    np.testing.assert_array_equal(RandomHorizontalFlip(1.0)(images, rng()), images[:, :, :, ::-1])
    out = RandomHorizontalFlip(0.25)(images, rng())
    chosen = rng().random(200) < 0.25
    for index, image in enumerate(images):
        np.testing.assert_array_equal(out[index], np.flip(image, axis=2) if chosen[index] else image)
    assert 30 < chosen.sum() < 70


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_cutout(size: int) -> None:
    images, generator = batch() + 1, rng()
    out = Cutout(size)(images, rng())
    rows, columns = (generator.integers(length, size=len(images)) for length in (9, 8))
    for index, image in enumerate(images):
        expected = image.copy()
        for y in range(9):
            for x in range(8):
                top, left = rows[index] - size // 2, columns[index] - size // 2
                if top <= y < top + size and left <= x < left + size:
                    expected[:, y, x] = 0
        np.testing.assert_array_equal(out[index], expected)


def rotated(image: np.ndarray, degrees: float, fill: float) -> np.ndarray:
    """Bilinear rotation in float64, pixel by pixel."""
    _, height, width = image.shape
    angle = np.deg2rad(degrees)

    def pixel(y: int, x: int) -> np.ndarray:
        inside = 0 <= y < height and 0 <= x < width
        return image[:, y, x].astype(np.float64) if inside else np.full(len(image), fill)

    out = np.empty(image.shape)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            from_y = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2
            from_x = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2
            top, left = int(np.floor(from_y)), int(np.floor(from_x))
            down, right = from_y - top, from_x - left
            out[:, row, column] = (
                (1 - down) * (1 - right) * pixel(top, left)
                + (1 - down) * right * pixel(top, left + 1)
                + down * (1 - right) * pixel(top + 1, left)
                + down * right * pixel(top + 1, left + 1)
            )
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-400, 400), st.floats(-1, 1))
def test_rotation_equals_the_loop(height: int, width: int, degrees: float, fill: float) -> None:
    images = batch(count=2, channels=2, height=height, width=width)
    out = _rotate(images, np.array([degrees, -degrees]), fill)
    np.testing.assert_allclose(out[0], rotated(images[0], degrees, fill), atol=2e-5)
    np.testing.assert_allclose(out[1], rotated(images[1], -degrees, fill), atol=2e-5)


def test_random_rotation_draws_one_angle_per_image() -> None:
    images = batch()
    out = RandomRotation(30, fill=0.5)(images, rng())
    angles = rng().uniform(-30, 30, len(images))
    assert angles.min() < 0 < angles.max()
    for index, image in enumerate(images):
        np.testing.assert_allclose(out[index], rotated(image, angles[index], 0.5), atol=2e-5)


def test_rotation_by_nothing_is_the_identity() -> None:
    images = batch()
    np.testing.assert_array_equal(RandomRotation(0)(images, rng()), images)


@pytest.mark.parametrize("size", [7, 28, 32])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_rotation_by_quarters_is_rot90(size: int, turns: int) -> None:
    images = batch(height=size, width=size)
    out = _rotate(images, np.full(len(images), 90.0 * turns), 0.0)
    np.testing.assert_allclose(out, np.rot90(images, turns, axes=(2, 3)), atol=1e-5)


def test_rotation_keeps_constant_images_inside() -> None:
    images = np.full((20, 1, 28, 28), 0.7, np.float32)
    out = RandomRotation(45)(images, rng())
    y, x = np.mgrid[:28, :28] - 13.5
    np.testing.assert_array_equal(out[:, 0, np.hypot(y, x) < 13], np.float32(0.7))
    assert out.min() == 0  # the corners left the image
    np.testing.assert_array_equal(RandomRotation(45, fill=0.7)(images, rng()), images)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Normalize((0.5,), (0.5, 0.5)), "one length"),
        (lambda: Normalize((), ()), "one length"),
        (lambda: Normalize((0.5,), (0.0,)), "std be > 0"),
        (lambda: RandomShift(-1), "max_pixels must be at least 0; got -1"),
        (lambda: RandomRotation(-1.0), "degrees must be at least 0"),
        (lambda: RandomHorizontalFlip(1.5), "p must be in"),
        (lambda: RandomHorizontalFlip(-0.5), "p must be in"),
        (lambda: RandomCrop(0), "size must be at least 1"),
        (lambda: RandomCrop(3, padding=-1), "padding must be at least 0"),
        (lambda: CenterCrop((3, 0)), "size must be at least 1"),
        (lambda: Cutout(0), "size must be at least 1"),
        (lambda: RandomCrop(10)(batch(), rng()), r"H >= 10 and W >= 10; got \(12, 3, 9, 8\)"),
        (lambda: RandomCrop(13, padding=2)(batch(), rng()), "H >= 9 and W >= 9"),
        (lambda: CenterCrop((9, 9))(batch(), rng()), "W >= 9"),
    ],
)
def test_wrong_arguments(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(ShapeError, match=rule) as error:
        make()
    message = str(error.value)
    assert message.startswith("[")
    assert "\n" not in message
