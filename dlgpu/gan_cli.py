"""`dlgpu gan`: train a DCGAN, and draw pictures with it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click
from rich.progress import Progress

from dlgpu import signals
from dlgpu.cli_parts import chosen_device, console, free_folder
from dlgpu.errors import CheckpointError, ShapeError
from dlgpu.nn.module import check_positive

SHOWN = 64  # pictures after each epoch


@click.group()
def gan() -> None:
    """Draw pictures that were never taken: DCGAN, two networks that train each other."""


@gan.command("train")
@click.option(
    "--data",
    "dataset",
    default="mnist",
    show_default=True,
    help="mnist, fashion-mnist, cifar10, shapes, or a folder with train/ and test/",
)
@click.option("--data-root", type=click.Path(), help="where the files of a named data set are")
@click.option("--image-size", type=int, help="scale images to 28, 32 or 64 [default: as they are]")
@click.option("-e", "--epochs", default=5, show_default=True, help="passes over the training data")
@click.option("-b", "--batch-size", default=128, show_default=True, help="images per update")
@click.option("--lr", default=5e-4, show_default=True, help="learning rate of both (paper: 2e-4, and more epochs)")
@click.option("--width", default=32, show_default=True, help="channels next to the image (paper: 128)")
@click.option("--latent", default=64, show_default=True, help="numbers that a picture is made of (paper: 100)")
@click.option("--limit", type=click.IntRange(1), help="use only the first LIMIT images (for a quick try)")
@click.option("--seed", default=0, show_default=True, help="same seed, same bits")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), help="new folder to write [default: runs/dcgan-<number>]"
)
def train(
    dataset: str,
    data_root: str | None,
    image_size: int | None,
    epochs: int,
    batch_size: int,
    lr: float,
    width: int,
    latent: int,
    limit: int | None,
    seed: int,
    device: str,
    folder: Path | None,
) -> None:
    """Train a generator against a discriminator and write a run folder.

    The folder holds, after each epoch, both networks in gan.safetensors, a line of losses in metrics.jsonl, and in
    samples.png what the generator makes of the same noise. Ctrl-C stops; the last whole epoch is kept.

    \b
    dlgpu gan train
    dlgpu gan train --data shapes --epochs 20
    dlgpu gan train --data my-photos --image-size 64 --width 64
    """
    import dlgpu
    from dlgpu import checkpoint, data, viz
    from dlgpu import gan as adversarial

    folder = folder or free_folder("dcgan")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"[gan] --run must name a new or an empty folder; got {folder}")
    check_positive("gan", batch_size=batch_size)
    device = chosen_device(device)
    images = data.load(dataset, train=True, root=data_root).subset(slice(limit))
    own_size = images.image_size
    size = own_size if image_size is None else image_size
    options = dict(image_size=size, in_channels=images.images.shape[1], latent=latent, width=width)
    dlgpu.manual_seed(seed)
    networks = adversarial.dcgan(**options, device=device)
    batches = data.DataLoader(images, batch_size, shuffle=True, seed=seed, transform=data.Resize(size))
    noise = adversarial.noise(networks[0], SHOWN)  # the same all the time, so that progress shows
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task("training", total=epochs * len(batches))
    stopped: list[str] = []  # by which signal

    def after_batch() -> None:
        progress.advance(task)
        if stopped:
            raise KeyboardInterrupt

    rows = adversarial.train(*networks, batches, epochs, lr=lr, after_batch=after_batch)

    parameters = sum(p.size for network in networks for p in network.parameters())
    console.print(f"dcgan: {parameters:,} parameters, {dataset}: {len(images):,} images of {size} x {size}")
    console.print(f"adam lr {lr:g}, batch {batch_size}, {device}, seed {seed}\nwriting {folder}/\n")
    settings = dict(dataset=dataset, epochs=epochs, batch_size=batch_size, lr=lr, limit=limit, seed=seed, device=device)
    adversarial.save(folder, networks, options, epoch=0, **settings)  # a folder that cannot be written says so now
    history = []
    try:
        with progress, signals.orderly(stopped.append):
            console.print("epoch   discriminator loss  generator loss  seconds", style="bold")
            for row in rows:
                console.print(
                    f"{row['epoch']:>5}   {row['discriminator_loss']:>18.4f}  {row['generator_loss']:>14.4f}  "
                    f"{row['seconds']:>7.2f}"
                )
                adversarial.save(folder, networks, options, epoch=row["epoch"], **settings)
                history.append(row)
                with checkpoint.replacing(folder / "metrics.jsonl") as file:
                    file.writelines(json.dumps(row).encode() + b"\n" for row in history)
                title = f"dcgan on {dataset}, epoch {row['epoch']}"
                viz.image_grid(adversarial.draw(networks[0], noise), folder / "samples.png", title=title)
    except KeyboardInterrupt:
        console.print(f"\ninterrupted; kept in {folder}/: all up to epoch {len(history)}")
        sys.exit(128 + signal.Signals[stopped[0]])
    console.print(f"\n{folder}/: gan.safetensors, metrics.jsonl, samples.png")
    console.print(f"more pictures: dlgpu gan sample {folder}")


@gan.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--count", default=64, show_default=True, help="how many pictures")
@click.option("--seed", default=1, show_default=True, help="of the noise that they are made of")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="new PNG to write [default: RUN/samples-seed<seed>.png]"
)
def sample(run: Path, count: int, seed: int, device: str, output: Path | None) -> None:
    """Draw new pictures with the generator of a RUN folder.

    \b
    dlgpu gan sample runs/dcgan-1 --count 100 --seed 7 -o digits.png
    """
    import dlgpu
    from dlgpu import gan as adversarial
    from dlgpu import viz

    path = output or run / f"samples-seed{seed}.png"
    generator, _ = adversarial.load(run, chosen_device(device))
    if path.exists():
        raise ShapeError(f"[gan] --output must name a new file; got {path}")
    dlgpu.manual_seed(seed)
    viz.image_grid(adversarial.draw(generator, adversarial.noise(generator, count)), path)
    console.print(str(path))
