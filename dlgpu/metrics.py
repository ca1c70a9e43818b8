"""Figures of classification, of images or of their pixels, all from one confusion matrix.

matrix = confusion(masks, logits.argmax(1).numpy(), classes=4)    # add up over batches
accuracy(matrix), mean_iou(matrix)
"""

from __future__ import annotations

import numpy as np

from dlgpu.errors import DtypeError, ShapeError


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, ignore_index: int = -100) -> np.ndarray:
    """Counts (classes, classes), int64: true class by predicted class, over integer arrays of one shape.

    Places labelled `ignore_index` do not count. Raises `ShapeError` for other shapes or classes out of range.
    """
    if labels.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
        raise DtypeError(f"[confusion] classes must be integers; got {labels.dtype} and {predicted.dtype}")
    if labels.shape != predicted.shape:
        raise ShapeError(
            f"[confusion] labels and predictions must have one shape; got {labels.shape}, {predicted.shape}"
        )
    counted = labels != ignore_index
    true, guess = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, values in (("labels", true), ("predictions", guess)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ShapeError(f"[confusion] {name} must be in 0..{classes - 1}; got {values.min()}..{values.max()}")
    return np.bincount(true * classes + guess, minlength=classes * classes).reshape(classes, classes)


def accuracy(matrix: np.ndarray) -> float:
    """The share of right answers; NaN if nothing was counted."""
    return _share(np.trace(matrix), matrix.sum())


def mean_iou(matrix: np.ndarray) -> float:
    """Intersection over union of what is a class and what is taken for it, averaged over the classes that occur.

    n_ii / (t_i + sum_j n_ji - n_ii), Long et al. 2015, section 5; a class that is neither there nor predicted is left
    out. NaN if nothing was counted.
    """
    right = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    there = union > 0
    return _share((right[there] / union[there]).sum(), there.sum())


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
