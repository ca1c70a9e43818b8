"""DCGAN on MNIST (Radford et al. 2016): `python examples/dcgan.py` writes dcgan.png.

The generator turns noise into digits; the discriminator learns to tell them from real ones, the generator to deceive
it. Neither is ever told what a digit is. (Measured: `--epochs 3` took eight minutes of processor time.) The loop is
`dlgpu.gan.train`; `dlgpu gan train` does all of this from the command line.
"""

import argparse
from pathlib import Path

import dlgpu
from dlgpu import data, gan, viz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, help="use only so many digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=32, help="channels next to the image (default: 32; paper: 128)")
    parser.add_argument("--out", type=Path, default=Path("dcgan.png"))
    options = parser.parse_args()

    dlgpu.manual_seed(0)
    generator, discriminator = gan.dcgan(28, 1, latent=64, width=options.width)
    noise = gan.noise(generator, 64)  # the same all the time, so that progress shows
    digits = data.mnist().subset(slice(options.images))
    batches = data.DataLoader(digits, options.batch, shuffle=True)
    # the paper's lr of 2e-4 wants more epochs
    for row in gan.train(generator, discriminator, batches, options.epochs, lr=5e-4):
        losses = f"discriminator's loss {row['discriminator_loss']:.3f}, generator's {row['generator_loss']:.3f}"
        print(f"epoch {row['epoch']}: {losses}", flush=True)
        title = f"Digits that nobody wrote, epoch {row['epoch']}"
        viz.image_grid(gan.draw(generator, noise), options.out, title=title)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
