"""The layer table of a network: output shapes, parameters and floating-point operations."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from dlgpu.autograd import no_grad
from dlgpu.backends import shapes
from dlgpu.backends.kernels.recorder import Recorder
from dlgpu.nn.layers import Conv2d, ConvTranspose2d, Linear
from dlgpu.nn.module import Module
from dlgpu.tensor import Tensor


@dataclass(frozen=True)
class LayerRow:
    """One line of the table. `flops` counts 2 per multiply-accumulate of convolutions and dense layers, else 0."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int


def layer_rows(model: Module, input_shape: tuple[int, ...]) -> list[LayerRow]:
    """What the innermost layers of `model` make of an input of `input_shape` (N, C, H, W), in evaluation mode.

    Nothing is computed: ops only plan (`dlgpu.backends.kernels.recorder`), on zeros that take no memory until they are
    read. So the table of a large network takes no longer than that of a small one.
    """
    rows: list[LayerRow] = []
    leaves = [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]
    training = {module: module.training for module in model.modules()}

    def note(name: str) -> Any:
        def hook(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            count = sum(p.size for p in module.parameters())
            rows.append(LayerRow(name, type(module).__name__, output.shape, count, _flops(module, inputs)))

        return hook

    remove = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with no_grad(), _on_recorder(model) as recorder:
            model.eval()(Tensor(np.zeros(input_shape, np.float32), recorder))
    finally:
        for undo in remove:
            undo()
        for module, mode in training.items():
            module.__dict__["training"] = mode
    return rows


def _zeros(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]) -> np.ndarray:
    """Zeros that lie as `strides` say, without gaps."""
    return np.ndarray(shape, dtype, np.zeros(math.prod(shape), dtype), 0, strides)


@contextmanager
def _on_recorder(model: Module) -> Iterator[Recorder]:
    """Inside, parameters and buffers are float32 zeros on a `Recorder`."""
    recorder = Recorder(xp=SimpleNamespace(**{**vars(np), "empty": np.zeros, "ndarray": _zeros}))
    tensors = [*model.parameters(), *(buffer for _, buffer in model.named_buffers())]
    before = [(tensor, tensor.data, tensor.backend) for tensor in tensors]
    for tensor in tensors:
        tensor.data, tensor.backend = np.zeros(tensor.shape, np.float32), recorder
    try:
        yield recorder
    finally:
        for tensor, data, backend in before:
            tensor.data, tensor.backend = data, backend


def _flops(module: Module, inputs: tuple[Any, ...]) -> int:
    if isinstance(module, Linear):
        return 2 * inputs[0].size * module.weight.shape[0]
    if isinstance(module, Conv2d):
        how = (module.stride, module.padding, module.dilation, module.groups)
        return 2 * shapes.Conv2d.of("summary", inputs[0].shape, module.weight.shape, None, *how).macs
    if isinstance(module, ConvTranspose2d):
        sizes = (module.stride, module.padding, module.output_padding, module.dilation, module.groups)
        return 2 * shapes.conv_transpose("summary", inputs[0].shape, module.weight.shape, None, *sizes).macs
    return 0


def summary(model: Module, input_shape: tuple[int, ...]) -> str:
    """The table as text, with totals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = layer_rows(model, input_shape)
    total = sum(p.size for p in model.parameters())
    trained = sum(p.size for p in model.parameters() if p.requires_grad)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, title=f"{type(model).__name__}, input {input_shape}")
    table.add_column("layer", f"{len(rows)} layers")
    table.add_column("kind")
    table.add_column("output shape")
    table.add_column(
        "parameters", f"{total:,}" + ("" if trained == total else f" ({trained:,} trained)"), justify="right"
    )
    table.add_column("MFLOP", f"{sum(row.flops for row in rows) / 1e6:,.2f}", justify="right")
    for row in rows:
        flops = f"{row.flops / 1e6:,.2f}" if row.flops else ""
        shape = " × ".join(map(str, row.output_shape))
        table.add_row(row.name, row.kind, shape, f"{row.parameters:,}" if row.parameters else "", flops)
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return text.getvalue()
