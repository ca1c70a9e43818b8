"""A VGG network on pictures of CIFAR-10's size: `python examples/vgg_cifar.py` writes vgg.png.

VGG's recipe (Simonyan and Zisserman 2015): nothing but 3x3 convolutions, more channels whenever pooling halves the
picture. Learns CIFAR-10 where it is on disk or can be downloaded; otherwise

    --data fashion      Fashion-MNIST scaled to 32 x 32, grey as colour (downloaded too)
    --data digits       MNIST's digits in random colours on random grounds, made here: needs no network
"""

import argparse
from pathlib import Path

import numpy as np

import dlgpu
import dlgpu.functional as F
from dlgpu import data, nn, optim, viz
from dlgpu.data import Compose, DataLoader, Dataset, Normalize, RandomCrop, RandomHorizontalFlip
from dlgpu.errors import DataError
from dlgpu.train import Callback, Row, Trainer

SIZE = 32


def vgg(widths: list[int], classes: int) -> nn.Sequential:
    """Two convolutions for each width, pooling after them, and one dense layer on what is left of the picture."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    side = SIZE >> len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels * side * side, classes))


def fashion(train: bool, few: slice) -> Dataset:
    """Fashion-MNIST in CIFAR's shape."""
    grey = data.fashion_mnist(train=train).subset(few)
    scaled = data.Resize(SIZE)(grey.images.astype(np.float32), np.random.default_rng(0))
    images = np.repeat(scaled.round().astype(np.uint8), 3, axis=1)
    return Dataset(images, grey.labels, grey.classes, "Fashion-MNIST at 32 x 32")


def digits(train: bool, few: slice) -> Dataset:
    """MNIST in CIFAR's shape: a colour for the ink and one for the ground of each picture."""
    grey, rng = data.mnist(train=train).subset(few), np.random.default_rng(train)
    ink = np.pad(grey.images, [(0, 0), (0, 0), (2, 2), (2, 2)]).astype(np.uint16)
    colours, grounds = rng.integers(0, 256, (2, len(grey), 3, 1, 1), np.uint16)
    images = ((ink * colours + (255 - ink) * grounds) // 255).astype(np.uint8)
    return Dataset(images, grey.labels, grey.classes, "coloured digits")


class Progress(Callback):
    """A line for each epoch."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        print("epoch {epoch}: test accuracy {test_accuracy:.2%}, {seconds:.0f} s".format(**row), flush=True)


SOURCES = {"cifar10": lambda train, few: data.cifar10(train=train).subset(few), "fashion": fashion, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SOURCES, default="cifar10")
    parser.add_argument("--images", type=int, help="use only so many")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256], help="channels of each block")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--out", type=Path, default=Path("vgg.png"))
    options = parser.parse_args()
    if not 1 <= len(options.widths) <= 5:
        parser.error(f"there must be 1 to 5 widths, 32 pixels halve five times; got {len(options.widths)}")
    few = slice(options.images)
    try:
        train, test = (SOURCES[options.data](half, few) for half in (True, False))
    except DataError as error:
        parser.error(f"{error}\nWithout these files: --data digits")

    dlgpu.manual_seed(0)
    net = vgg(options.widths, len(train.classes)).to(options.device)
    print(net.summary((1, 3, SIZE, SIZE)))
    normalize = Normalize(*train.mean_std())
    moved = [RandomCrop(SIZE, padding=4)]
    if options.data != "digits":  # a mirrored 3 is none
        moved.append(RandomHorizontalFlip())
    trainer = Trainer(
        net,
        optim.Nesterov(net.parameters(), lr=0.05, weight_decay=5e-4),
        DataLoader(train, 100, shuffle=True, transform=Compose([*moved, normalize])),
        DataLoader(test, 500, transform=normalize),
        schedule=optim.SCHEDULES["warmup-cosine"](options.epochs),
        callbacks=[Progress()],
    )
    trainer.fit(options.epochs)

    shown = test.subset(slice(24))
    with dlgpu.no_grad():
        pixels = normalize(shown.images.astype(np.float32) / 255, np.random.default_rng(0))
        chances = F.softmax(net.eval()(dlgpu.tensor(pixels, device=options.device))).numpy()
    captions = [
        f"{train.classes[k]} {row[k]:.0%}" + ("" if k == label else f"\nnot {train.classes[label]}")
        for row, k, label in zip(chances, chances.argmax(1), shown.labels, strict=True)
    ]
    accuracy = trainer.history[-1]["test_accuracy"]
    viz.image_grid(shown.images, options.out, captions, title=f"VGG on {train.name}: {accuracy:.1%} right")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
