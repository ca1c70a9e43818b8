"""Mixed precision: what is cast and what is not, the loss scaler, and training with both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_train import bits, digits, make

import dlgpu
from dlgpu import amp, backends, models, nn, optim, random
from dlgpu import functional as F
from dlgpu.amp import GradScaler, autocast
from dlgpu.data import DataLoader
from dlgpu.errors import CheckpointError, ShapeError, TrainingError, UnknownName
from dlgpu.tensor import Tensor, tensor
from dlgpu.train import Callback, Trainer, evaluate

HALVES = ("float16", "bfloat16")
DEVICES = ("cpu", "host-kernels")


def leaf(*shape: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return tensor(values).requires_grad_()


# --- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_narrow_and_losses_wide(dtype: str) -> None:
    x, w = leaf(2, 3, 6, 6), leaf(4, 3, 3, 3)
    labels = np.array([0, 3])
    with autocast(dtype):
        images = F.conv2d(x, w)
        rows = F.linear(images.flatten(1), leaf(4, 64))
        assert str(images.dtype) == str(F.max_pool2d(images, 2).dtype) == str(rows.dtype) == dtype
        assert str(F.conv_transpose2d(images, leaf(4, 3, 3, 3)).dtype) == dtype
        assert str((leaf(2, 3) @ leaf(3, 4)).dtype) == dtype
        assert str(F.batch_norm(images, None, None, leaf(4), leaf(4), training=True).dtype) == dtype
        losses = [F.cross_entropy(rows, labels), F.mse_loss(rows, dlgpu.zeros(2, 4)), F.l1_loss(rows, rows.detach())]
        losses += [F.nll_loss(F.log_softmax(rows), labels), F.softmax(rows).sum()]
        losses += [F.binary_cross_entropy_with_logits(rows, dlgpu.zeros(2, 4))]
        assert {loss.dtype for loss in losses} == {np.dtype(np.float32)}
    sum(losses, start=tensor(0.0)).backward()
    assert x.grad is not None
    assert w.grad is not None
    assert x.grad.dtype == w.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_values_are_those_of_rounded_factors(dtype: str) -> None:
    x, w, b = leaf(2, 3, 6, 6), leaf(4, 3, 3, 3, seed=1), leaf(4, seed=2)
    with autocast(dtype):
        y = F.conv2d(x, w, b)
    expected = F.conv2d(*(t.astype(dtype) for t in (x, w, b)))
    np.testing.assert_array_equal(y.numpy(), expected.numpy())
    (y * y).sum().backward()
    mine = [t.grad.numpy().copy() for t in (x, w, b) if t.grad is not None]
    for t in (x, w, b):
        t.grad = None
    (expected * expected).sum().backward()
    for got, t in zip(mine, (x, w, b), strict=True):
        assert t.grad is not None
        np.testing.assert_array_equal(got, t.grad.numpy())


def test_outside_nothing_changes() -> None:
    x, w = leaf(2, 3), leaf(4, 3)
    with autocast("float16"), autocast("float16", enabled=False):
        assert F.linear(x, w).dtype == np.float32
    with autocast("bfloat16"):
        doubled = tensor(np.ones((2, 3)))
        assert F.linear(doubled, tensor(np.ones((4, 3)))).dtype == np.float64  # only float32 is narrowed
    assert F.linear(x, w).dtype == np.float32
    with pytest.raises(UnknownName, match=r"\[autocast\] unknown dtype 'float32'"), autocast("float32"):
        pass


# --- half-precision copies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_steps_keep_the_copies_up_to_date(name: str, dtype: str, device: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)).to(device)
    optimizer = optim.OPTIMIZERS[name](model.parameters())
    optimizer.keep_half(dtype)
    x = dlgpu.rand(2, 2, 4, 4).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        with autocast(dtype):
            model(x).sum().backward()
        optimizer.step()
        for p in model.parameters():
            assert p.half is not None
            assert p.half.version == p.version.count
            np.testing.assert_array_equal(p.half.array, p.data.astype(p.half.array.dtype))


def test_a_copy_is_used_unless_the_parameter_was_changed() -> None:
    layer = nn.Linear(3, 4)
    optimizer = optim.SGD(layer.parameters())
    optimizer.keep_half("float16")
    (copy,) = amp_copy(layer)
    assert np.shares_memory(copy.data, layer.weight.half.array)
    with dlgpu.no_grad():
        layer.weight *= 2
    (copy,) = amp_copy(layer)
    assert not np.shares_memory(copy.data, layer.weight.half.array)
    np.testing.assert_array_equal(copy.numpy(), layer.weight.numpy().astype(np.float16))
    layer(dlgpu.ones(1, 3)).sum().backward()
    optimizer.step()  # the copy was of an older version, so it is not trusted after the step either
    (copy,) = amp_copy(layer)
    np.testing.assert_array_equal(copy.numpy(), layer.weight.numpy().astype(np.float16))


def amp_copy(layer: nn.Linear) -> Any:
    with autocast("float16"):
        return amp.narrow(layer.weight)


# --- the scaler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_scaled_steps_are_plain_steps(device: str) -> None:
    """Powers of two scale without rounding: with and without scaler, and clipped or not, the same bits."""

    def trained(scaled: bool, clip: bool) -> list[bytes]:
        random.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(device)
        optimizer, scaler = optim.Adam(model.parameters()), GradScaler(2.0**10, growth_interval=2)
        x = dlgpu.rand(8, 6).to(device)
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), np.arange(8) % 4)
            (scaler.scale(loss) if scaled else loss).backward()
            if clip:
                if scaled:
                    scaler.unscale_(optimizer)
                optimizer.clip_grad_norm(0.1)
            if scaled:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
        if scaled:
            assert scaler.current_scale == 2.0**12, "grown twice"
        return [p.numpy().tobytes() for p in model.parameters()]

    for clip in (False, True):
        assert trained(True, clip) == trained(False, clip)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unscaled", [False, True])
def test_overflow_is_skipped_and_recovered_from(device: str, unscaled: bool) -> None:
    layer = nn.Linear(3, 2).to(device)
    optimizer, scaler = optim.Adam(layer.parameters()), GradScaler(2.0**20)
    optimizer.keep_half("float16")
    x = dlgpu.ones(4, 3).to(device)
    before, scales = layer.weight.numpy().copy(), []
    while np.array_equal(layer.weight.numpy(), before):
        optimizer.zero_grad()
        with autocast("float16"):
            loss = layer(x).sum()
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.current_scale)
    # The gradient of a weight is 4 in all, of a bias too: 65504 is passed from a scale of 2^14 on.
    assert scales == [2.0**e for e in (19, 18, 17, 16, 15, 14, 13)] + [2.0**13]
    assert scaler.skipped == 7
    # Adam's first step is the learning rate, whatever was skipped before.
    np.testing.assert_allclose(before - layer.weight.numpy(), 1e-3, rtol=1e-3)


class OnDevice(np.ndarray):
    """Numbers that can be computed with, but not looked at."""

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(super().__getitem__(index)).view(OnDevice)  # never a number

    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("a step waits for the device")

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))  # type: ignore[assignment]  # as CuPy's
    __float__ = __int__ = __bool__ = __index__ = __iter__ = item = tolist = _refuse  # type: ignore[assignment]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("unscaled", [False, True])
def test_no_step_waits_for_the_device(unscaled: bool) -> None:
    """Scaling, skipping and adapting the scale happen where the scale is: nobody asks what it is."""
    net = nn.Linear(3, 2).to("host-kernels")
    x, scaler = tensor(np.ones((4, 3), np.float32), device="host-kernels"), GradScaler(2.0**127)
    adam = optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        adam.zero_grad()
        loss = (net(x) * 100).sum()
        scaler.scale(loss)  # takes the state to the device
        scaler._state = scaler._state.view(OnDevice)
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(adam)
        scaler.step(adam)
        scaler.update()
    state = scaler._state.view(np.ndarray)
    assert state[3] > 0, "an overflow was skipped"
    with pytest.raises(AssertionError, match="waits"):
        float(scaler._state[0])


def test_state_of_the_scaler() -> None:
    scaler, other = GradScaler(8, growth_interval=1), GradScaler()
    scaler.scale(leaf(1).sum())
    scaler.update()
    other.load_state_dict(scaler.state_dict())
    assert other.current_scale == 16
    with pytest.raises(CheckpointError, match=r"\[GradScaler\] the state must be"):
        other.load_state_dict({"scale": np.zeros(4)})
    for wrong in (dict(growth_factor=0.5), dict(backoff_factor=0), dict(growth_interval=0)):
        with pytest.raises(ShapeError, match=r"\[GradScaler\] growth_factor must be"):
            GradScaler(**wrong)  # type: ignore[arg-type]


# --- the trainer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["tf32", *HALVES])
def test_interrupted_runs_end_with_the_same_bits(precision: str) -> None:
    whole = make(precision=precision)
    whole.fit(2)
    first = make(precision=precision)
    first.fit(1)
    second = make(precision=precision)
    second.load_state_dict(*first.state_dict())
    second.fit(2)
    assert bits(second) == bits(whole)


def test_precisions_of_the_trainer() -> None:
    with pytest.raises(UnknownName, match=r"\[train\] unknown precision 'half'"):
        make(precision="half")
    seen = set()

    class Watch(Callback):
        def on_batch_end(self, trainer: Trainer, loss: float) -> None:
            seen.update(p.grad.dtype for p in trainer.model.parameters() if p.grad is not None)

    trainer = make(precision="float16", callbacks=[Watch()])
    trainer.fit(1)
    assert seen == {np.dtype(np.float32)}  # of the master weights
    assert trainer.scaler is not None
    assert 0 < trainer.scaler.current_scale <= 65536


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_stops_and_names_the_layer() -> None:
    trainer = make("lenet5", images=60, precision="float16")
    broken = next(name for name, _ in trainer.model.named_parameters() if name.startswith("3"))

    class Break(Callback):
        def on_train_begin(self, trainer: Trainer) -> None:
            with dlgpu.no_grad():
                dict(trainer.model.named_parameters())[broken].fill_(np.nan)

    trainer.callbacks.append(Break())
    with pytest.raises(TrainingError, match=rf"got nan .*first from layer 3 \(.*, its {broken[2:]} not finite\)"):
        trainer.fit(1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_that_are_never_finite_stop_the_run() -> None:
    """A finite loss with an infinite slope: every update is skipped, and the epoch's end says where it comes from."""

    def steep(logits: Tensor, labels: Any) -> Tensor:
        loss = F.cross_entropy(logits, labels)
        return loss + (logits.float() * 0).abs().sum().sqrt()  # d sqrt(0) is infinite

    trainer = make(precision="float16", loss=steep, tested=False)
    before = {name: p.numpy().copy() for name, p in trainer.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"5 of 5 updates skipped in epoch 1, the last for .*weight"):
        trainer.fit(1)
    for name, p in trainer.model.named_parameters():
        np.testing.assert_array_equal(p.numpy(), before[name])


@pytest.mark.slow
def test_float16_learns_like_float32() -> None:
    """LeNet-5 after two epochs of 6,000 digits; benchmarks/accuracy.py has the whole of MNIST."""
    accuracy = {}
    for precision in ("float32", "float16", "bfloat16"):
        random.manual_seed(0)
        model = models.build("lenet5")
        train = DataLoader(digits(True, 6000), 64, shuffle=True)
        Trainer(model, optim.Adam(model.parameters()), train, precision=precision).fit(2)
        accuracy[precision] = evaluate(model, DataLoader(digits(False, 2000), 500))[1]
    assert accuracy["float32"] > 0.9
    assert abs(accuracy["float16"] - accuracy["float32"]) < 0.01
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) < 0.03


def test_half_precision_training_on_the_kernels() -> None:
    """The same policy on the CUDA kernels, emulated: losses agree with the reference's to half-precision rounding."""
    losses = {}
    for device in DEVICES:
        random.manual_seed(0)
        model = models.build("lenet5").to(device)
        optimizer, scaler = optim.Adam(model.parameters()), GradScaler()
        optimizer.keep_half("float16")
        images, labels = digits(True, 8).images, digits(True, 8).labels
        x = tensor(images.astype(np.float32) / 255, device=device)
        losses[device] = []
        for _ in range(3):
            optimizer.zero_grad()
            with autocast("float16"):
                loss = F.cross_entropy(model(x), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[device].append(float(loss))
    np.testing.assert_allclose(losses["host-kernels"], losses["cpu"], rtol=5e-3)
    assert backends.get("host-kernels").name == "host"
