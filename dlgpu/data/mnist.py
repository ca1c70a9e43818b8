"""MNIST (shipped with dlgpu) and Fashion-MNIST, both four gzipped IDX files of the same names.

IDX: two zero bytes, a type code (8 = uint8), the rank, one big-endian uint32 per dimension, the elements in C order.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlgpu.data.dataset import Dataset
from dlgpu.data.download import check_sum, download, find_folder
from dlgpu.errors import DataError

TRAIN_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")

MNIST_FOLDER = Path(__file__).parent / "mnist_files"
MNIST_CLASSES = tuple("0123456789")
MNIST_SHA256 = {  # of the uncompressed files: gzip's header holds a date
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MD5 = {  # of the official .gz files
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# Of the uncompressed files, because Debian stores them without the name and date in gzip's header: with both put
# back (31 Aug 2017, 10:50 UTC) the packaged files have the official md5 sums above.
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def mnist(train: bool = True, root: str | os.PathLike[str] | None = None) -> Dataset:
    """The 60,000 training or 10,000 test digits, uint8 (N, 1, 28, 28), bright on dark.

    Reads the files shipped with dlgpu, or the four of the same names in `root`. Raises DataError if a file is
    missing or is not MNIST's. Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
    """
    folder = MNIST_FOLDER if root is None else Path(root)
    return _read_half(folder, train, MNIST_SHA256, MNIST_CLASSES, "mnist")


def fashion_mnist(train: bool = True, root: str | os.PathLike[str] | None = None) -> Dataset:
    """The 60,000 training or 10,000 test pictures of clothes, uint8 (N, 1, 28, 28), bright on dark.

    Looks in `root` if given, else in $DLGPU_DATA/fashion-mnist, Debian's dataset-fashion-mnist and
    ~/.cache/dlgpu/fashion-mnist, else downloads to the last. Raises DataError if the files cannot be had or are
    not Fashion-MNIST's. Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
    """
    files = TRAIN_FILES if train else TEST_FILES

    def fetch(folder: Path) -> None:
        for file in files:
            download(f"{FASHION_URL}/{file}", folder / file, FASHION_MD5[file])

    folder = find_folder(
        "fashion-mnist",
        files,
        root,
        fetch=fetch,
        advice="or run `apt install dataset-fashion-mnist`",
        packaged=(FASHION_DEBIAN,),
    )
    return _read_half(folder, train, FASHION_SHA256, FASHION_CLASSES, "fashion-mnist")


def load_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped or plain: uint8, read-only.

    Raises DataError, which names the file and the rule, if it is missing, cut short, too long or not IDX.
    """
    return _parse_idx(_read(Path(path)), path)


def _read_half(folder: Path, train: bool, sha256: Mapping[str, str], classes: tuple[str, ...], name: str) -> Dataset:
    arrays = []
    for file in TRAIN_FILES if train else TEST_FILES:
        path = folder / file
        content = _read(path)
        check_sum(path, hashlib.sha256(content).hexdigest(), sha256[file], f"It is not {name}'s; replace it")
        arrays.append(_parse_idx(content, path))
    images, labels = arrays
    return Dataset(images[:, None], labels.astype(np.int64), classes, name)


def _read(path: Path) -> bytes:
    """The content of a file, uncompressed if it is gzipped."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"[load_idx] {path} must be a complete file; got {error!r}") from error


def _parse_idx(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(
            f"[load_idx] {path} must begin with 00 00 08, its rank and its dimensions; got {content[:16].hex(' ')!r}"
        )
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    start = 4 + 4 * rank
    if len(content) != start + math.prod(shape):
        raise DataError(
            f"[load_idx] {path} must have {math.prod(shape)} bytes of data for its shape {shape}; "
            f"got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
