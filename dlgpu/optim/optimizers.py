"""Optimizers over flat arenas: one op of the contract per parameter group and step.

Each class only says which state arrays it keeps and which op updates them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dlgpu import dtypes
from dlgpu.errors import CheckpointError, ShapeError
from dlgpu.nn.module import Parameter
from dlgpu.optim.arena import Arena


class Group:
    """Parameters that share settings (learning rate, weight decay, ...): an arena, the settings, the state arrays."""

    def __init__(self, parameters: list[Parameter], settings: dict[str, Any], state_names: Iterable[str]) -> None:
        self.arena = Arena(parameters)
        self.settings = settings
        self.state = {name: self.arena.backend.xp.zeros_like(self.arena.values) for name in state_names}


class Optimizer:
    """Base class. `parameters` is an iterable of parameters, or of dicts {"params": ..., "lr": ..., ...} (groups).

    Attributes:
        groups: the parameter groups; `group.settings["lr"]` may be changed at any time, as schedules do.
        steps: how many steps were taken.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Any], **settings: Any) -> None:
        name, entries = type(self).__name__, list(parameters)
        if not entries:
            raise ShapeError(f"[{name}] there must be at least one parameter; got none")
        if not isinstance(entries[0], Mapping):
            entries = [{"params": entries}]
        checked: list[tuple[list[Parameter], dict[str, Any]]] = []  # all groups, before the first one is moved
        seen: set[int] = set()
        for entry in entries:
            own = {**settings, **{k: v for k, v in entry.items() if k != "params"}}
            if unknown := own.keys() - settings.keys():
                raise ShapeError(f"[{name}] unknown settings in a group: {sorted(unknown)}; known: {sorted(settings)}")
            self.check(own)
            given = list(entry["params"])
            ids = {id(p) for p in given}
            if not all(isinstance(p, Parameter) for p in given) or len(ids) < len(given) or ids & seen:
                kinds = sorted({type(p).__name__ for p in given})
                raise ShapeError(
                    f"[{name}] groups must hold Parameters, each once; got {len(given)} {', '.join(kinds)}"
                )
            seen |= ids
            trained = [p for p in given if p.requires_grad]
            if trained:
                checked.append((trained, own))
        if not checked:
            raise ShapeError(f"[{name}] there must be a parameter to train; got frozen ones only")
        self.groups = [Group(trained, own, self.state_names) for trained, own in checked]
        self.steps = 0

    def check(self, settings: dict[str, Any]) -> None:
        """Settings must make sense; raises `ShapeError` with the value."""
        name = type(self).__name__
        for key in ("lr", "weight_decay", "eps"):
            if key in settings and not (settings[key] >= 0 and math.isfinite(settings[key])):
                raise ShapeError(f"[{name}] {key} must be a finite number >= 0; got {settings[key]}")
        for key in ("momentum", "alpha", "beta1", "beta2"):
            if key in settings and not 0 <= settings[key] < 1:
                raise ShapeError(f"[{name}] {key} must be in [0, 1); got {settings[key]}")

    @property
    def lr(self) -> float:
        """The first group's learning rate."""
        return self.groups[0].settings["lr"]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for p in group.arena.parameters:
                p.grad = None

    def keep_half(self, dtype: Any) -> None:
        """Have every step write a float16 or bfloat16 copy of the parameters too, for `dlgpu.amp.autocast`."""
        for group in self.groups:
            group.arena.keep_half(dtypes.parse(dtype))

    def gradients(self) -> Iterator[tuple[Any, Any]]:
        """(backend, flat gradients) of every stretch of parameters that has some."""
        for group in self.groups:
            for start, stop in group.arena.runs():
                yield group.arena.backend, group.arena.grads[start:stop]

    def step(self, scaler: Any = None) -> None:
        """Update every parameter that has a gradient. `scaler` is for `dlgpu.amp.GradScaler`, which calls this."""
        self.steps += 1
        for group in self.groups:
            arena = group.arena
            for start, stop in arena.runs():
                given = {name: array[start:stop] for name, array in group.state.items()}
                given |= dict(scaler=scaler, half=None if arena.half is None else arena.half[start:stop])
                self.update(group, arena.values[start:stop], arena.grads[start:stop], given)
            arena.touched()

    def update(self, group: Group, values: Any, grads: Any, given: dict[str, Any]) -> None:
        """One stretch of an arena, by the backend's op; `given` are its state, scaler and half-precision copy."""
        raise NotImplementedError

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale all gradients so that their joint Euclidean norm is at most `max_norm`; returns the norm before."""
        if not max_norm > 0:
            raise ShapeError(f"[{type(self).__name__}] max_norm must be positive; got {max_norm}")
        stretches = [grads for _, grads in self.gradients()]
        norm = math.sqrt(sum(float((g * g).sum()) for g in stretches))
        if norm > max_norm:
            for g in stretches:
                g *= g.dtype.type(max_norm / norm)
        return norm

    def state_dict(self) -> dict[str, np.ndarray]:
        """ "steps" and "<group>.<state>" -> arrays; settings belong to whoever made the optimizer."""
        from dlgpu.tensor import Tensor

        out = {"steps": np.array(self.steps, np.int64)}
        for index, group in enumerate(self.groups):
            for name, array in group.state.items():
                out[f"{index}.{name}"] = Tensor(array, group.arena.backend).numpy().copy()
        return out

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state_dict` gave; raises `CheckpointError` if it is of another optimizer or model."""
        own = {
            "steps": (),
            **{f"{i}.{name}": a.shape for i, g in enumerate(self.groups) for name, a in g.state.items()},
        }
        got = {name: tuple(array.shape) for name, array in state.items()}
        if own != got:
            raise CheckpointError(f"[{type(self).__name__}] optimizer state must be {own}; got {got}")
        self.steps = int(state["steps"])
        for index, group in enumerate(self.groups):
            for name, array in group.state.items():
                array[...] = group.arena.backend.xp.asarray(state[f"{index}.{name}"])


class SGD(Optimizer):
    """param -= lr * grad; with momentum, v = momentum * v - lr * grad and param += v (or Nesterov's form)."""

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        # The state array is needed as soon as any group has momentum; without, the op takes None.
        entries = list(parameters)
        moving = momentum > 0 or any(isinstance(e, Mapping) and e.get("momentum", 0) > 0 for e in entries)
        self.state_names = ("velocity",) if moving else ()
        super().__init__(entries, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        if settings["nesterov"] and not settings["momentum"]:
            raise ShapeError(f"[{type(self).__name__}] nesterov needs momentum > 0; got 0")

    def update(self, group: Group, values: Any, grads: Any, given: dict[str, Any]) -> None:
        velocity = given.pop("velocity", None)  # other groups may have momentum where this one has none
        moving = velocity if group.settings["momentum"] else None
        group.arena.backend.sgd_step(values, grads, moving, **given, **group.settings)


class Momentum(SGD):
    """SGD with momentum 0.9 as default: v = momentum * v - lr * grad; param += v (Polyak 1964)."""

    def __init__(
        self, parameters: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr, momentum, False, weight_decay)


class Nesterov(SGD):
    """Momentum with the gradient at the look-ahead point, after the change of variables
    param += -momentum * v_old + (1 + momentum) * v_new (Nesterov 1983; Sutskever et al. 2013)."""

    def __init__(
        self, parameters: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr, momentum, True, weight_decay)


class AdaGrad(Optimizer):
    """r += grad²; param -= lr * grad / (sqrt(r) + eps) (Duchi et al. 2011)."""

    state_names = ("square_sum",)

    def __init__(
        self, parameters: Iterable[Any], lr: float = 0.01, eps: float = 1e-10, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay)

    def update(self, group: Group, values: Any, grads: Any, given: dict[str, Any]) -> None:
        group.arena.backend.adagrad_step(values, grads, **given, **group.settings)


class RMSprop(Optimizer):
    """r = alpha * r + (1 - alpha) * grad²; param -= lr * grad / (sqrt(r) + eps) (Tieleman and Hinton 2012)."""

    state_names = ("square_avg",)

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def update(self, group: Group, values: Any, grads: Any, given: dict[str, Any]) -> None:
        group.arena.backend.rmsprop_step(values, grads, **given, **group.settings)


class Adam(Optimizer):
    """Averages of the gradient and its square, corrected for their start at zero (Kingma and Ba 2015)."""

    state_names = ("exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)

    def update(self, group: Group, values: Any, grads: Any, given: dict[str, Any]) -> None:
        group.arena.backend.adam_step(
            values, grads, **given, step=self.steps, decoupled=self.decoupled, **group.settings
        )


class AdamW(Adam):
    """Adam with the weight decay beside the step instead of inside the gradient (Loshchilov and Hutter 2019)."""

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": AdaGrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}
