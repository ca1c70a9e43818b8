"""Train the networks whose accuracy the project promises, and keep the evidence.

    python -m benchmarks.accuracy                 all of them (about half an hour on two cores)
    python -m benchmarks.accuracy simple_convnet  one of them

For each experiment benchmarks/results/accuracy/<name>.json holds the settings, the figures of every epoch, versions and
commit; <name>.png the curves; README.md the table of all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu.run import Config, Run
from dlgpu.threads import num_threads
from dlgpu.train import Callback, Row, Trainer

RESULTS = Path(__file__).parent / "results" / "accuracy"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings, and the test accuracy that the last epoch must reach."""

    config: Config
    goal: float


EXPERIMENTS = {
    # features.md, section 1: 20 epochs, Adam 1e-3, batch 100, weight_init_std 0.01 -> 0.9868
    "simple_convnet": Experiment(Config("simple_convnet"), 0.9868),
    "deep_convnet": Experiment(Config("deep_convnet"), 0.993),
    "lenet5": Experiment(Config("lenet5"), 0.985),
}


class Print(Callback):
    """One line per epoch."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        print(f"  epoch {row['epoch']}: test accuracy {row['test_accuracy']:.4f}, {row['seconds']:.1f} s", flush=True)


def measure(name: str, experiment: Experiment) -> dict[str, Any]:
    """Train from scratch in a temporary folder and write the evidence."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = Run.create(Path(folder) / name, experiment.config)
        run.trainer.callbacks.append(Print())
        history = run.fit()
        evidence = {
            "experiment": name,
            "goal": experiment.goal,
            "test_accuracy": history[-1]["test_accuracy"],
            "best_test_accuracy": max(row["test_accuracy"] for row in history),
            "minutes": round((time.perf_counter() - start) / 60, 2),
            "machine": f"{platform.machine()}, {num_threads()} threads",
            "versions": {"dlgpu": dlgpu.__version__, "numpy": np.__version__, "python": platform.python_version()},
            "commit": _commit(),
            "config": dataclasses.asdict(run.config),
            "history": history,
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(evidence, indent=1) + "\n")
        shutil.copyfile(run.folder / "curves.png", RESULTS / f"{name}.png")
    return evidence


def write_table() -> str:
    """README.md: one line per experiment that has evidence."""
    lines = [
        "# Accuracy reached",
        "",
        "Written by `python -m benchmarks.accuracy`; settings and every epoch's figures are in the JSON files.",
        "",
        "| experiment | epochs | test accuracy, last epoch | goal | best epoch | minutes | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        e = json.loads(path.read_text())
        lines.append(
            f"| {e['experiment']} | {len(e['history'])} | {e['test_accuracy']:.4f} | {e['goal']} | "
            f"{e['best_test_accuracy']:.4f} | {e['minutes']} | {e['machine']} |"
        )
    text = "\n".join(lines) + "\n"
    (RESULTS / "README.md").write_text(text)
    return text


def _commit() -> str:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return git.stdout.strip() or "unknown"


def main() -> None:
    """Run the experiments named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="experiment", help=f"any of {', '.join(EXPERIMENTS)}")
    names = parser.parse_args().names or list(EXPERIMENTS)
    for name in names:
        if name not in EXPERIMENTS:
            parser.error(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    for name in names:
        print(name, flush=True)
        evidence = measure(name, EXPERIMENTS[name])
        verdict = "reached" if evidence["test_accuracy"] >= evidence["goal"] else "NOT reached"
        print(f"  {evidence['test_accuracy']:.4f}: goal {evidence['goal']} {verdict}", flush=True)
    print(write_table())


if __name__ == "__main__":
    main()
