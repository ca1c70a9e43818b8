"""The training loop: mini-batches, evaluation, and callbacks for everything else.

A run is a pure function of its seed: order of the images, augmentation, dropout and initial weights all follow from
it, and the trainer's whole state goes into `state_dict`. So a run that was killed and resumed ends with the same bits
as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dlgpu import amp, data, random, signals
from dlgpu import functional as F
from dlgpu.autograd import no_grad
from dlgpu.backends.precision import PRECISIONS, use
from dlgpu.data import DataLoader
from dlgpu.errors import CheckpointError, ShapeError, TrainingError, UnknownName
from dlgpu.nn import Module
from dlgpu.optim import Optimizer, Schedule
from dlgpu.tensor import Tensor, tensor

Loss = Callable[[Tensor, Any], Tensor]
Row = dict[str, Any]  # one epoch's figures
AUXILIARY_WEIGHT = 0.3  # of the loss of a classifier half-way through the network


class Callback:
    """Base class: override what is needed. `trainer.stop(reason)` ends training after the current batch."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first batch (also of a resumed run)."""

    def on_batch_end(self, trainer: Trainer, loss: float) -> None:
        """After an update; `trainer.batch` batches of this epoch are done."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """After an epoch and its evaluation; `row` is the last of `trainer.history`."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last batch, however training ended, but for an error."""


class EarlyStopping(Callback):
    """Stop when a figure has not improved for `patience` epochs ("accuracy": higher is better; else lower)."""

    def __init__(self, patience: int, figure: str = "valid_loss", min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ShapeError(f"[EarlyStopping] patience must be >= 1; got {patience}")
        self.patience, self.figure, self.min_delta = patience, figure, min_delta

    def on_train_begin(self, trainer: Trainer) -> None:
        if trainer.history:  # killed after the decision but before its end, a run must not go on when it is resumed
            self.on_epoch_end(trainer, trainer.history[-1])

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        if self.figure not in row:
            raise ShapeError(f"[EarlyStopping] there must be a figure {self.figure!r}; got {sorted(row)}")
        # From the history alone, so that a resumed run decides alike.
        sign = -1 if self.figure.endswith("accuracy") else 1
        values = [sign * r[self.figure] for r in trainer.history]
        best, waited = math.inf, 0
        for value in values:
            best, waited = (value, 0) if value < best - self.min_delta else (best, waited + 1)
        if waited >= self.patience:
            trainer.stop(f"{self.figure} has not improved for {waited} epochs")


class Trainer:
    """Trains a classifier on a `DataLoader`, and evaluates it on another after each epoch.

    Args:
        model: maps (N, C, H, W) to (N, classes) logits, or to (N, classes, H, W) where labels are per pixel; in
            training to (logits, auxiliary logits, ...) if it has auxiliary classifiers, see `auxiliary_loss`.
        optimizer: made from the model's parameters.
        train: batches to learn from, shuffled by the loader.
        evaluate: batches to evaluate on after each epoch, or None.
        evaluate_as: what the evaluated split is called in the figures: "test" or "valid".
        loss: (logits, labels) -> scalar Tensor.
        schedule: learning rate over time, in epochs, relative to the optimizer's own at construction.
        clip_norm: limit the joint norm of all gradients to this.
        precision: of products: one of `dlgpu.backends.precision.PRECISIONS`; "float16" and "bfloat16" are mixed
            precision (`dlgpu.amp`), the former with loss scaling.
        mixup: alpha of `dlgpu.data.mixup`, which blends the images of each batch in pairs; 0 does not.
        callbacks: called in order.

    Attributes:
        epoch, batch: how many whole epochs, and batches of the next one, are done.
        history: one row of figures per epoch: epoch, train_loss, train_accuracy, <split>_loss, <split>_accuracy, lr,
            seconds.
        stopped: why training ended before its last epoch, else None.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        train: DataLoader,
        evaluate: DataLoader | None = None,
        *,
        evaluate_as: str = "test",
        loss: Loss = F.cross_entropy,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        precision: str = "float32",
        mixup: float = 0.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ShapeError(f"[train] clip_norm must be positive; got {clip_norm}")
        if not mixup >= 0:
            raise ShapeError(f"[train] mixup must not be negative; got {mixup}")
        if precision not in PRECISIONS:
            raise UnknownName("train", "precision", precision, PRECISIONS)
        for batches in (train, evaluate):
            if batches is not None and batches.device not in ("cpu", _device(model)):
                raise ShapeError(
                    f"[train] batches must be made on the CPU or on the model's device {_device(model)}; "
                    f"got a loader with device={batches.device!r}"
                )
        self.mixup, self.precision = mixup, precision
        self.scaler = amp.GradScaler() if precision == "float16" else None
        if precision in amp.HALVES:
            optimizer.keep_half(precision)
        self.model, self.optimizer, self.train_batches, self.evaluate_batches = model, optimizer, train, evaluate
        self.evaluate_as, self.loss, self.schedule, self.clip_norm = evaluate_as, loss, schedule, clip_norm
        self.callbacks = list(callbacks)
        self.base_lrs = [group.settings["lr"] for group in optimizer.groups]
        self.epoch = self.batch = 0
        self.history: list[Row] = []
        self.stopped: str | None = None
        self._sums = np.zeros(3)  # of this epoch so far: loss * images, correct, images
        self._seconds = 0.0
        self._stop = False
        self._skipped = 0  # updates that the scaler skipped in all earlier epochs

    def stop(self, reason: str) -> None:
        """End training after the current batch."""
        self._stop, self.stopped = True, reason

    def fit(self, epochs: int) -> list[Row]:
        """Train until `epochs` epochs are done in all; returns the history.

        Ctrl-C or SIGTERM ends training after the current batch, in an orderly way (see `stopped`); a second Ctrl-C at
        once.

        Raises:
            TrainingError: the loss is not finite.
        """
        if epochs < 1:
            raise ShapeError(f"[fit] epochs must be >= 1; got {epochs}")
        self._stop, self.stopped = False, None
        with signals.orderly(self.stop):
            self._call("on_train_begin")
            while self.epoch < epochs and not self._stop:
                self._train_epoch()
            self._call("on_train_end")
        return self.history

    def _train_epoch(self) -> None:
        self.model.train()
        for images, labels in self.train_batches.epoch(self.epoch, start=self.batch):
            start = time.perf_counter()
            loss = self._update(images, labels)
            self.batch += 1
            self._seconds += time.perf_counter() - start
            self._call("on_batch_end", loss)
            if self._stop and self.batch < len(self.train_batches):
                return
        start = time.perf_counter()
        self._check_scaler()
        row: Row = {"epoch": self.epoch + 1, "train_loss": self._sums[0] / self._sums[2]}
        row["train_accuracy"] = self._sums[1] / self._sums[2]
        if self.evaluate_batches is not None:
            with use(self.precision):
                loss, accuracy = evaluate(self.model, self.evaluate_batches, self.loss)
            self._check_finite(loss, f"after epoch {self.epoch + 1}")
            row |= {f"{self.evaluate_as}_loss": loss, f"{self.evaluate_as}_accuracy": accuracy}
        row["lr"] = self.optimizer.lr
        row["seconds"] = round(self._seconds + time.perf_counter() - start, 3)
        self.history.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
        self.epoch, self.batch, self._seconds = self.epoch + 1, 0, 0.0
        self._sums[:] = 0
        self._call("on_epoch_end", self.history[-1])

    def _update(self, images: np.ndarray, labels: np.ndarray) -> float:
        if self.schedule is not None:
            self.schedule.apply(self.optimizer, self.base_lrs, self.epoch + self.batch / len(self.train_batches))
        self.optimizer.zero_grad()
        with use(self.precision):
            logits, loss = self._forward(images, labels)
            value = float(loss)
            self._check_finite(value, f"in epoch {self.epoch + 1}, batch {self.batch + 1}", images)
            self._backward(loss)
        self._sums += (value * len(images), _correct(logits, labels), len(images))
        return value

    def _backward(self, loss: Tensor) -> None:
        """From the loss to new parameters."""
        if self.scaler is None:
            loss.backward()
            if self.clip_norm is not None:
                self.optimizer.clip_grad_norm(self.clip_norm)
            self.optimizer.step()
            return
        self.scaler.scale(loss).backward()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            self.optimizer.clip_grad_norm(self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _forward(self, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        if not self.mixup:
            outputs = self.model(_on_device(self.model, images))
            return _logits(outputs), auxiliary_loss(self.loss, outputs, labels)
        # From the position alone, as the loader draws, so that a resumed run goes on with the same bits.
        key = self.epoch, self.batch, 1
        rng = np.random.default_rng(np.random.SeedSequence(self.train_batches.seed, spawn_key=key))
        images, others, share = data.mixup(images, labels, self.mixup, rng)
        outputs = self.model(_on_device(self.model, images))
        ours, theirs = (auxiliary_loss(self.loss, outputs, targets) for targets in (labels, others))
        return _logits(outputs), ours * share + theirs * (1 - share)

    def _check_finite(self, loss: float, when: str, images: np.ndarray | None = None) -> None:
        if math.isfinite(loss):
            return
        where = None if images is None else first_not_finite(self.model, images)
        raise TrainingError(
            f"[train] the loss must stay finite; got {loss} {when}, lr {self.optimizer.lr:g}"
            + (f", first from {where}" if where else "")
            + ": try a smaller learning rate"
        )

    def _check_scaler(self) -> None:
        """Of an epoch, some updates must have been good: one overflow halves the scale, NaN is there at every scale."""
        if self.scaler is None:
            return
        skipped = self.scaler.skipped - self._skipped
        self._skipped += skipped
        if skipped < len(self.train_batches):
            return
        named = self.model.named_parameters()
        bad = [name for name, p in named if p.grad is not None and not np.isfinite(p.grad.numpy()).all()]
        raise TrainingError(
            f"[train] gradients must be finite at some loss scale; got {skipped} of {skipped} updates skipped in epoch "
            f'{self.epoch + 1}, the last for {", ".join(bad) or "no parameter"}: try precision="bfloat16"'
        )

    def running(self) -> tuple[float, float]:
        """(loss, accuracy) over the batches of this epoch so far."""
        loss, correct, images = self._sums
        return loss / max(images, 1), correct / max(images, 1)

    def _call(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, JSON-able rest): everything a run needs to go on from here to the same bits."""
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        if self.scaler is not None:
            arrays |= {f"scaler.{name}": array for name, array in self.scaler.state_dict().items()}
        rest = {
            "skipped": self._skipped,
            "epoch": self.epoch,
            "batch": self.batch,
            "history": list(self.history),
            "sums": self._sums.tolist(),
            "seconds": self._seconds,
            "random": random.get_state(),
        }
        return arrays, rest

    def load_state_dict(self, arrays: dict[str, np.ndarray], rest: dict[str, Any]) -> None:
        """Go to where `state_dict` was; raises `CheckpointError` if it is of another model, optimizer or loader."""
        from dlgpu.checkpoint import select

        missing = {"skipped", "epoch", "batch", "history", "sums", "seconds", "random"} - rest.keys()
        if missing:
            raise CheckpointError(f"[trainer] a training state must be complete; got one without {sorted(missing)}")
        if rest["batch"] > len(self.train_batches):
            raise CheckpointError(
                f"[trainer] the state must be of a run with as many batches per epoch; "
                f"got batch {rest['batch']} of {len(self.train_batches)}"
            )
        self.model.load_state_dict(select(arrays, "model"))
        self.optimizer.load_state_dict(select(arrays, "optimizer"))
        if self.scaler is not None:
            self.scaler.load_state_dict(select(arrays, "scaler"))
        self.epoch, self.batch, self._skipped = rest["epoch"], rest["batch"], rest["skipped"]
        self.history, self._seconds = list(rest["history"]), rest["seconds"]
        self._sums[:] = rest["sums"]
        random.set_state(*rest["random"])


def auxiliary_loss(loss: Loss, outputs: Tensor | tuple[Tensor, ...], labels: Any) -> Tensor:
    """The loss of the logits, plus AUXILIARY_WEIGHT times that of each auxiliary classifier (Szegedy et al. 2015).

    `outputs`: logits, or (logits, auxiliary logits, ...) as GoogLeNet returns them in training.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, labels)
    main, *others = (loss(logits, labels) for logits in outputs)
    for other in others:
        main = main + AUXILIARY_WEIGHT * other
    return main


def _logits(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def evaluate(model: Module, batches: DataLoader, loss: Loss = F.cross_entropy) -> tuple[float, float]:
    """(mean loss, share of correct images or pixels) over one pass in evaluation mode; restores the mode."""
    total = np.zeros(3)
    for images, labels, logits in predictions(model, batches):
        total += (float(loss(logits, labels)) * len(images), _correct(logits, labels), len(images))
    return float(total[0] / total[2]), float(total[1] / total[2])


def first_not_finite(model: Module, images: np.ndarray) -> str | None:
    """The first layer, in the order of a forward pass, whose output is not finite, and whether its weights are."""
    found: list[str] = []
    removals = []

    def watch(name: str, layer: Module) -> None:
        def hook(_: Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not found and not _finite(output):
                bad = [n for n, p in layer.named_parameters() if not _finite(p)]
                weights = f"its {' and '.join(bad)} not finite" if bad else "its weights finite"
                found.append(f"layer {name} ({type(layer).__name__}, {weights})")

        removals.append(layer.register_forward_hook(hook))

    for name, layer in model.named_modules():
        if not list(layer.children()):
            watch(name, layer)
    try:
        with no_grad():
            model(_on_device(model, images))
    finally:
        for remove in removals:
            remove()
    return found[0] if found else None


def _finite(t: Tensor) -> bool:
    return bool(np.isfinite(t.numpy().astype(np.float32)).all())


def predictions(model: Module, batches: DataLoader) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
    """(images, labels, logits) of each batch, in evaluation mode and without gradients."""
    training = model.training
    model.eval()
    try:
        for images, labels in batches.epoch(0):
            with no_grad():
                logits = model(_on_device(model, images))
            yield images, labels, logits
    finally:
        model.train(training)


def _on_device(model: Module, images: np.ndarray) -> Tensor:
    return tensor(images, device=_device(model))


def _device(model: Module) -> str:
    first = next(iter(model.parameters()), None)
    if first is None:
        raise ShapeError(f"[train] the model must have parameters; got none in {type(model).__name__}")
    return first.device


def _correct(logits: Tensor, labels: np.ndarray) -> float:
    """How many images are right; of labels per pixel, the share of right pixels times the images."""
    return float((logits.argmax(1).numpy() == labels).sum() / (labels.size // len(labels)))
