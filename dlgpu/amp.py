"""Mixed precision: products in float16 or bfloat16, master weights, statistics, softmax and losses in float32.

    scaler = GradScaler()                        # float16 only: bfloat16 has float32's range
    for images, labels in batches:
        optimizer.zero_grad()
        with autocast("float16"):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

Names are torch.amp's. Activations and their gradients are half-precision tensors because products give such tensors and
everything after them keeps the type it is given. Small gradients would vanish in float16, so the loss is scaled up
before the backward pass; what overflows then is skipped, and the scale adapts (Micikevicius et al. 2018). The scaler's
state stays on the device: no step waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dlgpu import dtypes
from dlgpu.backends import precision
from dlgpu.backends.shapes import check_scaler
from dlgpu.errors import CheckpointError, UnknownName

if TYPE_CHECKING:
    from dlgpu.optim import Optimizer
    from dlgpu.tensor import Tensor

HALVES = {name: dtypes.FLOATS[name] for name in ("float16", "bfloat16")}


@contextmanager
def autocast(dtype: str = "float16", enabled: bool = True) -> Iterator[None]:
    """Inside, convolutions, `linear` and `@` cast their float32 tensors to `dtype`; softmax and losses work in float32.

    Backward passes need not be inside: gradients have the type of their tensors. Each use of a weight casts it, unless
    `optimizer.keep_half(dtype)` keeps a copy of all of them.

    Raises:
        UnknownName: dtype is not "float16" or "bfloat16".
    """
    if dtype not in HALVES:
        raise UnknownName("autocast", "dtype", dtype, HALVES)
    with precision.use(dtype if enabled else "float32"):  # type: ignore[arg-type]
        yield


def narrow(*tensors: Tensor | None) -> list[Any]:
    """The factors of a product, in the type that autocast wants."""
    wanted = HALVES.get(precision.current())
    if wanted is None:
        return list(tensors)
    return [t if t is None or t.dtype not in (dtypes.float32, *HALVES.values()) else _as(t, wanted) for t in tensors]


def widen(t: Tensor) -> Tensor:
    """What autocast wants in float32."""
    return t.astype(dtypes.float32) if precision.current() in HALVES and t.dtype in HALVES.values() else t


def _as(t: Tensor, dtype: np.dtype) -> Tensor:
    if t.dtype == dtype:
        return t
    if t.half is None or t.half.array.dtype != dtype or t.half.version != t.version.count:
        return t.astype(dtype)
    backend, own = t.backend, t.dtype
    # A view: who changes the parameter changes its copy.
    return type(t).from_op("cast", t.half.array, [t], lambda g: [backend.cast(g, own)], view_of=t)


class GradScaler:
    """Keeps float16 gradients in range: scales the loss, skips updates that overflowed, and adapts the scale.

    After an update with an infinite or NaN gradient the scale is multiplied by `backoff_factor`; after
    `growth_interval` good ones in a row by `growth_factor`. With several optimizers, all of one update are skipped from
    the first bad one on.

    Raises:
        ShapeError: a factor or the interval makes no sense.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.policy: dict[str, Any] = dict(
            growth_factor=growth_factor, backoff_factor=backoff_factor, growth_interval=growth_interval
        )
        self._state: Any = np.array([init_scale, 0, 0, 0], np.float32)  # moves to the device of the first loss
        check_scaler("GradScaler", self._state, **self.policy)
        self._backend: Any = None
        self._unscaled: set[int] = set()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale, to call `backward` on."""
        state = self._on(loss.backend)
        return loss * type(loss)(state[:1].reshape(()).copy(), loss.backend)

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale now, to look at them or clip them before `step`."""
        for ops, grads in optimizer.gradients():
            ops.check_finite(grads, self._on(ops))
            grads *= 1 / self._state[:1]
        self._unscaled.add(id(optimizer))

    def step(self, optimizer: Optimizer) -> None:
        """Update the parameters from gradients divided by the scale, unless any of those is not finite."""
        if id(optimizer) not in self._unscaled:
            for ops, grads in optimizer.gradients():
                ops.check_finite(grads, self._on(ops))
            optimizer.step(self._state)
            return
        self._unscaled.remove(id(optimizer))
        state = self._state.copy()
        state[:1] = 1
        optimizer.step(state)

    def update(self) -> None:
        """End an update: adapt the scale. Call it once, after the steps of all optimizers."""
        self._unscaled.clear()
        if self._backend is not None:
            self._backend.update_scaler(self._state, **self.policy)

    @property
    def current_scale(self) -> float:
        """The scale. Asking waits for the device."""
        return float(self._state[0])

    @property
    def skipped(self) -> int:
        """How many updates were skipped so far. Asking waits for the device."""
        return int(self._state[3])

    def state_dict(self) -> dict[str, np.ndarray]:
        """ "state": scale, whether a gradient of this update was not finite, good updates in a row, skipped ones."""
        return {"state": np.array(self._state.get() if hasattr(self._state, "get") else self._state)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state_dict` gave; raises `CheckpointError` if it is something else."""
        if set(state) != {"state"} or state["state"].shape != (4,):
            got = {name: array.shape for name, array in state.items()}
            raise CheckpointError(f"[GradScaler] the state must be {{'state': (4,)}}; got {got}")
        self._state, self._backend = state["state"].astype(np.float32), None

    def _on(self, backend: Any) -> Any:
        """The state on that device. It moves once, from the CPU."""
        if self._backend is not backend:
            self._state, self._backend = backend.xp.asarray(self._state), backend
        return self._state
