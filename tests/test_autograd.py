"""The tape: gradients of tensor arithmetic, and an error wherever a gradient would be wrong."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import dlgpu
import dlgpu.functional as F
from dlgpu import Tensor, dtypes
from dlgpu.errors import AutogradError, DlgpuError, DtypeError, ShapeError
from dlgpu.testing import assert_close, gradcheck


def numbers(*shape: int, seed: int = 0, low: float | None = None) -> Tensor:
    """float64 normal numbers; with `low`, positive ones at least that great."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return dlgpu.tensor(values if low is None else np.abs(values) + low, dtype="float64")


def leaf(*values: float, dtype: Any = "float64") -> Tensor:
    return dlgpu.tensor(values, dtype=dtype, requires_grad=True)


# --- every op against numerical differentiation -------------------------------------------------------------------

A, B, ROW, COLUMN, SCALAR, POSITIVE = (
    numbers(3, 4, seed=1),
    numbers(3, 4, seed=2),
    numbers(4, seed=3),
    numbers(3, 1, seed=4),
    numbers(seed=5),
    numbers(3, 4, seed=6, low=0.5),
)
MASK = np.array([[True, False, True, True], [False] * 4, [True, True, False, False]])
OPS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "a + b": (lambda a, b: a + b, (A, B)),
    "a - b": (lambda a, b: a - b, (A, B)),
    "a * b": (lambda a, b: a * b, (A, B)),
    "a / b": (lambda a, b: a / b, (A, POSITIVE)),
    "a * row": (lambda a, b: a * b, (A, ROW)),
    "column / a": (lambda a, b: a / b, (COLUMN, POSITIVE)),
    "row - column": (lambda a, b: a - b, (ROW, COLUMN)),
    "a + scalar": (lambda a, b: a + b, (A, SCALAR)),
    "scalar * scalar": (lambda a: a * a, (SCALAR,)),
    "size-one axes": (lambda a, b: a * b, (numbers(1, 3, 1, seed=7), numbers(2, 1, 1, seed=8))),
    "2 - a": (lambda a: 2 - a, (A,)),
    "2 / a": (lambda a: 2 / a, (POSITIVE,)),
    "-a": (lambda a: -a, (A,)),
    "a ** 3": (lambda a: a**3, (A,)),
    "a ** -0.5": (lambda a: a**-0.5, (POSITIVE,)),
    "a @ b": (lambda a, b: a @ b, (A, numbers(4, 5, seed=9))),
    "batched a @ b": (lambda a, b: a @ b, (numbers(2, 3, 4, seed=10), numbers(2, 4, 5, seed=11))),
    "broadcast a @ b": (lambda a, b: a @ b, (numbers(2, 3, 4, seed=12), numbers(4, 2, seed=13))),
    "exp": (Tensor.exp, (A,)),
    "log": (Tensor.log, (POSITIVE,)),
    "sqrt": (Tensor.sqrt, (POSITIVE,)),
    "abs": (Tensor.abs, (A,)),
    "clamp": (lambda a: a.clamp(-0.5, 0.8), (A,)),
    "clamp one side": (lambda a: a.clamp(max=0.3), (A,)),
    "sum": (lambda a: a.sum(), (A,)),
    "sum of axes": (lambda a: a.sum((0, 2)), (numbers(2, 3, 4),)),
    "sum keepdim": (lambda a: a.sum(-1, keepdim=True), (A,)),
    "mean": (lambda a: a.mean(), (A,)),
    "mean of an axis": (lambda a: a.mean(0), (A,)),
    "mean keepdim": (lambda a: a.mean((0, 1), keepdim=True), (A,)),
    "max": (lambda a: a.max(), (A,)),
    "max of an axis": (lambda a: a.max(0), (A,)),
    "max keepdim": (lambda a: a.max(1, keepdim=True), (A,)),
    "reshape": (lambda a: a.reshape(2, -1), (A,)),
    "flatten": (lambda a: a.flatten(1), (numbers(2, 3, 4),)),
    "permute": (lambda a: a.permute(2, 0, 1), (numbers(2, 3, 4),)),
    "transpose": (lambda a: a.transpose(0, 2), (numbers(2, 3, 4),)),
    "T": (lambda a: a.T, (A,)),
    "squeeze": (lambda a: a.squeeze(1), (COLUMN,)),
    "unsqueeze": (lambda a: a.unsqueeze(-1), (A,)),
    "a[1]": (lambda a: a[1], (A,)),
    "a[1, 2]": (lambda a: a[1, 2], (A,)),
    "a[::2, 1:]": (lambda a: a[::2, 1:], (A,)),
    "a[..., None, -1]": (lambda a: a[..., None, -1], (A,)),
    "a[[0, 2, 0]]": (lambda a: a[[0, 2, 0]], (A,)),  # a row taken twice collects two gradients
    "a[index tensor, index]": (lambda a: a[dlgpu.tensor([0, 1, 1]), np.array([3, 2, 2])], (A,)),
    "a[mask]": (lambda a: a[MASK], (A,)),
    "cat": (lambda a, b: dlgpu.cat([a, b, a], 1), (A, B)),
    "stack": (lambda a, b: dlgpu.stack([a, b], 1), (A, B)),
    "contiguous": (lambda a: a.contiguous("channels_last") * 2.0, (numbers(2, 3, 2, 2),)),
    "astype": (lambda a: a.astype("float64"), (A,)),
    "detach": (lambda a: a * a.detach() - a * a / 2, (A * 0 + 1,)),
}


@pytest.mark.parametrize("op", OPS)
def test_gradients(op: str) -> None:
    fn, inputs = OPS[op]
    if op == "detach":  # a constant to the tape only: numerical differentiation sees through it
        a = inputs[0].requires_grad_()
        fn(a).backward(np.full(a.shape, 3.0))
        assert_close(a.grad, np.zeros(a.shape))
        return
    gradcheck(fn, *inputs)


def test_gradcheck_finds_mistakes() -> None:
    """The judge is judged: a missing factor, a transposed gradient, a constant, a kink."""

    def wrong(rule: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        return lambda weight: Tensor.from_op("wrong", weight.data * 2.0, [weight], lambda g: [rule(g)])

    square = numbers(3, 3)
    gradcheck(wrong(lambda g: g * 2.0), square)
    for rule in (lambda g: g, lambda g: g.T * 2.0, lambda g: g * 2.0 * (1 + 1e-6), lambda g: np.nan * g):
        with pytest.raises(AssertionError, match="wrong gradient of 'weight'"):
            gradcheck(wrong(rule), square)
    with pytest.raises(AssertionError, match="not smooth in 'a'"):
        gradcheck(lambda a: a.abs(), dlgpu.full((5,), 3e-4, dtype="float64"))
    with pytest.raises(AssertionError, match="'b' got no gradient"):
        gradcheck(lambda a, b: a * 2.0, A, B)
    with pytest.raises(AssertionError, match="needs float64"):
        gradcheck(lambda a: a, dlgpu.zeros(2))


# --- the shape of a graph -----------------------------------------------------------------------------------------


def test_a_value_used_many_times_collects_all_gradients() -> None:
    x = leaf(2, 3)
    y = x * x  # the same tensor twice in one op
    z = y * 3 + y * x + y  # and a result with three uses: x³ + 4x²
    z.backward([10.0, 100.0])
    assert_close(x.grad, np.array([10.0 * (12 + 16), 100.0 * (27 + 24)]))


def test_a_diamond_runs_each_node_once() -> None:
    """Forty doublings: a walk along all paths would take 2**40 steps."""
    x = leaf(1)
    y = x
    for _ in range(40):
        y = y + y
    y.backward([3.0])
    assert_close(x.grad, np.array([3.0 * 2**40]))


def test_a_deep_chain_does_not_recurse() -> None:
    x = leaf(1.5)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward([7.0])
    assert_close(x.grad, np.array([7.0]))
    del y  # nor does taking it down


def test_a_deep_chain_dies_without_having_been_used() -> None:
    y = leaf(1.5)
    for _ in range(20_000):
        y = y * 1.0
    del y


def test_backward_twice_accumulates() -> None:
    x = leaf(2)
    for _ in range(2):
        (x * x).sum().backward()
    assert_close(x.grad, np.array([8.0]))
    x.grad = None
    (x * 3).sum().backward()
    assert_close(x.grad, np.array([3.0]))


def test_retain_graph() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert_close(x.grad, np.array([8.0]))
    with pytest.raises(AutogradError, match=r"^\[backward\] the graph through 'sum' was already used and freed"):
        y.backward()


def test_a_shared_part_is_freed_too() -> None:
    x = leaf(2)
    shared = x * x
    shared.sum().backward()
    with pytest.raises(AutogradError, match="'mul' was already used"):
        (shared * 2).sum().backward()


def test_gradients_stay_apart_from_each_other_and_from_the_seed() -> None:
    """`a + b` hands one gradient array to both; changing one must not show in the other."""
    a, b, seed = leaf(1), leaf(2), np.array([5.0])
    (a + b).backward(seed)
    with dlgpu.no_grad():
        a.grad.zero_()
    assert_close(b.grad, np.array([5.0]))
    assert_close(seed, np.array([5.0]))


def test_a_leaf_can_be_the_root() -> None:
    x = leaf(1, 2)
    x.backward([3.0, 4.0])
    assert_close(x.grad, np.array([3.0, 4.0]))


def test_unneeded_inputs_get_none() -> None:
    x, constant = leaf(2), dlgpu.tensor([3.0], dtype="float64")
    (x * constant + constant).backward([2.0])
    assert_close(x.grad, np.array([6.0]))
    assert constant.grad is None
    assert constant.is_leaf
    assert not (constant * 2).requires_grad


def test_grad_home_receives_the_gradient() -> None:
    """An optimizer's arena: the first backward overwrites it, the second adds."""
    x, arena = leaf(2), np.full(3, 9.0)
    x.grad_home = arena[1:2]
    (x * 4).backward([1.5])
    (x * 4).backward([1.5])
    assert_close(arena, np.array([9.0, 12.0, 9.0]))
    assert x.grad.data.base is arena


# --- modes --------------------------------------------------------------------------------------------------------


def test_no_grad_and_back() -> None:
    x = leaf(2)
    assert dlgpu.is_grad_enabled()
    with dlgpu.no_grad():
        assert not (x * x).requires_grad
        with dlgpu.set_grad_enabled(True):
            assert (x * x).requires_grad
        assert not dlgpu.is_grad_enabled()
    assert dlgpu.is_grad_enabled()
    with pytest.raises(KeyError), dlgpu.no_grad():
        raise KeyError
    assert dlgpu.is_grad_enabled()

    @dlgpu.no_grad()
    def evaluate() -> Tensor:
        return x * x

    assert not evaluate().requires_grad
    assert not evaluate().requires_grad  # the decorator works more than once


def test_detach_shares_memory_but_no_past() -> None:
    x = leaf(2)
    y = (x * x).detach()
    assert y.is_leaf
    assert not y.requires_grad
    assert np.shares_memory(x.detach().data, x.data)


def test_requires_grad() -> None:
    x = dlgpu.ones(2).requires_grad_()
    y = x * 2
    with pytest.raises(AutogradError, match=r"^\[requires_grad_\] only leaves"):
        y.requires_grad_(False)
    assert not (x.requires_grad_(False) * 2).requires_grad
    for make in (lambda: dlgpu.tensor([1, 2], requires_grad=True), lambda: dlgpu.tensor([1, 2]).requires_grad_()):
        with pytest.raises(DtypeError, match=r"^\[\w+\] only floating-point tensors can require gradients; got int64"):
            make()


def test_what_backward_refuses() -> None:
    x = leaf(1, 2)
    with pytest.raises(AutogradError, match=r"^\[backward\] only a scalar has an implicit gradient; got shape \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"^\[backward\] the gradient must have the tensor's shape \(2,\); got \(3,\)"):
        (x * 2).backward([1.0, 2.0, 3.0])
    with pytest.raises(
        AutogradError, match=r"^\[backward\] the tensor must depend on one with requires_grad=True; got"
    ):
        dlgpu.ones(1).backward()
    assert x.grad is None


# --- changes in place ---------------------------------------------------------------------------------------------

IMAGE = numbers(1, 2, 4, 4, seed=1)
SAVED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    # name: (how the result is made, its inputs); each input or "result" that is listed is needed by backward
    "mul": (lambda a, b: a * b, (A, B)),
    "div": (lambda a, b: a / b, (A, POSITIVE)),
    "pow": (lambda a: a**2, (A,)),
    "log": (lambda a: a.log(), (POSITIVE,)),
    "abs": (lambda a: a.abs(), (A,)),
    "clamp": (lambda a: a.clamp(0, 1), (A,)),
    "matmul": (lambda a, b: a @ b, (A, numbers(4, 2))),
    "linear": (lambda a, w: F.linear(a, w), (A, numbers(2, 4))),
    "conv2d": (lambda x, w: F.conv2d(x, w), (IMAGE, numbers(3, 2, 2, 2))),
    "conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w), (IMAGE, numbers(2, 3, 2, 2))),
    "gelu": (lambda a: F.gelu(a), (A,)),
    "batch_norm": (lambda x, w: F.batch_norm(x, None, None, w, training=True), (IMAGE, numbers(2))),
    "group_norm": (lambda x, w: F.group_norm(x, 1, w), (IMAGE, numbers(2))),
    "local_response_norm": (lambda x: F.local_response_norm(x, 3), (IMAGE,)),
    "cross_entropy": (lambda a: F.cross_entropy(a.reshape(3, 4, 1), np.array([[0], [1], [2]])), (A,)),
}
RESULT_SAVED: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda a: a.exp(),
    "sqrt": lambda a: a.abs().sqrt(),
    "clamp": lambda a: a.clamp(0, 1),
    "relu": F.relu,
    "sigmoid": F.sigmoid,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
}


def spoil(t: Tensor) -> None:
    """As an optimizer would: the same memory, other values."""
    with dlgpu.no_grad():
        t *= 1.25


def refuses(result: Tensor) -> None:
    with pytest.raises(AutogradError, match=r"^\[backward\] '\w+' needs a tensor that was changed in place"):
        result.backward(np.ones(result.shape))


@pytest.mark.parametrize(("op", "changed"), [(op, i) for op, (_, inputs) in SAVED.items() for i in range(len(inputs))])
def test_changing_a_saved_input_is_an_error(op: str, changed: int) -> None:
    fn, values = SAVED[op]
    inputs = [Tensor(t.data.copy(), t.backend, requires_grad=True) for t in values]
    result = fn(*inputs)
    spoil(inputs[changed])
    refuses(result)


@pytest.mark.parametrize("op", RESULT_SAVED)
def test_changing_a_saved_result_is_an_error(op: str) -> None:
    a = Tensor(A.data.copy(), A.backend, requires_grad=True)
    result = RESULT_SAVED[op](a)
    spoil(result)
    refuses(result)


def test_changing_a_running_mean_in_use_is_an_error() -> None:
    """Evaluation-mode batch norm computes grad_weight from it; a training step in between moves it."""
    mean, var = dlgpu.zeros(2, dtype="float64"), dlgpu.ones(2, dtype="float64")
    weight = dlgpu.ones(2, dtype="float64", requires_grad=True)
    result = F.batch_norm(IMAGE, mean, var, weight)
    F.batch_norm(IMAGE, mean, var, training=True)
    refuses(result)


def test_changing_a_target_or_index_in_use_is_an_error() -> None:
    a, target = Tensor(A.data.copy(), A.backend, requires_grad=True), dlgpu.tensor([0, 1, 2])
    results = F.cross_entropy(a.reshape(3, 4, 1), target.reshape(3, 1), reduction="none"), a[target], a[:, target]
    target.fill_(0)
    for result in results:
        refuses(result)


def test_what_is_not_saved_may_change() -> None:
    a, b = leaf(1, 2), leaf(3, 4)
    result = a + b
    spoil(a)
    result.backward([5.0, 6.0])
    assert_close(b.grad, np.array([5.0, 6.0]))


def test_an_optimizer_step_between_forward_and_backward_is_caught() -> None:
    weight = dlgpu.randn(3, 4, requires_grad=True)
    x = dlgpu.randn(2, 4, requires_grad=True)
    loss = F.linear(x, weight).sum()
    with dlgpu.no_grad():
        weight -= 0.1 * dlgpu.ones(3, 4)
    with pytest.raises(AutogradError, match=r"'linear' needs a tensor .* got version 1, saved at version 0"):
        loss.backward()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda t: t.reshape(-1),
    "permute": lambda t: t.permute(1, 0),
    "slice": lambda t: t[:, 1:],
    "row": lambda t: t[0],
    "numpy integer": lambda t: t[np.int64(0)],
    "unsqueeze": lambda t: t.unsqueeze(0),
    "flatten": lambda t: t.flatten(),
    "detach": lambda t: t.detach(),
    "view of a view": lambda t: t[1:].T,
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_share_their_version(view: str) -> None:
    """Both ways: a change through the view spoils what the base saved, and the other way round."""
    for change_view in (True, False):
        base = Tensor(A.data.copy(), A.backend, requires_grad=True)
        other = VIEWS[view](base)
        assert np.shares_memory(base.data, other.data)
        result = base * base if change_view else leaf(1) * other
        spoil(other if change_view else base)
        refuses(result)


@pytest.mark.parametrize("index", [[0, 1], MASK, np.array([0, 1]), np.array(0)], ids=repr)
def test_copies_do_not(index: Any) -> None:
    base = Tensor(A.data.copy(), A.backend, requires_grad=True)
    result, copy = base * base, base.detach()[index]
    spoil(copy)
    result.backward(np.ones(result.shape))
    assert_close(base.grad, 2 * A.data)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "+=": lambda t: t.__iadd__(1),
    "-=": lambda t: t.__isub__(1),
    "*=": lambda t: t.__imul__(2),
    "/=": lambda t: t.__itruediv__(2),
    "setitem": lambda t: t.__setitem__(0, 3),
    "copy_": lambda t: t.copy_(3),
    "fill_": lambda t: t.fill_(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_leaf_with_gradient_cannot_change(change: str) -> None:
    x = leaf(1, 2)
    with pytest.raises(AutogradError, match=r"takes part in a gradient cannot be changed in place"):
        CHANGES[change](x)
    assert_close(x, np.array([1.0, 2.0]))
    with dlgpu.no_grad():
        CHANGES[change](x)
    assert x.data[0] != 1
    assert x.version.count == 1


def test_augmented_assignment_of_a_result_makes_a_new_one() -> None:
    x = leaf(2)
    y = first = x * x
    y += 1
    y *= x
    assert y is not first
    assert_close(first, np.array([4.0]))
    y.backward([2.0])  # x³ + x
    assert_close(x.grad, np.array([26.0]))


def test_augmented_assignment_without_gradient_works_in_place() -> None:
    x = same = dlgpu.ones(2)
    memory = x.data
    x += 1
    x *= 3
    x -= dlgpu.tensor([1.0, 2.0])
    x /= 2
    assert x is same
    assert x.data is memory
    assert_close(x, np.float32([2.5, 2]))


def test_nothing_with_a_past_goes_into_a_plain_tensor() -> None:
    x, buffer = leaf(1), dlgpu.zeros(1, dtype="float64")
    for change in (lambda: buffer.copy_(x * 2), lambda: buffer.__setitem__(0, x), lambda: buffer.__iadd__(x)):
        with pytest.raises(AutogradError, match="cannot be changed in place"):
            change()


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


NETWORKS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: ((x * 2).exp() / 3 + x).sum(),
    "convolution": lambda x: F.relu(F.conv2d(x, dlgpu.ones(3, 2, 2, 2, dtype="float64"))).mean(),
    "norms": lambda x: F.group_norm(F.batch_norm(x, None, None, training=True), 1).sum(),
    "loss": lambda x: F.cross_entropy(F.dropout(F.max_pool2d(x, 2)).flatten(1), np.array([1])),
    "views": lambda x: dlgpu.cat([x.reshape(2, -1)[0], x.permute(1, 0, 2, 3).flatten()]).sum(),
}


@pytest.mark.parametrize("used", [False, True], ids=["unused", "after backward"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("no_collector")
def test_graphs_die_with_the_loss(network: str, used: bool) -> None:
    """Without the garbage collector: no reference cycles."""
    x = Tensor(IMAGE.data.copy(), IMAGE.backend, requires_grad=True)
    inner = x * 1.5
    watched = [weakref.ref(inner), weakref.ref(inner.data), weakref.ref(inner.node.backward)]
    loss = NETWORKS[network](inner)
    watched.append(weakref.ref(loss.data))
    del inner
    if used:
        loss.backward()
    del loss
    assert [w() is None for w in watched] == [True] * len(watched)


@pytest.mark.usefixtures("no_collector")
def test_backward_frees_what_was_saved_even_while_the_loss_lives() -> None:
    x = leaf(1, 2)
    squares = x * x
    data = weakref.ref(squares.data)
    loss = (squares * squares).sum()
    del squares
    assert data() is not None
    loss.backward()
    assert data() is None


# --- dtypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", dtypes.FLOATS)
@pytest.mark.parametrize("own", dtypes.FLOATS)
def test_each_input_gets_its_gradient_in_its_dtype(own: str, other: str) -> None:
    a = dlgpu.tensor([[1, 2], [3, 4]], dtype=own, requires_grad=True)
    b = dlgpu.tensor([2, 4], dtype=other, requires_grad=True)
    for result in (a + b, a * b, a / b, a - b):
        result.backward(np.array([[1, 2], [3, 4]]))
    assert a.grad.dtype == a.dtype
    assert b.grad.dtype == b.dtype
    # g + g b + g / b + g, and the column sums of g + g a - g a / b² - g
    assert_close(a.grad.astype("float64"), np.array([[4.5, 12.5], [13.5, 25]]))
    assert_close(b.grad.astype("float64"), np.array([10 - 2.5, 20 - 1.25]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_broadcast_gradients_of_halves_are_summed_wide(dtype: str) -> None:
    """In its own dtype a sum of ones stops at 2048 or 256."""
    for shape, stretched in (((3000, 2), (2,)), ((3000, 2), (1, 2)), ((2, 3000), (2, 1))):
        x = dlgpu.ones(*stretched, dtype=dtype, requires_grad=True)
        (x * dlgpu.ones(*shape, dtype=dtype)).backward(np.ones(shape))
        assert_close(x.grad, np.full(stretched, 3000).astype(x.dtype))


def test_the_mean_of_many_halves_has_an_exact_gradient() -> None:
    """1 / 100,000 is subnormal in float16; the gradient 2**15 / 100,000 is not."""
    x = dlgpu.ones(100_000, dtype="float16", requires_grad=True)
    x.mean().backward(np.array(2.0**15))
    assert_close(x.grad, np.full(100_000, 2.0**15 / 100_000).astype(np.float16))


def test_casts_carry_gradients_back_in_the_own_dtype() -> None:
    x = dlgpu.tensor([1.0, 2.0], dtype="float16", requires_grad=True)
    (x.float() * 3).backward([1.0, 2.0])
    assert x.grad.dtype == dtypes.float16
    assert_close(x.grad, np.float16([3, 6]))
    assert not x.astype("int64").requires_grad


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "mul": lambda x: x * x,
    "exp": lambda x: x.exp(),
    "pow": lambda x: x**2,
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "max": lambda x: x.max(),
    "clamp": lambda x: x.clamp(0, 5),
    "relu": F.relu,
    "gelu": F.gelu,
    "dropout": lambda x: F.dropout(x, 0.25),
    "astype": lambda x: x.astype("float32"),
    "reshape": lambda x: x.reshape(1).reshape(()),
    "detach": lambda x: x.detach() + x,
}


@pytest.mark.parametrize("op", UNARY)
def test_tensors_without_axes(op: str) -> None:
    x = dlgpu.tensor(2.0, dtype="float64", requires_grad=True)
    y = UNARY[op](x)
    assert y.shape == ()
    assert isinstance(y.data, np.ndarray)
    y.backward()
    assert x.grad.shape == ()
    assert x.grad.dtype == dtypes.float64


def test_empty_tensors() -> None:
    x = dlgpu.zeros(0, 3, requires_grad=True)
    y = ((x * 2).exp() + dlgpu.ones(3)).sum()
    assert y.item() == 0
    y.backward()
    assert x.grad.shape == (0, 3)


# --- tensors as users meet them ------------------------------------------------------------------------------------


def test_numbers_take_the_tensors_dtype() -> None:
    half = dlgpu.ones(2, dtype="float16")
    for result in (half * 2, 2.5 * half, half / 3, half + True, 1 - half, half**2):
        assert result.dtype == dtypes.float16
    whole = dlgpu.tensor([1, 2])
    assert (whole * 2).dtype == np.int64
    assert_close((half > 0) + 1, np.array([2, 2]))  # counting with booleans


def test_numpy_arrays_on_the_left() -> None:
    x = dlgpu.ones(2, requires_grad=True)
    for result in (np.float32([2, 3]) * x, np.float32([2, 3]) + x, np.float32(2) * x, np.float32([4, 6]) / x):
        assert isinstance(result, Tensor)
        assert result.requires_grad


def test_making_tensors() -> None:
    assert dlgpu.tensor([1.5, 2]).dtype == dtypes.float32
    assert dlgpu.tensor(np.ones(2)).dtype == dtypes.float64
    assert dlgpu.tensor([1, 2], dtype="bfloat16").dtype == dtypes.bfloat16
    source = np.ones(2, np.float32)
    assert not np.shares_memory(dlgpu.tensor(source).data, source)
    assert np.shares_memory(dlgpu.from_numpy(source).data, source)
    assert np.shares_memory(dlgpu.from_dlpack(source).data, source)
    assert_close(np.asarray(dlgpu.full((2,), 3.0)), np.full(2, 3, np.float32))


@pytest.mark.parametrize("data", [[[1], [2, 3]], "text", [None], ["a", "b"], {"a": 1}], ids=str)
def test_what_is_no_tensor(data: Any) -> None:
    with pytest.raises(DtypeError, match=r"^\[tensor\] data must be numbers in a rectangular shape; got"):
        dlgpu.tensor(data)


X = dlgpu.zeros(2, 3)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "item": (lambda: X.item(), r"\[item\] needs exactly one element; got shape \(2, 3\)"),
    "bool": (lambda: bool(X), r"\[item\]"),
    "len": (lambda: len(dlgpu.tensor(1.0)), r"\[len\]"),
    "reshape": (lambda: X.reshape(4, 2), r"\[reshape\] 6 elements do not fit; got shape \(2, 3\) -> \(4, 2\)"),
    "flatten": (lambda: X.flatten(1, 0), r"\[flatten\]"),
    "permute": (lambda: X.permute(0, 0), r"\[permute\]"),
    "permute too few": (lambda: X.permute(0), r"\[permute\]"),
    "transpose": (lambda: X.transpose(0, 2), r"\[transpose\]"),
    "squeeze": (lambda: X.squeeze(0), r"\[squeeze\] axis 0 must have size 1"),
    "unsqueeze": (lambda: X.unsqueeze(4), r"\[unsqueeze\]"),
    "unsqueeze below": (lambda: X.unsqueeze(-4), r"\[unsqueeze\]"),
    "getitem": (lambda: X[2], r"\[getitem\]"),
    "getitem axes": (lambda: X[0, 0, 0], r"\[getitem\]"),
    "matmul": (lambda: X @ X, r"\[matmul\] inner sizes"),
    "sum": (lambda: X.sum(2), r"\[sum\]"),
    "sum of ints": (lambda: dlgpu.tensor([1]).sum(), r"\[sum\] needs a floating-point tensor; got int64"),
    "mean of nothing": (lambda: X[:0].mean(), r"\[mean\] there is nothing to average"),
    "max of nothing": (lambda: X[:0].max(), r"\[max\]"),
    "max of no column": (lambda: X[:, :0].max(1), r"\[max\]"),
    "cat": (lambda: dlgpu.cat([X, dlgpu.zeros(2, 2)]), r"\[cat\] sizes must agree"),
    "cat nothing": (lambda: dlgpu.cat([]), r"\[cat\]"),
    "cat ranks": (lambda: dlgpu.cat([X, X[0]]), r"\[cat\]"),
    "dtype": (lambda: X.astype("float23"), r"\[dtype\] unknown dtype 'float23'"),
    "layout": (lambda: X.contiguous("channels_last"), r"\[memory_format\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(DlgpuError, match=rf"^{words}"):
        call()


def test_repr() -> None:
    assert repr(dlgpu.tensor([1.0, 2.0])) == "tensor([1., 2.], dtype=float32)"
    assert "requires_grad=True" in repr(leaf(1))
    assert "grad_fn=mul" in repr(leaf(1) * 2)
