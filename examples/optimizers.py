"""Six optimizers on a ravine and on MNIST: `python examples/optimizers.py` writes optimizers.png (two minutes).

The ravine is f(x, y) = x²/20 + y²: gentle along x, steep along y, so plain SGD zigzags across it.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dlgpu
import dlgpu.functional as F
from dlgpu import data, nn, optim

# name: (optimizer, learning rate on the ravine, on MNIST)
OPTIMIZERS = {
    "SGD": (optim.SGD, 0.95, 0.1),
    "Momentum": (optim.Momentum, 0.1, 0.02),
    "Nesterov": (optim.Nesterov, 0.1, 0.02),
    "AdaGrad": (optim.AdaGrad, 1.5, 0.02),
    "RMSprop": (optim.RMSprop, 0.3, 0.001),
    "Adam": (optim.Adam, 0.4, 0.002),
}
START = (-7.0, 2.0)


def path_on_ravine(kind, lr: float, steps: int = 40) -> np.ndarray:
    """(steps + 1, 2): where each step leads."""
    point = nn.Parameter(np.array(START, np.float64))
    optimizer = kind([point], lr=lr)
    scale = dlgpu.tensor(np.array([1 / 20, 1.0]))
    places = [point.numpy().copy()]
    for _ in range(steps):
        optimizer.zero_grad()
        (point * point * scale).sum().backward()
        optimizer.step()
        places.append(point.numpy().copy())
    return np.array(places)


def losses_on_mnist(kind, lr: float, steps: int) -> list[float]:
    """The loss of each step of a small multilayer perceptron, the same images and first weights for all."""
    dlgpu.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    optimizer = kind(net.parameters(), lr=lr)
    losses: list[float] = []
    batches = data.DataLoader(data.mnist(), 128, shuffle=True)
    while len(losses) < steps:
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(dlgpu.tensor(images)), labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
            if len(losses) == steps:
                break
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="MNIST batches per optimizer (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("optimizers.png"))
    options = parser.parse_args()

    figure = Figure(figsize=(15, 5.6), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.6, 1))
    x, y = np.meshgrid(np.linspace(-9, 9, 200), np.linspace(-3.5, 3.5, 100))
    window = np.ones(min(25, options.steps)) / min(25, options.steps)
    curves = right.subplots()
    for axes, (name, (kind, ravine_lr, mnist_lr)) in zip(left.subplots(2, 3).flat, OPTIMIZERS.items(), strict=True):
        places = path_on_ravine(kind, ravine_lr)
        axes.contour(x, y, x**2 / 20 + y**2, levels=[0.05, 0.3, 1, 2, 3.5, 5.5, 8], colors="#cccccc", linewidths=0.8)
        axes.plot(*places.T, "o-", color="#0072B2", markersize=3, linewidth=1)
        axes.plot(0, 0, "+", color="#D55E00", markersize=11, markeredgewidth=2)
        axes.set(title=f"{name}, lr {ravine_lr:g}", xlim=(-9, 9), ylim=(-3.5, 3.5))
        losses = losses_on_mnist(kind, mnist_lr, options.steps)
        curves.plot(np.convolve(losses, window, "valid"), label=f"{name}, lr {mnist_lr:g}")
        print(f"{name:<9} ravine: ends at ({places[-1, 0]:+.3f}, {places[-1, 1]:+.3f})   MNIST loss {losses[-1]:.3f}")
    left.suptitle("40 steps on x²/20 + y²")
    right.suptitle(f"MNIST, mean loss of {len(window)} batches")
    curves.set(yscale="log", xlabel="batch of 128", ylabel="loss")
    curves.grid(color="#dddddd")
    curves.legend()
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
