"""Data sets in memory, batch transforms and the loader that feeds training.

Typical use:

    train = load("mnist", train=True)
    loader = DataLoader(train, 100, shuffle=True, transform=Compose([RandomShift(2), Normalize(*train.mean_std())]))
    for images, labels in loader: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dlgpu.data.cifar import cifar10
from dlgpu.data.dataset import Dataset
from dlgpu.data.folder import class_names, image_folder, load_image
from dlgpu.data.loader import Batch, DataLoader
from dlgpu.data.mnist import fashion_mnist, load_idx, mnist
from dlgpu.data.shapes import scenes, shapes
from dlgpu.data.transforms import (
    CenterCrop,
    Compose,
    Cutout,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomShift,
    Resize,
    Transform,
    mixup,
)
from dlgpu.errors import DataError, UnknownName

__all__ = [
    "DATASETS",
    "Batch",
    "CenterCrop",
    "Compose",
    "Cutout",
    "DataLoader",
    "Dataset",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomShift",
    "Resize",
    "Transform",
    "cifar10",
    "fashion_mnist",
    "image_folder",
    "load",
    "load_idx",
    "load_image",
    "mixup",
    "mnist",
    "scenes",
    "shapes",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "shapes": shapes,
}


def load(name_or_folder: str | os.PathLike[str], train: bool, root: str | os.PathLike[str] | None = None) -> Dataset:
    """The training or test half of a data set.

    name_or_folder: a name in DATASETS, or a folder with the subfolders train/ and test/, each with the same
    class folders of pictures (RGB, all of one size; call `image_folder` for more choices).
    root: where the files of a named data set are; None searches (see each function of DATASETS).

    Raises UnknownName if it is neither, DataError if files are missing, damaged, or the halves' classes differ.
    """
    if name_or_folder in DATASETS:
        return DATASETS[str(name_or_folder)](train, root)
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise UnknownName("data.load", "data set, nor an existing folder", str(name_or_folder), DATASETS)
    train_classes, test_classes = class_names(folder / "train"), class_names(folder / "test")
    if train_classes != test_classes:  # a label would mean another class in each half
        differing = sorted(set(train_classes) ^ set(test_classes))
        raise DataError(f"[data.load] train/ and test/ need the same classes; got {differing} in one of {folder}")
    return image_folder(folder / ("train" if train else "test"))
