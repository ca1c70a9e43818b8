"""The training loop. Bits are compared, not tolerances: a run is a pure function of its seed."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlgpu import checkpoint, models, optim, random, threads
from dlgpu import functional as F
from dlgpu.data import DataLoader, Dataset, RandomRotation, mnist
from dlgpu.errors import CheckpointError, ShapeError, TrainingError
from dlgpu.nn import Sequential
from dlgpu.tensor import Tensor
from dlgpu.train import Callback, EarlyStopping, Trainer, evaluate

IMAGES, BATCH = 280, 60
BATCHES = math.ceil(IMAGES / BATCH)  # the last one is not full


@cache
def digits(train: bool, count: int) -> Dataset:
    return mnist(train).subset(slice(count))


def make(
    model: str = "mlp",
    seed: int = 0,
    images: int = IMAGES,
    optimizer: Callable[..., optim.Optimizer] = optim.Adam,
    tested: bool = True,
    transform: Any = None,
    **options: Any,
) -> Trainer:
    random.manual_seed(seed)
    network = models.build(model)
    train = DataLoader(digits(True, images), BATCH, shuffle=True, seed=seed, transform=transform)
    test = DataLoader(digits(False, 100), 64) if tested else None
    return Trainer(network, optimizer(network.parameters()), train, test, **options)


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.state_dict()[0].items()}


def figures(trainer: Trainer) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in trainer.history]


class Hook(Callback):
    """Calls a function after each batch, and keeps the batches' losses and learning rates."""

    def __init__(self, after: Callable[[Trainer], Any] = lambda trainer: None) -> None:
        self.after = after
        self.losses: list[float] = []
        self.lrs: list[float] = []

    def on_batch_end(self, trainer: Trainer, loss: float) -> None:
        self.losses.append(loss)
        self.lrs.append(trainer.optimizer.lr)
        self.after(trainer)


class StopAfter(Hook):
    """Stops once, after a number of batches of the run."""

    def __init__(self, batches: int) -> None:
        super().__init__(lambda trainer: trainer.stop("enough") if len(self.losses) == batches else None)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_learns() -> None:
    first, *_, last = make().fit(5)
    assert last["train_loss"] < first["train_loss"] / 2
    assert last["train_accuracy"] > 0.8 > first["train_accuracy"]
    assert last["test_accuracy"] > 0.6


def test_history_says_what_happened() -> None:
    hook = Hook()
    trainer = make(callbacks=[hook])
    history = trainer.fit(2)
    assert history is trainer.history
    assert [row["epoch"] for row in history] == [1, 2]
    for row in history:
        assert list(row) == [
            "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "seconds"
        ]  # fmt: skip
        assert row["lr"] == 1e-3
        assert row["seconds"] > 0
    sizes = [BATCH] * (BATCHES - 1) + [IMAGES % BATCH]
    for epoch in (0, 1):  # every image counts the same, also those of the small last batch
        losses = hook.losses[epoch * BATCHES :][:BATCHES]
        assert history[epoch]["train_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-12)
    assert evaluate(trainer.model, trainer.evaluate_batches) == (history[1]["test_loss"], history[1]["test_accuracy"])


@pytest.mark.parametrize(
    ("options", "keys"),
    [(dict(tested=False), set()), (dict(evaluate_as="valid"), {"valid_loss", "valid_accuracy"})],
    ids=["not evaluated", "valid"],
)
def test_evaluated_split(options: dict[str, Any], keys: set[str]) -> None:
    (row,) = make(**options).fit(1)
    assert row.keys() - {"epoch", "train_loss", "train_accuracy", "lr", "seconds"} == keys


def test_evaluate_counts_by_hand() -> None:
    trainer = make()
    batches = DataLoader(digits(False, 100), 64)
    logits = trainer.model(
        Tensor(digits(False, 100).images / np.float32(255), next(trainer.model.parameters()).backend)
    )
    labels = digits(False, 100).labels
    loss, accuracy = evaluate(trainer.model, batches)
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert accuracy == np.mean(logits.numpy().argmax(1) == labels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_evaluate_restores_the_mode(training: bool, fails: bool) -> None:
    modes = []

    def loss(logits: Tensor, labels: np.ndarray) -> Tensor:
        modes.append({module.training for module in trainer.model.modules()})
        return F.cross_entropy(logits, labels + 10 * fails)

    trainer = make("deep_convnet", images=60)
    trainer.model.train(training)
    if fails:
        with pytest.raises(ShapeError):
            evaluate(trainer.model, DataLoader(digits(False, 20), 10), loss)
    else:
        evaluate(trainer.model, DataLoader(digits(False, 20), 10), loss)
    assert modes == [{False}] * (1 if fails else 2)
    assert {module.training for module in trainer.model.modules()} == {training}


def test_running_figures() -> None:
    seen = []
    trainer = make(callbacks=[Hook(lambda trainer: seen.append(trainer.running()))])
    (row,) = trainer.fit(1)
    assert len(seen) == BATCHES
    assert seen[-1] == (row["train_loss"], row["train_accuracy"])
    assert trainer.running() == (0, 0)


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order() -> None:
    events: list[Any] = []

    class Recorder(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_train_begin(self, trainer: Trainer) -> None:
            events.append((self.name, "begin"))

        def on_batch_end(self, trainer: Trainer, loss: float) -> None:
            events.append((self.name, trainer.epoch, trainer.batch))

        def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
            assert row is trainer.history[-1]
            events.append((self.name, "epoch", trainer.epoch, trainer.batch))

        def on_train_end(self, trainer: Trainer) -> None:
            events.append((self.name, "end"))

    make(callbacks=[Recorder("a"), Recorder("b")]).fit(2)
    expected: list[Any] = [("begin",)]
    for epoch in (0, 1):
        expected += [(epoch, batch + 1) for batch in range(BATCHES)] + [("epoch", epoch + 1, 0)]
    expected += [("end",)]
    assert events == [(name, *event) for event in expected for name in "ab"]


@pytest.mark.parametrize(
    ("figure", "values", "patience", "min_delta", "stops_after"),
    [
        ("valid_loss", [3, 2, 1], 1, 0, None),
        ("valid_loss", [3, 2, 2], 1, 0, 3),  # equal is no improvement
        ("valid_loss", [3, 4, 5], 2, 0, 3),
        ("valid_loss", [3, 4, 2, 3, 3], 2, 0, 5),  # the improvement starts the count again
        ("valid_loss", [3, 2.9, 2.6, 2.4], 3, 0.5, None),  # too little, and measured from the best
        ("valid_loss", [3, 2.9, 2.8, 2.6], 3, 0.5, 4),
        ("valid_accuracy", [0.1, 0.2, 0.3], 1, 0, None),
        ("valid_accuracy", [0.3, 0.2], 1, 0, 2),
    ],
)
def test_early_stopping_decides(
    figure: str, values: list[float], patience: int, min_delta: float, stops_after: int | None
) -> None:
    trainer, stopping = make(), EarlyStopping(patience, figure, min_delta)
    for epoch, value in enumerate(values, 1):
        trainer.history.append({figure: value})
        stopping.on_epoch_end(trainer, trainer.history[-1])
        assert (trainer.stopped is not None) == (epoch == stops_after)
    if stops_after:
        assert trainer.stopped == f"{figure} has not improved for {patience} epochs"


# A learning rate of 0 never improves anything, so that training must stop after 1 + patience epochs.
still = partial(make, optimizer=partial(optim.SGD, lr=0.0))


@pytest.mark.parametrize("interrupted", [1, 2 * BATCHES, 2 * BATCHES + 1, 3 * BATCHES], ids="after {} batches".format)
def test_early_stopping_is_the_same_in_a_resumed_run(interrupted: int) -> None:
    """Also in one that was killed between the decision (after the third epoch) and its end."""
    first = still(callbacks=[StopAfter(interrupted)])
    first.fit(10)
    resumed = still(callbacks=[EarlyStopping(2, "test_loss")])
    resumed.load_state_dict(*first.state_dict())
    assert len(resumed.fit(10)) == 3
    assert resumed.stopped == "test_loss has not improved for 2 epochs"


# --- the update -------------------------------------------------------------------------------------------------------


def test_schedule_sets_the_rate_of_every_batch() -> None:
    hook, schedule = Hook(), optim.CosineDecay(length=2)
    trainer = make(schedule=schedule, callbacks=[hook])
    trainer.fit(2)
    expected = [1e-3 * schedule.factor(step / BATCHES) for step in range(2 * BATCHES)]
    assert hook.lrs == pytest.approx(expected, rel=1e-12)
    assert [row["lr"] for row in trainer.history] == hook.lrs[BATCHES - 1 :: BATCHES]


def test_clip_norm_limits_the_update() -> None:
    sgd = partial(optim.SGD, lr=1.0)
    moves = {}
    for clip in (None, 1e9, 0.01):
        trainer = make(optimizer=sgd, clip_norm=clip, callbacks=[StopAfter(1)])
        before = trainer.optimizer.groups[0].arena.values.copy()
        trainer.fit(1)
        moves[clip] = trainer.optimizer.groups[0].arena.values - before
    norms = {clip: float(np.linalg.norm(move.astype(np.float64))) for clip, move in moves.items()}
    assert norms[None] > 0.1
    assert moves[1e9].tobytes() == moves[None].tobytes()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    np.testing.assert_allclose(moves[0.01] / norms[0.01], moves[None] / norms[None], atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflows are the point
@pytest.mark.parametrize("batch", [2, BATCHES], ids="batch {}".format)
def test_diverging_run_is_refused_before_the_bad_update(batch: int) -> None:
    """The learning rate explodes one batch before: that update is still done, its loss was fine."""
    states: list[dict[str, bytes]] = []

    def after(trainer: Trainer) -> None:
        states.append(bits(trainer))
        if trainer.batch == batch - 2:
            trainer.optimizer.groups[0].settings["lr"] = 1e30

    trainer = make(optimizer=partial(optim.SGD, lr=1e30 if batch == 2 else 0.1), callbacks=[Hook(after)])
    message = (
        rf"^\[train\] the loss must stay finite; got (nan|inf) in epoch 1, batch {batch}, lr 1e\+30, first from layer "
    )
    with pytest.raises(TrainingError, match=message):
        trainer.fit(1)
    assert len(states) == trainer.batch == batch - 1
    assert bits(trainer) == states[-1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_diverging_in_the_last_batch_is_seen_by_the_evaluation() -> None:
    epochs = []

    class Epochs(Callback):
        def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
            epochs.append(row)

    trainer = make(images=BATCH, optimizer=partial(optim.SGD, lr=1e30), callbacks=[Epochs()])
    with pytest.raises(TrainingError, match=r"got (nan|inf) after epoch 1, lr 1e\+30"):
        trainer.fit(1)
    assert epochs == trainer.history == []


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: make().fit(0), "[fit] epochs must be >= 1; got 0"),
        (lambda: make(clip_norm=0.0), "[train] clip_norm must be positive; got 0.0"),
        (lambda: make(clip_norm=math.nan), "[train] clip_norm must be positive; got nan"),
        (lambda: EarlyStopping(0), "[EarlyStopping] patience must be >= 1; got 0"),
        (lambda: make(callbacks=[EarlyStopping(1)]).fit(1), "[EarlyStopping] there must be a figure 'valid_loss'; got"),
        (
            lambda: evaluate(Sequential(), DataLoader(digits(False, 5), 5)),
            "[train] the model must have parameters; got",
        ),
    ],
)
def test_wrong_settings(call: Callable[[], Any], rule: str) -> None:
    with pytest.raises(ShapeError, match=f"^{re.escape(rule)}"):
        call()


# --- stopping and going on --------------------------------------------------------------------------------------------


@cache
def uninterrupted(model: str = "mlp", seed: int = 0, **options: Any) -> Trainer:
    trainer = make(model, seed, **options)
    trainer.fit(3)
    return trainer


def assert_same_run(trainer: Trainer, other: Trainer) -> None:
    assert bits(trainer) == bits(other)
    assert figures(trainer) == figures(other)
    assert trainer.state_dict()[1]["random"] == other.state_dict()[1]["random"]


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    assert_same_run(uninterrupted(), make_and_fit(seed=0))
    other = make_and_fit(seed=1)
    assert bits(other)["model.1.weight"] != bits(uninterrupted())["model.1.weight"]


def make_and_fit(**options: Any) -> Trainer:
    trainer = make(**options)
    trainer.fit(3)
    return trainer


def test_bits_do_not_depend_on_the_threads() -> None:
    try:
        threads.set_num_threads(1)
        one = make_and_fit(model="lenet5")
        threads.set_num_threads(3)
        assert_same_run(make_and_fit(model="lenet5"), one)
    finally:
        threads.set_num_threads(None)


def test_fit_goes_on() -> None:
    trainer = make()
    for epochs in (1, 3, 3, 2):
        trainer.fit(epochs)
    assert_same_run(trainer, uninterrupted())


@pytest.mark.parametrize("batches", [1, BATCHES, BATCHES + 2, 3 * BATCHES - 1], ids="after {}".format)
def test_stop_ends_after_the_batch_and_fit_goes_on(batches: int) -> None:
    trainer = make(callbacks=[StopAfter(batches)])
    trainer.fit(3)
    assert trainer.stopped == "enough"
    assert (trainer.epoch, trainer.batch) == divmod(batches, BATCHES)
    assert len(trainer.history) == batches // BATCHES  # a whole epoch has its row
    trainer.fit(3)
    assert trainer.stopped is None
    assert_same_run(trainer, uninterrupted())


SMALL = dict(images=150, transform=RandomRotation(10.0))  # three batches


@pytest.mark.parametrize("batches", [1, 3, 5], ids="after {}".format)
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("deep_convnet", optim.Adam), *(("mlp", optimizer) for optimizer in optim.OPTIMIZERS.values())],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_resumed_run_has_the_same_bits(model: str, optimizer: Any, batches: int, tmp_path: Path) -> None:
    """Through a file, into a trainer that began with other weights and random numbers (deep_convnet has dropout)."""
    options = dict(optimizer=optimizer, **SMALL)
    first = make(model, callbacks=[StopAfter(batches)], schedule=optim.CosineDecay(3), **options)
    first.fit(3)
    assert len(first.history) == batches // 3
    checkpoint.save(tmp_path / "a.safetensors", *first.state_dict())
    first.fit(3)  # an uninterrupted run, as the test of `stop` shows

    resumed = make(model, schedule=optim.CosineDecay(3), **options)
    random.manual_seed(99)
    for parameter in resumed.model.parameters():
        parameter.data[...] = 7
    resumed.load_state_dict(*checkpoint.load(tmp_path / "a.safetensors"))
    resumed.fit(3)
    assert_same_run(resumed, first)


def test_state_between_the_last_batch_and_the_end_of_its_epoch() -> None:
    states: list[Any] = []
    make(callbacks=[Hook(lambda t: states.append(t.state_dict()) if len(states) < BATCHES else None)]).fit(1)
    assert states[-1][1]["batch"] == BATCHES
    resumed = make()
    resumed.load_state_dict(*states[-1])
    resumed.fit(3)
    assert_same_run(resumed, uninterrupted())


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        (lambda: make("lenet5"), r"\[load_state_dict\] "),
        (lambda: make(optimizer=optim.SGD), r"\[Adam\] "),
        (lambda: make(images=BATCH * (BATCHES + 3)), r"\[trainer\] .+; got batch \d of \d"),
    ],
    ids=["model", "optimizer", "number of batches"],
)
def test_state_of_another_run(other: Callable[[], Trainer], rule: str) -> None:
    stranger, trainer = other(), make()
    stranger.callbacks.append(StopAfter(BATCHES + 1))
    stranger.fit(2 if len(stranger.train_batches) == BATCHES else 1)
    with pytest.raises(CheckpointError, match=rf"^{rule}"):
        trainer.load_state_dict(*stranger.state_dict())
    assert (trainer.epoch, trainer.batch, trainer.history) == (0, 0, [])


def test_incomplete_state() -> None:
    trainer = make()
    arrays, rest = trainer.state_dict()
    del rest["sums"], rest["batch"]
    with pytest.raises(CheckpointError, match=r"^\[trainer\] .+; got one without \['batch', 'sums'\]$"):
        trainer.load_state_dict(arrays, rest)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_in_an_orderly_way(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    trainer = make(callbacks=[Hook(lambda t: os.kill(os.getpid(), number) if t.batch == 2 else None)])
    trainer.fit(3)
    assert (trainer.stopped, trainer.epoch, trainer.batch) == (number.name, 0, 2)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    trainer.callbacks.clear()
    trainer.fit(3)
    assert_same_run(trainer, uninterrupted())


def test_second_ctrl_c_stops_at_once() -> None:
    def twice(trainer: Trainer) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on after the second Ctrl-C")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[Hook(twice)]).fit(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_in_another_thread() -> None:
    """Where Python does not let signals be handled."""
    trainer = make()
    thread = threading.Thread(target=trainer.fit, args=(3,))
    thread.start()
    thread.join()
    assert_same_run(trainer, uninterrupted())
