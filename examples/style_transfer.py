"""Neural style transfer (Gatys, Ecker and Bethge 2016) with a network trained here: writes style.png.

    dlgpu train vgg_small --limit 10000 -e 5 --run vgg    a fifth of CIFAR-10 (measured: nine minutes, two busy cores)
    python examples/style_transfer.py vgg                 a landscape and a painting, both drawn below (45 s)
    python examples/style_transfer.py vgg photo.jpg painting.jpg

The picture is what is optimised: its deep features should be those of the photo (what is where), the correlations
between its features, layer by layer, those of the painting (colours, strokes, texture).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import dlgpu
from dlgpu import data, nn, optim, viz
from dlgpu.run import load_model


def landscape(size: int) -> np.ndarray:
    """Four mountain ridges before an evening sky, (3, size, size) in 0..1."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:size, :size] / size
    warm = 1.3 * y[..., None]
    sun = np.exp(-((x - 0.7) ** 2 + (y - 0.36) ** 2) / 0.004)[..., None]
    picture = (1 - warm) * (0.36, 0.56, 0.86) + warm * (1.0, 0.8, 0.62) + sun * (0.7, 0.6, 0.2)
    colours = (0.45, 0.5, 0.66), (0.3, 0.42, 0.46), (0.22, 0.36, 0.24), (0.12, 0.2, 0.1)
    for depth, colour in enumerate(colours):
        octaves = [0.09 / k * np.sin(2 * np.pi * (k * (1 + 0.3 * depth) * x[0] + rng.random())) for k in range(1, 7)]
        land = y > 0.42 + 0.1 * depth + sum(octaves) / (1 + 0.5 * depth)
        grain = 1 + rng.normal(0, 0.05, (size, size, 1))
        picture = np.where(land[..., None], grain * colour, picture)
    return np.clip(picture, 0, 1).transpose(2, 0, 1).astype(np.float32)


def painting(size: int) -> np.ndarray:
    """Short strokes of blue and yellow, which turn around six centres, (3, size, size) in 0..1."""
    rng, colours = np.random.default_rng(1), ("#122062", "#2450a0", "#5a96c8", "#f0c846", "#faeba0", "#1e3c3c")
    canvas = Image.new("RGB", (2 * size, 2 * size), colours[0])
    draw, centres = ImageDraw.Draw(canvas), rng.uniform(0.1, 0.9, (6, 2))
    for place in rng.random((9000, 2)):
        away = place - centres
        squares = (away**2).sum(1, keepdims=True)
        flow = np.array((2.0, 0.0)) + (away[:, ::-1] * (-1, 1) / squares).sum(0)
        half = 0.025 * flow / np.linalg.norm(flow)
        ring = int(22 * np.sqrt(squares.min())) * 2 + squares.argmin() + rng.integers(3)
        ends = np.concatenate([place - half, place + half]) * 2 * size
        draw.line(ends.tolist(), fill=colours[ring % 6], width=max(2, size // 45))
    return np.asarray(canvas.resize((size, size)), np.float32).transpose(2, 0, 1) / 255


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
    parser.add_argument("pictures", type=Path, nargs="*", help="a photo and a painting (default: two drawn here)")
    parser.add_argument("--size", type=int, default=160, help="pixels along each side (default: 160)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--style-weight", type=float, default=300.0)
    parser.add_argument("--smoothness", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("style.png"))
    options = parser.parse_args()
    if len(options.pictures) not in (0, 2):
        parser.error(f"there must be two pictures, a photo and a painting, or none; got {len(options.pictures)}")

    net, config = load_model(options.run)
    if not isinstance(net, nn.Sequential) or config.in_channels != 3:
        parser.error(f"the run must be of a sequential colour network, as vgg_small; got {config.model}")
    net.requires_grad_(False)
    normalize = data.Normalize(config.mean, config.std)

    if options.pictures:
        pair = [data.load_image(path, options.size, 3) / np.float32(255) for path in options.pictures]
    else:
        pair = [landscape(options.size), painting(options.size)]
    content, style = (normalize(image[None], np.random.default_rng(0)) for image in pair)
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
    styled = np.clip(picture.numpy()[0] * std + mean, 0, 1)
    alone = options.out.with_stem(f"{options.out.stem}-alone")
    Image.fromarray((255 * styled).round().astype(np.uint8).transpose(1, 2, 0)).save(alone)
    print(f"wrote {alone}")
    viz.image_grid(np.stack([*pair, styled]), options.out, ["photo", "painting", "the photo, painted"])
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
