"""Transfer learning, ensembles, weight averaging and layer-wise pre-training."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import checkpoint, data, models, nn, optim, pretrain, transfer
from dlgpu import functional as F
from dlgpu.averaging import WeightAveraging, renew_statistics
from dlgpu.data import DataLoader, Dataset
from dlgpu.ensemble import Ensemble
from dlgpu.errors import CheckpointError, ShapeError, TrainingError, UnknownName
from dlgpu.run import Config, Run, load_model
from dlgpu.testing import gradcheck
from dlgpu.train import Trainer


def small_net(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, classes)
    )


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.mnist().subset(slice(300))


# --- transfer -----------------------------------------------------------------------------------------------------


def test_frozen_parts_keep_their_bits_and_the_rest_learns(digits: data.Dataset) -> None:
    net = models.build("lenet5", num_classes=10, in_channels=1, image_size=28)
    names = [name for name, _ in net.named_parameters()]
    frozen = transfer.freeze(net, names[0].split(".")[0])
    before = net.state_dict()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    Trainer(net, optimizer, DataLoader(digits, 100)).fit(1)
    after = net.state_dict()
    assert frozen
    assert len(frozen) < len(names)
    for name in names:
        assert np.array_equal(before[name], after[name]) == (name in frozen), name


def test_freezing_what_is_not_there() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'features'"):
        transfer.freeze(models.build("vgg11", num_classes=10, in_channels=3, image_size=32), "feature")


def test_freeze_takes_whole_names_only() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    assert transfer.freeze(net, "1") == ["1.weight", "1.bias"]  # not "10."


def test_groups_learn_at_their_own_rates() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    groups = transfer.parameter_groups(net, 0.1, {"1": 10, "1.1": 0})
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.1, 2), (1.0, 2), (0.0, 2)]
    for parameter in net.parameters():
        parameter.grad = dlgpu.ones(*parameter.shape)
    before = net.state_dict()
    optim.SGD(groups, lr=0.1).step()
    moved = {name: float(np.abs(before[name] - a).max()) for name, a in net.state_dict().items()}
    for name, rate in (("0.weight", 0.1), ("1.0.weight", 1.0), ("1.1.weight", 0.0)):
        np.testing.assert_allclose(moved[name], rate, rtol=1e-5)


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_a_new_head_has_the_new_classes_and_the_old_body(name: str) -> None:
    net = models.build(name, num_classes=10, in_channels=1, image_size=28)
    before = net.state_dict()
    head = transfer.replace_head(net, 3)
    after = net.state_dict()
    assert net(dlgpu.zeros(2, 1, 28, 28)).shape == (2, 3)
    changed = [n for n in before if before[n].shape != after[n].shape]
    assert len(changed) == 2
    assert all(np.array_equal(before[n], after[n]) for n in before if n not in changed)
    assert head.weight.requires_grad


def test_a_convolution_can_be_the_head() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.Conv2d(4, 10, 1, bias=False), nn.ReLU()))
    transfer.replace_head(net, 5)
    assert net(dlgpu.zeros(1, 1, 6, 6)).shape == (1, 5, 4, 4)
    assert net[1][0].bias is None
    with pytest.raises(ShapeError, match=r"must have a Linear or Conv2d layer; got ReLU"):
        transfer.replace_head(nn.ReLU(), 2)
    with pytest.raises(ShapeError, match="num_classes"):
        transfer.replace_head(net, 0)


def test_weights_of_another_task_are_taken_but_for_the_head() -> None:
    source, target = small_net(10), small_net(4)
    state = source.state_dict()
    left = transfer.load_matching(target, state)
    assert left == ["4.weight", "4.bias"]
    for name, array in target.state_dict().items():
        assert np.array_equal(array, state[name]) == (name not in left)
    with pytest.raises(
        CheckpointError, match=r"got missing: 0\.bias, .* and 3 more; unexpected: a\.weight; of another shape: none$"
    ):
        transfer.load_matching(target, {"a.weight": np.zeros((2, 2), np.float32)})


# --- ensembles ----------------------------------------------------------------------------------------------------


def test_an_ensemble_averages_probabilities() -> None:
    dlgpu.manual_seed(1)
    members = [nn.Linear(5, 3) for _ in range(4)]
    x = dlgpu.tensor(np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32))
    expected = np.mean([F.softmax(member(x)).numpy() for member in members], axis=0)
    np.testing.assert_allclose(F.softmax(Ensemble(members)(x)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(Ensemble(members)(x).numpy()), expected, rtol=1e-5)


def test_an_ensemble_of_confident_members_stays_finite() -> None:
    class Sure(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 1e4

    logs = Ensemble([Sure(), Sure()])(dlgpu.tensor(np.array([[0, 1.0, -1.0]], np.float32))).numpy()
    np.testing.assert_allclose(logs, [[-1e4, 0, -2e4]])


def test_an_ensemble_can_be_differentiated() -> None:
    x = dlgpu.tensor(np.random.default_rng(2).standard_normal((2, 3)))
    members = [nn.Linear(3, 2).to(dtype="float64") for _ in range(3)]
    gradcheck(lambda x: Ensemble(members)(x), x)


def test_ensembles_need_members_of_one_kind() -> None:
    with pytest.raises(ShapeError, match="at least one member"):
        Ensemble([])
    with pytest.raises(ShapeError, match=r"same number of classes; got \[2, 3\]"):
        Ensemble([nn.Linear(4, 2), nn.Linear(4, 3)])(dlgpu.zeros(1, 4))


# --- stochastic weight averaging ----------------------------------------------------------------------------------


def test_averaged_weights_are_the_mean_of_the_epochs(digits: data.Dataset) -> None:
    net = small_net()
    seen: list[dict[str, np.ndarray]] = []

    class Keep(WeightAveraging):
        def on_epoch_end(self, trainer: Any, row: Any) -> None:
            super().on_epoch_end(trainer, row)
            seen.append({name: p.numpy().copy() for name, p in net.named_parameters()})

    averaging = Keep(start=2)
    batches = DataLoader(digits, 100)
    Trainer(net, optim.SGD(net.parameters(), lr=0.1), batches, callbacks=[averaging]).fit(4)
    target = small_net()
    averaging.apply(target, batches)
    assert averaging.count == 3
    for name, parameter in target.named_parameters():
        np.testing.assert_allclose(parameter.numpy(), np.mean([s[name] for s in seen[1:]], axis=0), rtol=1e-6)
    # and the statistics are those of the new weights: the mean over the batches of what each batch shows
    first = nn.Sequential(target[0])
    means = [first(dlgpu.tensor(images)).numpy().mean((0, 2, 3)) for images, _ in batches.epoch(0)]
    np.testing.assert_allclose(target[1].running_mean.numpy(), np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
    assert target[1].momentum == 0.1
    assert target.training


def test_networks_without_statistics_are_left_alone(digits: data.Dataset) -> None:
    renew_statistics(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), DataLoader(digits, 100))


def test_nothing_to_average(digits: data.Dataset) -> None:
    with pytest.raises(ShapeError, match="start must be an epoch >= 1; got 0"):
        WeightAveraging(0)
    with pytest.raises(TrainingError, match="there must be an epoch to average from 3 on"):
        WeightAveraging(3).apply(small_net(), DataLoader(digits, 100))


# --- layer-wise pre-training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_greedy_rounds_add_a_stage_each(freeze: bool) -> None:
    stages = [nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 7)]
    rounds: list[tuple[int, list[bool]]] = []

    def fit(network: nn.Module) -> None:
        rounds.append((len(list(network.children())), [p.requires_grad for p in network.parameters()][::2]))

    network = pretrain.greedy(stages, lambda last: nn.Linear(5 + last, 2), fit, freeze=freeze)
    old = not freeze
    assert rounds == [(2, [True, True]), (3, [old, True, True]), (4, [old, old, True, True])]
    assert network(dlgpu.zeros(1, 4)).shape == (1, 2)
    assert all(p.requires_grad for p in network.parameters())
    with pytest.raises(ShapeError, match="at least one stage"):
        pretrain.greedy([], lambda last: nn.ReLU(), fit)


def test_stages_are_the_models_own_layers() -> None:
    net = models.deep_convnet()
    pieces = pretrain.stages(net)
    assert [layer for piece in pieces for layer in piece] == list(net)
    assert [type(piece[0]).__name__ for piece in pieces] == 6 * ["Conv2d"] + ["Linear"] * 2
    for wrong in (models.resnet18(image_size=32, width=8), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))):
        with pytest.raises(ShapeError, match=r"\[pretrain\] the model must be a Sequential of two or more .*; got"):
            pretrain.stages(wrong)


def test_layerwise_ends_with_the_model_itself() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    rounds: list[list[nn.Module]] = []
    pretrain.layerwise(net, dlgpu.zeros(1, 1, 4, 4), lambda network: rounds.append(list(network)))
    first, second = rounds
    assert list(first[0]) == list(net)[:3]
    assert first[1][1].weight.shape == (3, 8)
    assert [layer for piece in second for layer in piece] == list(net)


# --- runs ---------------------------------------------------------------------------------------------------------


def run_of(folder: Path, **settings: Any) -> Run:
    return Run.create(folder, Config("mlp", limit=200, batch_size=50, **settings))


def test_a_run_starts_from_another_and_freezes(tmp_path: Path) -> None:
    first = run_of(tmp_path / "a", epochs=1)
    first.fit()
    trained = first.trainer.model.state_dict()
    names = list(trained)
    for start in (tmp_path / "a", tmp_path / "a" / "last.safetensors"):
        second = run_of(tmp_path / f"b{start.suffix}", epochs=1, start=str(start), freeze=(names[0].split(".")[0],))
        for name, array in second.trainer.model.state_dict().items():
            np.testing.assert_array_equal(array, trained[name])
        second.fit()
        after = second.trainer.model.state_dict()
        assert np.array_equal(after[names[0]], trained[names[0]])
        assert not np.array_equal(after[names[-1]], trained[names[-1]])
    with pytest.raises(CheckpointError, match="must be a checkpoint file"):
        run_of(tmp_path / "c", start=str(tmp_path / "nothing"))


def test_a_run_is_pretrained_from_the_bottom_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = dict(layerwise=2, model_options=("hidden=20,10",), label_smoothing=0.1)
    whole, rounds, begun = run_of(tmp_path / "whole", epochs=2, **how), [], []
    monkeypatch.setattr(whole, "on_train_begin", lambda trainer: begun.append(trainer.model.state_dict()))
    fresh = whole.trainer.model.state_dict()
    whole.fit(lambda number, row: rounds.append((number, row["epoch"])))
    assert rounds == [(1, 2), (2, 2)]

    config, batches = whole.config, whole.trainer.train_batches
    net = config.build_model()

    def fit(network: nn.Module) -> None:
        loss = partial(F.cross_entropy, label_smoothing=0.1)
        Trainer(network, optim.Adam(network.parameters(), lr=config.lr), batches, loss=loss).fit(2)

    pretrain.layerwise(net, dlgpu.zeros(1, 1, 28, 28), fit)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(begun[0][name], array, err_msg=name)
        assert not np.array_equal(array, fresh[name]), name

    cross_entropy = F.cross_entropy

    def interrupted(*arguments: Any, **options: Any) -> dlgpu.Tensor:
        signal.raise_signal(signal.SIGINT)
        return cross_entropy(*arguments, **options)

    run_of(tmp_path / "later", epochs=1, **how).fit()
    early = run_of(tmp_path / "early", epochs=1, **how)
    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", interrupted)
        assert early.fit(lambda number, row: rounds.append(number)) == []
    assert early.trainer.stopped == "SIGINT"
    assert [path.name for path in early.folder.iterdir()] == ["config.json"]
    for folder, again in ("later", []), ("early", [(1, 2), (2, 2)]):
        rounds.clear()
        Run.resume(tmp_path / folder, epochs=2).fit(lambda number, row: rounds.append((number, row["epoch"])))
        assert rounds == again
        ours, theirs = (checkpoint.load(tmp_path / f / "last.safetensors")[0] for f in ("whole", folder))
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_parts_of_a_run_learn_at_their_own_rates(tmp_path: Path) -> None:
    """One SGD step moves a part by its factor times what it would move; a resumed run remembers."""
    step = dict(optimizer="sgd", lr=0.1, epochs=1, limit=50)
    moved = []
    for name, scales in (("plain", ()), ("scaled", ("1=0", "3.weight=0.25"))):
        run = Run.create(tmp_path / name, Config("mlp", batch_size=50, lr_scale=scales, **step))
        before = run.trainer.model.state_dict()
        run.fit()
        moved.append({key: array - before[key] for key, array in run.trainer.model.state_dict().items()})
    for key, plain in moved[0].items():
        factor = {"1.weight": 0, "1.bias": 0, "3.weight": 0.25}.get(key, 1)
        assert np.abs(plain).max() > 1e-4
        np.testing.assert_allclose(moved[1][key], factor * plain, rtol=1e-3, atol=1e-7)  # of a difference of weights
    again = Run.resume(tmp_path / "scaled", epochs=2)
    assert [group.settings["lr"] / 0.1 for group in again.trainer.optimizer.groups] == [1, 0, 0.25]


def test_an_interrupted_run_averages_to_the_same_bits(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", epochs=4, average_from=2, mixup=0.3, label_smoothing=0.1)
    whole.fit()
    run_of(tmp_path / "parts", epochs=3, average_from=2, mixup=0.3, label_smoothing=0.1).fit()
    again = Run.resume(tmp_path / "parts", epochs=4)
    again.fit()
    for which in ("last", "average"):
        ours, theirs = (checkpoint.load(tmp_path / n / f"{which}.safetensors")[0] for n in ("whole", "parts"))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{which} {name}")
    model, _ = load_model(tmp_path / "whole", "average")
    last, _ = load_model(tmp_path / "whole", "last")
    assert any(
        not np.array_equal(a, b) for a, b in zip(model.state_dict().values(), last.state_dict().values(), strict=True)
    )


def test_label_smoothing_and_mixup_change_training(tmp_path: Path) -> None:
    losses = [
        run_of(tmp_path / str(i), epochs=1, **how).fit()[0]["train_loss"]
        for i, how in enumerate([{}, {"label_smoothing": 0.2}, {"mixup": 1.0}])
    ]
    assert len(set(losses)) == 3
    for wrong in ({"label_smoothing": 1.0}, {"mixup": -0.1}, {"average_from": 0}):
        with pytest.raises(ShapeError, match=r"\[run\]"):
            Config("mlp", **wrong)


# --- mixup --------------------------------------------------------------------------------------------------------


def test_mixup_blends_pairs() -> None:
    images = np.random.default_rng(0).random((6, 1, 2, 2), np.float32)
    labels = np.arange(6)
    blends, others, share = data.mixup(images, labels, 0.5, np.random.default_rng(3))
    assert 0 < share < 1
    assert sorted(others) == list(range(6))
    assert list(others) != list(range(6))
    np.testing.assert_allclose(blends, share * images + (1 - share) * images[others], rtol=1e-6)
    assert blends.dtype == np.float32
    with pytest.raises(ShapeError, match=r"\[mixup\] alpha must be positive; got 0"):
        data.mixup(images, labels, 0, np.random.default_rng(3))


def test_mixup_loss_is_that_of_soft_targets() -> None:
    """share * CE(a) + (1 - share) * CE(b) is the cross-entropy with both classes in the target."""
    images = Dataset(
        np.random.default_rng(1).integers(0, 255, (8, 1, 3, 3), np.uint8), np.arange(8) % 3, tuple("abc"), "x"
    )
    dlgpu.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    before = net.state_dict()
    trainer = Trainer(net, optim.SGD(net.parameters(), lr=0.1), DataLoader(images, 8), mixup=0.7)
    history = trainer.fit(1)
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, 0, 1)))
    x, others, share = data.mixup((images.images / 255).astype(np.float32), images.labels, 0.7, rng)
    logits = x.reshape(8, 9).astype(np.float64) @ before["1.weight"].T + before["1.bias"]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = share * np.eye(3)[images.labels] + (1 - share) * np.eye(3)[others]
    assert history[0]["train_loss"] == pytest.approx(-(target * logs).sum(1).mean(), rel=1e-5)
