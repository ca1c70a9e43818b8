"""The `dlgpu` command. Arguments in, tables and pictures out; everything it does is in the modules it calls.

Exit codes: 0 done, 1 a benchmark found a wrong result, 2 bad input (one line says what), 130 and 143 interrupted by
Ctrl-C and SIGTERM (state is saved).
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import dlgpu
from dlgpu import backends, insight, models, nn, optim
from dlgpu.backends.precision import PRECISIONS
from dlgpu.cli_parts import chosen_device, console, free_folder
from dlgpu.errors import BackendUnavailable, CheckpointError, DlgpuError, ShapeError
from dlgpu.gan_cli import gan
from dlgpu.kernels_cli import kernels
from dlgpu.run import AUGMENTATIONS, Config, Run, first_filters, load_model, read_config
from dlgpu.train import Callback, Row, Trainer


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(dlgpu.__version__, prog_name="dlgpu")
def cli() -> None:
    """Train and use convolutional networks.

    \b
    dlgpu train lenet5               learn to read digits (MNIST is included)
    dlgpu eval runs/lenet5-1         test accuracy of that run
    dlgpu predict runs/lenet5-1 a.png    what is in the picture?
    dlgpu report runs/lenet5-1       one page with all there is to see
    dlgpu models vgg16               the layer table of a network
    dlgpu gan train                  two networks against each other: digits that nobody wrote
    dlgpu bench                      is every op right, and how fast is it here?
    """


cli.add_command(kernels)
cli.add_command(gan)

MODEL_OPTION = click.option(
    "--model-option", "model_options", multiple=True, metavar="KEY=VALUE", help="of the network: width_mult=0.25, ..."
)

# --- train --------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", required=False)
@click.option(
    "--data",
    "dataset",
    help="mnist, fashion-mnist, cifar10, shapes, or a folder with train/ and test/ [default: the model's]",
)
@click.option("--data-root", type=click.Path(), help="where the files of a named data set are")
@click.option("--image-size", type=click.IntRange(1), help="scale images to this size [default: as they are]")
@MODEL_OPTION
@click.option("-e", "--epochs", type=int, help="passes over the training data [default: the model's]")
@click.option("-b", "--batch-size", type=int, help="images per update [default: the model's]")
@click.option("--optimizer", help=f"{', '.join(optim.OPTIMIZERS)} [default: the model's]")
@click.option("--lr", type=float, help="learning rate [default: the model's]")
@click.option("--weight-decay", type=float, help="pull weights towards zero [default: the model's]")
@click.option("--schedule", help=f"learning rate over time: {', '.join(optim.SCHEDULES)} [default: the model's]")
@click.option("--clip-norm", type=float, help="limit the norm of the gradients")
@click.option("--augment", default="", help=f"any of {','.join(AUGMENTATIONS)}, separated by commas")
@click.option("--mixup", default=0.0, show_default=True, help="blend images in pairs: alpha, 0.2 is usual")
@click.option("--label-smoothing", default=0.0, show_default=True, help="share of the target spread over all classes")
@click.option("--average-from", type=int, help="also average the weights of the epochs from this one on")
@click.option(
    "--layerwise", default=0, show_default=True, help="first train from the bottom up, LAYERWISE epochs a layer"
)
@click.option("--from", "start", help="begin with the weights of a run folder or .safetensors file, as far as they fit")
@click.option("--freeze", default="", help="parts of the network to leave as they are: 0,3 or features (wants --from)")
@click.option(
    "--lr-scale", multiple=True, metavar="PART=FACTOR", help="a learning rate of its own: features=0.1, 0=0.3, ..."
)
@click.option("--validation", default=0, show_default=True, help="hold out so many training images, and judge by them")
@click.option("--patience", type=int, help="stop after so many epochs without improvement (wants --validation)")
@click.option("--limit", type=int, help="use only the first LIMIT images (for a quick try)")
@click.option("--seed", default=0, show_default=True, help="same seed, same bits")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--precision", default="float32", show_default=True, help=f"of products: {', '.join(PRECISIONS)}")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), help="folder to write [default: runs/<model>-<number>]"
)
@click.option("--resume", type=click.Path(path_type=Path), help="continue the run in this folder")
def train(
    model: str | None,
    folder: Path | None,
    resume: Path | None,
    augment: str,
    freeze: str,
    device: str,
    **settings: Any,
) -> None:
    """Train MODEL (see `dlgpu models`) and write a run folder.

    The folder holds the checkpoints last.safetensors and best.safetensors, metrics.jsonl with the figures of each
    epoch, and the pictures curves.png and filters.png. Ctrl-C saves and stops; `dlgpu train --resume FOLDER` goes on
    as if nothing had happened.

    \b
    dlgpu train lenet5
    dlgpu train deep_convnet --augment shift,rotate --validation 5000 --patience 3
    dlgpu train vgg11 --data cifar10 --epochs 40 --augment crop,flip
    dlgpu train mobilenet_v1 --data fashion-mnist --image-size 32 --model-option width_mult=0.25
    dlgpu train lenet5 --data fashion-mnist --from runs/lenet5-1 --freeze 0,3
    dlgpu train lenet5 --data fashion-mnist --from runs/lenet5-1 --lr-scale 0=0.1 --lr-scale 3=0.3
    dlgpu train deep_convnet --layerwise 1
    dlgpu train fcn8s --model-option trunk=small
    """
    if resume is not None:
        given = {name for name, value in settings.items() if name != "epochs" and _was_given(name)}
        given |= {name for name in ("model", "folder", "augment", "freeze", "device") if _was_given(name)}
        if given:
            raise ShapeError(f"[train] --resume keeps a run's settings (only --epochs may change); got {_flags(given)}")
        run = Run.resume(resume, settings["epochs"])
    else:
        if model is None:
            raise ShapeError("[train] there must be a MODEL or --resume FOLDER (see `dlgpu models`); got neither")
        if freeze and not settings["start"]:
            raise ShapeError(f"[train] --freeze keeps trained weights: give them with --from; got --freeze {freeze}")
        settings["image_size"] = settings["image_size"] or 0
        config = Config(model, augment=_names(augment), freeze=_names(freeze), device=chosen_device(device), **settings)
        if folder is None and model not in models.MODELS:
            models.build(model)  # names the model's error, not the folder's
        run = Run.create(folder or free_folder(model), config)
    _fit(run)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _was_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _flags(names: set[str]) -> str:
    special = {
        "model": "MODEL",
        "folder": "--run",
        "dataset": "--data",
        "start": "--from",
        "model_options": "--model-option",
    }
    return ", ".join(sorted(special.get(name, "--" + name.replace("_", "-")) for name in names))


def _fit(run: Run) -> None:
    config, trainer = run.config, run.trainer
    parameters = sum(p.size for p in trainer.model.parameters())
    console.print(
        f"{config.model}: {parameters:,} parameters, {config.dataset}: {len(trainer.train_batches.dataset):,} images\n"
        f"{config.optimizer} lr {config.lr:g}, batch {config.batch_size}, {config.device}, seed {config.seed}"
    )
    if trainer.epoch or trainer.batch:
        console.print(f"continuing {run.folder}/ after epoch {trainer.epoch}, batch {trainer.batch}\n")
    else:
        if config.start is not None:
            console.print(f"weights of {config.start}; fresh: {nn.module.listed(run.fresh)}")
        console.print(f"writing {run.folder}/\n")

    def staged(number: int, row: Row) -> None:
        figures = f"{trainer.evaluate_as} accuracy {row[trainer.evaluate_as + '_accuracy']:.2%}, {row['seconds']:.2f} s"
        console.print(f"layer {number}: {figures}")

    with LiveTable(trainer, config.epochs) as table:
        trainer.callbacks.append(table)
        history = run.fit(staged)
    if trainer.stopped in ("SIGINT", "SIGTERM"):
        console.print(f"\ninterrupted; everything is saved. Go on with: dlgpu train --resume {run.folder}")
        sys.exit(128 + signal.Signals[trainer.stopped])
    if trainer.stopped:
        console.print(f"\nstopped: {trainer.stopped}")
    if history:
        split = trainer.evaluate_as
        best = max(history, key=lambda row: row[f"{split}_accuracy"])
        console.print(f"\nbest {split} accuracy {best[f'{split}_accuracy']:.2%} (epoch {best['epoch']})")
        if split == "valid":
            model, _ = load_model(run.folder, "best")
            _, accuracy = dlgpu.train.evaluate(model, config.evaluation_batches(run.test))
            console.print(f"test accuracy of that epoch's weights {accuracy:.2%}")
    console.print(f"{run.folder}/: best.safetensors, last.safetensors, metrics.jsonl, curves.png, filters.png")


class LiveTable(Callback):
    """A progress bar for the epoch and a line of figures after each."""

    def __init__(self, trainer: Trainer, epochs: int) -> None:
        self.epochs, self.split = epochs, trainer.evaluate_as
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=18),  # the line fits 80 columns
            TextColumn(
                "{task.percentage:>3.0f} %  {task.fields[speed]:,.0f} images/s  loss {task.fields[loss]:.4f}  left"
            ),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> LiveTable:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def on_train_begin(self, trainer: Trainer) -> None:
        batches = len(trainer.train_batches)
        self.task = self.progress.add_task(
            "train", total=self.epochs * batches, epoch=self._label(trainer), speed=0, loss=0
        )
        self.progress.update(self.task, completed=trainer.epoch * batches + trainer.batch)
        split = self.split
        console.print(f"epoch   train loss  accuracy   {split:>5} loss  accuracy        lr  seconds", style="bold")

    def _label(self, trainer: Trainer) -> str:
        return f"{min(trainer.epoch + 1, self.epochs)}/{self.epochs}"

    def on_batch_end(self, trainer: Trainer, loss: float) -> None:
        task = self.progress.tasks[0]
        speed = (task.speed or 0) * trainer.train_batches.batch_size
        self.progress.update(self.task, advance=1, epoch=self._label(trainer), speed=speed, loss=trainer.running()[0])

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        console.print(
            f"{row['epoch']:>5}   {_loss(row['train_loss'])}  {row['train_accuracy']:>8.2%}   "
            f"{_loss(row[self.split + '_loss'])}  {row[self.split + '_accuracy']:>8.2%}  {row['lr']:>8.2g}  "
            f"{row['seconds']:>7.2f}"
        )


def _loss(value: float) -> str:
    return f"{value:>10.4f}" if value < 1e5 else f"{value:>10.3g}"  # a run that diverges keeps its columns


# --- eval, predict ------------------------------------------------------------------------------------------------

RUN = click.argument("run", type=click.Path(path_type=Path))
WHICH = click.option(
    "--which",
    type=click.Choice(["best", "last", "average"]),
    default="best",
    show_default=True,
    help="which checkpoint",
)


@cli.command("eval")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@WHICH
@click.option("--ensemble", is_flag=True, help="judge all RUNs as one: the mean of their probabilities")
@click.option("--data", "dataset", help="another data set with the same classes [default: the run's]")
@click.option("--data-root", type=click.Path(), help="where its files are")
def evaluate(runs: tuple[Path, ...], which: str, ensemble: bool, dataset: str | None, data_root: str | None) -> None:
    """Accuracy of trained RUN folders on the test images, per class too; of segmentation, that of pixels and mean IoU.

    \b
    dlgpu eval runs/lenet5-1
    dlgpu eval --ensemble runs/deep_convnet-1 runs/deep_convnet-2 runs/deep_convnet-3
    """
    from dlgpu import data
    from dlgpu.ensemble import Ensemble

    loaded = [load_model(run, which) for run in runs]
    if ensemble:
        settings = {(c.classes, c.mean, c.std, c.image_size) for _, c in loaded}
        if len(settings) > 1:
            raise CheckpointError(f"[eval] an ensemble's runs must share their data; got {len(settings)} kinds")
        for (model, config), run in zip(loaded, runs, strict=True):
            test = data.load(dataset or config.dataset, train=False, root=data_root or config.data_root)
            console.print(f"{dlgpu.train.evaluate(model, config.evaluation_batches(test))[1]:>8.2%}  {run}")
        loaded = [(Ensemble([model for model, _ in loaded]), loaded[0][1])]
        runs = (Path(f"ensemble of {len(runs)}"),)
    for run, (model, config) in zip(runs, loaded, strict=True):
        test = data.load(dataset or config.dataset, train=False, root=data_root or config.data_root)
        config.check_labels(test)
        if len(test.classes) != len(config.classes):
            raise CheckpointError(
                f"[eval] the run knows {len(config.classes)} classes; got {len(test.classes)} in {test.name}"
            )
        if len(loaded) > 1:
            console.print(f"\n{run}", style="bold")
        judgement = insight.judge(model, config.evaluation_batches(test), len(test.classes))
        _print_accuracy(judgement, test.classes, "pixels" if test.per_pixel else "images")
        if test.per_pixel:
            console.print(f"mean IoU {judgement.mean_iou:.2%}")


def _print_accuracy(judgement: insight.Judgement, classes: Sequence[str], counted: str) -> None:
    table = Table("class", counted, "correct", "accuracy", box=None)
    hits, counts = np.diag(judgement.matrix), judgement.matrix.sum(1)
    for name, hit, count in zip(classes, hits, counts, strict=True):
        table.add_row(name, f"{count:,}", f"{hit:,}", f"{hit / count:.2%}" if count else "-")
    console.print(table)
    console.print(f"\ntest accuracy {judgement.accuracy:.2%} ({hits.sum():,} of {counts.sum():,})")


@cli.command()
@RUN
@click.argument("images", nargs=-1, required=True, type=click.Path())
@WHICH
@click.option("--top", default=3, show_default=True, help="how many classes to show")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="segmentation: PNG to write [default: RUN/<name of the picture>-classes.png]",
)
def predict(run: Path, images: tuple[str, ...], which: str, top: int, output: Path | None) -> None:
    """Classes and probabilities of picture files, by a trained RUN folder.

    Pictures are scaled to the network's size. Grey networks trained on bright strokes (MNIST) get dark-on-bright
    pictures inverted. Segmentation networks give the share of each class, and a PNG of the picture's size in the
    colours named beside them.
    """
    from dlgpu import data, viz
    from dlgpu import functional as F

    model, config = load_model(run, which)
    masks = _mask_paths(run, config, images, output)
    for name in images:
        pixels = data.load_image(name, config.image_size, config.in_channels)
        inverted = config.in_channels == 1 and _bright_border(pixels) and config.mean[0] < 0.5
        if inverted:
            pixels = 255 - pixels
        batch = np.divide(pixels[None], np.float32(255), dtype=np.float32)
        batch = config.transform(augment=False)(batch, np.random.default_rng(0))
        with dlgpu.no_grad():
            shares = F.softmax(model(dlgpu.tensor(batch, device=config.device)), dim=1).numpy()[0]
        notes = [""] * len(shares)
        if config.per_pixel:
            classes = shares.argmax(0)
            viz.mask(classes, len(shares), masks[name], data.load_image(name).shape[1:])
            shares = np.bincount(classes.ravel(), minlength=len(shares)) / classes.size
            notes = [f"  #{bytes(colour).hex()}" for colour in viz.class_colours(len(shares))]
        console.print(f"{name}{'  (inverted: dark on bright)' if inverted else ''}", style="bold")
        for index in np.argsort(-shares, kind="stable")[: max(top, 1)]:
            console.print(f"  {shares[index]:>7.2%}  {config.classes[index]}{notes[index]}")
        if config.per_pixel:
            console.print(f"  {masks[name]}")


def _mask_paths(run: Path, config: Config, images: Sequence[str], output: Path | None) -> dict[str, Path]:
    """Where the classes of each picture's pixels go; raises `ShapeError` if a picture or another of them is there."""
    if not config.per_pixel:
        if output is not None:
            raise ShapeError(
                f"[predict] --output is for segmentation networks; got one class per image, {config.model}"
            )
        return {}
    if output is not None and len(images) > 1:
        raise ShapeError(f"[predict] --output takes the classes of one picture; got {len(images)}")
    paths = {name: output or run / f"{Path(name).stem}-classes.png" for name in images}
    written = {path.resolve() for path in paths.values()}
    if len(written) < len(images) or written & {Path(name).resolve() for name in images}:
        raise ShapeError(
            f"[predict] what is written must not replace a picture; got {', '.join(map(str, paths.values()))}"
        )
    return paths


def _check_one_class(where: str, config: Config) -> None:
    if config.per_pixel:
        raise ShapeError(f"[{where}] the network must give one class per image; got {config.model}, one per pixel")


def _bright_border(pixels: np.ndarray) -> bool:
    edge = np.concatenate([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], axis=None)
    return bool(edge.mean() > 127)


# --- viz, report --------------------------------------------------------------------------------------------------


@cli.command("viz")
@click.argument("kind", type=click.Choice(["filters", "activations", "saliency", "confusion"]))
@RUN
@WHICH
@click.option("--image", "first", default=0, show_default=True, help="number of the (first) test image to look at")
@click.option("--count", default=12, show_default=True, help="saliency: how many images")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG to write [default: RUN/KIND.png]")
def picture(kind: str, run: Path, which: str, first: int, count: int, output: Path | None) -> None:
    """Draw what a trained RUN has learnt.

    \b
    filters       the first layer before and after training
    activations   what each convolution answers to a test image
    saliency      the pixels that move the score of the right class
    confusion     which classes it takes for which
    """
    from dlgpu import viz

    model, config = load_model(run, which)
    path, title = output or run / f"{kind}.png", f"{config.model} on {config.dataset}"
    if kind == "filters":
        before, after = first_filters(config.build_model(), config), first_filters(model, config)
        if before is None or after is None:
            raise ShapeError(f"[viz] filters need a first layer that sees pictures; got {config.model}")
        viz.filters(before, after, path, title)
    else:
        _, _, test = config.complete()
        if not 0 <= first < len(test) or count < 1:
            raise ShapeError(f"[viz] --image must be in 0..{len(test) - 1} and --count >= 1; got {first} and {count}")
        rows = test.subset(slice(first, first + (count if kind == "saliency" else 1)))
        images = rows.images / np.float32(255)
        prepared = config.transform(augment=False)(images, np.random.default_rng(0))
        if kind == "confusion":
            judgement = insight.judge(model, config.evaluation_batches(test), len(config.classes))
            viz.confusion(judgement.matrix, config.classes, path, title)
        elif kind == "activations":
            maps = insight.activations(model, prepared[0])
            if not maps:
                raise ShapeError(f"[viz] activations need a layer that answers with maps; got {config.model}")
            viz.activations(images[0], maps, path, title)
        else:
            _check_one_class("viz saliency", config)
            names = [config.classes[label] for label in rows.labels]
            viz.saliency(images, insight.saliency(model, prepared, rows.labels), path, names, title=title)
    console.print(str(path))


@cli.command("report")
@RUN
@WHICH
def write_report(run: Path, which: str) -> None:
    """Write RUN/report.html: curves, confusion matrix, worst mistakes, filters and layers in one file."""
    from dlgpu import report

    console.print(str(report.write(run, which)))


# --- info, models -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
def info(run: Path | None) -> None:
    """What this machine has; or, with a RUN folder, what is in it."""
    if run is not None:
        config = read_config(run)
        for name, value in vars(config).items():
            console.print(f"{name:>14}  {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return
    from dlgpu.threads import num_threads

    console.print(f"dlgpu {dlgpu.__version__}, Python {sys.version.split()[0]}, NumPy {np.__version__}")
    console.print(f"{num_threads()} CPU threads (DLGPU_NUM_THREADS changes it)", end="\n\n")
    for name, state in backends.available().items():
        console.print(f"backend {name:<12} {state}", soft_wrap=True)


@cli.command("models")
@click.argument("name", required=False)
@click.option("--image-size", type=int, help="input height and width [default: the model's]")
@click.option("--in-channels", type=int, help="1 grey, 3 colour [default: the model's]")
@click.option("--num-classes", type=int, help="[default: the model's]")
@MODEL_OPTION
def list_models(name: str | None, model_options: tuple[str, ...], **sizes: int | None) -> None:
    """The networks; or, with a NAME, its layer table."""
    if name is None:
        table = Table("name", "about", "data", "epochs", "optimizer", "lr", "schedule", box=None)
        for key, entry in models.MODELS.items():
            row = (entry.dataset, str(entry.epochs), entry.optimizer, f"{entry.lr:g}", entry.schedule)
            table.add_row(key, entry.about, *row)
        console.print(table)
        return
    chosen = {key: value for key, value in sizes.items() if value is not None}
    if name in models.MODELS:
        entry = models.MODELS[name]
        chosen = {"image_size": entry.image_size, "in_channels": entry.in_channels} | chosen
    with nn.init.skipped():  # a table needs no weights
        model = models.build(name, **chosen | models.parse_options(name, model_options))
    shape = (1, chosen["in_channels"], chosen["image_size"], chosen["image_size"])
    click.echo(model.summary(shape).rstrip())


# --- bench --------------------------------------------------------------------------------------------------------


SOME = click.FloatRange(0, min_open=True)


@cli.command()
@click.argument("ops", nargs=-1)
@click.option("--network", "networks", multiple=True, help="only shapes of vgg16, resnet50, alexnet, googlenet, ...")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="images [default: 1; on a GPU all]")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    help="float32, float16, bfloat16, tf32, float32x3 [default: CPU float32, else all]",
)
@click.option(
    "--algorithm", "algorithms", multiple=True, default=["auto"], help="of convolutions, or hopper; several compete"
)
@click.option("--autotune", is_flag=True, help="our kernels are those that dlgpu.autotune() finds fastest here")
@click.option("--layout", default="channels_last", show_default=True, help="of our images: or contiguous")
@click.option("--compare", multiple=True, help="numpy, torch, cublas, cudnn or none [default: all that are installed]")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:cupy or host-kernels (emulated, tiny)"
)
@click.option("--tiny", is_flag=True, help="small arrays: for sanitizers and for trying things out")
@click.option("--check-only", is_flag=True, help="right or wrong, no times")
@click.option(
    "--budget-minutes", type=SOME, default=2.0, show_default=True, help="stop then; the most informative cases go first"
)
@click.option("--case-seconds", type=SOME, default=120.0, show_default=True, help="a longer case counts as hung")
@click.option("--output", type=click.Path(path_type=Path), help="folder to write [default: runs/bench-<number>]")
@click.option("--resume", is_flag=True, help="keep what --output holds already, measure the rest")
@click.option("--list", "only_list", is_flag=True, help="print the chosen cases with their work, measure nothing")
def bench(
    ops: tuple[str, ...],
    device: str,
    tiny: bool,
    budget_minutes: float,
    case_seconds: float,
    output: Path | None,
    resume: bool,
    only_list: bool,
    **chosen: Any,
) -> None:
    """Check OPS (names or families; all if none) against float64, then time them beside NumPy, PyTorch and cuBLAS.

    Writes results.json (case by case, as they come), report.md, roofline.png and bars.png. A result that is wrong gets
    no time, and the exit code is 1. Ctrl-C keeps what was measured. docs/benchmarks.md explains every figure.

    \b
    dlgpu bench                                                     a bit of everything
    dlgpu bench conv2d --network vgg16 --dtype float16 --compare torch
    dlgpu bench gemm pool --device cuda --budget-minutes 5
    dlgpu bench conv --device host-kernels                          the kernels without a GPU: right or wrong?
    """
    from dlgpu.bench import report
    from dlgpu.bench.command import choose
    from dlgpu.bench.run import RESULTS, Results, run

    cases, settings = choose(ops, device=chosen_device(device), small=tiny, **chosen)
    if only_list:
        for case in cases:
            console.print(f"{case.id:<60} {case.flops / 1e9:>10,.3f} GFLOP {case.bytes / 1e6:>10,.2f} MB")
        return
    if resume and output is None:
        raise ShapeError("[bench] --resume goes on with a folder; got no --output")
    path = (output or free_folder("bench")) / RESULTS
    results = Results.read(path) if resume and path.exists() else Results(path)

    if device == "auto" and settings.kind == "cpu":
        console.print(f"no GPU to measure: {backends.available()['cuda']}\nSo the NumPy reference runs, on the CPU.\n")

    def started(machine: dict[str, Any]) -> None:
        for name, reason in machine["missing"].items():
            if name in chosen["compare"]:
                raise BackendUnavailable(f"[bench] --compare {name} must be possible here; got {reason}")
        console.print(f"{report.headline(machine)}\n{len(cases):,} cases, {budget_minutes:g} minutes, {path.parent}/\n")
        console.print(report.line_of(report.HEAD), style="bold")

    def measured(row: dict[str, Any]) -> None:
        for line in report.lines(row, report.ceilings(results)):
            console.print(report.line_of(report.cells(line)))

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a background job of a shell inherits it as ignored
        signal.signal(number, _terminate)
    stopped = 0
    try:
        run(
            cases,
            settings,
            results,
            budget=60 * budget_minutes,
            case_seconds=case_seconds,
            started=started,
            measured=measured,
        )
    except KeyboardInterrupt as signalled:
        stopped = signalled.args[0] if signalled.args else signal.SIGINT
    if results.rows:
        written = ", ".join(path.name for path in report.write(results))
        console.print(f"\n{path.parent}/: {written}")
    if stopped:
        console.print(f"interrupted; {len(results.rows)} cases are kept")
        sys.exit(128 + stopped)
    if results.left:
        console.print(f"{results.left:,} cases left for lack of time: raise --budget-minutes, or --resume")
    for wrong in results.wrong:
        click.echo(wrong, err=True)
    sys.exit(1 if results.wrong else 0)


def _terminate(number: int, frame: object) -> NoReturn:
    """A signal handler: ends a command as Ctrl-C does, with the signal's number in the exception."""
    raise KeyboardInterrupt(number)


# --- entry --------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; errors a user can cause become one line and exit code 2."""
    warnings.simplefilter("ignore", RuntimeWarning)  # overflows of a run that diverges: the trainer reports its loss
    try:
        cli.main(arguments, prog_name="dlgpu", standalone_mode=False)
    except DlgpuError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a forbidden file
        click.echo(f"error: [dlgpu] files must be readable and writable; got {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(0)
