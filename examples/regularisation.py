"""Overfitting and what helps: `python examples/regularisation.py` writes regularisation.png (half a minute).

A network with far too many weights learns 500 digits by heart. Weight decay and dropout narrow the gap between training
and test accuracy a little, moved images a lot; early stopping saves epochs.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dlgpu
from dlgpu import data, nn, optim
from dlgpu.data import Compose, DataLoader, Normalize, RandomShift
from dlgpu.train import EarlyStopping, Trainer

CASES = {
    "nothing": {},
    "weight decay 1": {"weight_decay": 1.0},  # AdamW: a step takes away lr of each weight
    "dropout 0.5": {"dropout": 0.5},
    "shifted images": {"shift": 2},
    "early stopping": {"patience": 5},
    "all of them": {"weight_decay": 1.0, "dropout": 0.5, "shift": 2, "patience": 20},
}


def train(images: int, epochs: int, weight_decay=0.0, dropout=0.0, shift=0, patience=0) -> list[dict]:
    """The figures of each epoch."""
    dlgpu.manual_seed(0)
    few, test = data.mnist().subset(slice(images)), data.mnist(train=False).subset(slice(2000))
    normalize = Normalize(*few.mean_std())
    net = nn.Sequential(
        nn.Flatten(),
        *(part for n in (784, 400, 400) for part in (nn.Linear(n, 400), nn.ReLU(), nn.Dropout(dropout))),
        nn.Linear(400, 10),
    )
    optimizer = optim.AdamW(net.parameters(), lr=1e-3, weight_decay=weight_decay)
    learned = DataLoader(few, 100, shuffle=True, transform=Compose([RandomShift(shift), normalize]))
    judged = DataLoader(test, 500, transform=normalize)
    stopping = [EarlyStopping(patience, "test_loss")] if patience else []
    return Trainer(net, optimizer, learned, judged, callbacks=stopping).fit(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="to learn from (default: 500)")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("regularisation.png"))
    options = parser.parse_args()

    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    for axes, (name, how) in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, CASES.items(), strict=True):
        history = train(options.images, options.epochs, **how)
        for split, color in (("train", "#0072B2"), ("test", "#D55E00")):
            accuracy = [100 * row[f"{split}_accuracy"] for row in history]
            axes.plot(range(1, len(history) + 1), accuracy, color=color, label=f"{split} {accuracy[-1]:.1f} %")
        axes.set(title=name, ylim=(60, 101))
        axes.grid(color="#dddddd")
        axes.legend(loc="lower right")
        last = history[-1]
        print(f"{name:<18} train {last['train_accuracy']:.2%}  test {last['test_accuracy']:.2%}  epochs {len(history)}")
    figure.supxlabel("epoch")
    figure.supylabel("accuracy (%)")
    figure.suptitle(f"Learning from {options.images} digits")
    figure.savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
