"""DCGAN on MNIST (Radford et al. 2016): `python examples/dcgan.py` writes dcgan.png.

The generator turns noise into digits; the discriminator learns to tell them from real ones, the generator to deceive
it. Neither is ever told what a digit is. (Measured: `--epochs 3` took seven minutes on two busy cores, and five minutes
of processor time.)
"""

import argparse
from pathlib import Path

import dlgpu
import dlgpu.functional as F
from dlgpu import data, models, optim, viz

LATENT = 64


def judged(logits: dlgpu.Tensor, real: bool) -> dlgpu.Tensor:
    """The loss of a discriminator that should say `real`."""
    target = dlgpu.ones(*logits.shape) if real else dlgpu.zeros(*logits.shape)
    return F.binary_cross_entropy_with_logits(logits, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, help="use only so many digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32, help="channels next to the image (default: 32; paper: 128)")
    parser.add_argument("--out", type=Path, default=Path("dcgan.png"))
    options = parser.parse_args()

    dlgpu.manual_seed(0)
    generator = models.dcgan_generator(28, 1, LATENT, options.width)
    discriminator = models.dcgan_discriminator(28, 1, options.width)
    how = dict(lr=5e-4, betas=(0.5, 0.999))  # the paper's 2e-4 wants more epochs
    makes, judges = optim.Adam(generator.parameters(), **how), optim.Adam(discriminator.parameters(), **how)
    digits = data.mnist().subset(slice(options.images))
    batches = data.DataLoader(digits, options.batch, shuffle=True, drop_last=True)
    noise = dlgpu.randn(64, LATENT, 1, 1)  # the same all the time, so that progress shows

    for epoch in range(options.epochs):
        sums = [0.0, 0.0]
        for images, _ in batches.epoch(epoch):
            real = dlgpu.tensor(2 * images - 1)
            fake = generator(dlgpu.randn(len(images), LATENT, 1, 1))

            judges.zero_grad()
            loss = judged(discriminator(real), True) + judged(discriminator(fake.detach()), False)
            loss.backward()
            judges.step()

            makes.zero_grad()
            deceived = judged(discriminator(fake), True)
            deceived.backward()
            makes.step()
            sums[0] += float(loss)
            sums[1] += float(deceived)
        means = [total / len(batches) for total in sums]
        print(f"epoch {epoch + 1}: discriminator's loss {means[0]:.3f}, generator's {means[1]:.3f}", flush=True)
        with dlgpu.no_grad():  # with the statistics of these 64, as in training
            samples = (generator(noise).numpy() + 1) / 2
        viz.image_grid(samples, options.out, title=f"Digits that nobody wrote, epoch {epoch + 1}")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
