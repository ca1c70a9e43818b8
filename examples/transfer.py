"""Transfer learning: `python examples/transfer.py` writes transfer.png (a minute).

A network learns the digits 0-4; then the digits 5-9 are learnt from a few examples of each, three ways: from scratch,
with the trained convolutions frozen, and with everything fine-tuned, the convolutions at a third of the rate.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dlgpu
from dlgpu import data, models, nn, optim, transfer
from dlgpu.data import DataLoader, Dataset, Normalize
from dlgpu.train import Trainer, evaluate

WAYS = ("from scratch", "frozen features", "fine-tuned")
CONVOLUTIONS = ("0", "3")  # in LeNet-5


def digits(train: bool, kept: range) -> Dataset:
    """MNIST with some of its digits only, as classes 0, 1, ..."""
    whole = data.mnist(train=train)
    some = whole.subset(np.flatnonzero(np.isin(whole.labels, kept)))
    return Dataset(some.images, some.labels - kept.start, tuple(map(str, kept)), f"mnist {kept.start}-{kept.stop - 1}")


def few(whole: Dataset, each: int, seed: int) -> Dataset:
    """`each` random examples of every class."""
    rng = np.random.default_rng(seed)
    places = [rng.permutation(np.flatnonzero(whole.labels == k))[:each] for k in range(len(whole.classes))]
    return whole.subset(np.concatenate(places))


def lenet() -> nn.Module:
    return models.build("lenet5", num_classes=5, in_channels=1, image_size=28)


def learn(net: nn.Module, groups, images: Dataset, epochs: int, transform) -> nn.Module:
    batches = DataLoader(images, min(50, len(images)), shuffle=True, transform=transform)
    Trainer(net, optim.Adam(groups, lr=1e-3), batches).fit(epochs)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source-images", type=int, default=20_000, help="of digits 0-4 (default: 20000)")
    parser.add_argument("--few", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50], help="examples of each digit 5-9")
    parser.add_argument("--repeats", type=int, default=3, help="choices of examples (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("transfer.png"))
    options = parser.parse_args()

    source = digits(True, range(5)).subset(slice(options.source_images))
    transform = Normalize(*source.mean_std())
    dlgpu.manual_seed(0)
    net = lenet()
    trained = learn(net, net.parameters(), source, 2, transform).state_dict()
    judged = DataLoader(digits(False, range(5, 10)), 500, transform=transform)
    pool = digits(True, range(5, 10))

    accuracy = np.zeros((len(WAYS), len(options.few), options.repeats))
    for column, each in enumerate(options.few):
        for repeat in range(options.repeats):
            images = few(pool, each, repeat)
            for row, way in enumerate(WAYS):
                dlgpu.manual_seed(repeat)
                net = lenet()
                groups = net.parameters()
                if way != "from scratch":
                    net.load_state_dict(trained)
                    transfer.replace_head(net, 5)
                    if way == "frozen features":
                        transfer.freeze(net, *CONVOLUTIONS)
                    groups = transfer.parameter_groups(net, 1e-3, dict.fromkeys(CONVOLUTIONS, 1 / 3))
                learn(net, groups, images, 40, transform)
                accuracy[row, column, repeat] = evaluate(net, judged)[1]
        means = "   ".join(f"{way} {accuracy[row, column].mean():.1%}" for row, way in enumerate(WAYS))
        print(f"{each:>3} of each digit: {means}")

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for row, (way, color) in enumerate(zip(WAYS, ("#999999", "#0072B2", "#D55E00"), strict=True)):
        values = 100 * accuracy[row]
        axes.plot(options.few, values.mean(1), "o-", color=color, label=way)
        axes.fill_between(options.few, values.min(1), values.max(1), color=color, alpha=0.15)
    axes.set(xscale="log", xlabel="examples of each digit", ylabel="test accuracy on digits 5-9 (%)")
    axes.set_xticks(options.few, map(str, options.few))
    axes.set_title("What digits 0-4 teach about digits 5-9")
    axes.grid(color="#dddddd")
    axes.legend()
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
