"""Generative adversarial networks: a generator and a discriminator that train each other (Goodfellow et al. 2014).

The discriminator learns to tell real images from forgeries, the generator to deceive it (arXiv:1406.2661). Here the two
are DCGAN's (`dlgpu.models.dcgan`), and so is the recipe: Adam, lr 2e-4, betas (0.5, 0.999), batches of 128.

Images are in 0..1, as a `DataLoader` gives them; the networks see them in -1..1.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlgpu import checkpoint, models, nn, optim
from dlgpu import functional as F
from dlgpu.autograd import no_grad
from dlgpu.data import DataLoader
from dlgpu.errors import CheckpointError, TrainingError
from dlgpu.nn import Module
from dlgpu.nn.module import check_positive
from dlgpu.run import check_finite
from dlgpu.tensor import Tensor, full, randn, tensor
from dlgpu.train import Row

Networks = tuple[Module, Module]  # generator, discriminator
FILE = "gan.safetensors"  # of a run folder: both networks, so that they are always of one epoch


def dcgan(
    image_size: int = 28, in_channels: int = 1, latent: int = 100, width: int = 128, device: str = "cpu"
) -> Networks:
    """A DCGAN (generator, discriminator) with fresh weights; raises `ShapeError` as `dlgpu.models.dcgan` does."""
    generator = models.dcgan_generator(image_size, in_channels, latent, width)
    return generator.to(device), models.dcgan_discriminator(image_size, in_channels, width).to(device)


def train(
    generator: Module,
    discriminator: Module,
    batches: DataLoader,
    epochs: int,
    *,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    after_batch: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Train two networks against each other; yields the figures of each epoch, as long as it is asked.

    For each batch the discriminator takes a step (real images are real, as many forgeries are not), then the generator
    (the discriminator should call the same forgeries real: the loss of Goodfellow et al. that "does not saturate").

    Args:
        generator: noise (N, latent, 1, 1) to images (N, C, H, W) in -1..1.
        discriminator: such images to (N, 1) logits, positive for "real"; on the same device.
        batches: real images in 0..1; labels are not looked at.
        lr, betas: of both Adams.
        after_batch: called after each batch.

    Figures: epoch (from 1), discriminator_loss and generator_loss (means over batches of binary cross-entropies; the
    former is the sum of that of real images and that of forgeries), seconds.

    Raises:
        ShapeError: fewer than one epoch, or settings that Adam does not take; at once.
        TrainingError: a loss is not finite.
    """
    check_positive("gan", epochs=epochs)
    makes, judges = (optim.Adam(net.parameters(), lr=lr, betas=betas) for net in (generator, discriminator))

    def update(images: np.ndarray) -> tuple[float, float]:
        fake = generator(noise(generator, len(images)))
        real = tensor(2 * images - 1, device=fake.device)

        judges.zero_grad()
        judged = _loss(discriminator(real), 1.0) + _loss(discriminator(fake.detach()), 0.0)
        judged.backward()
        judges.step()

        makes.zero_grad()
        deceived = _loss(discriminator(fake), 1.0)
        deceived.backward()
        makes.step()
        return float(judged), float(deceived)

    def run() -> Iterator[Row]:
        for epoch in range(1, epochs + 1):
            start, sums = time.perf_counter(), np.zeros(2)
            generator.train()
            discriminator.train()
            for number, (images, _) in enumerate(batches.epoch(epoch - 1), 1):
                losses = update(images)
                if not all(map(math.isfinite, losses)):
                    raise TrainingError(
                        f"[gan] the losses must stay finite; got {losses[0]} and {losses[1]} in epoch {epoch}, "
                        f"batch {number}, lr {lr:g}: try a smaller learning rate"
                    )
                sums += losses
                after_batch()
            judged, deceived = map(float, sums / len(batches))
            seconds = round(time.perf_counter() - start, 3)
            yield {"epoch": epoch, "discriminator_loss": judged, "generator_loss": deceived, "seconds": seconds}

    return run()


def _loss(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, full(logits.shape, target, device=logits.device))


def noise(generator: Module, count: int) -> Tensor:
    """Standard normal numbers for a generator: (count, latent, 1, 1), on its device, from dlgpu's seeded source."""
    check_positive("gan", count=count)
    first = next(iter(generator.parameters()))  # of a transposed convolution: (latent, K, R, S)
    return randn(count, first.shape[0], 1, 1, device=first.device)


def draw(generator: Module, noise: Tensor) -> np.ndarray:
    """The generator's images of `noise`: float32 (N, C, H, W) in 0..1.

    In evaluation mode, so that an image depends on its own noise only and no statistics change; restores the mode.
    """
    training = generator.training
    with no_grad():
        images = generator.eval()(noise).numpy()
    generator.train(training)
    return (images + 1) / 2


def save(folder: str | os.PathLike[str], networks: Networks, options: dict[str, int], **info: Any) -> None:
    """Write both networks into `folder`, atomically, with the `options` of `dcgan` that made them, and `info`.

    Raises `TrainingError` if the file cannot be written or a weight is not finite; what was there is kept.
    """
    named = zip(("generator", "discriminator"), networks, strict=True)
    arrays = {f"{name}.{key}": array for name, net in named for key, array in net.state_dict().items()}
    check_finite(arrays)
    checkpoint.save(Path(folder) / FILE, arrays, {"dcgan": options, **info})


def load(folder: str | os.PathLike[str], device: str = "cpu") -> Networks:
    """The (generator, discriminator) that `save` or `dlgpu gan train` wrote into `folder`, in evaluation mode.

    Raises `CheckpointError` if the folder holds none, or the file is damaged or of other networks.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise CheckpointError(f"[gan] the folder must hold a GAN's run ({FILE}); got {folder}")
    arrays, info = checkpoint.load(path)
    if "dcgan" not in info:
        raise CheckpointError(f"[gan] {path} must hold the two networks of a DCGAN; got {nn.module.listed([*arrays])}")
    with nn.init.skipped():
        networks = dcgan(**info["dcgan"], device=device)
    for name, net in zip(("generator", "discriminator"), networks, strict=True):
        net.load_state_dict(checkpoint.select(arrays, name))
        net.eval()
    return networks
