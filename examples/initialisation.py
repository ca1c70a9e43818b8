"""Initial weights and batch normalisation: `python examples/initialisation.py` writes initialisation.png (a minute).

What 1000 MNIST digits look like inside a network of five hidden layers, before training: with weights too large the
activations sit at the ends of their range, with weights too small they vanish, with Xavier's (tanh) and He's (ReLU)
rule they keep their spread from layer to layer, and batch normalisation keeps it whatever the weights are.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dlgpu
import dlgpu.functional as F
from dlgpu import data, nn, optim
from dlgpu.data import DataLoader
from dlgpu.train import evaluate

LAYERS, WIDTH = 5, 100
# name: (activation, standard deviation of the weights, batch normalisation)
CASES = {
    "tanh, std 1": (nn.Tanh, 1.0, False),
    "tanh, std 0.01": (nn.Tanh, 0.01, False),
    "tanh, Xavier": (nn.Tanh, (1 / WIDTH) ** 0.5, False),
    "ReLU, std 0.01": (nn.ReLU, 0.01, False),
    "ReLU, He": (nn.ReLU, (2 / WIDTH) ** 0.5, False),
    "ReLU, std 0.01, batch norm": (nn.ReLU, 0.01, True),
}


class Net(nn.Module):
    """(N, 1, 28, 28) -> (N, 10); `hidden` holds the activations of the last batch."""

    def __init__(self, activation, std: float, batch_norm: bool) -> None:
        super().__init__()
        dlgpu.manual_seed(0)
        self.blocks = nn.Sequential()
        blocks, inputs = [], 784
        for _ in range(LAYERS):
            layer = nn.Linear(inputs, WIDTH)
            nn.init.normal_(layer.weight, 0.0, std * (WIDTH / inputs) ** 0.5)  # the first layer sees more inputs
            norm = [nn.BatchNorm2d(WIDTH)] if batch_norm else []
            blocks.append(nn.Sequential(layer, *norm, activation()))
            inputs = WIDTH
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(WIDTH, 10)
        self.hidden: list[np.ndarray] = []

    def forward(self, x: dlgpu.Tensor) -> dlgpu.Tensor:
        x = x.flatten(1)
        self.hidden = []
        for block in self.blocks:
            x = block(x)
            self.hidden.append(x.numpy())
        return self.last(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="to train on, two epochs (default: 20000)")
    parser.add_argument("--out", type=Path, default=Path("initialisation.png"))
    options = parser.parse_args()
    train, test = (data.mnist(train=half).subset(slice(options.images)) for half in (True, False))
    transform = data.Normalize(*train.mean_std())
    sample = next(iter(DataLoader(test, 1000, transform=transform)))[0]

    figure = Figure(figsize=(14, 13), dpi=100, layout="constrained")
    grid = figure.subplots(len(CASES), LAYERS)
    for row, (name, case) in zip(grid, CASES.items(), strict=True):
        net = Net(*case)
        with dlgpu.no_grad():
            net(dlgpu.tensor(sample))
        for layer, (axes, values) in enumerate(zip(row, net.hidden, strict=True)):
            axes.hist(values.ravel(), bins=40, color="#0072B2")
            axes.set_yticks([])
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(f"layer {layer + 1}: std {values.std():.2g}", fontsize=10)
        optimizer = optim.SGD(net.parameters(), lr=0.05)
        for _ in range(2):
            for images, labels in DataLoader(train, 100, shuffle=True, transform=transform):
                optimizer.zero_grad()
                F.cross_entropy(net(dlgpu.tensor(images)), labels).backward()
                optimizer.step()
        accuracy = evaluate(net, DataLoader(test, 500, transform=transform))[1]
        row[0].set_ylabel(f"{name.replace(', batch', chr(10) + 'batch')}\nthen trained: {accuracy:.1%}", fontsize=10)
        print(f"{name:<28} last layer's spread {net.hidden[-1].std():.3g}, accuracy after two epochs {accuracy:.2%}")
    figure.suptitle("Activations of five hidden layers before training", fontsize=15)
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
