"""Greedy layer-wise pre-training: `python examples/layerwise_pretraining.py` writes layerwise.png (a minute).

A deep network of tanh layers with small initial weights learns nothing in its first epochs when all of it is trained
at once. Trained from the bottom up (a shallow network first, then one more layer at a time, and finally everything) it
learns from the start.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dlgpu
from dlgpu import data, nn, optim, pretrain
from dlgpu.data import DataLoader, Normalize
from dlgpu.train import Trainer

WIDTH, STD = 100, 0.03


def stage(inputs: int) -> nn.Module:
    """One hidden layer."""
    linear = nn.Linear(inputs, WIDTH)
    nn.init.normal_(linear.weight, 0.0, STD)
    return nn.Sequential(nn.Flatten(), linear, nn.Tanh())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6, help="of the whole network (default: 6)")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("layerwise.png"))
    options = parser.parse_args()
    train, test = (data.mnist(train=half).subset(slice(options.images)) for half in (True, False))
    normalize = Normalize(*train.mean_std())
    batches = DataLoader(train, 100, shuffle=True, transform=normalize)
    judged = DataLoader(test, 500, transform=normalize)

    def fit(network: nn.Module, epochs: int) -> list[float]:
        history = Trainer(network, optim.SGD(network.parameters(), lr=0.1), batches, judged).fit(epochs)
        return [100 * row["test_accuracy"] for row in history]

    def stages() -> list[nn.Module]:
        dlgpu.manual_seed(0)
        return [stage(784 if k == 0 else WIDTH) for k in range(options.layers)]

    head = nn.Linear(WIDTH, 10)
    curves = {"all at once": fit(nn.Sequential(*stages(), head), options.epochs + options.layers)}
    rounds: list[float] = []
    network = pretrain.greedy(stages(), lambda last: nn.Linear(WIDTH, 10), lambda net: rounds.extend(fit(net, 1)))
    curves["layer by layer, then all"] = rounds + fit(network, options.epochs)

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, accuracy), color in zip(curves.items(), ("#999999", "#D55E00"), strict=True):
        axes.plot(range(1, len(accuracy) + 1), accuracy, "o-", color=color, label=name)
        print(f"{name:<26} {'  '.join(f'{value:.1f}' for value in accuracy)}")
    axes.axvline(options.layers + 0.5, color="#cccccc", linestyle="--")
    axes.text(options.layers + 0.4, 5, "pre-training ends ", ha="right", color="#666666")
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100))
    axes.set_title(f"{options.layers} tanh layers, weights of standard deviation {STD}")
    axes.grid(color="#dddddd")
    axes.legend(loc="center right")
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
