"""What a trained classifier does: confusion matrix, mistakes, activations, saliency. Arrays out; `viz` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlgpu import functional as F
from dlgpu import metrics, nn
from dlgpu.autograd import no_grad
from dlgpu.data import DataLoader
from dlgpu.errors import ShapeError
from dlgpu.tensor import tensor
from dlgpu.train import predictions


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the image's place in the data set, the true class, the predicted one and its probability."""

    index: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Judgement:
    """One pass over a labelled data set."""

    matrix: np.ndarray  # (K, K) counts: true class by predicted class
    mistakes: list[Mistake]  # the surest first; none are listed of labels per pixel

    @property
    def mean_iou(self) -> float:
        """Of pixels: `dlgpu.metrics.mean_iou`."""
        return metrics.mean_iou(self.matrix)

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return metrics.accuracy(self.matrix)


def judge(model: nn.Module, batches: DataLoader, classes: int) -> Judgement:
    """Every prediction of one pass, counted, and the wrong ones in order of the probability given to them.

    Where labels are per pixel, pixels are counted, and the wrong ones not listed.
    """
    matrix, mistakes, first = np.zeros((classes, classes), np.int64), [], 0
    for _, labels, logits in predictions(model, batches):
        if logits.shape[1] != classes:
            raise ShapeError(f"[judge] the model must know {classes} classes; got {logits.shape[1]}")
        shares = F.softmax(logits, dim=1).numpy()
        chosen = shares.argmax(1)
        matrix += metrics.confusion(labels, chosen, classes)
        if labels.ndim > 1:
            continue
        for row in np.flatnonzero(chosen != labels):
            predicted = int(chosen[row])
            mistakes.append(Mistake(first + int(row), int(labels[row]), predicted, float(shares[row, predicted])))
        first += len(labels)
    return Judgement(matrix, sorted(mistakes, key=lambda m: (-m.probability, m.index)))


def activations(model: nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """What each convolution answers to one prepared image (C, H, W): dotted name -> (K, P, Q), after its ReLU if any.

    The ReLU is one that runs directly on the convolution's output, or on that of a normalisation of it.
    """
    maps: dict[str, np.ndarray] = {}
    newest: list[str] = []
    removals = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: object, output: object) -> None:
            values = output.numpy() if hasattr(output, "numpy") else None
            if values is None or values.ndim != 4:
                return
            if isinstance(module, nn.Conv2d):
                newest[:] = [name]
                maps[name] = values[0]
            elif newest and maps[newest[0]].shape == values[0].shape:
                maps[newest[0]] = values[0]
                if isinstance(module, nn.ReLU):
                    newest.clear()

        removals.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
            watch(name, module)
    try:
        with no_grad():
            model(tensor(image[None], device=_device(model)))
    finally:
        for remove in removals:
            remove()
    return maps


def saliency(model: nn.Module, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """How much each pixel of (N, C, H, W) moves the score of its label: (N, H, W), largest |gradient| over channels.

    Simonyan, Vedaldi and Zisserman 2014, "Deep inside convolutional networks", section 3.
    """
    x = tensor(np.ascontiguousarray(images, np.float32), device=_device(model))
    x.requires_grad_(True)
    scores = model(x)
    wanted = np.zeros(scores.shape, np.float32)
    wanted[np.arange(len(images)), np.asarray(labels)] = 1
    (scores * tensor(wanted, device=scores.device)).sum().backward()
    model.zero_grad()
    assert x.grad is not None
    return np.abs(x.grad.numpy()).max(axis=1)


def _device(model: nn.Module) -> str:
    return next(iter(model.parameters())).device
