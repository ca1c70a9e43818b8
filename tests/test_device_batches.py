"""Batches that are made on a device: nothing comes back to the CPU, and the bits are those of the CPU's batches."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import backends, data, models, optim
from dlgpu.data import (
    CenterCrop,
    Compose,
    Cutout,
    DataLoader,
    Dataset,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomShift,
    Transform,
    mixup,
)
from dlgpu.errors import BackendUnavailable, ShapeError, UnknownName
from dlgpu.train import Trainer

ALL: list[Transform] = [
    RandomShift(3, fill=0.25),
    RandomRotation(30),
    RandomHorizontalFlip(),
    RandomCrop(7, padding=2),
    CenterCrop((5, 4)),
    Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    Cutout(3),
]


class Stub:
    """An array of a library that behaves as CuPy does: NumPy's functions, but no silent way from or to NumPy."""

    __module__ = "stub_library"
    __array_ufunc__ = None  # NumPy must not take over `numpy_array + stub`
    sent = 0  # bytes from the CPU

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the array interfaces
            raise AttributeError(name)
        found = getattr(self.values, name)
        return on_stubs(found) if callable(found) else wrapped(found)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.values[unwrapped(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.values[unwrapped(index)] = unwrapped(value)


def binary(name: str) -> Any:
    return lambda self, other: wrapped(getattr(self.values, name)(unwrapped(other)))


for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "itruediv", "and", "lt", "ge"):
    setattr(Stub, f"__{name}__", binary(f"__{name}__"))


def unwrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among the device's: send it with asarray")
    if isinstance(value, tuple):
        return tuple(unwrapped(part) for part in value)
    return value.values if isinstance(value, Stub) else value


def wrapped(value: Any) -> Any:
    return Stub(value) if isinstance(value, np.ndarray) else value


def on_stubs(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapped(function(*map(unwrapped, args), **{key: unwrapped(value) for key, value in kwargs.items()}))

    return call


class StubLibrary(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return on_stubs(getattr(np, name))

    def asarray(self, values: np.ndarray) -> Stub:
        Stub.sent += values.nbytes
        return Stub(values)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StubLibrary:
    stub = StubLibrary("stub_library")
    monkeypatch.setitem(sys.modules, "stub_library", stub)
    monkeypatch.setattr(Stub, "sent", 0)
    return stub


@pytest.fixture
def device(library: StubLibrary, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose arrays are stubs."""
    real = backends.get
    monkeypatch.setattr(
        backends, "get", lambda name: types.SimpleNamespace(xp=library) if name == "stub" else real(name)
    )
    return "stub"


def batch() -> np.ndarray:
    return np.random.default_rng(5).random((12, 3, 9, 8), np.float32)


@pytest.mark.parametrize("transform", [*ALL, Compose(ALL)], ids=lambda t: type(t).__name__)
def test_transforms_stay_on_the_device(transform: Transform, library: StubLibrary) -> None:
    expected = transform(batch(), np.random.default_rng(1))
    got = transform(Stub(batch()), np.random.default_rng(1))  # type: ignore[arg-type]
    assert isinstance(got, Stub)
    np.testing.assert_array_equal(got.values, expected)
    assert got.values.dtype == np.float32
    assert Stub.sent < batch().nbytes  # random numbers only; the images are there already


def test_mixup_stays_on_the_device(library: StubLibrary) -> None:
    labels = np.arange(12)
    images, others, share = mixup(batch(), labels, 0.4, np.random.default_rng(1))
    got, got_others, got_share = mixup(Stub(batch()), labels, 0.4, np.random.default_rng(1))  # type: ignore[arg-type]
    np.testing.assert_array_equal(got.values, images)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(got_others, others)
    assert share == got_share


def coloured(count: int = 23) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (count, 3, 9, 8), np.uint8), rng.integers(0, 4, count), tuple("abcd"), "random")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_loader_makes_the_same_batches_on_the_device(device: str, prefetch: int) -> None:
    def loader(where: str) -> DataLoader:
        return DataLoader(coloured(), 5, shuffle=True, seed=3, transform=Compose(ALL), device=where, prefetch=prefetch)

    plain, there = list(loader("cpu").epoch(2, start=1)), list(loader(device).epoch(2, start=1))
    assert len(plain) == len(there) == 4
    for (images, labels), (got, same) in zip(plain, there, strict=True):
        assert isinstance(got, Stub)
        assert got.values.flags.c_contiguous
        np.testing.assert_array_equal(got.values, images)
        np.testing.assert_array_equal(same, labels)
    pixels = 18 * 3 * 9 * 8  # as bytes: a quarter of what floats would take
    assert pixels <= Stub.sent < 2 * pixels


def test_the_stub_is_as_strict_as_a_gpu(library: StubLibrary) -> None:
    """Otherwise the tests above say nothing."""
    stub = Stub(np.ones(3))
    with pytest.raises(TypeError, match="implicit conversion"):
        np.asarray(stub)
    with pytest.raises(TypeError):
        np.ones(3) + stub
    with pytest.raises(TypeError, match="send it with asarray"):
        stub + np.ones(3)
    with pytest.raises(TypeError, match="send it with asarray"):
        library.where(np.ones(3) > 0, stub, stub)
    with pytest.raises(TypeError, match="send it with asarray"):
        stub[np.arange(2)]


@pytest.mark.parametrize("device", ["host-kernels", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_training_from_device_batches(device: str) -> None:
    """The same losses as from the CPU's batches, with everything that is drawn per batch."""
    try:
        backends.get(device)
    except BackendUnavailable as error:
        pytest.skip(str(error))

    def rows(where: str) -> list[dict[str, Any]]:
        dlgpu.manual_seed(0)
        model = models.build("mlp", hidden=(8,)).to(device)
        digits = data.mnist().subset(slice(40))
        transform = Compose([RandomShift(2), RandomRotation(10), Normalize(*digits.mean_std())])
        batches = DataLoader(digits, 20, shuffle=True, transform=transform, device=where)
        trainer = Trainer(model, optim.SGD(model.parameters(), lr=0.1), batches, batches, mixup=0.2)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.fit(1)]

    expected, got = rows("cpu"), rows(device)
    assert got[0] == pytest.approx(expected[0], rel=1e-5)


def test_wrong_devices() -> None:
    with pytest.raises(UnknownName, match="unknown backend 'gpu'"):
        DataLoader(coloured(), 5, device="gpu")
    model = models.build("mlp")
    batches = DataLoader(data.mnist().subset(slice(9)), 3, device="host-kernels")
    with pytest.raises(ShapeError, match=r"on the CPU or on the model's device cpu; got a loader with device='host-ke"):
        Trainer(model, optim.SGD(model.parameters(), lr=0.1), batches)
