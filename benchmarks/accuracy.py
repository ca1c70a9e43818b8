"""Train the networks whose accuracy the project promises, and keep the evidence.

    python -m benchmarks.accuracy                      all of them (about three hours on two cores)
    python -m benchmarks.accuracy simple_convnet       one of them
    python -m benchmarks.accuracy vgg_small --runs d   one that has been trained into d/vgg_small, or is kept there

For each experiment benchmarks/results/accuracy/<name>.json holds the settings, the figures of every epoch, versions and
commit; <name>.png the curves; README.md the table of all of them. Fashion-MNIST and CIFAR-10 are found as
`dlgpu.data.load` finds them: in $DLGPU_DATA, or by download.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu import data
from dlgpu.ensemble import Ensemble
from dlgpu.run import Config, Run, load_model, read_config
from dlgpu.threads import num_threads
from dlgpu.train import Callback, Row, Trainer, evaluate

RESULTS = Path(__file__).parent / "results" / "accuracy"
FROM_DATA = ("data_root", "classes", "in_channels", "image_size", "mean", "std")  # not settings of an experiment


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings of its networks (several are an ensemble), and the test accuracy to reach."""

    configs: tuple[Config, ...]
    goal: float


EXPERIMENTS = {
    # features.md, section 1: 20 epochs, Adam 1e-3, batch 100, weight_init_std 0.01 -> 0.9868
    "simple_convnet": Experiment((Config("simple_convnet"),), 0.9868),
    "deep_convnet": Experiment((Config("deep_convnet"),), 0.993),
    "lenet5": Experiment((Config("lenet5"),), 0.985),
    # mixed precision costs at most 0.2 % of it
    "lenet5_float16": Experiment((Config("lenet5", precision="float16"),), 0.985),
    "lenet5_bfloat16": Experiment((Config("lenet5", precision="bfloat16"),), 0.985),
    "lenet5_fashion": Experiment(
        (Config("lenet5", dataset="fashion-mnist", epochs=20, augment=("shift", "flip")),), 0.90
    ),
    # CPU budgets: half an hour each on two cores (the second learns from a third of the images)
    "mobilenet_fashion": Experiment(
        (Config("mobilenet_v1", dataset="fashion-mnist", epochs=3, model_options=("width_mult=0.25",)),), 0.85
    ),
    "resnet18_fashion": Experiment(
        (Config("resnet18", dataset="fashion-mnist", epochs=3, limit=20_000, model_options=("width=16",)),), 0.85
    ),
    "vgg_small": Experiment((Config("vgg_small", augment=("crop", "flip")),), 0.80),
    "deep_convnet_ensemble": Experiment(
        tuple(Config("deep_convnet", epochs=8, seed=seed, augment=("shift",)) for seed in (11, 12, 13)), 0.995
    ),
}


class Print(Callback):
    """One line per epoch."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        print(f"  epoch {row['epoch']}: test accuracy {row['test_accuracy']:.4f}, {row['seconds']:.1f} s", flush=True)


def measure(name: str, experiment: Experiment, runs: Path) -> dict[str, Any]:
    """Train what `runs` does not hold yet, judge it, and write the evidence."""
    folders = [runs / (name if len(experiment.configs) == 1 else f"{name}-{c.seed}") for c in experiment.configs]
    for folder, config in zip(folders, experiment.configs, strict=True):
        if not (folder / "last.safetensors").exists():
            run = Run.create(folder, config)
            run.trainer.callbacks.append(Print())
            run.fit()
        kept = dataclasses.replace(read_config(folder), data_root=None)
        asked = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in FROM_DATA}
        if any(getattr(kept, key) != value for key, value in asked.items()):
            raise SystemExit(f"{folder} holds a run with other settings than the experiment's")
    histories = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    models, configs = zip(*(load_model(folder, "last") for folder in folders), strict=True)
    test = data.load(configs[0].dataset, train=False, root=configs[0].data_root)
    _, accuracy = evaluate(Ensemble(models), configs[0].evaluation_batches(test))
    evidence = {
        "experiment": name,
        "goal": experiment.goal,
        "test_accuracy": accuracy,
        "members": [history[-1]["test_accuracy"] for history in histories],
        "best_test_accuracy": max([accuracy, *(row["test_accuracy"] for h in histories for row in h)]),
        "minutes": round(sum(row["seconds"] for h in histories for row in h) / 60, 2),
        "machine": f"{platform.machine()}, {num_threads()} threads",
        "versions": {"dlgpu": dlgpu.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "commit": _commit(),
        "config": dataclasses.asdict(dataclasses.replace(configs[0], data_root=None)),
        "history": histories[0] if len(histories) == 1 else histories,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(evidence, indent=1) + "\n")
    shutil.copyfile(folders[0] / "curves.png", RESULTS / f"{name}.png")
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
        epochs = (
            len(e["history"]) if isinstance(e["history"][0], dict) else f"{len(e['history'])} x {len(e['history'][0])}"
        )
        lines.append(
            f"| {e['experiment']} | {epochs} | {e['test_accuracy']:.4f} | {e['goal']} | "
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
    parser.add_argument(
        "--runs", type=Path, help="keep the run folders here, and take what is there (default: neither)"
    )
    options = parser.parse_args()
    names = options.names or list(EXPERIMENTS)
    for name in names:
        if name not in EXPERIMENTS:
            parser.error(f"unknown experiment {name!r}; known: {', '.join(EXPERIMENTS)}")
    for name in names:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            evidence = measure(name, EXPERIMENTS[name], options.runs or Path(folder))
        verdict = "reached" if evidence["test_accuracy"] >= evidence["goal"] else "NOT reached"
        print(f"  {evidence['test_accuracy']:.4f}: goal {evidence['goal']} {verdict}", flush=True)
    print(write_table())


if __name__ == "__main__":
    main()
