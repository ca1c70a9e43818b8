"""Run folders: what is in them, and that a run which was killed ends as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dlgpu import checkpoint, data
from dlgpu import run as run_module
from dlgpu.errors import CheckpointError, DataError, DlgpuError, ShapeError, TrainingError, UnknownName
from dlgpu.run import Config, Run, load_model, read_config
from dlgpu.train import evaluate

QUICK = Config("mlp", epochs=3, limit=400, batch_size=50)
FILES = {"config.json", "last.safetensors", "best.safetensors", "metrics.jsonl", "curves.png", "filters.png"}


cached_mnist = cache(data.mnist)  # unpacking and checking the files takes longer than these runs


@pytest.fixture(autouse=True)
def quick_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.DATASETS, "mnist", cached_mnist)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do pictures."""
    monkeypatch.setattr(Run, "draw", lambda self: None)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run ends with, but for what a clock says."""
    result: dict[str, Any] = {"metrics": metrics(folder), "config": (folder / "config.json").read_bytes()}
    for which in ("last", "best"):
        arrays, info = checkpoint.load(folder / f"{which}.safetensors")
        result[which] = {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
        result[which, "info"] = timeless(info) | {"history": [timeless(row) for row in info["history"]]}
    return result


def trained(folder: Path, config: Config = QUICK) -> Path:
    Run.create(folder, config).fit()
    return folder


# --- what a folder holds ----------------------------------------------------------------------------------------------


def test_folder_content(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "new" / "run", QUICK)
    assert {path.name for path in run.folder.iterdir()} == {"config.json"}
    history = run.fit()
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == history
    for picture in ("curves.png", "filters.png"):
        with Image.open(run.folder / picture) as image:
            assert min(image.size) > 200


@pytest.mark.usefixtures("undrawn")
def test_config_round_trip(tmp_path: Path) -> None:
    config = dataclasses.replace(
        QUICK,
        optimizer="momentum",
        lr=0.1,
        clip_norm=2.5,
        augment=("shift", "flip"),
        validation=100,
        patience=2,
        seed=5,
    )
    run = Run.create(tmp_path, config)
    loaded = read_config(tmp_path)
    assert loaded == run.config
    assert dataclasses.replace(loaded, classes=(), in_channels=0, image_size=0, mean=(), std=()) == config
    train = cached_mnist(True, None).subset(slice(400))
    assert (loaded.classes, loaded.in_channels, loaded.image_size) == (train.classes, 1, 28)
    assert [np.float32(value) for value in (*loaded.mean, *loaded.std)] == [*np.concatenate(train.mean_std())]


def test_defaults_are_the_models() -> None:
    config = Config("vgg11")
    assert (config.dataset, config.optimizer, config.batch_size, config.weight_decay) == (
        "cifar10",
        "momentum",
        64,
        5e-4,
    )


@pytest.mark.usefixtures("undrawn")
def test_existing_run_is_kept(tmp_path: Path) -> None:
    before = outcome(trained(tmp_path))
    with pytest.raises(CheckpointError, match=r"^\[run\] .+; got .+ --resume$"):
        Run.create(tmp_path, QUICK)
    assert outcome(tmp_path) == before


@pytest.mark.usefixtures("undrawn")
def test_best_and_last(tmp_path: Path) -> None:
    """A learning rate that grows wild makes the last epoch worse than the best."""
    run = Run.create(tmp_path, dataclasses.replace(QUICK, optimizer="sgd", lr=0.1, epochs=4))
    run.trainer.callbacks.append(_Wild())
    history = run.fit()
    accuracies = [row["test_accuracy"] for row in history]
    best = accuracies.index(max(accuracies))
    assert best < len(history) - 1
    for which, epoch in (("best", best), ("last", len(history) - 1)):
        model, config = load_model(tmp_path, which)
        assert not model.training
        assert evaluate(model, config.evaluation_batches(run.test))[1] == accuracies[epoch]
        assert checkpoint.load(tmp_path / f"{which}.safetensors")[1]["epoch"] == epoch + 1


class _Wild(run_module.Callback):
    def on_epoch_end(self, trainer: Any, row: dict[str, Any]) -> None:
        if trainer.epoch == 2:
            trainer.base_lrs[0] = 30.0


@pytest.mark.usefixtures("undrawn")
def test_validation_holds_images_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path, dataclasses.replace(QUICK, validation=100))
    train, valid = run.trainer.train_batches.dataset, run.trainer.evaluate_batches.dataset
    together = sorted(image.tobytes() for part in (train, valid) for image in part.images)
    assert (len(train), len(valid), len(run.test)) == (300, 100, 400)
    assert together == sorted(image.tobytes() for image in cached_mnist(True, None).images[:400])
    assert {"valid_loss", "valid_accuracy"} < run.fit()[0].keys()


@pytest.mark.usefixtures("undrawn")
def test_augmentation_is_for_training_only(tmp_path: Path) -> None:
    run = Run.create(tmp_path, dataclasses.replace(QUICK, augment=("shift", "rotate")))
    assert len(run.trainer.train_batches.transform.transforms) == 4  # with Resize and Normalize
    assert len(run.trainer.evaluate_batches.transform.transforms) == 2  # those two


# --- interrupted and resumed ------------------------------------------------------------------------------------------

# Every batch saves a checkpoint and says where it is; it is slowed down so that a kill can hit each moment of it.
DRIVER = """
import sys, time
from dlgpu import run
from dlgpu.train import Callback

class Report(Callback):
    def on_batch_end(self, trainer, loss):
        print(trainer.epoch, trainer.batch, flush=True)
        time.sleep(0.01 if trainer.epoch < 2 else 1.0)  # never done before the kill, however busy the machine

run.CHECKPOINT_SECONDS = 0.0
run.Run.draw = lambda self: None
r = run.Run.resume(sys.argv[1])
r.trainer.callbacks.append(Report())
r.fit()
"""

KILLED = {
    "mlp": dataclasses.replace(
        QUICK, augment=("shift", "rotate"), validation=100, patience=9, schedule="cosine", clip_norm=1.0, seed=3
    ),
    "deep_convnet": Config("deep_convnet", epochs=3, limit=60, batch_size=15),  # dropout
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("model", KILLED)
@pytest.mark.parametrize("attempt", range(2))
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, model: str, attempt: int) -> None:
    expected = outcome(trained(tmp_path / "whole", KILLED[model]))
    Run.create(tmp_path / "killed", KILLED[model])
    process = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "killed"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        moment = random.uniform(0.0, 0.06)  # of the second epoch, which takes about as long; another in each test run
        for line in process.stdout:
            if line.startswith("1 1"):
                time.sleep(moment)
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    _, info = checkpoint.load(tmp_path / "killed" / "last.safetensors")
    assert info["epoch"] in (1, 2), "killed at the wrong time"
    resumed = Run.resume(tmp_path / "killed")
    assert (resumed.trainer.epoch, resumed.trainer.batch) == (info["epoch"], info["batch"])
    resumed.fit()
    assert outcome(tmp_path / "killed") == expected, f"killed {moment:.4f} s into the second epoch"


@pytest.mark.usefixtures("undrawn")
def test_killed_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    expected = outcome(trained(tmp_path / "whole"))
    Run.create(tmp_path / "killed", QUICK)
    (tmp_path / "killed" / "metrics.jsonl").write_text('{"epoch": 1, "train_l')
    run = Run.resume(tmp_path / "killed")
    assert (run.trainer.epoch, run.trainer.batch) == (0, 0)
    run.fit()
    assert outcome(tmp_path / "killed") == expected


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + '{"epoch": 4, "tra',
        lambda text: text + text,
        lambda text: text[: len(text) // 2],
        lambda text: "",
    ],
    ids=["half a line", "rows twice", "cut", "empty"],
)
def test_metrics_are_repaired(tmp_path: Path, damage: Callable[[str], str]) -> None:
    path = trained(tmp_path) / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(damage(whole))
    Run.resume(tmp_path)
    assert path.read_text() == whole


@pytest.mark.usefixtures("undrawn")
def test_resume_with_more_epochs(tmp_path: Path) -> None:
    expected = outcome(trained(tmp_path / "three"))
    trained(tmp_path / "two", dataclasses.replace(QUICK, epochs=2))
    Run.resume(tmp_path / "two", epochs=3).fit()
    assert outcome(tmp_path / "two") == expected


@pytest.mark.usefixtures("undrawn")
def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    expected = outcome(trained(tmp_path))
    Run.resume(tmp_path).fit()
    assert outcome(tmp_path) == expected


# --- damaged folders --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("size", [0, 100, -1], ids="{} bytes".format)
def test_damaged_checkpoint_is_not_overwritten(tmp_path: Path, size: int) -> None:
    path = trained(tmp_path) / "last.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"^\[checkpoint\] .+last\.safetensors is damaged"):
        Run.resume(tmp_path, epochs=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("open_it", [Run.resume, load_model])
def test_checkpoint_of_another_model(tmp_path: Path, open_it: Callable[[Path], Any]) -> None:
    trained(tmp_path / "a")
    trained(tmp_path / "b", dataclasses.replace(QUICK, model="lenet5", epochs=1, limit=100))
    before = {}
    for which in ("last", "best"):
        before[which] = (tmp_path / "b" / f"{which}.safetensors").read_bytes()
        (tmp_path / "a" / f"{which}.safetensors").write_bytes(before[which])
    with pytest.raises(CheckpointError, match=r"^\[load_state_dict\] names must match"):
        open_it(tmp_path / "a")
    assert (tmp_path / "a" / "last.safetensors").read_bytes() == before["last"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", CheckpointError),
        ('{"model": "mlp", "epo', CheckpointError),
        ("[]", CheckpointError),
        ("null", CheckpointError),
        ("{}", CheckpointError),
        ('{"model": "mlp", "epochs": "three"}', CheckpointError),
        ('{"model": "mlp", "epochs": 0}', CheckpointError),
        ('{"model": "mlp", "colour": "blue"}', CheckpointError),
        ('{"model": "\udcff"}', CheckpointError),
        ('{"model": "lenet6"}', UnknownName),
        ('{"model": 5}', UnknownName),
    ],
)
def test_damaged_config(tmp_path: Path, text: str, error: type[DlgpuError]) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    for open_it in (read_config, Run.resume, load_model):
        with pytest.raises(error, match=r"^\[run\] .+") as caught:
            open_it(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("open_it", [read_config, Run.resume, load_model])
def test_no_run_there(tmp_path: Path, open_it: Callable[[Path], Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^\[run\] the folder must hold a run \(config\.json\); got .+"):
        open_it(tmp_path / "nothing")


def pictures(folder: Path, size: tuple[int, int] = (8, 8), classes: str = "ab", seed: int = 0) -> Path:
    """A data set of two random pictures per class and half."""
    rng = np.random.default_rng(seed)
    for half in ("train", "test"):
        for name in classes:
            (folder / half / name).mkdir(parents=True, exist_ok=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (*size, 3), np.uint8)
                Image.fromarray(pixels).save(folder / half / name / f"{number}.png")
    return folder


@pytest.mark.usefixtures("undrawn")
def test_resume_wants_the_same_data(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "pictures"))
    trained(tmp_path / "run", Config("mlp", dataset=folder, epochs=1))
    Run.resume(tmp_path / "run")
    pictures(tmp_path / "pictures", seed=1)
    with pytest.raises(
        CheckpointError, match=r"^\[run\] the data must be those that the run began with; got others in"
    ):
        Run.resume(tmp_path / "run")


def test_pictures_must_be_square(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^\[Dataset\] images must be square; got 8 x 9"):
        Run.create(tmp_path / "run", Config("mlp", dataset=str(pictures(tmp_path / "pictures", (8, 9)))))
    assert not (tmp_path / "run").exists()


# --- diverging runs ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflows are the point
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("batch", range(1, 5))
def test_diverging_run_keeps_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """The learning rate explodes in some batch of the second epoch; checkpoints are due after every batch."""
    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)
    run = Run.create(tmp_path, Config("mlp", optimizer="sgd", lr=0.1, epochs=2, limit=200, batch_size=50))

    class Explode(run_module.Callback):
        def on_batch_end(self, trainer: Any, loss: float) -> None:
            if (trainer.epoch, trainer.batch) == (1, batch - 1):
                trainer.base_lrs[0] = np.inf

        on_train_begin = on_epoch_end = lambda self, trainer, row=None: self.on_batch_end(trainer, 0)

    run.trainer.callbacks.append(Explode())
    with pytest.raises(
        TrainingError, match=r"^\[(run|train)\] .+ must stay finite; got .+ try a smaller learning rate"
    ):
        run.fit()
    for which in ("last", "best"):
        arrays, _ = checkpoint.load(tmp_path / f"{which}.safetensors")
        assert all(np.isfinite(array).all() for array in arrays.values())
    assert len(metrics(tmp_path)) == 1
    resumed = Run.resume(tmp_path)
    assert (resumed.trainer.epoch, resumed.trainer.batch) == (1, batch - 1)
    assert len(resumed.fit()) == 2


@pytest.mark.parametrize(
    ("settings", "error", "rule"),
    [
        (dict(model="lenet"), UnknownName, "[run] unknown model 'lenet'; Did you mean 'lenet5'?"),
        (dict(optimizer="adem"), UnknownName, "[run] unknown optimizer 'adem'; Did you mean 'adam'?"),
        (dict(schedule="cosinus"), UnknownName, "[run] unknown schedule 'cosinus'; Did you mean 'cosine'?"),
        (dict(augment=("shift", "rotat")), UnknownName, "[run] unknown augmentation 'rotat'; Did you mean 'rotate'?"),
        (dict(dataset="mnits"), UnknownName, "[data.load] unknown data set"),
        (dict(epochs=0), ShapeError, "[run] epochs must be >= 1; got 0"),
        (dict(batch_size=-1), ShapeError, "[run] batch_size must be >= 1; got -1"),
        (dict(limit=0), ShapeError, "[run] limit must be >= 1; got 0"),
        (dict(patience=0), ShapeError, "[run] patience must be >= 1; got 0"),
        (dict(validation=400), ShapeError, "[run] validation must leave images to train on; got 400 of 400"),
        (dict(validation=-1), ShapeError, "[run] validation must leave images to train on; got -1 of 400"),
        (dict(lr=float("nan")), ShapeError, "[Adam] lr must be a finite number >= 0; got nan"),
        (dict(weight_decay=-1.0), ShapeError, "[Adam] weight_decay must be a finite number >= 0; got -1.0"),
        (dict(clip_norm=0.0), ShapeError, "[train] clip_norm must be positive; got 0.0"),
        (dict(seed=-1), ShapeError, "[random] seed must be in [0, 2**64); got -1"),
        (dict(device="cuba"), UnknownName, "[backends] unknown backend 'cuba'; Did you mean 'cuda'?"),
    ],
    ids=str,
)
def test_wrong_settings_write_nothing(
    tmp_path: Path, settings: dict[str, Any], error: type[DlgpuError], rule: str
) -> None:
    with pytest.raises(error) as caught:
        Run.create(tmp_path / "run", dataclasses.replace(QUICK, **settings))
    assert str(caught.value).startswith(rule)
    assert not (tmp_path / "run").exists()
