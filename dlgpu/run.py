"""A run: a folder with the settings, checkpoints, figures and pictures of one training, and what rebuilds it from them.

run/config.json         settings, class names, normalisation
run/last.safetensors    the newest checkpoint: weights, optimizer, position, random state, figures
run/best.safetensors    the same, of the epoch with the highest accuracy
run/average.safetensors the mean weights of the last epochs, where asked for
run/metrics.jsonl       one line of figures per epoch
run/curves.png          loss and accuracy per epoch
run/filters.png         the first layer before and after training
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlgpu import checkpoint, data, models, nn, optim, pretrain, random, transfer
from dlgpu import functional as F
from dlgpu.averaging import WeightAveraging
from dlgpu.backends.precision import PRECISIONS
from dlgpu.data import DataLoader, Dataset
from dlgpu.errors import CheckpointError, DataError, ShapeError, TrainingError, UnknownName
from dlgpu.nn import Module
from dlgpu.tensor import tensor
from dlgpu.train import Callback, EarlyStopping, Row, Trainer

EVALUATION_BATCH = 500
# Seconds between checkpoints inside an epoch: what a killed run loses at most, beside its last batch.
CHECKPOINT_SECONDS = 30.0

AUGMENTATIONS: dict[str, Any] = {
    "shift": lambda size: data.RandomShift(max(1, size // 14)),
    "rotate": lambda size: data.RandomRotation(10.0),
    "flip": lambda size: data.RandomHorizontalFlip(),
    "crop": lambda size: data.RandomCrop(size, padding=max(1, size // 8)),
    "cutout": lambda size: data.Cutout(max(1, size // 4)),
}


DATA_OPTIONS = ("num_classes", "in_channels", "image_size")  # of every network, and never to choose: the data have them
MODELS_OWN: Any = None  # stands for the model's default (dlgpu.models.ModelInfo)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. What the data say is filled in by `complete`."""

    model: str
    model_options: tuple[str, ...] = ()
    dataset: str = MODELS_OWN
    data_root: str | None = None
    epochs: int = MODELS_OWN
    batch_size: int = MODELS_OWN
    optimizer: str = MODELS_OWN
    lr: float = MODELS_OWN
    weight_decay: float = MODELS_OWN
    schedule: str = MODELS_OWN
    clip_norm: float | None = None
    augment: tuple[str, ...] = ()
    mixup: float = 0.0
    label_smoothing: float = 0.0
    average_from: int | None = None
    layerwise: int = 0  # first train from the bottom up, so many epochs per layer
    start: str | None = None
    freeze: tuple[str, ...] = ()
    lr_scale: tuple[str, ...] = ()  # "PART=FACTOR": that part of the network learns at FACTOR times the rate
    validation: int = 0
    patience: int | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    image_size: int = 0  # what images are scaled to; 0: their own size
    # from the data
    classes: tuple[str, ...] = ()
    in_channels: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_known("model", self.model, models.MODELS)
        given = models.parse_options(self.model, self.model_options).keys() & DATA_OPTIONS
        if given:
            raise ShapeError(
                f"[run] {', '.join(DATA_OPTIONS)} must come from the data (image_size also from --image-size); "
                f"got model options {sorted(given)}"
            )
        self.lr_scales()
        if self.layerwise < 0 or (self.layerwise and self.start is not None):
            raise ShapeError(
                f"[run] layerwise must be epochs >= 0 that begin with fresh weights; got {self.layerwise}, {self.start}"
            )
        for name in ("dataset", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule"):
            if getattr(self, name) is MODELS_OWN:
                object.__setattr__(self, name, getattr(models.MODELS[self.model], name))
        _check_known("optimizer", self.optimizer, optim.OPTIMIZERS)
        _check_known("schedule", self.schedule, optim.SCHEDULES)
        _check_known("precision", self.precision, PRECISIONS)
        for name in self.augment:
            _check_known("augmentation", name, AUGMENTATIONS)
        if not (self.mixup >= 0 and 0 <= self.label_smoothing < 1):
            raise ShapeError(
                f"[run] mixup must be >= 0 and label_smoothing in [0, 1); got {self.mixup} and {self.label_smoothing}"
            )
        for name in ("epochs", "batch_size", "limit", "patience", "average_from"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ShapeError(f"[run] {name} must be >= 1; got {value}")

    def complete(self) -> tuple[Config, Dataset, Dataset]:
        """Load the data and fill in what they say -> (config, training data, test data)."""
        train, test = (data.load(self.dataset, train=half, root=self.data_root) for half in (True, False))
        if self.limit is not None:
            train, test = train.subset(slice(self.limit)), test.subset(slice(self.limit))
        size = train.image_size
        self.check_labels(train)
        if not 0 <= self.validation < len(train):
            raise ShapeError(f"[run] validation must leave images to train on; got {self.validation} of {len(train)}")
        mean, std = train.mean_std()
        facts: dict[str, Any] = dict(
            classes=train.classes,
            in_channels=train.images.shape[1],
            image_size=self.image_size or size,
            mean=tuple(map(float, mean)),
            std=tuple(float(max(s, 1e-3)) for s in std),  # a constant channel must not be divided by zero
        )
        return dataclasses.replace(self, **facts), train, test

    @property
    def per_pixel(self) -> bool:
        """Whether the network tells the class of each pixel."""
        return models.MODELS[self.model].per_pixel

    def check_labels(self, images: Dataset) -> None:
        """Raises `DataError` unless `images` have a label per pixel or per image, as the network learns them.

        Labels of pixels stay where they are: raises `ShapeError` if images are to be moved or scaled.
        """
        wanted = self.per_pixel
        if images.per_pixel != wanted:
            kind, other = ("pixel", "image") if wanted else ("image", "pixel")
            raise DataError(f"[run] {self.model} learns a label per {kind}; got labels per {other} in {images.name}")
        if wanted and (self.augment or self.image_size not in (0, images.images.shape[2])):
            given = ", ".join(self.augment) or f"image size {self.image_size}"
            raise ShapeError(f"[run] with labels per pixel, images must stay as they are; got {given}")

    def build_model(self) -> Module:
        """The network with fresh weights from the run's seed."""
        random.manual_seed(self.seed)
        sizes = dict(zip(DATA_OPTIONS, (len(self.classes), self.in_channels, self.image_size), strict=True))
        options = models.parse_options(self.model, self.model_options)
        return models.build(self.model, **sizes | options).to(self.device)

    def first_model(self) -> tuple[Module, list[str]]:
        """The network that training starts with: `build_model`, or with the weights of `start`, parts of it frozen.

        Also the names of what it does not have from `start`.
        """
        model, fresh = self.build_model(), []
        if self.start is not None:
            start = Path(self.start)
            weights = checkpoint.weights(start / "best.safetensors" if start.is_dir() else start)
            fresh = transfer.load_matching(model, weights)
        transfer.freeze(model, *self.freeze)
        return model, fresh

    def lr_scales(self) -> dict[str, float]:
        """`lr_scale` read: part of the network -> factor of the learning rate."""
        scales = {}
        for text in self.lr_scale:
            part, _, factor = text.partition("=")
            try:
                scales[part] = float(factor)
            except ValueError:
                scales[part] = math.nan
            if not (part and 0 <= scales[part] < math.inf):
                raise ShapeError(f"[run] lr_scale must be given as PART=FACTOR, with a factor >= 0; got {text!r}")
        return scales

    def training(self) -> dict[str, Any]:
        """Settings of a `Trainer`."""
        loss = functools.partial(F.cross_entropy, label_smoothing=self.label_smoothing)
        return dict(clip_norm=self.clip_norm, precision=self.precision, mixup=self.mixup, loss=loss)

    def make_optimizer(self, parameters: Any) -> optim.Optimizer:
        """Of parameters, or of groups of them."""
        return optim.OPTIMIZERS[self.optimizer](parameters, lr=self.lr, weight_decay=self.weight_decay)

    def transform(self, augment: bool) -> data.Compose:
        """What happens to images between the data set and the network."""
        steps = [AUGMENTATIONS[name](self.image_size) for name in self.augment] if augment else []
        return data.Compose([data.Resize(self.image_size), *steps, data.Normalize(self.mean, self.std)])

    def evaluation_batches(self, images: Dataset) -> DataLoader:
        """Batches to evaluate on: no shuffling, no augmentation."""
        return DataLoader(images, EVALUATION_BATCH, transform=self.transform(augment=False), device=self.device)


class Run(Callback):
    """A run folder being written: the callback that saves checkpoints, figures and pictures.

    `fresh`: what `config.start` had no weights for.
    """

    def __init__(self, folder: Path, config: Config, trainer: Trainer, test: Dataset, fresh: list[str]) -> None:
        self.folder, self.config, self.trainer, self.test, self.fresh = folder, config, trainer, test, fresh
        self.initial_filters = first_filters(trainer.model, config)
        self._saved = time.monotonic()
        self.averaging = WeightAveraging(config.average_from) if config.average_from is not None else None
        if self.averaging is not None:
            trainer.callbacks.append(self.averaging)
        trainer.callbacks.append(self)

    # --- making one -----------------------------------------------------------------------------------------------

    @staticmethod
    def create(folder: str | Path, config: Config) -> Run:
        """Start a new run in a folder that does not hold one; raises `CheckpointError` if it does."""
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise CheckpointError(
                f"[run] the folder must not hold a run already; got {folder}: "
                "choose another with --run, or continue with --resume"
            )
        config, train, test = config.complete()
        run = Run._assemble(folder, config, train, test)
        _write_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return run

    @staticmethod
    def resume(folder: str | Path, epochs: int | None = None) -> Run:
        """Continue a run from its newest checkpoint, to the same bits as if it had not been interrupted.

        `epochs` replaces the run's number of epochs (to train on).
        """
        folder = Path(folder)
        config = read_config(folder)
        if epochs is not None:
            config = dataclasses.replace(config, epochs=epochs)
        completed, train, test = config.complete()
        if completed != config:
            raise CheckpointError(
                f"[run] the data must be those that the run began with; got others in {config.dataset}"
            )
        run = Run._assemble(folder, config, train, test)
        if (folder / "last.safetensors").exists():  # else it was killed before its first checkpoint: start over
            arrays, rest = checkpoint.load(folder / "last.safetensors")
            run.trainer.load_state_dict(arrays, rest)
            if run.averaging is not None and (path := folder / "average.safetensors").exists():
                means, info = checkpoint.load(path)
                run.averaging.load_state_dict(checkpoint.select(means, "mean"), info["epochs"])
        run._write_metrics()
        if epochs is not None:
            _write_text(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return run

    @staticmethod
    def _assemble(folder: Path, config: Config, train: Dataset, test: Dataset) -> Run:
        held_out, split = test, "test"
        if config.validation:
            train, held_out = train.split(len(train) - config.validation, config.seed)
            split = "valid"
        model, fresh = config.first_model()
        if config.layerwise:
            pretrain.stages(model)  # raises if there are none
        optimizer = config.make_optimizer(transfer.parameter_groups(model, config.lr, config.lr_scales()))
        batches = DataLoader(
            train,
            config.batch_size,
            shuffle=True,
            seed=config.seed,
            transform=config.transform(augment=True),
            device=config.device,
        )
        trainer = Trainer(
            model,
            optimizer,
            batches,
            config.evaluation_batches(held_out),
            schedule=optim.SCHEDULES[config.schedule](config.epochs),
            evaluate_as=split,
            **config.training(),
        )
        if config.patience is not None:
            trainer.callbacks.append(EarlyStopping(config.patience, f"{split}_loss"))
        return Run(folder, config, trainer, test, fresh)

    # --- while it runs --------------------------------------------------------------------------------------------

    def fit(self, staged: Callable[[int, Row], None] = lambda stage, row: None) -> list[Row]:
        """Train to the end (or until stopped); returns the history.

        `staged(number, figures)` is called after each layer of pre-training, where that is asked for.
        """
        if self.config.layerwise and not (self.trainer.epoch or self.trainer.batch):
            self._pretrain(staged)
            if self.trainer.stopped:
                return self.trainer.history
        return self.trainer.fit(self.config.epochs)

    def _pretrain(self, staged: Callable[[int, Row], None]) -> None:
        """Train fresh weights from the bottom up, and take them over."""
        config, main = self.config, self.trainer

        def fit(network: nn.Sequential) -> None:
            if main.stopped:
                return
            optimizer, how = config.make_optimizer(network.parameters()), config.training()
            trainer = Trainer(
                network, optimizer, main.train_batches, main.evaluate_batches, evaluate_as=main.evaluate_as, **how
            )
            row = trainer.fit(config.layerwise)[-1:]
            main.stopped = trainer.stopped
            if not main.stopped:
                staged(len(network) - 1, row[0])

        model = config.build_model()  # not the trainer's: its parameters belong to its optimizer
        image = np.zeros((1, config.in_channels, config.image_size, config.image_size), np.float32)
        pretrain.layerwise(model, tensor(image, device=config.device), fit)
        main.model.load_state_dict(model.state_dict())

    def on_train_begin(self, trainer: Trainer) -> None:
        self._saved = time.monotonic()

    def on_batch_end(self, trainer: Trainer, loss: float) -> None:
        if time.monotonic() - self._saved > CHECKPOINT_SECONDS and trainer.batch < len(trainer.train_batches):
            self._save("last")

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        self._write_metrics()
        figure = f"{trainer.evaluate_as}_accuracy"
        if row[figure] > max((r[figure] for r in trainer.history[:-1]), default=-1.0):
            self._save("best")
        self._save_average()
        self._save("last")

    def on_train_end(self, trainer: Trainer) -> None:
        self._save("last")
        self.draw()

    def _save_average(self) -> None:
        """The mean weights with batch statistics of their own (to evaluate), and as they are (to go on from)."""
        if self.averaging is None or not self.averaging.count:
            return
        model = self.config.build_model()
        self.averaging.apply(model, self.trainer.train_batches)
        arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
        arrays |= {f"mean.{name}": array for name, array in self.averaging.state_dict().items()}
        rest = {"epoch": self.trainer.epoch, "epochs": self.averaging.count}
        checkpoint.save(self.folder / "average.safetensors", arrays, rest)

    def _save(self, name: str) -> None:
        arrays, rest = self.trainer.state_dict()
        check_finite(arrays)
        checkpoint.save(self.folder / f"{name}.safetensors", arrays, rest)
        self._saved = time.monotonic()

    def _write_metrics(self) -> None:
        _write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.trainer.history))

    def draw(self) -> None:
        """Write curves.png and filters.png."""
        from dlgpu import viz

        if self.trainer.history:
            viz.curves(self.trainer.history, self.folder / "curves.png", title=self.title)
        filters = first_filters(self.trainer.model, self.config)
        if self.initial_filters is not None and filters is not None:
            viz.filters(self.initial_filters, filters, self.folder / "filters.png", title=self.title)

    @property
    def title(self) -> str:
        """What pictures are headed with."""
        return f"{self.config.model} on {self.config.dataset}"


def read_config(folder: str | Path) -> Config:
    """The settings of a run folder; raises `CheckpointError` if it holds none or they are damaged."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"[run] the folder must hold a run (config.json); got {folder}")
    try:
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(path.read_text()).items()
        }
        return Config(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"[run] {path} is damaged or of another version; got: {error}") from error


def load_model(folder: str | Path, which: str = "best") -> tuple[Module, Config]:
    """The trained network of a run in evaluation mode, and the run's settings. `which`: "best", "last" or "average"."""
    config = read_config(folder)
    arrays, _ = checkpoint.load(Path(folder) / f"{which}.safetensors")
    model = config.build_model()
    model.load_state_dict(checkpoint.select(arrays, "model"))
    return model.eval(), config


def first_filters(model: Module, config: Config) -> np.ndarray | None:
    """A copy of the first layer's weights as pictures (K, C, R, S); a dense first layer sees whole images."""
    for name, weights in model.state_dict().items():
        if name.endswith("weight") and weights.ndim == 4:
            return weights
        if name.endswith("weight") and weights.ndim == 2:
            pixels = (config.in_channels, config.image_size, config.image_size)
            return weights.reshape(-1, *pixels) if weights.shape[1] == int(np.prod(pixels)) else None
    return None


def check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Of weights about to be saved; raises `TrainingError`.

    A loss is looked at before its update, so the newest one may be the bad one.
    """
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(
                f"[run] weights must stay finite; got inf or NaN in {key}: try a smaller learning rate. "
                "The checkpoint before is kept"
            )


def _check_known(kind: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UnknownName("run", kind, name, known)


def _write_text(path: Path, text: str) -> None:
    with checkpoint.replacing(path) as file:
        file.write(text.encode())
