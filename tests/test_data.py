"""Data sets, their files and the loader. Every damaged file here is a truly damaged file."""

from __future__ import annotations

import gc
import gzip
import hashlib
import importlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dlgpu import files
from dlgpu.data import (
    DATASETS,
    Compose,
    DataLoader,
    Dataset,
    RandomRotation,
    RandomShift,
    cifar,
    cifar10,
    fashion_mnist,
    image_folder,
    load,
    load_idx,
    load_image,
    mnist,
)
from dlgpu.errors import DataError, DtypeError, ShapeError, UnknownName

mnist_module = importlib.import_module("dlgpu.data.mnist")  # the package's attribute `mnist` is the function


def random_set(count: int = 23, channels: int = 1, size: int = 8) -> Dataset:
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (count, channels, size, size), np.uint8)
    return Dataset(images, rng.integers(0, 3, count), ("a", "b", "c"), "random")


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message.startswith("[")
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return mnist()


# Dataset


def test_dataset_checks_its_arrays() -> None:
    images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.int64)
    with pytest.raises(DtypeError, match="uint8"):
        Dataset(images.astype(np.float32), labels, ("a",), "x")
    with pytest.raises(DtypeError, match="int64"):
        Dataset(images, labels.astype(np.int32), ("a",), "x")
    with pytest.raises(DataError, match=r"\(N, C, H, W\).*\(4, 2, 2\)"):
        Dataset(images[:, 0], labels, ("a",), "x")
    with pytest.raises(DataError, match=r"\(3,\)"):
        Dataset(images, labels[:3], ("a",), "x")
    for wrong in (-1, 1):
        with pytest.raises(DataError, match=r"labels must be in 0\.\.0"):
            Dataset(images, np.array([0, 0, wrong, 0]), ("a",), "x")
    assert repr(Dataset(images, labels, ("a",), "x")) == "Dataset('x', 4 images of 1x2x2, 1 classes)"


def test_subset_takes_slices_and_indices() -> None:
    data = random_set()
    part = data.subset(slice(2, 5))
    assert np.shares_memory(part.images, data.images)
    np.testing.assert_array_equal(part.labels, data.labels[2:5])
    part = data.subset([5, 0])
    np.testing.assert_array_equal(part.images, data.images[[5, 0]])
    assert (len(part), part.classes, part.name) == (2, data.classes, data.name)


def test_split_is_a_seeded_partition() -> None:
    data = Dataset(np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), np.zeros(20, np.int64), ("a",), "x")
    first, second = data.split(0.25, seed=3)
    assert (len(first), len(second)) == (5, 15)
    assert sorted([*first.images.ravel(), *second.images.ravel()]) == list(range(20))
    np.testing.assert_array_equal(data.split(5, seed=3)[0].images, first.images)
    assert not np.array_equal(data.split(5, seed=4)[0].images, first.images)
    for size in (0, 20, -1, 0.0, 1.0):
        with pytest.raises(DataError, match="both parts"):
            data.split(size, seed=0)


def test_mean_std_equals_the_float_computation() -> None:
    data = random_set(count=2500, channels=3, size=4)  # more than two chunks
    mean, std = data.mean_std()
    floats = data.images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, floats.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, floats.std(axis=(0, 2, 3)), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32
    with pytest.raises(DataError, match="0 images"):
        data.subset(slice(0)).mean_std()


# IDX


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_load_idx_reads_plain_and_gzipped(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "file"
    path.write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(load_idx(path), array)


def damages() -> Iterator[tuple[str, bytes, str]]:
    good = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    packed = gzip.compress(good)
    yield "empty", b"", "must begin with"
    yield "magic", b"\x01" + good[1:], "must begin with 00 00 08"
    yield "type", good[:2] + b"\x0d" + good[3:], "must begin with 00 00 08"
    yield "header cut", good[:10], "its dimensions"
    yield "data cut", good[:-1], "must have 24 bytes of data.*got 23"
    yield "trailing bytes", good + b"\0", "must have 24 bytes of data.*got 25"
    yield "wrong count", good[:4] + struct.pack(">I", 3) + good[8:], "must have 36 bytes of data.*got 24"
    yield "gzip cut", packed[:-9], "must be a complete file.*EOFError"
    yield "gzip header cut", packed[:5], "must be a complete file"
    yield "gzip bit flip", packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:], "must be a complete file.*CRC"
    yield "gzip then garbage", packed + b"garbage", "must be a complete file"
    yield "gzip broken stream", packed[:10] + b"\xff" * 20 + packed[30:], "must be a complete file"


@pytest.mark.parametrize(("content", "rule"), [pytest.param(c, r, id=n) for n, c, r in damages()])
def test_load_idx_names_the_damaged_file(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "broken-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as error:
        load_idx(path)
    assert str(path) in one_line(error)


def test_load_idx_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_idx(tmp_path / "none")


# MNIST and Fashion-MNIST


def test_mnist_has_the_known_counts(digits: Dataset) -> None:
    test = mnist(train=False)
    assert digits.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    histogram = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(digits.labels).tolist() == histogram
    mean, std = digits.mean_std()
    assert (round(float(mean[0]), 4), round(float(std[0]), 4)) == (0.1307, 0.3081)


def test_mnist_refuses_another_files_content(tmp_path: Path) -> None:
    """A valid IDX file that is not MNIST's is caught by its sum, and one that is cut by gzip."""
    for file in mnist_module.TEST_FILES:
        (tmp_path / file).write_bytes((mnist_module.MNIST_FOLDER / file).read_bytes())
    assert len(mnist(False, tmp_path)) == 10_000
    labels = tmp_path / mnist_module.TEST_FILES[1]
    good = bytearray(gzip.decompress(labels.read_bytes()))
    good[100] ^= 1
    labels.write_bytes(gzip.compress(bytes(good)))
    with pytest.raises(DataError, match="checksum") as error:
        mnist(False, tmp_path)
    assert str(labels) in one_line(error)
    labels.write_bytes(labels.read_bytes()[:-20])
    with pytest.raises(DataError, match="complete file"):
        mnist(False, tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="No such file"):
        mnist(False, tmp_path)


@pytest.mark.skipif(
    not mnist_module.FASHION_DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian_is_the_official_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DLGPU_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    train, test = fashion_mnist(), fashion_mnist(train=False)  # sums are checked inside
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.classes[9] == "Ankle boot"
    # gzip's header with the name and date that Debian removed: the official sum of this file.
    packed = (mnist_module.FASHION_DEBIAN / "t10k-labels-idx1-ubyte.gz").read_bytes()
    official = b"\x1f\x8b\x08\x08" + struct.pack("<I", 1504176627) + packed[8:10] + b"t10k-labels-idx1-ubyte\0"
    md5 = hashlib.md5(official + packed[10:]).hexdigest()
    assert md5 == mnist_module.FASHION_MD5["t10k-labels-idx1-ubyte.gz"]


def refuse(url: str, timeout: float) -> None:
    raise urllib.error.URLError("no network in this test")


@pytest.fixture
def bare_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any data set: an empty home, no $DLGPU_DATA, no Debian package."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DLGPU_DATA", raising=False)
    monkeypatch.setattr(mnist_module, "FASHION_DEBIAN", tmp_path / "not-installed")
    return home


@pytest.fixture
def fashion_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that plays the official site, with two tiny training files whose sums are the expected ones."""
    site = tmp_path / "site"
    site.mkdir()
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    for file, array in zip(mnist_module.TRAIN_FILES, arrays, strict=True):
        content = idx_bytes(array)
        packed = gzip.compress(content)
        (site / file).write_bytes(packed)
        monkeypatch.setitem(mnist_module.FASHION_MD5, file, hashlib.md5(packed).hexdigest())
        monkeypatch.setitem(mnist_module.FASHION_SHA256, file, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist_module, "FASHION_URL", site.as_uri())
    return site


def test_fashion_mnist_downloads_once(bare_home: Path, fashion_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fashion_mnist()
    assert (len(data), data.labels.tolist()) == (5, [0, 1, 2, 3, 4])
    cache = bare_home / ".cache" / "dlgpu" / "fashion-mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(mnist_module.TRAIN_FILES)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    np.testing.assert_array_equal(fashion_mnist().images, data.images)  # from the cache


def test_a_damaged_download_leaves_nothing(bare_home: Path, fashion_site: Path) -> None:
    labels = fashion_site / mnist_module.TRAIN_FILES[1]
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"checksum of file://.*try again") as error:
        fashion_mnist()
    one_line(error)
    cache = bare_home / ".cache" / "dlgpu" / "fashion-mnist"
    assert [path.name for path in cache.iterdir()] == [mnist_module.TRAIN_FILES[0]]


@pytest.mark.parametrize("folder", ["root", "DLGPU_DATA", "packaged"])
def test_fashion_mnist_finds_its_folder(
    folder: str, bare_home: Path, fashion_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    root = None
    if folder == "root":
        root = fashion_site
    elif folder == "packaged":
        monkeypatch.setattr(mnist_module, "FASHION_DEBIAN", fashion_site)
    else:
        fashion_site.rename(fashion_site.with_name("fashion-mnist"))
        monkeypatch.setenv("DLGPU_DATA", str(fashion_site.parent))
    assert len(fashion_mnist(root=root)) == 5


@pytest.mark.parametrize(
    ("dataset", "advice"),
    [
        (fashion_mnist, r"Put train-images-idx3-ubyte\.gz, .*fashion-mnist or run `apt install dataset-fashion-mnist`"),
        (cifar10, r"Put data_batch_1\.bin, .*cifar-10-batches-bin \(they are in https://.*\.tar\.gz\)"),
    ],
)
def test_offline_says_what_to_do(
    dataset: Callable[..., Dataset], advice: str, bare_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=advice) as error:
        dataset()
    assert "no network in this test" in one_line(error)
    assert str(bare_home) in str(error.value)


@pytest.mark.parametrize("dataset", [fashion_mnist, cifar10])
def test_a_given_root_is_the_only_place(dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="root must hold") as error:
        dataset(root=tmp_path)
    assert str(tmp_path) in one_line(error)


def test_atomic_file_keeps_the_old_content_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with files.atomic_file(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# CIFAR-10


@pytest.fixture
def cifar_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A tiny archive with the official layout, plus a member that must not be unpacked."""
    rng = np.random.default_rng(1)
    records = {}
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in cifar.MD5:
            record = rng.integers(0, 256, (4, 3073), np.uint8)
            record[:, 0] %= 10
            records[file] = record
            monkeypatch.setitem(cifar.MD5, file, hashlib.md5(record.tobytes()).hexdigest())
        for file, content in [
            *((file, record.tobytes()) for file, record in records.items()),
            ("batches.meta.txt", b"airplane\n"),
            ("../../evil.bin", b"evil"),
        ]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar, "URL", archive.as_uri())
    monkeypatch.setattr(cifar, "URL_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive, records


def test_cifar10_downloads_and_reads(
    bare_home: Path, cifar_site: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = cifar_site[1]
    train = cifar10()
    cache = bare_home / ".cache" / "dlgpu" / "cifar-10-batches-bin"
    assert sorted(path.name for path in cache.iterdir()) == sorted([*cifar.MD5, "batches.meta.txt"])
    assert not list(bare_home.parent.rglob("evil.bin"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    test = cifar10(train=False)  # from the cache
    assert train.images.shape == (20, 3, 32, 32)
    batch = records["data_batch_2.bin"]
    assert train.labels[4:8].tolist() == batch[:, 0].tolist()
    assert train.images[5, 1, 2, 3] == batch[1, 1 + 1024 + 2 * 32 + 3]  # green, row 2, column 3
    np.testing.assert_array_equal(test.images.reshape(4, -1), records["test_batch.bin"][:, 1:])


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\x0b" + b[1:], lambda b: b""])
def test_cifar10_names_the_damaged_file(
    damage: Callable[[bytes], bytes],
    bare_home: Path,
    cifar_site: tuple[Path, dict[str, np.ndarray]],
) -> None:
    cifar10()
    path = bare_home / ".cache" / "dlgpu" / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="checksum") as error:
        cifar10()
    assert str(path) in one_line(error)


def test_cifar10_refuses_another_archive(bare_home: Path, cifar_site: tuple[Path, dict[str, np.ndarray]]) -> None:
    archive = cifar_site[0]
    archive.write_bytes(archive.read_bytes()[:-4])
    with pytest.raises(DataError, match="checksum of file://"):
        cifar10()
    assert list((bare_home / ".cache" / "dlgpu" / "cifar-10-batches-bin").iterdir()) == []


# Folders of pictures


def save(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four 4x6 RGB pictures, in two classes, and files that are none."""
    rng = np.random.default_rng(2)
    for name in ("dog/b.png", "dog/a.PNG", "cat/z.bmp", "cat/y.png"):
        save(tmp_path / name, rng.integers(0, 256, (4, 6, 3), np.uint8))
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_image_folder_reads_sorted_classes(pictures: Path) -> None:
    from PIL import Image

    data = image_folder(pictures)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 4, 6)
    for image, name in zip(data.images, ("cat/y.png", "cat/z.bmp", "dog/a.PNG", "dog/b.png"), strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(Image.open(pictures / name)))


def test_image_folder_resizes_and_makes_grey(pictures: Path) -> None:
    save(pictures / "cat" / "x.png", np.full((9, 9, 3), 200, np.uint8))
    data = image_folder(pictures, image_size=(5, 7), channels=1)
    assert data.images.shape == (5, 1, 5, 7)
    assert (data.images[0] == 200).all()  # a constant picture stays constant
    assert image_folder(pictures, image_size=8).images.shape == (5, 3, 8, 8)
    with pytest.raises(DataError, match=r"one size.*Give image_size") as error:
        image_folder(pictures)
    assert "x.png" in one_line(error)


def test_image_folder_errors(pictures: Path, tmp_path: Path) -> None:
    broken = pictures / "dog" / "a.PNG"
    good = broken.read_bytes()
    for content in (good[: len(good) // 2], b"not a picture", b""):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="readable picture") as error:
            image_folder(pictures)
        assert str(broken) in one_line(error)
    broken.write_bytes(good)
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match=r"each class needs a picture; got none in .*empty"):
        image_folder(pictures)
    for folder in (pictures / "empty", pictures / "missing"):
        with pytest.raises(DataError, match="one subfolder per class"):
            image_folder(folder)


def test_load_image(tmp_path: Path) -> None:
    array = np.random.default_rng(3).integers(0, 256, (5, 4), np.uint8)
    save(tmp_path / "grey.png", array)
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", channels=1), array[None])
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.stack([array] * 3))
    inverted = load_image(tmp_path / "grey.png", channels=1, invert=True)
    np.testing.assert_array_equal(inverted, 255 - array[None])
    assert load_image(tmp_path / "grey.png", image_size=(3, 2)).shape == (3, 3, 2)
    with pytest.raises(ShapeError, match="channels must be 1"):
        load_image(tmp_path / "grey.png", channels=4)
    with pytest.raises(ShapeError, match="image_size"):
        load_image(tmp_path / "grey.png", image_size=0)
    with pytest.raises(DataError, match="No such file"):
        load_image(tmp_path / "none.png")


# load


def test_load_knows_names_and_folders(pictures: Path, tmp_path: Path) -> None:
    assert DATASETS["mnist"] is mnist
    assert len(load("mnist", train=False)) == 10_000
    assert len(load("mnist", False, mnist_module.MNIST_FOLDER)) == 10_000
    root = tmp_path / "set"
    for half, count in (("train", 2), ("test", 1)):
        for k in range(count):
            save(root / half / "cat" / f"{k}.png", np.zeros((2, 2, 3), np.uint8))
    assert (len(load(root, train=True)), len(load(str(root), train=False))) == (2, 1)
    save(root / "test" / "dog" / "0.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"same classes; got \['dog'\]"):
        load(root, train=True)
    with pytest.raises(UnknownName, match="Did you mean 'fashion-mnist'") as error:
        load("fashion_mnist", train=True)
    one_line(error)


def test_import_stays_light() -> None:
    code = "import sys, dlgpu.data; print([m for m in ('PIL', 'rich', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Loader


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dlgpu-loader"]


def assert_same_batches(
    got: list[tuple[np.ndarray, np.ndarray]], expected: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    assert len(got) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 100])
def test_loader_yields_the_data_in_order(prefetch: int) -> None:
    data = random_set()
    loader = DataLoader(data, 5, prefetch=prefetch)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, data.images.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), data.labels)
    assert batches[0][1].dtype == np.int64
    assert loader_threads() == []


def test_drop_last() -> None:
    loader = DataLoader(random_set(), 5, drop_last=True)
    assert [len(labels) for _, labels in loader] == [5] * len(loader) == [5] * 4


def test_shuffle_visits_all_in_a_new_order_each_epoch() -> None:
    count = 50
    data = Dataset(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count), tuple(map(str, range(count))), "x")

    def order(loader: DataLoader, epoch: int) -> list[int]:
        return [int(label) for _, labels in loader.epoch(epoch) for label in labels]

    loader = DataLoader(data, 7, shuffle=True, seed=1)
    orders = [order(loader, epoch) for epoch in range(3)]
    for one in orders:
        assert sorted(one) == list(range(count))
    assert len({tuple(one) for one in [*orders, list(range(count))]}) == 4
    assert order(DataLoader(data, 10, shuffle=True, seed=1), 2) == orders[2]
    assert order(DataLoader(data, 7, shuffle=True, seed=2), 2) != orders[2]


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_a_resumed_epoch_is_the_tail_of_the_whole(start: int, prefetch: int) -> None:
    transform = Compose([RandomShift(2), RandomRotation(20)])

    def loader(prefetch: int) -> DataLoader:
        return DataLoader(random_set(), 5, shuffle=True, seed=9, transform=transform, prefetch=prefetch)

    whole = list(loader(0).epoch(4))
    assert_same_batches(list(loader(prefetch).epoch(4, start)), whole[start:])


def test_each_batch_draws_its_own_random_numbers() -> None:
    draws = []

    def transform(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        draws.append(rng.random())
        return images

    loader = DataLoader(random_set(), 5, transform=transform)
    list(loader.epoch(0))
    list(loader.epoch(1))
    assert len(set(draws)) == 10
    list(DataLoader(random_set(), 5, seed=1, transform=transform))
    assert len(set(draws)) == 15


def test_iter_gives_the_next_epoch() -> None:
    loader = DataLoader(random_set(), 5, shuffle=True)
    first, second = list(loader), list(loader)
    assert loader.next_epoch == 2
    assert_same_batches(first, list(loader.epoch(0)))
    assert_same_batches(second, list(loader.epoch(1)))
    loader.next_epoch = 1
    assert_same_batches(list(loader), second)


def test_loader_makes_dense_float32() -> None:
    loader = DataLoader(random_set(), 5, transform=lambda images, rng: images[..., ::-1].astype(np.float64))
    for images, _ in loader:
        assert images.dtype == np.float32
        assert images.flags.c_contiguous


def test_prefetch_stays_within_its_depth() -> None:
    made = []

    def transform(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        made.append(1)
        return images

    batches = DataLoader(random_set(), 1, transform=transform, prefetch=3).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)  # time enough for a fifth, were it allowed
    assert len(made) == 4  # one taken, three ahead


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_of_a_transform_reach_the_consumer(prefetch: int) -> None:
    calls = []

    def transform(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("third batch")
        return images

    batches = iter(DataLoader(random_set(), 5, transform=transform, prefetch=prefetch))
    next(batches)
    next(batches)
    with pytest.raises(ZeroDivisionError, match="third batch"):
        next(batches)
    assert loader_threads() == []


def test_no_thread_outlives_its_consumer() -> None:
    loader = DataLoader(random_set(), 1)
    batches = loader.epoch(0)
    assert loader_threads() == []  # not before the first batch is asked for
    next(batches)
    assert len(loader_threads()) == 1
    del batches
    assert loader_threads() == []

    for _ in loader:
        break
    assert loader_threads() == []

    def fail() -> None:
        for _ in loader:
            raise RuntimeError("consumer")

    with pytest.raises(RuntimeError, match="consumer") as error:
        fail()
    del error  # its traceback holds the iterator
    gc.collect()
    assert loader_threads() == []


def test_an_iterator_collected_on_its_own_thread() -> None:
    """Cyclic garbage may be found by the loader's thread, which then closes the iterator and cannot join itself."""
    dropped, collected = threading.Event(), threading.Event()

    def transform(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if dropped.wait(0.2):
            gc.collect()
            collected.set()
        return images

    gc.disable()
    try:
        batches = DataLoader(random_set(), 1, transform=transform, prefetch=1).epoch(0)
        next(batches)
        (thread,) = loader_threads()
        cycle: list[object] = [batches]
        cycle.append(cycle)
        del batches, cycle
        dropped.set()
        assert collected.wait(5)
        thread.join(5)
        assert not thread.is_alive()
    finally:
        gc.enable()


def test_an_unfinished_iterator_does_not_hang_the_interpreter() -> None:
    code = (
        "import numpy as np\n"
        "from dlgpu.data import DataLoader, Dataset\n"
        "data = Dataset(np.zeros((9, 1, 2, 2), np.uint8), np.zeros(9, np.int64), ('a',), 'x')\n"
        "batches = iter(DataLoader(data, 1))\n"
        "next(batches)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_loader_checks_its_arguments() -> None:
    data = random_set()
    for wrong in ({"batch_size": 0}, {"batch_size": 1, "prefetch": -1}, {"batch_size": 1, "seed": -1}):
        with pytest.raises(ShapeError, match="batch_size >= 1") as error:
            DataLoader(data, **wrong)
        one_line(error)
    with pytest.raises(DataError, match="at least one batch"):
        DataLoader(data.subset(slice(0)), 5)
    with pytest.raises(DataError, match="at least one batch"):
        DataLoader(data, 24, drop_last=True)
    loader = DataLoader(data, 5)
    for epoch, start in ((-1, 0), (0, -1), (0, 6)):
        with pytest.raises(ShapeError, match=r"start in 0\.\.5"):
            loader.epoch(epoch, start)


def test_a_batch_of_mnist_is_cheap(digits: Dataset) -> None:
    """Measured: 0.04 ms for 100 images on one core; several times that would hold up a GPU."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        count = sum(1 for _ in DataLoader(digits, 100, shuffle=True, prefetch=0))
        times.append((time.perf_counter() - start) / count)
    assert min(times) < 0.3e-3


def test_root_of_the_environment_may_be_relative(
    bare_home: Path, fashion_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fashion_site.rename(fashion_site.with_name("fashion-mnist"))
    monkeypatch.chdir(fashion_site.parent)
    monkeypatch.setenv("DLGPU_DATA", os.curdir)
    assert len(fashion_mnist()) == 5
