"""Calls of ops as programs: an op is planned once for each kind of call, then replayed.

A call is run on symbols (arrays without contents) to see what it allocates, what it launches on what, and what it
returns. That depends on shapes, strides, dtypes, alignment, options, device and settings alone: they are the key under
which the program is kept. So a call costs a look-up, its allocations and its launches.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dlgpu.backends import precision, tuning
from dlgpu.backends.contract import Array
from dlgpu.backends.kernels.launching import ALIGNMENT, Launcher, address
from dlgpu.backends.kernels.ops import KernelOps
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.symbol import Number, Symbol, SymbolicArrays
from dlgpu.backends.kernels.tensor_map import MappedPlan, TensorMap
from dlgpu.backends.kernels.tiles import Target

if TYPE_CHECKING:
    from dlgpu.backends.kernels import KernelBackend
    from dlgpu.backends.kernels.autotune import Tuned

# Options that change from call to call: not part of the key, but arguments as arrays are.
CHANGING: dict[str, tuple[str, ...]] = dict.fromkeys(("sgd_step", "adagrad_step", "rmsprop_step"), ("lr",))
CHANGING |= {"adam_step": ("step", "lr"), "dropout": ("seed", "offset"), "dropout_grad": ("seed", "offset")}
NOT_REPLAYED = ("reduce",)  # the array library computes it
MOST_PROGRAMS = 2048  # the least recently used are forgotten


class Make(NamedTuple):
    """One more array or number: `function(*args)`, or `function` of the one in `slot` and `args`."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    slot: int | None = None


@dataclass(frozen=True)
class Choice:
    """What to take instead of what prediction and preference say; None leaves a choice to them. See `Target`."""

    algorithm: str | None = None
    edge: int | None = None
    splits: int | None = None
    hopper: int | None = None
    cluster: int | None = None

    def __str__(self) -> str:
        named = [f"{name}={value}" for name, value in vars(self).items() if value is not None]
        return ", ".join(named) or "as predicted"


class Call(NamedTuple):
    """One kind of call. `values` holds positional arguments, then options; arrays as (shape, strides, dtype, address).

    The address is modulo 16. Equal options are the same call: 1 and 1.0, for example. The class `Number` stands for
    options that change.
    """

    op: str
    positional: int
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def symbols(self) -> list[Any]:
        """The values with symbols in place of arrays and changing numbers, which have the slots 1, 2, ..."""
        slots = itertools.count(1)
        return [
            Symbol(next(slots), v[0], v[2], v[1], v[3]) if is_array(v) else Number(next(slots)) if v is Number else v
            for v in self.values
        ]


def stand_in(array: Array) -> tuple[Any, ...]:
    """What a `Call` holds of an array."""
    return array.shape, array.strides, array.dtype, address(array) % ALIGNMENT


def is_array(value: Any) -> bool:
    """Whether a value of a `Call` stands for an array."""
    return isinstance(value, tuple) and len(value) == 4 and isinstance(value[2], np.dtype)


@dataclass(frozen=True)
class Step:
    """One launch: what must be made for it, slots of its arrays and numbers, and those that nothing needs after it."""

    make: tuple[Make, ...]
    plan: Plan
    slots: tuple[int, ...]
    done: tuple[int, ...]


class Program:
    """A call as its steps. Slot 0 is the launcher's `null`, then come the arguments, then what the steps make.

    Attributes:
        steps: in order.
        last: what is made after them.
        results: slots of what the call returns; one slot where it returns no tuple.
        workspace: the most bytes that it allocates at a time besides its results.
    """

    def __init__(
        self,
        launcher: Launcher,
        steps: list[Step],
        last: tuple[Make, ...],
        results: int | tuple[int, ...],
        workspace: int,
    ) -> None:
        self.steps, self.last, self.results, self.workspace = steps, last, results, workspace
        self._started = [(s.make, launcher.prepare(s.plan), _picker(s.slots), s.done) for s in steps]
        self._returned = _picker(results) if isinstance(results, tuple) else itemgetter(results)

    @property
    def chosen(self) -> Program:
        """Itself; see `Tuned`."""
        return self

    @property
    def cycles(self) -> float:
        """Predicted time of its products (`tiles.predict`)."""
        return sum(step.plan.cycles for step in self.steps)

    def run(self, memory: list[Any]) -> Any:
        """Results for `null` and the arguments in `memory`, which is used up."""
        for makes, start, pick, done in self._started:
            for function, args, slot in makes:
                memory.append(function(*args) if slot is None else function(memory[slot], *args))
            start(pick(memory))
            for slot in done:
                memory[slot] = None
        for function, args, slot in self.last:
            memory.append(function(*args) if slot is None else function(memory[slot], *args))
        return self._returned(memory)


def _picker(slots: tuple[int, ...]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """What is in these slots, as a tuple."""
    return itemgetter(*slots) if len(slots) > 1 else lambda memory: tuple([memory[slot] for slot in slots])


def build(call: Call, launcher: Launcher, choice: Choice = Choice()) -> Program:
    """Plan a call.

    Raises:
        Unrecordable: the op does something that a program cannot.
        DlgpuError: what the op itself raises.
    """
    values = call.symbols()
    tracer = Tracer(launcher, choice, first=1 + sum(isinstance(value, Symbol | Number) for value in values))
    options = dict(zip(call.names, values[call.positional :], strict=True))
    if choice.algorithm is not None:
        options["algorithm"] = choice.algorithm
    return tracer.program(getattr(tracer, call.op)(*values[: call.positional], **options))


class Tracer(KernelOps):
    """The ops on symbols: writes down what they allocate and launch."""

    def __init__(self, launcher: Launcher, choice: Choice, first: int) -> None:
        device: Any = SimpleNamespace(
            xp=SymbolicArrays(self._allocate), capability=launcher.capability, sms=launcher.sms
        )
        super().__init__(device)
        self._first = self._free = first  # slots
        self._real, self._choice = launcher, choice
        self._pending: list[Make] = []
        self._bytes: dict[int, int] = {}  # slot -> what is allocated for it
        self._steps: list[tuple[tuple[Make, ...], Plan, tuple[int, ...], set[int]]] = []

    @property
    def target(self) -> Target:
        target, choice = super().target, self._choice
        hopper, cluster = choice.hopper or target.hopper, choice.cluster or target.cluster
        return replace(target, edge=choice.edge, splits=choice.splits, hopper=hopper, cluster=cluster)

    def each_call(self, function: Callable[[Any], Any], number: Any) -> Any:
        if not isinstance(number, Number):
            return function(number)
        return Number(self._make(function, (), number.slot))

    def run(self, plan: Plan, *arrays: Array | None) -> None:
        self._write_down(plan, (), arrays)

    def run_mapped(self, plan: MappedPlan, *arrays: Array | None) -> None:
        self._write_down(plan.launch, plan.maps, arrays)

    def _write_down(self, plan: Plan, maps: tuple[TensorMap, ...], arrays: tuple[Array | None, ...]) -> None:
        if plan.empty:
            return
        places = [0 if a is None else self._slot(a) if a.moved else a.slot for a in arrays]
        mapped = [self._make(partial(self._real.tensor_map, m), (), at) for m, at in zip(maps, places, strict=False)]
        numbers = [arg.slot for arg in plan.args if isinstance(arg, Number)]
        slots = (*mapped, *places[len(maps) :], *numbers)
        make = self._take()
        used = {*places, *slots} | {one.slot for one in make if one.slot is not None}
        self._steps.append((make, plan, slots, used))

    def program(self, results: Any) -> Program:
        """What was written down, as a program that returns `results`."""
        several = results if isinstance(results, tuple) else (results,)
        slots = tuple(self._make(NoneType) if a is None else self._slot(a) if a.views else a.slot for a in several)
        kept = {a.slot for a in several if a is not None}
        last = {slot: at for at, (*_, used) in enumerate(self._steps) for slot in used}
        steps, alive, most, made = [], 0, 0, self._first
        for at, (make, plan, wiring, used) in enumerate(self._steps):
            new = range(made, made + len(make))
            made = new.stop
            alive += sum(self._bytes.get(slot, 0) for slot in new if slot not in kept)
            most = max(most, alive)
            done = [slot for slot in used if slot >= self._first and last[slot] == at and slot not in kept]
            alive -= sum(self._bytes.get(slot, 0) for slot in done)
            steps.append(Step(make, plan, wiring, tuple(sorted(done))))
        return Program(self._real, steps, self._take(), slots if isinstance(results, tuple) else slots[0], most)

    def _allocate(self, kind: str, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None) -> Symbol:
        function = getattr(self._real.xp, kind)
        args: tuple[Any, ...] = shape, dtype
        if strides is not None:  # by position, which costs less than by name; NumPy takes an offset before them
            numpy = isinstance(function, type) and issubclass(function, np.ndarray)
            args += (None, 0, strides) if numpy else (None, strides)
        symbol = Symbol(self._make(function, args), shape, dtype, strides)
        self._bytes[symbol.slot] = symbol.size * symbol.itemsize
        return symbol

    def _slot(self, view: Symbol) -> int:
        """A slot of its own for a view."""
        slot = view.slot
        for method, args in view.views:
            slot = self._make(getattr(self._real.xp.ndarray, method), args, slot)
        return slot

    def _make(self, function: Callable[..., Any], args: tuple[Any, ...] = (), slot: int | None = None) -> int:
        """The slot of what a `Make` will make."""
        self._pending.append(Make(function, args, slot))
        self._free += 1
        return self._free - 1

    def _take(self) -> tuple[Make, ...]:
        pending, self._pending = tuple(self._pending), []
        return pending


class Replayed:
    """An op of a backend that replays the programs of its calls."""

    def __init__(self, backend: KernelBackend, op: str) -> None:
        self.backend, self.op = backend, op
        self.changing = CHANGING.get(op, ())
        self._array = backend.xp.ndarray
        self._plainly = getattr(backend, op)  # the method of the class
        self.__signature__ = inspect.signature(self._plainly)

    def __call__(self, *args: Any, **options: Any) -> Any:
        program, memory = self.find(args, options)
        return self._plainly(*args, **options) if program is None else program.run(memory)

    def find(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Program | Tuned | None, list[Any]]:
        """The program of a call, None if it has none, and the memory that it runs on."""
        backend, array, changing = self.backend, self._array, self.changing
        launcher: Any = backend.launcher
        memory, values = [launcher.null], []
        for value in args:
            if isinstance(value, array):
                memory.append(value)
                value = value.shape, value.strides, value.dtype, address(value) % ALIGNMENT  # `stand_in`, here
            values.append(value)
        for name, value in options.items():
            if isinstance(value, array):
                memory.append(value)
                value = stand_in(value)
            elif name in changing:
                memory.append(value)
                value = Number
            values.append(value)
        call = (self.op, len(args), tuple(options), tuple(values))
        try:
            program = backend.program(call, launcher, launcher.device, precision.current(), tuning.current())
        except TypeError:
            if _hashable(call):
                raise
            program = None
        return program, memory


def _hashable(call: Any) -> bool:
    try:
        hash(call)
    except TypeError:
        return False
    return True
