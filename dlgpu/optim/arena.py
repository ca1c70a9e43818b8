"""Flat arenas: the parameters of a group, their gradients and the optimizer's state, each in one array.

Parameters become views into the arena, and backward writes gradients straight into it, so that an update, a norm or an
all-reduce is one pass over one array instead of one per parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dlgpu import memory_format
from dlgpu.errors import DtypeError, ShapeError
from dlgpu.nn.module import Parameter
from dlgpu.tensor import HalfCopy, Tensor


class Arena:
    """Parameters of one dtype and device, moved into one flat array `values`, with a `grads` array beside it."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        first = parameters[0]
        for p in parameters:
            if p.backend is not first.backend or p.dtype != first.dtype:
                raise DtypeError(
                    "[arena] parameters must share one device and dtype; "
                    f"got {p.device} {p.dtype} beside {first.device} {first.dtype}"
                )
        self.parameters = list(parameters)
        self.backend = first.backend
        xp = self.backend.xp
        self.values = xp.empty(sum(p.size for p in parameters), first.dtype)
        self.grads = xp.zeros_like(self.values)
        self._ranges: list[tuple[int, int]] = []
        start = 0
        for p in parameters:
            stop = start + p.size
            layout = memory_format.of(p.data)
            view = _view(self.values[start:stop], p.shape, layout)
            view[...] = p.data
            p.data, p.grad_home = view, _view(self.grads[start:stop], p.shape, layout)
            self._ranges.append((start, stop))
            start = stop
        self._homes = [p.data for p in parameters]
        self.half: Any = None

    def runs(self) -> Iterator[tuple[int, int]]:
        """The stretches [start, stop) of the arena whose parameters have a gradient and are to be trained.

        Usually one: all of it. A parameter without gradient (frozen, or not part of this step) is left alone, as in
        PyTorch.
        """
        begin = end = 0
        for p, home, (start, stop) in zip(self.parameters, self._homes, self._ranges, strict=True):
            if p.data is not home:
                raise ShapeError(
                    "[optimizer] a parameter was moved or replaced after the optimizer was made "
                    f"(shape {p.shape}); make the optimizer after model.to(...)"
                )
            if p.grad is None or not p.requires_grad:
                continue
            if p.grad.data is not p.grad_home:  # assigned by the user
                p.grad_home[...] = p.grad.data
                p.grad = Tensor(p.grad_home, p.backend)
            if start != end:
                if begin < end:
                    yield begin, end
                begin = start
            end = stop
        if begin < end:
            yield begin, end

    def keep_half(self, dtype: Any) -> None:
        """From now on, keep the values rounded to a half-precision dtype in `half`, beside them."""
        self.half = self.backend.cast(self.values, dtype)
        for p, home, (start, stop) in zip(self.parameters, self._homes, self._ranges, strict=True):
            view = _view(self.half[start:stop], p.shape, memory_format.of(home))
            p.half = HalfCopy(view, p.version.count)

    def touched(self) -> None:
        """The values have changed, and their half-precision copies with them: say so to autograd."""
        for p in self.parameters:
            fresh = p.half is not None and p.half.version == p.version.count  # else the user has changed p since
            p.version.count += 1
            if p.half is not None and fresh:
                p.half.version = p.version.count


def _view(flat: Any, shape: tuple[int, ...], layout: memory_format.MemoryFormat) -> Any:
    """A stretch of an arena as a parameter of `shape`, in the layout that the parameter had."""
    if layout == "channels_last":
        k, c, r, s = shape
        return flat.reshape(k, r, s, c).transpose(0, 3, 1, 2)
    return flat.reshape(shape)
