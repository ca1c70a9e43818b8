"""Tensor: an array, the backend it lives on, and its place on the tape. Arithmetic is the array library's own.

Names and argument orders are PyTorch's. Neural-network ops are in `dlgpu.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from dlgpu import amp, autograd, backends, dtypes, memory_format, random
from dlgpu.autograd import Backward, Node, Version, is_grad_enabled
from dlgpu.backends.contract import Contract
from dlgpu.errors import AutogradError, DtypeError, ShapeError

Scalar = int | float


@dataclass
class HalfCopy:
    """A half-precision copy of a parameter, and the version of the parameter that it is of."""

    array: Any
    version: int


class Tensor:
    """An n-dimensional array with a gradient.

    Attributes:
        data: the raw array (numpy.ndarray or cupy.ndarray). Changing it directly is not seen by autograd's checks.
        backend: the ops that run on it; `device` is its name for users.
        requires_grad: whether `backward` should bring a gradient here (leaves) or through here (results).
        grad: the gradient collected so far, a Tensor of the same shape, or None.
    """

    __array_priority__ = 1000  # numpy_array * tensor must call Tensor.__rmul__
    __hash__ = object.__hash__

    def __init__(self, data: Any, backend: Contract, requires_grad: bool = False) -> None:
        self.data = data
        self.backend = backend
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.grad_home: Any = None  # where an optimizer wants the gradient written (a view of its arena)
        self.half: HalfCopy | None = None  # kept by an optimizer (`Optimizer.keep_half`)
        self.node: Node | None = None
        self.version = Version()
        if requires_grad and not dtypes.is_float(self.dtype):
            raise DtypeError(f"[tensor] only floating-point tensors can require gradients; got {self.dtype}")

    @staticmethod
    def from_op(
        name: str,
        data: Any,
        inputs: Sequence[Tensor],
        backward: Backward,
        saved: Sequence[Tensor] = (),
        saves_output: bool = False,
        view_of: Tensor | None = None,
    ) -> Tensor:
        """Wrap an op's result and, if a gradient may be asked for, put the op on the tape.

        Args:
            backward: grad_output -> one gradient per input (None allowed). It must close over arrays, not Tensors,
                so that graphs stay free of cycles.
            saved: the inputs whose values `backward` uses; changing them in place before it runs is an error.
            saves_output: the same for the result itself.
            view_of: the input whose memory the result shares.
        """
        backend = inputs[0].backend
        out = Tensor(backend.xp.asarray(data), backend)  # NumPy turns results without axes into scalars
        if view_of is not None:
            out.version = view_of.version
        if is_grad_enabled() and any(t.requires_grad for t in inputs):
            parents = tuple((t.node or t) if t.requires_grad else None for t in inputs)
            versions = [t.version for t in saved] + [out.version] * saves_output
            out.node = Node(name, parents, backward, versions)
            out.requires_grad = True
        return out

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    @property
    def device(self) -> str:
        """ "cpu", "cuda" or "host-kernels"."""
        return self.backend.device

    @property
    def is_leaf(self) -> bool:
        """Made by the user rather than by a recorded op."""
        return self.node is None

    @property
    def T(self) -> Tensor:
        return self.transpose()

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("[len] a tensor without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=200)
        extra = f", grad_fn={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        place = "" if self.device == "cpu" else f", device={self.device!r}"
        return f"tensor({body}, dtype={self.dtype}{place}{extra})"

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def item(self) -> Any:
        """The one element as a Python number."""
        if self.size != 1:
            raise ShapeError(f"[item] needs exactly one element; got shape {self.shape}")
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: a view on the CPU, a copy from a GPU."""
        return self.data if isinstance(self.data, np.ndarray) else self.data.get()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A leaf with its own memory on the same backend; gradients and the past are not copied."""
        out = object.__new__(type(self))
        Tensor.__init__(out, self.data.copy(), self.backend, self.requires_grad)
        memo[id(self)] = out
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    # --- gradients ------------------------------------------------------------------------------------------------

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it depends on.

        Args:
            gradient: weights for the elements of this tensor; a scalar needs none.
            retain_graph: keep what the ops saved, so that backward can run again.

        Raises:
            AutogradError: no leaf requires a gradient, the graph was freed, or a saved tensor was changed in place.
            ShapeError: `gradient` has another shape.
        """
        if gradient is not None:
            gradient = as_tensor(gradient, self).data.astype(self.dtype, copy=False)
        autograd.backward(self, gradient, retain_graph)

    def detach(self) -> Tensor:
        """The same memory without a past."""
        out = Tensor(self.data, self.backend)
        out.version = self.version
        return out

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for a gradient here, or stop asking. Only leaves can stop."""
        if not self.is_leaf:
            raise AutogradError("[requires_grad_] only leaves can be changed; got the result of an op: use detach()")
        if requires_grad and not dtypes.is_float(self.dtype):
            raise DtypeError(f"[requires_grad_] only floating-point tensors can require gradients; got {self.dtype}")
        self.requires_grad = requires_grad
        return self

    # --- changing in place ----------------------------------------------------------------------------------------

    def _changed_in_place(self, op: str, *others: Any) -> None:
        """Refuse where a gradient would silently be wrong; else note that the memory changes."""
        if is_grad_enabled() and (self.requires_grad or any(isinstance(o, Tensor) and o.requires_grad for o in others)):
            raise AutogradError(
                f"[{op}] a tensor that takes part in a gradient cannot be changed in place; got one of shape "
                f"{self.shape}: work on a new tensor, or use `with dlgpu.no_grad():`"
            )
        self.version.count += 1

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the values; `source` broadcasts and is cast."""
        self._changed_in_place("copy_", source)
        self.data[...] = as_tensor(source, self).data
        return self

    def fill_(self, value: Scalar) -> Tensor:
        """Set every element."""
        self._changed_in_place("fill_")
        self.data[...] = value
        return self

    def zero_(self) -> Tensor:
        """Set every element to 0."""
        return self.fill_(0)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._changed_in_place("setitem", value)
        self.data[_plain(index)] = as_tensor(value, self).data

    def _augment(self, op: str, other: Any, result: Tensor) -> Tensor:
        """`a += b`: in place where that is safe; a tensor with a past becomes the new tensor instead."""
        if self.node is not None and is_grad_enabled():
            return result
        self._changed_in_place(op, other)
        self.data[...] = result.data
        return self

    def __iadd__(self, other: Any) -> Tensor:
        return self._augment("+=", other, self + other)

    def __isub__(self, other: Any) -> Tensor:
        return self._augment("-=", other, self - other)

    def __imul__(self, other: Any) -> Tensor:
        return self._augment("*=", other, self * other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._augment("/=", other, self / other)

    # --- moving ---------------------------------------------------------------------------------------------------

    def to(self, device: str | None = None, dtype: Any = None, memory_format: str | None = None) -> Tensor:
        """On another device, in another dtype or memory format; self if nothing changes."""
        out = self
        if dtype is not None and dtypes.parse(dtype) != self.dtype:
            out = out.astype(dtype)
        if memory_format is not None:
            out = out.contiguous(memory_format)
        if device is not None and backends.get(device) is not self.backend:
            target, home = backends.get(device), self.backend
            out = Tensor.from_op("to", _move(out, target), [out], lambda g: [_move(Tensor(g, target), home)])
            out.backend = target
        return out

    def astype(self, dtype: Any) -> Tensor:
        """Cast; differentiable between floating-point types."""
        target, own, backend = dtypes.parse(dtype), self.dtype, self.backend
        if not (dtypes.is_float(target) and dtypes.is_float(own)):
            return Tensor(self.data.astype(target), backend)
        return Tensor.from_op("cast", backend.cast(self.data, target), [self], lambda g: [backend.cast(g, own)])

    def float(self) -> Tensor:
        """As float32."""
        return self.astype(dtypes.float32)

    def contiguous(self, format: str = "contiguous") -> Tensor:
        """The same values stored as "contiguous" or "channels_last"; self if they already are."""
        data = memory_format.convert(self.backend.xp, self.data, memory_format.parse(format))
        return self if data is self.data else Tensor.from_op("contiguous", data, [self], lambda g: [g])

    # --- arithmetic -----------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        return _elementwise("add", a.data + b.data, a, b, lambda g: (g, g))

    def __sub__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        return _elementwise("sub", a.data - b.data, a, b, lambda g: (g, -g))

    def __mul__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        x, y = a.data, b.data
        return _elementwise("mul", x * y, a, b, lambda g: (g * y, g * x), saved=True)

    def __truediv__(self, other: Any) -> Tensor:
        a, b = self, as_tensor(other, self)
        x, y = a.data, b.data
        return _elementwise("div", x / y, a, b, lambda g: (g / y, -g * x / (y * y)), saved=True)

    def __radd__(self, other: Any) -> Tensor:
        return as_tensor(other, self) + self

    def __rsub__(self, other: Any) -> Tensor:
        return as_tensor(other, self) - self

    def __rmul__(self, other: Any) -> Tensor:
        return as_tensor(other, self) * self

    def __rtruediv__(self, other: Any) -> Tensor:
        return as_tensor(other, self) / self

    def __neg__(self) -> Tensor:
        return Tensor.from_op("neg", -self.data, [self], lambda g: [-g])

    def __pow__(self, exponent: Scalar) -> Tensor:
        """A constant power."""
        x = self.data
        return Tensor.from_op("pow", x**exponent, [self], lambda g: [g * exponent * x ** (exponent - 1)], saved=[self])

    def __matmul__(self, other: Any) -> Tensor:
        """Matrix product; leading axes broadcast."""
        a, b = amp.narrow(self, as_tensor(other, self))
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ShapeError(
                f"[matmul] inner sizes of two (..., M, K) @ (..., K, N) must agree; got {a.shape}, {b.shape}"
            )
        ops, x, y = a.backend, a.data, b.data

        def backward(g: Any) -> Sequence[Any]:
            return (
                _summed_back(_product(ops, g, y, transpose_b=True), x.shape, x.dtype) if a_needs else None,
                _summed_back(_product(ops, x, g, transpose_a=True), y.shape, y.dtype) if b_needs else None,
            )

        a_needs, b_needs = a.requires_grad, b.requires_grad
        return Tensor.from_op("matmul", _product(ops, x, y), [a, b], backward, saved=[a, b])

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]  # elementwise, as in NumPy
        return Tensor(self.data == as_tensor(other, self).data, self.backend)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(self.data != as_tensor(other, self).data, self.backend)

    def __lt__(self, other: Any) -> Tensor:
        return Tensor(self.data < as_tensor(other, self).data, self.backend)

    def __le__(self, other: Any) -> Tensor:
        return Tensor(self.data <= as_tensor(other, self).data, self.backend)

    def __gt__(self, other: Any) -> Tensor:
        return Tensor(self.data > as_tensor(other, self).data, self.backend)

    def __ge__(self, other: Any) -> Tensor:
        return Tensor(self.data >= as_tensor(other, self).data, self.backend)

    def exp(self) -> Tensor:
        y = self.backend.xp.exp(self.data)
        return Tensor.from_op("exp", y, [self], lambda g: [g * y], saves_output=True)

    def log(self) -> Tensor:
        x = self.data
        return Tensor.from_op("log", self.backend.xp.log(x), [self], lambda g: [g / x], saved=[self])

    def sqrt(self) -> Tensor:
        y = self.backend.xp.sqrt(self.data)
        return Tensor.from_op("sqrt", y, [self], lambda g: [g / (2 * y)], saves_output=True)

    def abs(self) -> Tensor:
        xp, x = self.backend.xp, self.data
        return Tensor.from_op("abs", xp.abs(x), [self], lambda g: [g * xp.sign(x)], saved=[self])

    def clamp(self, min: Scalar | None = None, max: Scalar | None = None) -> Tensor:
        """Limit to [min, max]; the gradient is zero where a limit acts."""
        xp, x = self.backend.xp, self.data
        y = xp.clip(x, min, max)

        def backward(g: Any) -> Sequence[Any]:
            return [xp.where(x == y, g, 0).astype(g.dtype)]

        return Tensor.from_op("clamp", y, [self], backward, saved=[self], saves_output=True)

    # --- reductions -----------------------------------------------------------------------------------------------

    def sum(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """Sum over axes (all of them by default), accumulated in float32 or wider."""
        return self._reduced("sum", dim, keepdim, 1.0)

    def mean(self, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
        """Mean over axes, accumulated in float32 or wider."""
        axes = self._axes("mean", dim)
        count = 1
        for axis in axes:
            count *= self.shape[axis]
        if count == 0:
            raise ShapeError(f"[mean] there is nothing to average; got shape {self.shape}, dim={dim}")
        return self._reduced("mean", dim, keepdim, 1.0 / count)

    def _reduced(self, kind: Any, dim: int | tuple[int, ...] | None, keepdim: bool, share: Scalar) -> Tensor:
        if not dtypes.is_float(self.dtype):
            raise DtypeError(f"[{kind}] needs a floating-point tensor; got {self.dtype}")
        axes, xp, shape = self._axes(kind, dim), self.backend.xp, self.shape
        y = self.backend.reduce(self.data, kind=kind, axis=axes, keepdims=keepdim)

        def backward(g: Any) -> Sequence[Any]:
            wide = g.astype(dtypes.accumulator(g.dtype)) * share  # in float16 a small share alone would lose its digits
            wide = wide.astype(g.dtype)
            return [xp.broadcast_to(wide if keepdim else xp.expand_dims(wide, axes), shape)]

        return Tensor.from_op(kind, y, [self], backward)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        """The greatest element (values only; see `argmax`); the first one gets the gradient."""
        xp, x = self.backend.xp, self.data
        if not self.size:
            raise ShapeError(f"[max] needs at least one element; got shape {self.shape}")
        if dim is None:
            return self.reshape(-1).max(0)
        (axis,) = self._axes("max", dim)
        at = xp.expand_dims(x.argmax(axis=axis), axis)
        y = xp.take_along_axis(x, at, axis=axis)

        def backward(g: Any) -> Sequence[Any]:
            place = xp.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)]) == at
            return [xp.where(place, g if keepdim else xp.expand_dims(g, axis), 0).astype(g.dtype)]

        return Tensor.from_op("max", y if keepdim else xp.squeeze(y, axis), [self], backward, saved=[self])

    def argmax(self, dim: int | None = None) -> Tensor:
        """Where the greatest element is (the first of several); int64, no gradient."""
        return Tensor(self.backend.xp.asarray(self.data.argmax(axis=dim)), self.backend)

    def _axes(self, op: str, dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
        axes = tuple(range(self.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        if any(not -self.ndim <= axis < self.ndim for axis in axes):
            raise ShapeError(f"[{op}] dim must name axes of a tensor of shape {self.shape}; got {dim}")
        return tuple(axis % self.ndim for axis in axes)

    # --- shape ----------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in logical order with another shape; one size may be -1."""
        sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        own, ops = self.shape, self.backend
        # Elements of a channels_last image have to be turned into logical order, and their gradient back: once each.
        turned = dtypes.is_float(self.dtype) and memory_format.of(self.data) == "channels_last"
        source = ops.to_memory_format(self.data, "contiguous") if turned else self.data
        try:
            data = source.reshape(sizes)
        except ValueError:
            raise ShapeError(f"[reshape] {self.size} elements do not fit; got shape {own} -> {sizes}") from None

        def backward(g: Any) -> Sequence[Any]:
            g = g.reshape(own)
            return [ops.to_memory_format(g, "channels_last") if turned else g]

        return Tensor.from_op("reshape", data, [self], backward, view_of=self)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Merge the axes start_dim..end_dim into one, in logical (N, C, H, W) order."""
        first, last = self._axes("flatten", (start_dim, end_dim)) if self.ndim else (0, 0)
        if first > last:
            raise ShapeError(f"[flatten] start_dim must not lie behind end_dim; got {start_dim}, {end_dim}")
        merged = 1
        for size in self.shape[first : last + 1]:
            merged *= size
        return self.reshape(*self.shape[:first], merged, *self.shape[last + 1 :])

    def permute(self, *dims: int) -> Tensor:
        """Reorder the axes."""
        axes = self._axes("permute", tuple(dims))
        if sorted(axes) != list(range(self.ndim)):
            raise ShapeError(f"[permute] needs each axis of shape {self.shape} once; got {dims}")
        back = tuple(sorted(range(self.ndim), key=axes.__getitem__))
        data = self.data.transpose(axes)
        return Tensor.from_op("permute", data, [self], lambda g: [g.transpose(back)], view_of=self)

    def transpose(self, dim0: int = -2, dim1: int = -1) -> Tensor:
        """Swap two axes (by default the last two)."""
        axes = list(range(self.ndim))
        a, b = self._axes("transpose", (dim0, dim1))
        axes[a], axes[b] = axes[b], axes[a]
        return self.permute(*axes)

    def squeeze(self, dim: int) -> Tensor:
        """Drop an axis of size 1."""
        (axis,) = self._axes("squeeze", dim)
        if self.shape[axis] != 1:
            raise ShapeError(f"[squeeze] axis {dim} must have size 1; got shape {self.shape}")
        return self.reshape(*self.shape[:axis], *self.shape[axis + 1 :])

    def unsqueeze(self, dim: int) -> Tensor:
        """Insert an axis of size 1."""
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise ShapeError(f"[unsqueeze] dim must be in [{-self.ndim - 1}, {self.ndim}]; got {dim}")
        at = dim % (self.ndim + 1)
        return self.reshape(*self.shape[:at], 1, *self.shape[at:])

    def __getitem__(self, index: Any) -> Tensor:
        xp, own, dtype, at = self.backend.xp, self.shape, self.dtype, _plain(index)
        try:
            data = xp.asarray(self.data[at])
        except IndexError as error:
            raise ShapeError(f"[getitem] {error}; got index {index!r} for shape {own}") from None

        def backward(g: Any) -> Sequence[Any]:
            out = xp.zeros(own, dtype)
            if advanced:
                xp.add.at(out, at, g)  # an index may name an element twice
            else:
                out[at] = g
            return [out]

        parts = index if isinstance(index, tuple) else (index,)
        basic = (slice, int, np.integer)
        advanced = any(not (part is None or part is Ellipsis or isinstance(part, basic)) for part in parts)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        return Tensor.from_op("getitem", data, [self], backward, saved=tensors, view_of=None if advanced else self)


def _plain(index: Any) -> Any:
    """Tensors inside an index become arrays."""
    if isinstance(index, tuple):
        return tuple(_plain(part) for part in index)
    return index.data if isinstance(index, Tensor) else index


def _elementwise(name: str, data: Any, a: Tensor, b: Tensor, rule: Any, saved: bool = False) -> Tensor:
    """A binary op with broadcasting; `rule` maps grad_output to the two gradients before they are summed back."""
    x, y = a.data, b.data
    shapes = (x.shape, x.dtype), (y.shape, y.dtype)
    needs = a.requires_grad, b.requires_grad

    def backward(g: Any) -> Sequence[Any]:
        pairs = zip(rule(g), shapes, needs, strict=True)
        return [_summed_back(grad, *shape) if needed else None for grad, shape, needed in pairs]

    return Tensor.from_op(name, data, [a, b], backward, saved=[a, b] if saved else [])


def _summed_back(grad: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Undo broadcasting: sum over the axes that were stretched."""
    if grad.shape != shape:
        new = grad.ndim - len(shape)
        stretched = (new + i for i, size in enumerate(shape) if size == 1 and grad.shape[new + i] != 1)
        grad = grad.sum(axis=(*range(new), *stretched), dtype=dtypes.accumulator(grad.dtype)).reshape(shape)
    with np.errstate(over="ignore"):  # beyond float16's range is infinite, as on a GPU
        return grad.astype(dtype, copy=False)


def _product(ops: Contract, x: Any, y: Any, **transposed: Any) -> Any:
    """(..., M, K) @ (..., K, N) by the backend's own product; leading axes broadcast."""
    dtype = np.result_type(x.dtype, y.dtype)
    if not dtypes.is_float(dtype):
        return x @ y
    x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    if x.ndim == y.ndim == 2:
        return ops.gemm(x, y, **transposed)
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    each = (ops.xp.broadcast_to(t, (*lead, *t.shape[-2:])).reshape(math.prod(lead), *t.shape[-2:]) for t in (x, y))
    product = ops.batched_gemm(*each, **transposed)
    return product.reshape(*lead, *product.shape[1:])


def _move(t: Tensor, target: Contract) -> Any:
    """A copy in the target's memory, in the same format."""
    values = t.numpy()
    out = memory_format.empty(target.xp, values.shape, values.dtype, memory_format.of(values))
    out[...] = target.xp.asarray(values)
    return out


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """`value` as a Tensor beside `like`: same backend, and for Python numbers the same dtype."""
    if isinstance(value, Tensor):
        if value.backend is not like.backend:
            raise ShapeError(
                f"[tensor] tensors must live on one device; got {like.device!r} and {value.device!r}: "
                "move one with .to()"
            )
        return value
    if isinstance(value, bool | int | float):
        # A float beside integers is float32; an int beside booleans counts.
        whole = dtypes.float32 if isinstance(value, float) else np.result_type(like.dtype, value)
        dtype = like.dtype if dtypes.is_float(like.dtype) else whole
        return Tensor(like.backend.xp.asarray(value, dtype), like.backend)
    return Tensor(like.backend.xp.asarray(value), like.backend)


def tensor(data: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A new Tensor with a copy of `data`. Python floats and float64 lists become float32, as in PyTorch."""
    backend = backends.get(device)
    if isinstance(data, Tensor):
        data = data.numpy()
    try:
        array = backend.xp.array(data)
    except ValueError:  # ragged
        array = np.empty(0, object)
    if not (dtypes.is_float(array.dtype) or array.dtype.kind in "biu"):
        raise DtypeError(f"[tensor] data must be numbers in a rectangular shape; got {type(data).__name__}")
    if dtype is not None:
        array = array.astype(dtypes.parse(dtype), copy=False)
    elif array.dtype == np.float64 and not hasattr(data, "dtype"):
        array = array.astype(dtypes.float32)
    return Tensor(array, backend, requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A CPU Tensor that shares the array's memory."""
    return Tensor(array, backends.get("cpu"))


def from_dlpack(array: Any) -> Tensor:
    """A Tensor that shares the memory of any array with `__dlpack__` (CPU arrays in this version)."""
    return Tensor(np.from_dlpack(array), backends.get("cpu"))


def zeros(*shape: int, dtype: Any = dtypes.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros."""
    return full(shape, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones(*shape: int, dtype: Any = dtypes.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of ones."""
    return full(shape, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def full(
    shape: Sequence[int], value: Scalar, dtype: Any = dtypes.float32, device: str = "cpu", requires_grad: bool = False
) -> Tensor:
    """A Tensor with every element equal to `value`."""
    backend = backends.get(device)
    return Tensor(backend.xp.full(tuple(shape), value, dtypes.parse(dtype)), backend, requires_grad)


def randn(*shape: int, dtype: Any = dtypes.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Standard normal numbers from dlgpu's seeded generator (`dlgpu.manual_seed`)."""
    values = random.generator().standard_normal(shape)
    return tensor(values, dtype=dtype, device=device, requires_grad=requires_grad)


def rand(*shape: int, dtype: Any = dtypes.float32, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """Uniform numbers in [0, 1) from dlgpu's seeded generator."""
    steps = 2.0 ** (ml_dtypes.finfo(dtypes.parse(dtype)).nmant + 1)  # multiples of 1 / steps need no rounding up to 1
    values = np.floor(random.generator().random(shape) * steps) / steps
    return tensor(values, dtype=dtype, device=device, requires_grad=requires_grad)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join along an existing axis; the other sizes must agree."""
    if not tensors:
        raise ShapeError("[cat] needs at least one tensor; got none")
    (axis,) = tensors[0]._axes("cat", dim)
    parts = [as_tensor(t, tensors[0]) for t in tensors]
    rest = {t.shape[:axis] + t.shape[axis + 1 :] for t in parts if t.ndim == parts[0].ndim}
    if len(rest) != 1 or any(t.ndim != parts[0].ndim for t in parts):
        raise ShapeError(
            f"[cat] sizes must agree on every axis but {dim}; got {', '.join(str(t.shape) for t in parts)}"
        )
    xp = parts[0].backend.xp
    layout = memory_format.of(*(t.data for t in parts))
    data = xp.concatenate([t.data for t in parts], axis=axis)
    if layout == "channels_last":
        data = memory_format.convert(xp, data, layout)
    ends = np.cumsum([t.shape[axis] for t in parts])[:-1].tolist()
    return Tensor.from_op("cat", data, parts, lambda g: xp.split(g, ends, axis=axis))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join along a new axis."""
    return cat([t.unsqueeze(dim) for t in tensors], dim=dim)
