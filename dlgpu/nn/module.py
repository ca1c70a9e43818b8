"""Module: parameters, buffers and submodules, found by attribute assignment and kept in order of assignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dlgpu import backends, dtypes
from dlgpu.errors import CheckpointError, ShapeError
from dlgpu.tensor import Tensor

ForwardHook = Callable[["Module", tuple[Any, ...], Any], Any]


class Parameter(Tensor):
    """A leaf Tensor that a Module trains. Made from an array or Tensor (whose memory it shares)."""

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        backend = data.backend if isinstance(data, Tensor) else backends.get("cpu")
        super().__init__(data.data if isinstance(data, Tensor) else data, backend, requires_grad)


class Module:
    """Base of all layers and networks: subclass, assign parameters and submodules in `__init__`, write `forward`."""

    training: bool

    def __init__(self) -> None:
        self.__dict__.update(_parameters={}, _buffers={}, _modules={}, _forward_hooks={}, training=True)

    # --- structure ------------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_modules" not in self.__dict__:
            raise AttributeError(f"[module] call super().__init__() before assigning {name!r}")
        for kind, store in ((Parameter, self._parameters), (Module, self._modules)):
            if isinstance(value, kind):
                if name not in store:  # else it keeps its place: a Sequential runs in this order
                    self._forget(name)
                store[name] = value
                return
        if name in self._buffers and isinstance(value, Tensor):
            self._buffers[name] = value
            return
        self._forget(name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def _forget(self, name: str) -> bool:
        """Drop an attribute wherever it is kept; says whether there was one."""
        stores = [s for s in (self._parameters, self._buffers, self._modules, self.__dict__) if name in s]
        for store in stores:
            del store[name]
        return bool(stores)

    def __getattr__(self, name: str) -> Any:  # only called where normal lookup fails
        for store in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(store, ()):
                return self.__dict__[store][name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def register_buffer(self, name: str, value: Tensor) -> None:
        """State that is saved and moved with the module but not trained (running statistics)."""
        self._forget(name)
        self._buffers[name] = value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module ("" at the top) and every module inside it, depth first; each once, by its first name."""
        yield from self._walk(prefix, set())

    def _walk(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, module in self._modules.items():
                yield from module._walk(_join(prefix, name), seen)

    def modules(self) -> Iterator[Module]:
        """Like `named_modules`, without names."""
        return (module for _, module in self.named_modules())

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one."""
        return iter(self._modules.values())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name; one that is shared keeps its first name."""
        return self._named("_parameters")

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer once, with its dotted name."""
        return self._named("_buffers")

    def _named(self, store: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, tensor in getattr(module, store).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _join(prefix, name), tensor

    def __repr__(self) -> str:
        inside = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        body = "".join(f"\n  {line}" for line in inside)
        return f"{type(self).__name__}({self.extra_repr()}{body}{chr(10) if inside else ''})"

    def extra_repr(self) -> str:
        """The arguments shown by `repr`."""
        return ""

    # --- running --------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any) -> Any:
        """What the module computes; subclasses write it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")

    def __call__(self, *inputs: Any) -> Any:
        output = self.forward(*inputs)
        for hook in tuple(self._forward_hooks.values()):
            changed = hook(self, inputs, output)
            output = output if changed is None else changed
        return output

    def register_forward_hook(self, hook: ForwardHook) -> Callable[[], None]:
        """Call `hook(module, inputs, output)` after each forward; what it returns, if not None, replaces the output.

        Returns a function that removes the hook.
        """
        key = object()
        self._forward_hooks[key] = hook
        return lambda: self._forward_hooks.pop(key, None)

    def train(self, mode: bool = True) -> Module:
        """Training behaviour (dropout, batch statistics) on or off, here and inside."""
        for module in self.modules():
            module.__dict__["training"] = mode
        return self

    def eval(self) -> Module:
        """`train(False)`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Train all parameters, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def to(self, device: str | None = None, dtype: Any = None, memory_format: str | None = None) -> Module:
        """Move parameters and buffers, in place: device, floating-point dtype, layout of 4-D weights.

        Optimizers hold on to where parameters live, so make them afterwards.
        """
        for tensor in [*self.parameters(), *(buffer for _, buffer in self.named_buffers())]:
            is_float = dtypes.is_float(tensor.dtype)
            moved = tensor.detach().to(device, dtype if is_float else None, memory_format if tensor.ndim == 4 else None)
            if moved.data is not tensor.data:
                tensor.data, tensor.backend, tensor.grad, tensor.grad_home = moved.data, moved.backend, None, None
        return self

    # --- saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> values of every parameter and buffer, as NumPy arrays (copies) in contiguous layout."""
        tensors = (*self.named_parameters(), *self.named_buffers())
        return {name: np.array(tensor.numpy(), order="C") for name, tensor in tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy values into parameters and buffers; nothing is changed unless every name and shape fits.

        Raises:
            CheckpointError: missing or unexpected names, or another shape: it belongs to another model.
        """
        own: dict[str, Tensor] = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise CheckpointError(
                f"[load_state_dict] names must match {type(self).__name__}; "
                f"got missing: {listed(missing)}; unexpected: {listed(unexpected)}"
            )
        for name, tensor in own.items():
            if tuple(state[name].shape) != tensor.shape:
                raise CheckpointError(
                    f"[load_state_dict] {name} must have shape {tensor.shape}; got {tuple(state[name].shape)}"
                )
        for name, tensor in own.items():
            values = tensor.backend.xp.asarray(np.asarray(state[name]))
            tensor.data[...] = values.astype(tensor.dtype, copy=False)
            tensor.version.count += 1

    def summary(self, input_shape: tuple[int, ...]) -> str:
        """The layer table for one input of `input_shape` (with its batch axis); see `dlgpu.nn.summary`."""
        from dlgpu.nn.summary import summary

        return summary(self, input_shape)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_positive(where: str, **values: int) -> None:
    """Layer sizes are ints of at least 1; raises `ShapeError`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ShapeError(f"[{where}] {name} must be an int >= 1; got {value!r}")
