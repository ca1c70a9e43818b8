"""Optimizers against their formulas, and the arenas they work in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dlgpu
from dlgpu import Tensor, memory_format, nn
from dlgpu.errors import AutogradError, CheckpointError, DtypeError, ShapeError
from dlgpu.nn import Parameter
from dlgpu.optim import OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, InverseDecay, Momentum, Nesterov, Optimizer, RMSprop
from dlgpu.testing import assert_as_accurate, assert_close, error

STEPS = 20
SHAPES = ((3, 4), (5,), (2, 3, 2, 2))
ROUNDING = 2**12 * float(np.finfo(np.float64).eps)  # two float64 results of less than 2**12 roundings each


def parameters(dtype: Any = "float64", seed: int = 0) -> list[Parameter]:
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def bring(params: list[Parameter], grads: list[np.ndarray]) -> None:
    """Give parameters these gradients, through the tape."""
    total: Any = 0
    for p, g in zip(params, grads, strict=True):
        total = (p * g).sum() + total
    total.backward()


def flat(arrays: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(a).ravel() for a in arrays])


# --- the formulas -------------------------------------------------------------------------------------------------
# One step of each: (x, g, state, t, settings) -> new x; g already holds the weight decay (but for AdamW).

State = dict[str, Any]


def sgd(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    return x - o["lr"] * g


def momentum(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    s["v"] = o["momentum"] * s.get("v", 0 * x) - o["lr"] * g
    return x + s["v"]


def nesterov(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    old, a = s.get("v", 0 * x), o["momentum"]
    s["v"] = a * old - o["lr"] * g
    return x - a * old + (1 + a) * s["v"]


def adagrad(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    s["r"] = s.get("r", 0 * x) + g * g
    return x - o["lr"] * g / (np.sqrt(s["r"]) + o["eps"])


def rmsprop(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    s["r"] = o["alpha"] * s.get("r", 0 * x) + (1 - o["alpha"]) * g * g
    return x - o["lr"] * g / (np.sqrt(s["r"]) + o["eps"])


def adam(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    beta1, beta2 = o["betas"]
    s["m"] = beta1 * s.get("m", 0 * x) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0 * x) + (1 - beta2) * g * g
    m, v = s["m"] / (1 - beta1**t), s["v"] / (1 - beta2**t)
    return x - o["lr"] * m / (np.sqrt(v) + o["eps"])


def adamw(x: Any, g: Any, s: State, t: int, o: dict[str, Any]) -> Any:
    return adam(x, g, s, t, o) - o["lr"] * o["weight_decay"] * x


EACH: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {  # formula, settings that are no defaults
    "sgd": (sgd, dict(lr=0.1)),
    "momentum": (momentum, dict(lr=0.1, momentum=0.75)),
    "nesterov": (nesterov, dict(lr=0.1, momentum=0.75)),
    "adagrad": (adagrad, dict(lr=0.1, eps=1e-2)),
    "rmsprop": (rmsprop, dict(lr=0.1, alpha=0.75, eps=1e-2)),
    "adam": (adam, dict(lr=0.1, betas=(0.75, 0.96), eps=1e-2)),
    "adamw": (adamw, dict(lr=0.1, betas=(0.75, 0.96), eps=1e-2)),
}


def by_formula(name: str, x: np.ndarray, grads: list[np.ndarray], settings: dict[str, Any]) -> np.ndarray:
    state: State = {}
    for t, g in enumerate(grads, start=1):
        decayed = g if name == "adamw" else g + settings["weight_decay"] * x
        x = EACH[name][0](x, decayed, state, t, settings)
    return x


def test_every_optimizer_is_tested() -> None:
    assert EACH.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EACH)
def test_formula(name: str, dtype: str, weight_decay: float, rng: np.random.Generator) -> None:
    """As accurate as the formula in plain NumPy of the same dtype, over twenty steps on several parameters."""
    settings = EACH[name][1] | dict(weight_decay=weight_decay)
    params = parameters(dtype)
    start = flat(params)
    optimizer = OPTIMIZERS[name](params, **settings)
    grads = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(STEPS)]
    for now in grads:
        optimizer.zero_grad()
        bring(params, now)
        optimizer.step()
    assert optimizer.steps == STEPS
    rows = [flat(now) for now in grads]
    wide = by_formula(name, start.astype(np.longdouble), [g.astype(np.longdouble) for g in rows], settings)
    assert_as_accurate(flat(params), by_formula(name, start, rows, settings), wide)


TORCH = {  # torch's name; its SGD is ours as long as the learning rate is constant
    "sgd": ("SGD", dict(lr=0.01)),
    "momentum": ("SGD", dict(lr=0.01, momentum=0.9)),
    "nesterov": ("SGD", dict(lr=0.01, momentum=0.9, nesterov=True)),
    "adagrad": ("Adagrad", {}),
    "rmsprop": ("RMSprop", {}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
}


@pytest.mark.parametrize("name", TORCH)
def test_defaults_are_torchs(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    params = parameters()
    others = [torch.nn.Parameter(torch.from_numpy(p.numpy().copy())) for p in params]
    optimizer = OPTIMIZERS[name](params)
    kind, settings = TORCH[name]
    other = getattr(torch.optim, kind)(others, **settings)
    for _ in range(STEPS):
        grads = [rng.standard_normal(shape) for shape in SHAPES]
        optimizer.zero_grad()
        bring(params, grads)
        for q, g in zip(others, grads, strict=True):
            q.grad = torch.from_numpy(g)
        optimizer.step()
        other.step()
    assert error(flat(params), flat([q.detach().numpy() for q in others])) <= ROUNDING


def test_first_adam_step_is_the_learning_rate(rng: np.random.Generator) -> None:
    """What the bias correction is for: m / sqrt(v) = g / |g|, however large g is."""
    for scale in (1e-3, 1.0, 1e3):
        p = Parameter(np.zeros(5))
        g = scale * rng.standard_normal(5)
        optimizer = Adam([p], lr=0.5, eps=0.0)
        bring([p], [g])
        optimizer.step()
        assert error(p, -0.5 * np.sign(g)) <= ROUNDING


def test_nesterov_is_the_gradient_at_the_look_ahead_point() -> None:
    """f(x) = x·A·x / 2; the optimizer holds y = x + a v, the point where Nesterov takes the gradient."""
    lr, a, A = 0.1, 0.8, np.array([[3.0, 1.0], [1.0, 2.0]])
    x, v = np.array([1.0, -2.0]), np.zeros(2)
    y = Parameter(x.copy())
    optimizer = Nesterov([y], lr, a)
    for _ in range(STEPS):
        v = a * v - lr * A @ (x + a * v)
        x = x + v
        optimizer.zero_grad()
        row = y.reshape(1, 2)
        ((row @ A * row).sum() / 2).backward()
        optimizer.step()
        assert np.abs(y.numpy() - (x + a * v)).max() <= ROUNDING  # the start is of size 1, and it falls


# --- groups, and who is left alone --------------------------------------------------------------------------------


def test_groups_have_their_own_settings(rng: np.random.Generator) -> None:
    params, grads = parameters(), [rng.standard_normal(shape) for shape in SHAPES]
    start = [p.numpy().copy() for p in params]
    groups = [{"params": params[:1]}, {"params": iter(params[1:]), "lr": 0.5, "weight_decay": 0.0}]
    optimizer = SGD(groups, lr=0.25, weight_decay=2.0)
    assert optimizer.lr == 0.25
    bring(params, grads)
    optimizer.step()
    assert_close(params[0], start[0] - 0.25 * (grads[0] + 2.0 * start[0]), rtol=ROUNDING, atol=ROUNDING)
    for p, x, g in zip(params[1:], start[1:], grads[1:], strict=True):
        assert_close(p, x - 0.5 * g, atol=ROUNDING)
    InverseDecay(1.0).apply(optimizer, [0.25, 0.5], t=3)
    assert [group.settings["lr"] for group in optimizer.groups] == [0.0625, 0.125]


def test_momentum_in_one_group_only() -> None:
    params = parameters()
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:], "momentum": 0.5}], lr=1.0)
    start = [p.numpy().copy() for p in params]
    for _ in range(2):
        optimizer.zero_grad()
        bring(params, [np.ones(shape) for shape in SHAPES])
        optimizer.step()
    moved = [
        error(p.numpy() - x, np.full(p.shape, -far)) for p, x, far in zip(params, start, (2, 2.5, 2.5), strict=True)
    ]
    assert max(moved) <= ROUNDING


@pytest.mark.parametrize("name", EACH)
def test_no_gradient_no_change(name: str) -> None:
    """In the middle of an arena: one frozen after some steps, one the loss no longer uses. Decay and momentum would
    move both; the others move as if they were alone."""
    settings = EACH[name][1] | dict(weight_decay=0.25)
    everyone, alone = ([Parameter(np.full(3, i + 1.0)) for i in range(5)] for _ in range(2))
    active, still = [0, 2, 4], [1, 3]
    whole, part = OPTIMIZERS[name](everyone, **settings), OPTIMIZERS[name]([alone[i] for i in active], **settings)

    def step(optimizer: Optimizer, params: list[Parameter]) -> None:
        optimizer.zero_grad()
        bring(params, [np.full(3, 0.5)] * len(params))
        optimizer.step()

    def bits() -> list[bytes]:
        """Values and states of those who must not change."""
        state = [array.reshape(5, 3)[still].tobytes() for array in whole.groups[0].state.values()]
        return [everyone[i].numpy().tobytes() for i in still] + state

    for count in range(6):
        if count == 3:
            before = bits()
            everyone[1].requires_grad_(False)
        step(whole, everyone if count < 3 else [everyone[i] for i in active])
        step(part, [alone[i] for i in active])
    assert bits() == before
    for i in active:
        assert_close(everyone[i], alone[i])


def test_frozen_with_a_gradient_already_there() -> None:
    params = parameters()
    optimizer, start = SGD(params), params[1].numpy().copy()
    bring(params, [np.ones(shape) for shape in SHAPES])
    params[1].requires_grad_(False)
    optimizer.step()
    assert_close(params[1], start)


def test_frozen_before_are_not_taken() -> None:
    params = parameters()
    params[1].requires_grad_(False)
    home = params[1].data
    optimizer = Adam(params)
    assert params[1].data is home
    assert [len(group.arena.parameters) for group in optimizer.groups] == [2]


def test_assigned_gradient_counts() -> None:
    params = parameters()
    optimizer, start = SGD(params, lr=1.0), flat(params)
    bring(params, [np.ones(shape) for shape in SHAPES])
    params[1].grad = dlgpu.tensor(np.arange(5.0))
    optimizer.step()
    expected = flat([np.ones(SHAPES[0]), np.arange(5.0), np.ones(SHAPES[2])])
    assert_close(flat(params), start - expected)
    assert params[1].grad.data is params[1].grad_home


def test_zero_grad() -> None:
    params = parameters()
    optimizer = SGD(params)
    bring(params, [np.ones(shape) for shape in SHAPES])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = flat(params)
    optimizer.step()
    assert_close(flat(params), before)


def test_gradients_add_up_until_zero_grad() -> None:
    params = parameters()
    optimizer = SGD(params)
    for _ in range(2):
        bring(params, [np.ones(shape) for shape in SHAPES])
    assert_close(optimizer.groups[0].arena.grads, np.full(sum(p.size for p in params), 2.0))


# --- arenas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", memory_format.FORMATS)
def test_arena_holds_values_and_gradients(layout: memory_format.MemoryFormat) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=layout)
    values = net.state_dict()
    arena = Adam(net.parameters()).groups[0].arena
    for name, value in net.state_dict().items():
        assert_close(value, values[name], what=name)
    in_memory = [
        p.data.transpose(0, 2, 3, 1) if layout == "channels_last" and p.ndim == 4 else p.data for p in net.parameters()
    ]
    assert all(a.flags.c_contiguous for a in in_memory)
    assert memory_format.of(net[0].weight.data) == layout
    assert_close(arena.values, flat(in_memory))
    for _ in range(2):
        net.zero_grad()
        net(dlgpu.randn(2, 3, 4, 4)).sum().backward()
        for p in net.parameters():
            assert np.shares_memory(p.data, arena.values)
            assert np.shares_memory(p.grad.data, arena.grads)
            assert p.grad.data.strides == p.data.strides
    arena.values[...] = 0  # one array is all there is
    assert not any(p.numpy().any() for p in net.parameters())


def test_loading_weights_goes_into_the_arena() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = SGD(net.parameters(), lr=0.5)
    net.load_state_dict(other.state_dict())
    net(dlgpu.ones(1, 3)).sum().backward()
    optimizer.step()
    assert_close(net.weight, other.weight.numpy() - np.float32(0.5))


@pytest.mark.parametrize("how", [dict(dtype="float64"), dict(memory_format="channels_last")])
def test_moved_model_needs_a_new_optimizer(how: dict[str, Any]) -> None:
    net = nn.Conv2d(2, 2, 3)
    optimizer = Adam(net.parameters())
    net.to(**how)
    net(dlgpu.randn(1, 2, 3, 3).to(**how)).sum().backward()
    for call in (optimizer.step, lambda: optimizer.clip_grad_norm(1.0)):
        with pytest.raises(ShapeError, match=r"moved or replaced .*make the optimizer after model\.to"):
            call()
    Adam(net.parameters()).step()


def test_second_optimizer_takes_over() -> None:
    params = parameters()
    first = SGD(params)
    SGD(params)
    with pytest.raises(ShapeError, match="moved or replaced"):
        first.step()


def test_mixed_dtypes() -> None:
    with pytest.raises(DtypeError, match=r"\[arena\] parameters must share one device and dtype"):
        Adam([*parameters("float32"), *parameters("float64")])


@pytest.mark.parametrize("name", EACH)
def test_half_precision_parameters_are_refused(name: str) -> None:
    params = parameters("float16")
    optimizer = OPTIMIZERS[name](params)
    bring(params, [np.ones(shape, np.float16) for shape in SHAPES])
    with pytest.raises(DtypeError, match="must all be float32 or all float64; got float16"):
        optimizer.step()


def test_autograd_notices_a_step_between_forward_and_backward() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = SGD(net.parameters())
    x = dlgpu.randn(4, 2)
    net(x).sum().backward()
    late = net(x).sum()
    optimizer.step()
    with pytest.raises(AutogradError, match="'linear' needs a tensor that was changed in place"):
        late.backward()


# --- clipping -----------------------------------------------------------------------------------------------------


def test_clip_grad_norm_over_groups() -> None:
    params = parameters()
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:]}])
    grads = [np.full(SHAPES[0], 3.0), np.full(SHAPES[1], -4.0), np.full(SHAPES[2], 1.0)]
    norm = np.sqrt(12 * 9 + 5 * 16 + 24 * 1)
    bring(params, grads)
    assert abs(optimizer.clip_grad_norm(100.0) / norm - 1) <= ROUNDING
    for p, g in zip(params, grads, strict=True):
        assert_close(p.grad, g)  # short enough: not one bit changes
    optimizer.clip_grad_norm(2.0)
    for p, g in zip(params, grads, strict=True):
        assert_close(p.grad, g * 2 / norm, rtol=ROUNDING)
    assert abs(optimizer.clip_grad_norm(2.0) / 2 - 1) <= ROUNDING


def test_clip_grad_norm_counts_only_who_is_trained() -> None:
    params = parameters()
    optimizer = SGD(params)
    bring(params, [np.ones(shape) for shape in SHAPES])
    params[0].requires_grad_(False)
    params[2].grad = None
    assert abs(optimizer.clip_grad_norm(1.0) / np.sqrt(5) - 1) <= ROUNDING
    assert_close(params[0].grad, np.ones(SHAPES[0]))


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_clip_grad_norm_refuses(max_norm: float) -> None:
    with pytest.raises(ShapeError, match=r"\[Adam\] max_norm must be positive"):
        Adam(parameters()).clip_grad_norm(max_norm)


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_restored_state_goes_on_bit_for_bit(name: str, rng: np.random.Generator) -> None:
    def make(params: list[Parameter]) -> Optimizer:
        groups = [{"params": params[:1], "lr": 0.2}, {"params": params[1:]}]
        return OPTIMIZERS[name](groups, **EACH[name][1])

    def train(params: list[Parameter], optimizer: Optimizer, all_grads: list[list[np.ndarray]]) -> None:
        for grads in all_grads:
            optimizer.zero_grad()
            bring(params, grads)
            optimizer.step()

    grads = [[rng.standard_normal(shape).astype("float32") for shape in SHAPES] for _ in range(6)]
    whole = parameters("float32")
    train(whole, make(whole), grads)

    first = parameters("float32")
    saving = make(first)
    train(first, saving, grads[:3])
    state = saving.state_dict()
    second = [Parameter(p.numpy().copy()) for p in first]
    train(first, saving, grads[3:])  # the saved state is a copy: going on must not change it
    restored = make(second)
    restored.load_state_dict(state)
    assert restored.steps == 3
    train(second, restored, grads[3:])
    assert_close(flat(second), flat(whole))


@pytest.mark.parametrize(
    "other",
    [
        lambda p: SGD(p),
        lambda p: Adam(p[:2]),
        lambda p: Adam([{"params": p[:1]}, {"params": p[1:]}]),
    ],
)
def test_state_of_another_optimizer_is_refused(other: Callable[[list[Parameter]], Optimizer]) -> None:
    state = other(parameters()).state_dict()
    optimizer = Adam(parameters())
    with pytest.raises(CheckpointError, match=r"\[Adam\] optimizer state must be"):
        optimizer.load_state_dict(state)


# --- bad settings -------------------------------------------------------------------------------------------------


def frozen() -> list[Parameter]:
    return [Parameter(np.zeros(2), requires_grad=False)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, lr=-0.1), "[SGD] lr must be a finite number >= 0; got -0.1"),
        (lambda p: Adam(p, lr=float("nan")), "[Adam] lr must be a finite number >= 0; got nan"),
        (lambda p: AdamW(p, lr=float("inf")), "[AdamW] lr must be a finite number >= 0; got inf"),
        (lambda p: Adam([{"params": p, "lr": -1.0}]), "[Adam] lr must be a finite number >= 0; got -1.0"),
        (lambda p: Momentum(p, momentum=1.0), "[Momentum] momentum must be in [0, 1); got 1.0"),
        (lambda p: SGD(p, momentum=-0.5), "[SGD] momentum must be in [0, 1); got -0.5"),
        (lambda p: Nesterov(p, momentum=float("nan")), "[Nesterov] momentum must be in [0, 1); got nan"),
        (lambda p: SGD(p, nesterov=True), "[SGD] nesterov needs momentum > 0; got 0"),
        (lambda p: Nesterov(p, momentum=0.0), "[Nesterov] nesterov needs momentum > 0; got 0"),
        (lambda p: AdaGrad(p, eps=-1e-8), "[AdaGrad] eps must be a finite number >= 0; got -1e-08"),
        (lambda p: RMSprop(p, alpha=1.0), "[RMSprop] alpha must be in [0, 1); got 1.0"),
        (lambda p: Adam(p, betas=(1.0, 0.9)), "[Adam] beta1 must be in [0, 1); got 1.0"),
        (lambda p: Adam(p, betas=(0.9, -0.1)), "[Adam] beta2 must be in [0, 1); got -0.1"),
        (lambda p: SGD(p, weight_decay=-1.0), "[SGD] weight_decay must be a finite number >= 0; got -1.0"),
        (lambda p: SGD([]), "[SGD] there must be at least one parameter; got none"),
        (lambda p: SGD(frozen()), "[SGD] there must be a parameter to train; got frozen ones only"),
        (lambda p: SGD([{"params": []}]), "[SGD] there must be a parameter to train; got frozen ones only"),
        (lambda p: SGD([*p, p[0]]), "[SGD] groups must hold Parameters, each once; got "),
        (lambda p: SGD([{"params": p}, {"params": p[:1]}]), "[SGD] groups must hold Parameters, each once; got "),
        (lambda p: SGD([dlgpu.zeros(2, requires_grad=True)]), "[SGD] groups must hold Parameters, each once; got "),
        (lambda p: SGD(nn.Linear(2, 2).named_parameters()), "[SGD] groups must hold Parameters, each once; got "),
        (lambda p: SGD(nn.Sequential(nn.Linear(2, 2))), "[SGD] groups must hold Parameters, each once; got "),
        (
            lambda p: SGD([{"params": p, "learning_rate": 1.0}]),
            "[SGD] unknown settings in a group: ['learning_rate']; "
            "known: ['lr', 'momentum', 'nesterov', 'weight_decay']",
        ),
    ],
)
def test_bad_settings(make: Callable[[list[Parameter]], Optimizer], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        make(parameters())
    assert str(caught.value).startswith(message)


def test_a_refused_optimizer_leaves_parameters_alone() -> None:
    params: list[Tensor] = [*parameters()]
    homes = [p.data for p in params]
    with pytest.raises(ShapeError):
        SGD([{"params": params[:1]}, {"params": params[1:], "lr": -1.0}])
    assert all(p.data is home for p, home in zip(params, homes, strict=True))
