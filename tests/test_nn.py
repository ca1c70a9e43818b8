"""Modules, layers and losses: bookkeeping, and every layer against its function and against torch.nn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import Tensor, memory_format, nn
from dlgpu.errors import CheckpointError, DlgpuError, ShapeError, UnknownName
from dlgpu.nn import Parameter
from dlgpu.testing import assert_close, error

# Both sides compute in float64, and no result here takes more than 2**12 roundings.
ROUNDING = 2**12 * float(np.finfo(np.float64).eps)


class Net(nn.Module):
    """A parameter, a buffer and a submodule at the top, one level more below."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.scale = Parameter(np.ones(3, np.float32))
        self.register_buffer("count", dlgpu.tensor([7]))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def conv_net(norm: bool = True) -> nn.Module:
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3))


# --- what a module holds ------------------------------------------------------------------------------------------


def test_names_in_order_of_assignment() -> None:
    net = Net()
    own = ["first.weight", "first.bias", "body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert names(net) == ["scale", *own]  # a module's own before those of its submodules
    assert [name for name, _ in net.named_buffers()] == ["count", "body.1.running_mean", "body.1.running_var"]
    assert [name for name, _ in net.named_modules()] == ["", "first", "body", "body.0", "body.1", "body.2"]
    assert [type(child) for child in net.children()] == [nn.Linear, nn.Sequential]
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]


def test_shared_parameters_and_modules_come_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU())
    net[1].weight = net[0].weight
    assert names(net) == ["0.weight", "0.bias", "1.bias"]
    twice = nn.Sequential(net, nn.ReLU(), net)
    assert names(twice) == ["0.0.weight", "0.0.bias", "0.1.bias"]
    assert [name for name, _ in twice.named_modules()] == ["", "0", "0.0", "0.1", "0.2", "1"]
    assert len(list(twice.children())) == 3  # forward still runs it twice


def test_shared_weight_collects_both_gradients() -> None:
    layer = nn.Linear(1, 1, bias=False)
    dlgpu.nn.init.constant_(layer.weight, 3)
    nn.Sequential(layer, layer)(dlgpu.tensor([[2.0]])).sum().backward()
    assert_close(layer.weight.grad, np.array([[12]], np.float32))  # d(2w²)/dw


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scale", Parameter(np.zeros(2, np.float32)), ["scale", "first.weight", "first.bias"]),
        ("scale", nn.Linear(2, 2, bias=False), ["first.weight", "first.bias", "scale.weight"]),
        ("scale", None, ["first.weight", "first.bias"]),
        ("first", nn.Linear(5, 5, bias=False), ["scale", "first.weight"]),
        ("first", Parameter(np.zeros(2, np.float32)), ["scale", "first"]),
        ("first", 3, ["scale"]),
        ("count", Parameter(np.zeros(2, np.float32)), ["scale", "count", "first.weight", "first.bias"]),
    ],
)
def test_assignment_replaces(name: str, value: Any, expected: list[str]) -> None:
    net = Net()
    del net.body
    setattr(net, name, value)
    assert getattr(net, name) is value
    assert names(net) == expected
    assert [buffer for buffer, _ in net.named_buffers()] == ([] if name == "count" else ["count"])


def test_assigning_a_tensor_to_a_buffer_keeps_it_a_buffer() -> None:
    net, value = nn.BatchNorm2d(2), dlgpu.tensor([1.0, 2.0])
    net.running_mean = value
    assert dict(net.named_buffers())["running_mean"] is value


def test_delete() -> None:
    net = Net()
    net.note = "plain"
    for name in ("scale", "count", "first", "note"):
        delattr(net, name)
        assert not hasattr(net, name)
    assert names(net) == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    with pytest.raises(AttributeError, match="'Net' has no attribute 'scale'"):
        del net.scale


@pytest.mark.parametrize("value", [Parameter(np.zeros(1, np.float32)), nn.ReLU(), 1])
def test_forgotten_super_init(value: Any) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.thing = value

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) before assigning 'thing'"):
        Forgetful()


def test_missing_attribute_and_forward() -> None:
    with pytest.raises(AttributeError, match="'Net' has no attribute 'second'"):
        _ = Net().second
    with pytest.raises(NotImplementedError, match="Net must define forward"):
        Net()(1)


def test_train_and_eval_reach_every_module() -> None:
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.body.train()
    assert [m.training for m in net.modules()] == [False, False, True, True, True, True]


def test_repr() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2, bias=False)
            self.tail = nn.Sequential(nn.ReLU(), nn.Linear(3, 2))

    assert repr(Block()) == (
        "Block(\n"
        "  (conv): Conv2d(4, 6, kernel_size=(3, 5), stride=(2, 2), padding=1, groups=2, bias=False)\n"
        "  (tail): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Linear(3, 2)\n"
        "  )\n"
        ")"
    )


# --- hooks, gradients ---------------------------------------------------------------------------------------------


def test_forward_hooks_see_and_replace() -> None:
    layer, x = nn.Linear(2, 2), dlgpu.randn(1, 2)
    seen: list[Any] = []
    plain = layer(x)
    remove_first = layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    remove_second = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    remove_third = layer.register_forward_hook(lambda module, inputs, output: output + 1)
    assert_close(layer(x), plain.numpy() * 2 + 1)  # in order of registration
    module, inputs, output = seen.pop()
    assert module is layer
    assert len(inputs) == 1
    assert inputs[0] is x
    assert_close(output, plain)
    remove_second()
    assert_close(layer(x), plain.numpy() + 1)
    for remove in (remove_first, remove_third, remove_third):  # twice does no harm
        remove()
    seen.clear()
    assert_close(layer(x), plain)
    assert not seen


def test_zero_grad_and_freezing() -> None:
    net, x = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), dlgpu.randn(4, 2)
    assert net[0].requires_grad_(False) is net[0]
    net(x).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [True, True, False, False]
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_()
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_gradient_is_a_plain_tensor() -> None:
    """A gradient that required one itself could not be changed in place, and would be registered by assignment."""
    layer = nn.Linear(2, 2)
    layer(dlgpu.randn(1, 2)).sum().backward()
    assert type(layer.weight.grad) is Tensor
    assert layer.weight.grad.requires_grad is False
    layer.weight.grad *= 2


# --- moving -------------------------------------------------------------------------------------------------------


def test_to_dtype_in_place_and_floats_only() -> None:
    net = Net()
    before, values = list(net.parameters()), net.state_dict()
    net.first(dlgpu.randn(1, 2)).sum().backward()
    assert net.to(dtype="float64") is net
    assert all(p is q for p, q in zip(net.parameters(), before, strict=True))  # who holds one keeps it
    assert {p.dtype.name for p in net.parameters()} == {"float64"}
    assert {name: b.dtype.name for name, b in net.named_buffers()} == {
        "count": "int64",
        "body.1.running_mean": "float64",
        "body.1.running_var": "float64",
    }
    assert all(p.grad is None for p in net.parameters())  # a float32 gradient would not fit
    for name, value in net.state_dict().items():
        assert_close(value, values[name].astype(value.dtype), what=name)
    assert net.first(dlgpu.randn(1, 2, dtype="float64")).dtype == np.float64


def test_to_the_same_changes_nothing() -> None:
    net = Net()
    arrays = [p.data for p in net.parameters()]
    net.to("cpu", "float32", "contiguous")
    assert all(p.data is a for p, a in zip(net.parameters(), arrays, strict=True))


def test_to_channels_last() -> None:
    net, x = conv_net().to(dtype="float64"), dlgpu.randn(2, 3, 8, 8, dtype="float64")
    plain, values = net(x), net.state_dict()
    assert memory_format.of(plain.data) == "contiguous"
    net.to(memory_format="channels_last")
    for p in net.parameters():
        assert p.ndim != 4 or memory_format.of(p.data) == "channels_last"
    for image in (x, x.contiguous("channels_last")):  # the weights' layout alone is enough
        y = net(image)
        assert memory_format.of(y.data) == "channels_last"
        assert error(y, plain) <= ROUNDING
    for name, value in net.eval().state_dict().items():
        assert value.flags.c_contiguous
        if "running" not in name:
            assert_close(value, values[name], what=name)
    net.to(memory_format="contiguous")
    assert memory_format.of(net(x).data) == "contiguous"


# --- saving -------------------------------------------------------------------------------------------------------


def trained_net() -> nn.Module:
    """Its buffers have moved off their start."""
    net = conv_net()
    net(dlgpu.randn(2, 3, 8, 8))
    return net


def test_state_dict_round_trip_with_buffers() -> None:
    source, target, x = trained_net(), conv_net(), dlgpu.randn(2, 3, 8, 8)
    state = source.state_dict()
    assert list(state) == [*names(source), "1.running_mean", "1.running_var"]
    assert np.any(target.eval()(x).numpy() != source.eval()(x).numpy())
    target.load_state_dict(state)
    assert_close(target(x), source(x))


def test_state_dict_is_a_copy() -> None:
    net = trained_net()
    state = net.state_dict()
    kept = {name: value.copy() for name, value in state.items()}
    for tensor in (*net.parameters(), *(b for _, b in net.named_buffers())):
        tensor.data += 1
    for name, value in state.items():
        assert_close(value, kept[name], what=name)
    net.load_state_dict(state)
    state["0.weight"] += 1
    assert_close(net[0].weight, kept["0.weight"])


def test_loading_keeps_dtype_layout_and_memory() -> None:
    net = conv_net().to(dtype="float64", memory_format="channels_last")
    home = net[0].weight.data
    state = trained_net().state_dict()  # float32, contiguous
    net.load_state_dict({name: dlgpu.tensor(value) for name, value in state.items()})  # Tensors will do
    assert net[0].weight.data is home
    assert memory_format.of(home) == "channels_last"
    assert_close(home, state["0.weight"].astype(np.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("4.bias"), r"missing: 4\.bias; unexpected: none"),
        (lambda s: s.pop("1.running_var"), r"missing: 1\.running_var; unexpected: none"),
        (lambda s: s.update(extra=np.zeros(1)), "missing: none; unexpected: extra"),
        (lambda s: s.update({str(i): np.zeros(1) for i in range(8)}), "0, 1, 2, 3, 4 and 3 more"),
        (lambda s: s.update({"4.bias": np.zeros(6)}), r"4\.bias must have shape \(5,\); got \(6,\)"),
        # would broadcast
        (lambda s: s.update({"1.running_var": np.zeros(1)}), r"1\.running_var must have shape \(4,\); got \(1,\)"),
    ],
)
def test_load_state_dict_refuses_and_changes_nothing(change: Callable[[dict], Any], message: str) -> None:
    net, state = conv_net(), trained_net().state_dict()
    before = net.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        net.load_state_dict(state)
    for name, value in net.state_dict().items():
        assert_close(value, before[name], what=name)


def test_autograd_notices_loading() -> None:
    net = nn.Linear(2, 2)
    y = net(dlgpu.randn(1, 2, requires_grad=True))
    net.load_state_dict(net.state_dict())
    with pytest.raises(DlgpuError, match="changed in place"):
        y.sum().backward()


# --- every layer against its function and torch.nn ----------------------------------------------------------------

IMAGE = (2, 4, 6, 8)
Layer = Any
Case = tuple[Callable[[], nn.Module], Callable[[Layer, Tensor], Tensor], Callable[[Any], Any], tuple[int, ...]]
# name: the layer, the same through dlgpu.functional, the same in torch.nn, the input's shape
LAYERS: dict[str, Case] = {
    "Linear": (lambda: nn.Linear(8, 3), lambda m, x: F.linear(x, m.weight, m.bias), lambda t: t.Linear(8, 3), IMAGE),
    "Linear without bias": (
        lambda: nn.Linear(5, 3, bias=False),
        lambda m, x: F.linear(x, m.weight),
        lambda t: t.Linear(5, 3, bias=False),
        (7, 5),
    ),
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2),
        lambda m, x: F.conv2d(x, m.weight, m.bias, (2, 1), (1, 2), (1, 2), 2),
        lambda t: t.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2),
        IMAGE,
    ),
    "Conv2d same, without bias": (
        lambda: nn.Conv2d(4, 3, 3, padding="same", bias=False, algorithm="direct"),
        lambda m, x: F.conv2d(x, m.weight, padding="same", algorithm="direct"),
        lambda t: t.Conv2d(4, 3, 3, padding="same", bias=False),
        IMAGE,
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2),
        lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, (2, 3), (1, 0), (1, 2), 2),
        lambda t: t.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2),
        IMAGE,
    ),
    "ConvTranspose2d dilated": (
        lambda: nn.ConvTranspose2d(4, 3, 3, bias=False, dilation=(2, 1)),
        lambda m, x: F.conv_transpose2d(x, m.weight, dilation=(2, 1)),
        lambda t: t.ConvTranspose2d(4, 3, 3, bias=False, dilation=(2, 1)),
        IMAGE,
    ),
    "MaxPool2d": (
        lambda: nn.MaxPool2d(2),
        lambda m, x: F.max_pool2d(x, 2),
        lambda t: t.MaxPool2d(2),
        IMAGE,
    ),
    "MaxPool2d with everything": (
        lambda: nn.MaxPool2d((3, 2), (2, 3), (1, 1), (1, 2), True),
        lambda m, x: F.max_pool2d(x, (3, 2), (2, 3), (1, 1), (1, 2), True),
        lambda t: t.MaxPool2d((3, 2), (2, 3), (1, 1), (1, 2), ceil_mode=True),
        IMAGE,
    ),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), lambda m, x: F.avg_pool2d(x, 2), lambda t: t.AvgPool2d(2), IMAGE),
    "AvgPool2d with everything": (
        lambda: nn.AvgPool2d(3, 2, 1, True, False),
        lambda m, x: F.avg_pool2d(x, 3, 2, 1, True, False),
        lambda t: t.AvgPool2d(3, 2, 1, True, False),
        IMAGE,
    ),
    "AdaptiveAvgPool2d": (
        lambda: nn.AdaptiveAvgPool2d((3, 2)),
        lambda m, x: F.adaptive_avg_pool2d(x, (3, 2)),
        lambda t: t.AdaptiveAvgPool2d((3, 2)),
        IMAGE,
    ),
    "AdaptiveMaxPool2d": (
        lambda: nn.AdaptiveMaxPool2d(1),
        lambda m, x: F.adaptive_max_pool2d(x, 1),
        lambda t: t.AdaptiveMaxPool2d(1),
        IMAGE,
    ),
    "LeakyReLU": (
        lambda: nn.LeakyReLU(0.2),
        lambda m, x: F.leaky_relu(x, 0.2),
        lambda t: t.LeakyReLU(0.2),
        IMAGE,
    ),
    "LeakyReLU by default": (
        nn.LeakyReLU,
        lambda m, x: F.leaky_relu(x),
        lambda t: t.LeakyReLU(),
        IMAGE,
    ),
    "ELU": (lambda: nn.ELU(0.5), lambda m, x: F.elu(x, 0.5), lambda t: t.ELU(0.5), IMAGE),
    "ELU by default": (nn.ELU, lambda m, x: F.elu(x), lambda t: t.ELU(), IMAGE),
    "ReLU": (nn.ReLU, lambda m, x: F.relu(x), lambda t: t.ReLU(), IMAGE),
    "ReLU6": (nn.ReLU6, lambda m, x: F.relu6(x), lambda t: t.ReLU6(), IMAGE),
    "Sigmoid": (nn.Sigmoid, lambda m, x: F.sigmoid(x), lambda t: t.Sigmoid(), IMAGE),
    "Tanh": (nn.Tanh, lambda m, x: F.tanh(x), lambda t: t.Tanh(), IMAGE),
    "GELU": (nn.GELU, lambda m, x: F.gelu(x), lambda t: t.GELU(), IMAGE),
    "SiLU": (nn.SiLU, lambda m, x: F.silu(x), lambda t: t.SiLU(), IMAGE),
    # torch returns x itself above its threshold, so that has to be out of reach
    "Softplus": (nn.Softplus, lambda m, x: F.softplus(x), lambda t: t.Softplus(threshold=100), IMAGE),
    "Softmax": (lambda: nn.Softmax(1), lambda m, x: F.softmax(x, 1), lambda t: t.Softmax(1), IMAGE),
    "LogSoftmax": (nn.LogSoftmax, lambda m, x: F.log_softmax(x), lambda t: t.LogSoftmax(-1), IMAGE),
    "GroupNorm": (
        lambda: nn.GroupNorm(2, 4, eps=1e-2),
        lambda m, x: F.group_norm(x, 2, m.weight, m.bias, 1e-2),
        lambda t: t.GroupNorm(2, 4, eps=1e-2),
        IMAGE,
    ),
    "GroupNorm not affine": (
        lambda: nn.GroupNorm(2, 4, affine=False),
        lambda m, x: F.group_norm(x, 2),
        lambda t: t.GroupNorm(2, 4, affine=False),
        IMAGE,
    ),
    "InstanceNorm2d": (
        lambda: nn.InstanceNorm2d(4),
        lambda m, x: F.instance_norm(x),
        lambda t: t.InstanceNorm2d(4),
        IMAGE,
    ),
    "InstanceNorm2d affine": (
        lambda: nn.InstanceNorm2d(4, eps=1e-2, affine=True),
        lambda m, x: F.instance_norm(x, m.weight, m.bias, 1e-2),
        lambda t: t.InstanceNorm2d(4, eps=1e-2, affine=True),
        IMAGE,
    ),
    "LayerNorm of (N, D)": (
        lambda: nn.LayerNorm(5, eps=1e-2),
        lambda m, x: F.layer_norm(x, [5], m.weight, m.bias, 1e-2),
        lambda t: t.LayerNorm(5, eps=1e-2),
        (7, 5),
    ),
    "LayerNorm of (N, C, H, W)": (
        lambda: nn.LayerNorm(IMAGE[1:]),
        lambda m, x: F.layer_norm(x, IMAGE[1:], m.weight, m.bias),
        lambda t: t.LayerNorm(IMAGE[1:]),
        IMAGE,
    ),
    "LayerNorm not affine": (
        lambda: nn.LayerNorm(IMAGE[2:], affine=False),
        lambda m, x: F.layer_norm(x, IMAGE[2:]),
        lambda t: t.LayerNorm(IMAGE[2:], elementwise_affine=False),
        IMAGE,
    ),
    "LocalResponseNorm": (
        lambda: nn.LocalResponseNorm(3, 0.5, 0.6, 2.0),
        lambda m, x: F.local_response_norm(x, 3, 0.5, 0.6, 2.0),
        lambda t: t.LocalResponseNorm(3, 0.5, 0.6, 2.0),
        IMAGE,
    ),
    "LocalResponseNorm by default": (
        lambda: nn.LocalResponseNorm(4),
        lambda m, x: F.local_response_norm(x, 4),
        lambda t: t.LocalResponseNorm(4),
        IMAGE,
    ),
    "Flatten": (lambda: nn.Flatten(), lambda m, x: x.flatten(1), lambda t: t.Flatten(), IMAGE),
    "Flatten some": (lambda: nn.Flatten(0, 2), lambda m, x: x.flatten(0, 2), lambda t: t.Flatten(0, 2), IMAGE),
    "Identity": (nn.Identity, lambda m, x: x, lambda t: t.Identity(), IMAGE),
}
# Those with a state of their own, and modules made of modules: tested below.
ELSEWHERE = {"BatchNorm2d", "Dropout", "Sequential", "Concat", "Residual", "Module"}


def test_every_layer_is_tested() -> None:
    tested = {name.split()[0] for name in LAYERS} | {name.split()[0] for name in LOSSES} | ELSEWHERE
    assert {name for name in nn.__all__ if isinstance(getattr(nn, name), type)} - {"Parameter"} == tested


def randomised(module: Any, rng: np.random.Generator) -> Any:
    """In float64, with parameters that are neither 0 nor 1: else a forgotten one would not show."""
    module.to(dtype="float64")
    with dlgpu.no_grad():
        for p in module.parameters():
            p.copy_(rng.standard_normal(p.shape))
    return module


def inputs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    """Three standard deviations reach both limits of ReLU6."""
    x = dlgpu.tensor(3 * rng.standard_normal(shape), requires_grad=True)
    return x, x.numpy()


def results(module: Any, x: Tensor, y: Tensor, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    """The output, and the gradients of the input and of each parameter."""
    y.backward(cotangent)
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return {"output": y.numpy(), "grad_input": x.grad.numpy(), **grads}


def torch_results(torch: Any, module: Any, x: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
    module.zero_grad()
    leaf = torch.tensor(x, requires_grad=True)
    y = module(leaf)
    y.backward(torch.from_numpy(cotangent))
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return {"output": y.detach().numpy(), "grad_input": leaf.grad.numpy(), **grads}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected)  # the parameters' names are torch's too
    for name, value in actual.items():
        assert error(value, expected[name]) <= ROUNDING, name


@pytest.mark.parametrize("name", LAYERS)
def test_layer_calls_its_function(name: str, rng: np.random.Generator) -> None:
    make, function, _, shape = LAYERS[name]
    layer = randomised(make(), rng)
    x, _ = inputs(rng, shape)
    assert_close(layer(x), function(layer, x))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_torchs(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    make, _, make_other, shape = LAYERS[name]
    layer, other = randomised(make(), rng), make_other(torch.nn).double()
    other.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
    x, array = inputs(rng, shape)
    y = layer(x)
    cotangent = rng.standard_normal(y.shape)
    assert_same(results(layer, x, y, cotangent), torch_results(torch, other, array, cotangent))


@pytest.mark.parametrize(("affine", "momentum"), [(True, 0.1), (False, 0.75)])
def test_batch_norm_is_torchs_over_several_steps(affine: bool, momentum: float, rng: np.random.Generator) -> None:
    """Running statistics after each training step, then evaluation with them."""
    torch = pytest.importorskip("torch")
    layer = randomised(nn.BatchNorm2d(4, 1e-2, momentum, affine), rng)
    other = torch.nn.BatchNorm2d(4, 1e-2, momentum, affine).double()
    for name, p in layer.named_parameters():
        getattr(other, name).data[...] = torch.from_numpy(p.numpy())
    for training in (True, True, True, False, False, True):
        layer.train(training)
        other.train(training)
        layer.zero_grad()
        x, array = inputs(rng, IMAGE)
        cotangent = rng.standard_normal(IMAGE)
        assert_same(results(layer, x, layer(x), cotangent), torch_results(torch, other, array, cotangent))
        for name, buffer in layer.named_buffers():
            assert error(buffer, getattr(other, name).numpy()) <= ROUNDING, name


def test_batch_norm_statistics_by_hand() -> None:
    """The variance that runs is the unbiased one, the one that normalises is not."""
    layer = nn.BatchNorm2d(1, eps=0.0, momentum=0.25).to(dtype="float64")
    y = layer(dlgpu.tensor(np.array([0.0, 4.0]).reshape(2, 1, 1, 1)))
    assert_close(y.numpy().ravel(), np.array([-1.0, 1.0]))  # mean 2, variance 4
    assert_close(layer.running_mean, np.array([0.5]))  # 0 + 0.25 * (2 - 0)
    assert_close(layer.running_var, np.array([2.75]))  # 1 + 0.25 * (8 - 1)
    y = layer.eval()(dlgpu.tensor(np.full((1, 1, 1, 1), 0.5 + np.sqrt(2.75))))
    assert error(y, np.ones((1, 1, 1, 1))) <= ROUNDING


def test_dropout_in_training_and_evaluation() -> None:
    dlgpu.manual_seed(0)
    layer, x = nn.Dropout(0.25), dlgpu.ones(100, 100, requires_grad=True)
    y = layer(x)
    kept = y.numpy() != 0
    assert_close(y, np.where(kept, np.float32(1) / np.float32(0.75), np.float32(0)))
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)  # four standard errors
    y.backward(np.ones(y.shape, np.float32))
    assert_close(x.grad, y)  # the same mask and scale
    assert np.any((layer(x).numpy() != 0) != kept)  # a new mask each time
    assert layer.eval()(x) is x


# --- containers ---------------------------------------------------------------------------------------------------


def test_sequential_names_and_runs_in_order() -> None:
    double, shift = nn.Linear(1, 1), nn.Identity()
    shift.register_forward_hook(lambda module, inputs, output: output + 1)
    nn.init.constant_(double.weight, 2)
    net = nn.Sequential(OrderedDict(double=double, shift=shift), nn.Identity())
    assert [name for name, _ in net.named_modules()] == ["", "double", "shift", "2"]
    assert (len(net), net[0], net[-2], list(net)[1]) == (3, double, shift, shift)
    assert net(dlgpu.tensor([[5.0]])).item() == 11


def test_concat_joins_channels() -> None:
    net, x = nn.Concat(nn.Conv2d(2, 3, 1), nn.Identity(), nn.AvgPool2d(1)), dlgpu.randn(2, 2, 4, 4)
    assert_close(net(x), np.concatenate([net[0](x).numpy(), x.numpy(), x.numpy()], axis=1))


def test_residual_adds_the_shortcut() -> None:
    body, shortcut, x = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), dlgpu.randn(1, 2, 4, 4)
    assert_close(nn.Residual(body)(x), body(x).numpy() + x.numpy())
    net = nn.Residual(body, shortcut)
    assert_close(net(x), body(x).numpy() + shortcut(x).numpy())
    assert names(net) == ["body.weight", "body.bias", "shortcut.weight", "shortcut.bias"]


# --- what constructors refuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 3), r"[Linear] in_features must be an int >= 1; got 0"),
        (lambda: nn.Linear(3, 2.0), r"[Linear] out_features must be an int >= 1; got 2.0"),
        (lambda: nn.Linear(True, 1), r"[Linear] in_features must be an int >= 1; got True"),
        (lambda: nn.Conv2d(0, 3, 3), r"[Conv2d] in_channels must be an int >= 1; got 0"),
        (lambda: nn.Conv2d(3, -1, 3), r"[Conv2d] out_channels must be an int >= 1; got -1"),
        (
            lambda: nn.Conv2d(4, 6, 3, groups=4),
            r"[Conv2d] groups must divide in_channels and out_channels; got 4, 4, 6",
        ),
        (lambda: nn.Conv2d(4, 6, 3, groups=0), r"[Conv2d] groups must be an int >= 1; got 0"),
        (lambda: nn.Conv2d(3, 3, 0), r"[Conv2d] kernel_size must be an int or a pair of ints, each >= 1; got 0"),
        (lambda: nn.Conv2d(3, 3, 3, stride=0), r"[Conv2d] stride must be"),
        (lambda: nn.Conv2d(3, 3, 3, dilation=(1, 0)), r"[Conv2d] dilation must be"),
        (lambda: nn.ConvTranspose2d(3, 0, 3), r"[ConvTranspose2d] out_channels must be an int >= 1; got 0"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), r"[ConvTranspose2d] groups must divide"),
        (lambda: nn.ConvTranspose2d(3, 3, (3, 0)), r"[ConvTranspose2d] kernel_size must be"),
        (lambda: nn.ConvTranspose2d(3, 3, 3, stride=0), r"[ConvTranspose2d] stride must be"),
        (lambda: nn.MaxPool2d(0), r"[MaxPool2d] kernel_size must be"),
        (lambda: nn.MaxPool2d(2, 0), r"[MaxPool2d] stride must be"),
        (lambda: nn.MaxPool2d(2, dilation=0), r"[MaxPool2d] dilation must be"),
        (lambda: nn.AvgPool2d((2, 2, 2)), r"[AvgPool2d] kernel_size must be"),
        (lambda: nn.AvgPool2d(2, 0), r"[AvgPool2d] stride must be"),
        (lambda: nn.AdaptiveAvgPool2d(0), r"[AdaptiveAvgPool2d] output_size must be"),
        (lambda: nn.AdaptiveMaxPool2d(-1), r"[AdaptiveMaxPool2d] output_size must be"),
        (lambda: nn.Dropout(1.5), r"[Dropout] p must be in [0, 1]; got 1.5"),
        (lambda: nn.Dropout(float("nan")), r"[Dropout] p must be in [0, 1]; got nan"),
        (lambda: nn.BatchNorm2d(0), r"[BatchNorm2d] num_features must be an int >= 1; got 0"),
        (lambda: nn.GroupNorm(3, 4), r"[GroupNorm] num_groups must divide num_channels; got 3, 4"),
        (lambda: nn.GroupNorm(0, 4), r"[GroupNorm] num_groups must be an int >= 1; got 0"),
        (lambda: nn.InstanceNorm2d(0), r"[InstanceNorm2d] num_features must be an int >= 1; got 0"),
        (lambda: nn.LayerNorm((3, 0)), r"[LayerNorm] normalized_shape[1] must be an int >= 1; got 0"),
        (lambda: nn.LocalResponseNorm(0), r"[LocalResponseNorm] size must be an int >= 1; got 0"),
        (lambda: nn.Sequential(nn.ReLU), r"[Sequential] takes modules; got <class"),
        (lambda: nn.Concat(nn.ReLU(), None), r"[Concat] takes modules; got None"),
    ],
)
def test_constructor_refuses(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_sizes_may_be_numpy_integers() -> None:
    """They come out of products of shapes."""
    assert nn.Linear(np.prod((2, 3)), np.int32(4)).weight.shape == (4, 6)


# --- losses -------------------------------------------------------------------------------------------------------

REDUCTIONS = ("mean", "sum", "none")
CLASSES = np.array([2, 0, 1, -100, 2])
REAL = np.linspace(-2, 2, 15).reshape(5, 3)
LossCase = tuple[Callable[[Any], Any], Callable[[Any], Any], Any]
# name: the loss, the same in torch.nn, the target
LOSSES: dict[str, LossCase] = {
    "CrossEntropyLoss": (lambda r: nn.CrossEntropyLoss(reduction=r), lambda r: dict(reduction=r), CLASSES),
    "CrossEntropyLoss with settings": (
        lambda r: nn.CrossEntropyLoss(2, r, 0.2),
        lambda r: dict(ignore_index=2, reduction=r, label_smoothing=0.2),
        np.array([2, 0, 1, 1, 2]),
    ),
    "NLLLoss": (nn.NLLLoss, lambda r: dict(reduction=r), CLASSES),
    "MSELoss": (nn.MSELoss, lambda r: dict(reduction=r), REAL),
    "L1Loss": (nn.L1Loss, lambda r: dict(reduction=r), REAL),
    "SmoothL1Loss": (nn.SmoothL1Loss, lambda r: dict(reduction=r), REAL),
    "SmoothL1Loss with beta": (lambda r: nn.SmoothL1Loss(r, 0.5), lambda r: dict(reduction=r, beta=0.5), REAL),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, lambda r: dict(reduction=r), (REAL + 2) / 4),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_torchs(name: str, reduction: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    make, settings, target = LOSSES[name]
    other = getattr(torch.nn, name.split()[0])(**settings(reduction))
    x, array = inputs(rng, (5, 3))
    leaf = torch.tensor(array, requires_grad=True)
    loss, expected = make(reduction)(x, target), other(leaf, torch.from_numpy(target))
    cotangent = rng.standard_normal(loss.shape)
    loss.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    assert error(loss, expected.detach().numpy()) <= ROUNDING
    assert error(x.grad, leaf.grad.numpy()) <= ROUNDING


FUNCTIONS = {
    "CrossEntropyLoss": F.cross_entropy,
    "NLLLoss": F.nll_loss,
    "MSELoss": F.mse_loss,
    "L1Loss": F.l1_loss,
    "SmoothL1Loss": F.smooth_l1_loss,
    "BCEWithLogitsLoss": F.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_calls_its_function(name: str, rng: np.random.Generator) -> None:
    make, settings, target = LOSSES[name]
    x, _ = inputs(rng, (5, 3))
    for reduction in REDUCTIONS:
        expected = FUNCTIONS[name.split()[0]](x, target, **settings(reduction))
        assert_close(make(reduction)(x, target), expected, what=reduction)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_reduction(name: str) -> None:
    make, _, target = LOSSES[name]
    with pytest.raises(UnknownName, match="unknown reduction 'men'; Did you mean 'mean'"):
        make("men")(dlgpu.randn(5, 3, dtype="float64"), target)
