"""Neural style transfer (Gatys, Ecker and Bethge 2016) with a network trained here.

    dlgpu train vgg_small --run runs/vgg                      CIFAR-10, about forty minutes on two cores
    python examples/style_transfer.py runs/vgg photo.jpg painting.jpg --out styled.png

The picture is what is optimised: its deep features should be those of the photo (what is where), the correlations
between its features, layer by layer, those of the painting (colours, strokes, texture).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import dlgpu
from dlgpu import data, nn, optim
from dlgpu.run import load_model


def features(net: nn.Sequential, x: dlgpu.Tensor) -> list[dlgpu.Tensor]:
    """The outputs of all ReLU layers in front of the classifier, shallow to deep."""
    found = []
    for layer in net:
        if isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten):
            break
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x)
    return found


def gram(x: dlgpu.Tensor) -> dlgpu.Tensor:
    """(1, C, H, W) -> (C, C): how strongly each pair of channels fires together, per pixel."""
    _, channels, height, width = x.shape
    flat = x.reshape(channels, height * width)
    return (flat @ flat.transpose(1, 0)) / (height * width)


def roughness(x: dlgpu.Tensor) -> dlgpu.Tensor:
    """The mean square of the differences of neighbouring pixels."""
    down, right = x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]
    return (down * down).mean() + (right * right).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder of a sequential colour network (vgg_small)")
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    parser.add_argument("--size", type=int, default=160, help="pixels along each side (default: 160)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--style-weight", type=float, default=30.0)
    parser.add_argument("--smoothness", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("styled.png"))
    options = parser.parse_args()

    net, config = load_model(options.run)
    if not isinstance(net, nn.Sequential) or config.in_channels != 3:
        parser.error(f"the run must be of a sequential colour network, as vgg_small; got {config.model}")
    net.requires_grad_(False)
    normalize = data.Normalize(config.mean, config.std)

    def prepared(path: Path) -> np.ndarray:
        pixels = data.load_image(path, options.size, 3)[None] / np.float32(255)
        return normalize(pixels, np.random.default_rng(0))

    content, style = prepared(options.content), prepared(options.style)
    with dlgpu.no_grad():
        target = features(net, dlgpu.tensor(content))[-3]
        grams = [gram(x) for x in features(net, dlgpu.tensor(style))]

    mean, std = (np.array(v, np.float32)[:, None, None] for v in (config.mean, config.std))
    picture = nn.Parameter(content.copy())
    optimizer = optim.Adam([picture], lr=0.03)
    for step in range(options.steps):
        optimizer.zero_grad()
        layers = features(net, picture)
        difference = layers[-3] - target
        likeness = (difference * difference).mean() / float((target * target).mean())
        manner = sum(
            ((gram(x) - wanted) * (gram(x) - wanted)).sum() / float((wanted * wanted).sum())
            for x, wanted in zip(layers, grams, strict=True)
        ) * (1 / len(grams))
        loss = likeness + options.style_weight * manner + options.smoothness * roughness(picture)
        loss.backward()
        optimizer.step()
        picture.data[...] = np.clip(picture.data, -mean / std, (1 - mean) / std)  # colours that exist
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step:>4}: content {float(likeness):.4f}, style {float(manner):.4f}")
    pixels = np.clip(picture.numpy()[0] * std + mean, 0, 1).transpose(1, 2, 0)
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
