"""The CUDA sources as Python sees them: where they are, which instantiations exist, what their arguments are.

The sources are the only list. `kernels/<family>.cu` names each instantiation in a line `DL_KERNEL(...)`; the kernel's
declaration in `<family>.cuh` gives its argument types; `struct` definitions give the layout of what is passed by value.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import dlgpu
from dlgpu.errors import DtypeError, UnknownName

# C++ scalar -> the NumPy type that has its size
SCALARS: dict[str, np.dtype] = {
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "float": np.dtype(np.float32),
}
# NumPy element type -> the C++ type that kernels are instantiated with
STORAGE = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}


@dataclass(frozen=True)
class Parameter:
    """One argument of a kernel: a pointer, a scalar, or a struct of 32-bit ints (`type` is then a structured dtype)."""

    name: str
    pointer: bool
    type: np.dtype | None


@cache
def folder() -> Path:
    """Where the sources are: in the installed package, else beside it in a checkout."""
    package = Path(dlgpu.__file__).parent
    installed = package / "kernels"
    return installed if installed.is_dir() else package.parent / "kernels"


@cache
def digest() -> str:
    """Of every source file: what was compiled from others has another one. CMakeLists.txt computes the same."""
    hashes = (
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(folder().glob("*.cu*"))
    )
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


@cache
def families() -> dict[str, tuple[str, ...]]:
    """Family -> the names of its instantiations, in the order of its .cu file."""
    pattern = re.compile(r"^DL_KERNEL\((.+)\)$", re.MULTILINE)
    return {path.stem: tuple(pattern.findall(path.read_text())) for path in sorted(folder().glob("*.cu"))}


@cache
def family_of(kernel: str) -> str:
    """The family that instantiates `kernel`; raises `UnknownName`."""
    for family, names in families().items():
        if kernel in names:
            return family
    raise UnknownName("kernels", "kernel", kernel, [name for names in families().values() for name in names])


@cache
def parameters(kernel: str) -> tuple[Parameter, ...]:
    """The arguments of a kernel, from its declaration."""
    text = _code(family_of(kernel))
    name = kernel.split("<")[0].removeprefix("dl::")
    found = re.search(rf"__global__\s+void[^;{{]*?\b{name}\(([^{{]*?)\)\s*\{{", text)
    if found is None:
        raise UnknownName("kernels", "kernel declaration", name, families())
    return tuple(_parameter(" ".join(part.split())) for part in found.group(1).split(","))


def _parameter(declaration: str) -> Parameter:
    declaration = re.sub(r"__restrict__|const |__grid_constant__", "", declaration).strip()
    kind, name = declaration.rsplit(None, 1) if "*" not in declaration else declaration.rsplit("*", 1)
    if "*" in declaration:
        return Parameter(name.strip(), True, None)
    kind = kind.strip()
    return Parameter(name, False, SCALARS.get(kind) or struct(kind))


@cache
def struct(name: str) -> np.dtype:
    """The NumPy twin of a POD struct of 32-bit ints (other such structs may be members)."""
    text = "\n".join(path.read_text() for path in sorted(folder().glob("*.cuh")))
    found = re.search(rf"struct (?:alignas\(\d+\) )?{name} \{{(.*?)\}};", text, re.DOTALL)
    if found is None:
        raise UnknownName("kernels", "struct", name, SCALARS)
    fields: list[tuple[str, np.dtype] | tuple[str, np.dtype, int]] = []
    for line in re.sub(r"//[^\n]*", "", found.group(1)).split(";"):
        if line.strip():
            kind, names = _split_type(line)
            fields += [_field(field.strip(), SCALARS.get(kind) or struct(kind)) for field in names.split(",")]
    return np.dtype(fields)


def _split_type(line: str) -> tuple[str, str]:
    """ "unsigned long long words[16]" -> its scalar or struct, and the names."""
    line = " ".join(line.split())
    kind = max((scalar for scalar in SCALARS if line.startswith(scalar + " ")), key=len, default=line.split()[0])
    return kind, line.removeprefix(kind)


def _field(name: str, kind: np.dtype) -> tuple[str, np.dtype] | tuple[str, np.dtype, int]:
    if array := re.fullmatch(r"(\w+)\[(\d+)\]", name):
        return array[1], kind, int(array[2])
    return name, kind


def _code(family: str) -> str:
    return re.sub(r"//[^\n]*", "", (folder() / f"{family}.cuh").read_text())


def storage(op: str, dtype: np.dtype) -> str:
    """The C++ storage type for an array dtype; raises `DtypeError` for one that kernels do not have."""
    if str(dtype) not in STORAGE:
        raise DtypeError(f"[{op}] kernels take {', '.join(STORAGE)}; got {dtype}")
    return STORAGE[str(dtype)]


def pack(type_name: str, *values: Any) -> np.ndarray:
    """A struct as a 0-d structured array, from its fields in order."""
    return np.array(values, struct(type_name))
