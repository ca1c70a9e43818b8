"""The tape: which op made a tensor, and how to carry a gradient back through it.

A `Node` points at the nodes of its inputs, never at its output, so graphs have no reference cycles and die with the
last tensor that needs them. Nodes are numbered as they are made; walking them in falling order is a topological order.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dlgpu.errors import AutogradError, ShapeError

if TYPE_CHECKING:
    from dlgpu.tensor import Tensor

_state = threading.local()
_numbers = itertools.count()

# grad_output -> one gradient per input, None where the input needs none
Backward = Callable[[Any], Sequence[Any]]


def is_grad_enabled() -> bool:
    """Whether ops are being recorded in this thread."""
    return getattr(_state, "enabled", True)


@contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Within the block (or the decorated function) record ops, or do not."""
    before = is_grad_enabled()
    _state.enabled = enabled
    try:
        yield
    finally:
        _state.enabled = before


def no_grad() -> Any:
    """`with no_grad():` (or `@no_grad()`) nothing is recorded: for evaluation and for changing parameters."""
    return set_grad_enabled(False)


class Version:
    """How often a piece of memory has been changed in place; shared by all views of it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Node:
    """One recorded op."""

    __slots__ = ("backward", "name", "number", "parents", "saved")

    def __init__(
        self, name: str, parents: tuple[Node | Tensor | None, ...], backward: Backward, saved: Sequence[Version]
    ) -> None:
        self.name = name
        self.parents = parents  # a Node, a leaf Tensor that wants its gradient, or None
        self.backward: Backward | None = backward
        self.saved = [(version, version.count) for version in saved]
        self.number = next(_numbers)

    def run(self, grad_output: Any, keep: bool) -> Sequence[Any]:
        """Check that what was saved is still what it was, then compute the gradients of the inputs."""
        if self.backward is None:
            raise AutogradError(
                f"[backward] the graph through {self.name!r} was already used and freed; "
                "compute the loss again, or call backward(retain_graph=True) the first time"
            )
        for version, count in self.saved:
            if version.count != count:
                raise AutogradError(
                    f"[backward] {self.name!r} needs a tensor that was changed in place after the forward pass; "
                    f"got version {version.count}, saved at version {count}. Change a copy, or call backward first"
                )
        grads = self.backward(grad_output)
        if not keep:
            self.backward = None  # frees what the closure holds
        return grads


def backward(root: Tensor, grad: Any, retain_graph: bool) -> None:
    """Add d root / d leaf, weighted with `grad`, to every leaf's `.grad`."""
    start: Node | Tensor | None = root.node or (root if root.requires_grad else None)
    if start is None:
        raise AutogradError("[backward] the tensor must depend on one with requires_grad=True; got one that does not")
    if grad is None:
        if root.size != 1:
            raise AutogradError(f"[backward] only a scalar has an implicit gradient; got shape {root.shape}: pass one")
        grad = root.backend.xp.ones_like(root.data)
    elif tuple(grad.shape) != root.shape:
        raise ShapeError(f"[backward] the gradient must have the tensor's shape {root.shape}; got {tuple(grad.shape)}")
    if not isinstance(start, Node):
        accumulate(start, grad)
        return
    # Scaled losses make gradients overflow now and then (dlgpu.amp): infinities and NaN pass quietly, as on a GPU.
    with np.errstate(over="ignore", invalid="ignore"):
        _run(start, grad, retain_graph)


def _run(start: Node, grad: Any, retain_graph: bool) -> None:
    grads: dict[Node, Any] = {start: grad}
    for node in _falling(start):
        grad_output = grads.pop(node, None)
        if grad_output is None:  # every path to it gave None
            continue
        for parent, g in zip(node.parents, node.run(grad_output, retain_graph), strict=True):
            if parent is None or g is None:
                continue
            if not isinstance(parent, Node):
                accumulate(parent, g)
            elif parent in grads:
                grads[parent] = grads[parent] + g
            else:
                grads[parent] = g


def _falling(start: Node) -> list[Node]:
    """All nodes that `start` depends on, latest first."""
    seen = {start}
    stack = [start]
    while stack:
        for parent in stack.pop().parents:
            if isinstance(parent, Node) and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=lambda node: node.number, reverse=True)


def accumulate(leaf: Tensor, grad: Any) -> None:
    """Add `grad` to the leaf's gradient, in the arena that an optimizer made for it, if one did."""
    from dlgpu.tensor import Tensor

    if leaf.grad is not None:
        leaf.grad.data += grad
    else:
        home = leaf.grad_home
        if home is None:
            home = leaf.backend.xp.empty_like(leaf.data)
        home[...] = grad
        leaf.grad = Tensor(home, leaf.backend)  # a plain one, also for a Parameter
