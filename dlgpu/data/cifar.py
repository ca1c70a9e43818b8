"""CIFAR-10, the official binary version: records of one label byte, then 1024 red, green and blue bytes each."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np

from dlgpu.data.dataset import Dataset
from dlgpu.data.download import check_sum, download, find_folder
from dlgpu.files import atomic_file

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
URL_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
TRAIN_FILES = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
TEST_FILES = ("test_batch.bin",)
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(train: bool = True, root: str | os.PathLike[str] | None = None) -> Dataset:
    """The 50,000 training or 10,000 test photographs, uint8 (N, 3, 32, 32), RGB.

    Looks in `root` if given, else in $DLGPU_DATA/cifar-10-batches-bin and ~/.cache/dlgpu/cifar-10-batches-bin,
    else downloads to the last. Raises DataError if the files cannot be had or are not CIFAR-10's.
    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    files = TRAIN_FILES if train else TEST_FILES
    folder = find_folder("cifar-10-batches-bin", files, root, fetch=_fetch, advice=f"(they are in {URL})")
    halves = []
    for file in files:
        content = (folder / file).read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        check_sum(folder / file, digest, MD5[file], "It is not CIFAR-10's; delete it to download it again")
        halves.append(np.frombuffer(content, np.uint8).reshape(-1, 3073))
    records = np.concatenate(halves)
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return Dataset(images, records[:, 0].astype(np.int64), CLASSES, "cifar10")


def _fetch(folder: Path) -> None:
    """Download the archive and take only the files named here out of it, under names chosen here."""
    archive = folder / "cifar-10-binary.tar.gz"
    download(URL, archive, URL_MD5)
    with tarfile.open(archive, "r|gz") as tar:  # a stream: members in their order, nothing unpacked twice
        for member in tar:
            file = PurePosixPath(member.name).name
            if member.isfile() and file in (*MD5, "batches.meta.txt"):
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                with atomic_file(folder / file) as out:
                    shutil.copyfileobj(content, out)
    archive.unlink()
