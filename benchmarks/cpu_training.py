"""Training speed on the CPU: dlgpu's NumPy backend beside the textbook implementation and PyTorch, in one run.

    python -m benchmarks.cpu_training                 a table, about three minutes
    python -m benchmarks.cpu_training --write         and keep it under benchmarks/results/cpu/

Every contestant does the same thing: batches of 100 MNIST images, forward, backward, Adam. They take turns, round by
round, so that a change of the machine's speed meets all of them; quoted is the median round. First each must show that
its loss falls (a fast wrong program is no baseline).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dlgpu
from benchmarks.baselines.textbook import SimpleConvNet
from dlgpu import data, models, optim
from dlgpu import functional as F
from dlgpu.threads import num_threads

BATCH = 100
RESULTS = Path(__file__).parent / "results" / "cpu"
Step = Callable[[np.ndarray, np.ndarray], float]


def ours(name: str) -> Step:
    """A registered network trained by dlgpu."""
    dlgpu.manual_seed(0)
    model = models.build(name)
    adam = optim.Adam(model.parameters())

    def step(images: np.ndarray, labels: np.ndarray) -> float:
        adam.zero_grad()
        loss = F.cross_entropy(model(dlgpu.from_numpy(images)), labels)
        loss.backward()
        adam.step()
        return float(loss)

    return step


def pytorch(name: str) -> Step:
    """The same network by PyTorch's CPU build, on all processors."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(num_threads())
    if name == "simple_convnet":
        layers = [nn.Conv2d(1, 30, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Linear(4320, 100), nn.ReLU(), nn.Linear(100, 10)]
    else:
        layers = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    model, measure = nn.Sequential(*layers), nn.CrossEntropyLoss()
    adam = torch.optim.Adam(model.parameters(), 1e-3)

    def step(images: np.ndarray, labels: np.ndarray) -> float:
        adam.zero_grad(set_to_none=True)
        loss = measure(model(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        adam.step()
        return float(loss.detach())

    return step


def contestants(network: str) -> dict[str, Step]:
    """Everything that can train `network` here."""
    steps = {"dlgpu": ours(network)}
    if network == "simple_convnet":
        steps["textbook NumPy"] = SimpleConvNet().step
    try:
        steps["PyTorch"] = pytorch(network)
    except ImportError:
        print("PyTorch is not installed: its rows are left out (pip install torch)")
    return steps


def race(steps: dict[str, Step], images: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per epoch of 60,000 images, one figure per contestant and round."""
    digits = data.mnist()
    loader = data.DataLoader(digits, BATCH, shuffle=True, prefetch=0)
    batches = [batch for _, batch in zip(range(images // BATCH), loader.epoch(0), strict=False)]
    for name, step in steps.items():
        losses = [step(*batch) for batch in batches[:40]]  # warms up as well
        assert statistics.mean(losses[-5:]) < statistics.mean(losses[:5]), f"{name} does not learn"
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            time.sleep(0.5)  # idle worker threads of the one before spin for a while, on processors that are not theirs
            step(*batches[0])
            start = time.perf_counter()
            for batch in batches:
                step(*batch)
            seconds[name].append((time.perf_counter() - start) * len(digits) / images)
    return seconds


def main() -> None:
    """Race on both networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000, help="per contestant and round (default 4000)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results/cpu/")
    options = parser.parse_args()
    if options.images < 40 * BATCH or options.rounds < 1:
        parser.error(f"--images must be at least {40 * BATCH} and --rounds at least 1")
    table = Table("network", "by", "s per epoch, median", "min", "max", "dlgpu is faster by", box=None)
    lines = ["| network | by | s per epoch, median | min | max | dlgpu is faster by |", "|---|---|---|---|---|---|"]
    kept = {}
    for network in ("simple_convnet", "lenet5"):
        seconds = race(contestants(network), options.images, options.rounds)
        kept[network] = seconds
        for name, figures in seconds.items():
            # pair by pair: both figures of a round saw the same machine
            ratio = statistics.median(b / a for a, b in zip(seconds["dlgpu"], figures, strict=True))
            row = [network, name, *(f"{f(figures):.1f}" for f in (statistics.median, min, max)), f"{ratio:.2f}x"]
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
    Console().print(table)
    cores = f"{os.cpu_count()} processors, {num_threads()} threads"
    machine = f"{cores}, Python {platform.python_version()}, NumPy {np.__version__}"
    print(machine, f"load {os.getloadavg()[0]:.2f}")
    if options.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        head = "# Training on the CPU\n\n`python -m benchmarks.cpu_training --write`; batch 100, MNIST, Adam, float32 "
        text = f"{head}(textbook: float64); {machine}.\n\n" + "\n".join(lines) + "\n"
        (RESULTS / "training.md").write_text(text)
        (RESULTS / "training.json").write_text(json.dumps({"machine": machine, "seconds": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
