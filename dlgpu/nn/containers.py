"""Modules made of modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from dlgpu.errors import ShapeError
from dlgpu.nn.module import Module
from dlgpu.tensor import Tensor, cat


class _Container(Module):
    """Modules named "0", "1", ... or by the keys of an OrderedDict."""

    def __init__(self, *modules: Module | OrderedDict[str, Module]) -> None:
        super().__init__()
        named: list[tuple[str, Module]] = []
        for module in modules:
            if isinstance(module, dict):
                named += module.items()
            else:
                named.append((str(len(named)), module))
        for name, module in named:
            if not isinstance(module, Module):  # setattr would take it and forward never call it
                raise ShapeError(f"[{type(self).__name__}] takes modules; got {module!r}")
            setattr(self, name, module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]


class Sequential(_Container):
    """One module after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class Concat(_Container):
    """Every module on the same input, their outputs joined along the channels (inception and fire modules)."""

    def forward(self, x: Tensor) -> Tensor:
        return cat([module(x) for module in self], dim=1)


class Residual(Module):
    """body(x) + shortcut(x), with the identity as default shortcut (He et al. 2016)."""

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))
