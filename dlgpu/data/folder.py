"""Images from ordinary files: one picture, or a folder with one subfolder per class. Pillow decodes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dlgpu.data.dataset import Dataset
from dlgpu.errors import DataError, ShapeError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


def image_folder(
    root: str | os.PathLike[str], image_size: int | tuple[int, int] | None = None, channels: int = 3
) -> Dataset:
    """The pictures root/<class>/<file> as uint8 (N, C, H, W); classes and files in the order of their names.

    image_size: (H, W), or one number for a square, to which each picture is resized (bilinear); None keeps the
    pictures' own size, which must be the same for all.
    channels: 3 for RGB, 1 for grey.

    Files that are no pictures by their suffix, and hidden folders, are left out. Raises DataError for a folder
    without classes, a class without pictures, a damaged file or pictures of different sizes.
    """
    root = Path(root)
    classes = class_names(root)
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"[image_folder] each class needs a picture; got none in {root / name}")
        paths += files
        labels += [label] * len(files)
    first = load_image(paths[0], image_size, channels)
    images = np.empty((len(paths), *first.shape), np.uint8)
    for index, path in enumerate(paths):
        image = load_image(path, image_size, channels)
        if image.shape != first.shape:
            raise DataError(
                f"[image_folder] all pictures must have one size; got {image.shape[1:]} in {path} but "
                f"{first.shape[1:]} in {paths[0]}. Give image_size to resize them"
            )
        images[index] = image
    return Dataset(images, np.array(labels, np.int64), classes, root.name)


def class_names(root: Path) -> tuple[str, ...]:
    """The sorted names of the subfolders of `root`, hidden ones left out. Raises DataError if there are none."""
    found = root.iterdir() if root.is_dir() else ()
    names = tuple(sorted(path.name for path in found if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(f"[image_folder] the folder needs one subfolder per class; got none in {root}")
    return names


def load_image(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    invert: bool = False,
) -> np.ndarray:
    """One picture as uint8 (C, H, W).

    image_size, channels: as for `image_folder`. invert: swap dark and bright (ink on paper -> MNIST).
    Raises DataError, which names the file, if it cannot be read; ShapeError for another number of channels or a
    size below 1.
    """
    from PIL import Image  # here, so that `import dlgpu.data` stays light

    if channels not in (1, 3):
        raise ShapeError(f"[load_image] channels must be 1 (grey) or 3 (RGB); got {channels}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ShapeError(f"[load_image] image_size must be at least 1; got {image_size}")
    try:
        with Image.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise DataError(f"[load_image] {path} must be a readable picture; got {error!r}") from error
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    image = np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(255 - image if invert else image)
