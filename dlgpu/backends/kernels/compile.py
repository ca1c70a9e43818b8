"""Compile a kernel family with NVRTC, from pip wheels alone: no nvcc, no GPU, no driver.

It serves the CuPy launcher for targets that CuPy cannot name (`sm_90a`), the tests, which compile every instantiation
for every architecture, and the table of registers and occupancy in docs/kernels.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.backends.kernels.sources import families, folder
from dlgpu.errors import BackendUnavailable, DlgpuError, UnknownName

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")


class CompileError(DlgpuError, RuntimeError):
    """NVRTC refused a kernel family; the message holds its first complaint."""


@dataclass(frozen=True)
class Resources:
    """What one instantiation takes on one architecture: per thread, but for `shared_bytes` per block (static)."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    threads: int  # per block, the most it may be launched with
    cluster: int  # blocks


@dataclass(frozen=True)
class Compiled:
    """A family for one architecture."""

    cubin: bytes
    names: dict[str, str]  # instantiation -> mangled name
    resources: dict[str, Resources]
    warnings: str


def compile_family(family: str, arch: str, only: Sequence[str] = ()) -> Compiled:
    """Compile every instantiation of a family, or `only` these, for one of `ARCHITECTURES`.

    Raises:
        UnknownName: no such family, instantiation or architecture.
        BackendUnavailable: NVRTC or the CUDA headers are not installed.
        CompileError: the source does not compile.
    """
    if family not in families():
        raise UnknownName("kernels", "family", family, families())
    if arch not in ARCHITECTURES:
        raise UnknownName("kernels", "architecture", arch, ARCHITECTURES)
    wanted = only or families()[family]
    for name in wanted:
        if name not in families()[family]:
            raise UnknownName("kernels", "kernel", name, families()[family])
    nvrtc = _nvrtc()

    def call(function: Any, *arguments: Any) -> Any:
        status, *result = function(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"[kernels] {function.__name__} failed; got {status.name} for {family}, {arch}")
        return result[0] if result else None

    source = (folder() / f"{family}.cu").read_bytes()
    program = call(nvrtc.nvrtcCreateProgram, source, f"{family}.cu".encode(), 0, [], [])
    try:
        for name in wanted:
            call(nvrtc.nvrtcAddNameExpression, program, f"&{name}".encode())
        includes = [f"-I{folder()}", *(f"-I{path}" for path in cuda_headers("cuda_fp16.h", "nv/target"))]
        options = [f"-arch={arch}", "-std=c++17", "--ptxas-options=-v", *includes]
        status = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
        log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
        call(nvrtc.nvrtcGetProgramLog, program, log)
        text = log.decode(errors="replace").rstrip("\0 ")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            complaint = next((line for line in text.splitlines() if "error" in line), text[:200])
            raise CompileError(f"[kernels] {family} must compile for {arch}; got: {complaint}")
        cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
        call(nvrtc.nvrtcGetCUBIN, program, cubin)
        names = {name: call(nvrtc.nvrtcGetLoweredName, program, f"&{name}".encode()).decode() for name in wanted}
    finally:
        call(nvrtc.nvrtcDestroyProgram, program)
    return Compiled(cubin, names, _resources(text, cubin, names), "\n".join(re.findall(r".*warning.*", text)))


def _resources(log: str, cubin: bytes, names: dict[str, str]) -> dict[str, Resources]:
    """Read ptxas's report: for each function a line of stack and spills, then one of registers. The rest: the cubin."""
    threads, clusters = _info(cubin, _MAX_THREADS), _info(cubin, _CLUSTER)
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    found = {}
    for match in pattern.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found[match["name"]] = Resources(
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
            int(shared[1]) if shared else 0,
            threads[match["name"]],
            clusters.get(match["name"], 1),
        )
    return {name: found[mangled] for name, mangled in names.items()}


def _info(cubin: bytes, wanted: tuple[int, int]) -> dict[str, int]:
    """Mangled name -> an attribute's x * y * z, from the .nv.info sections of the ELF file."""
    table, size, count, strings = *struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]  # name, .., offset, bytes
    found = {}
    for name, _, _, _, at, length in headers:
        start = headers[strings][4] + name
        section = cubin[start : cubin.index(b"\0", start)].decode()
        if not section.startswith(".nv.info."):
            continue
        end = at + length
        while at < end:  # attributes: kind of value, which, and two bytes: the value, or the size of what follows
            kind, attribute, value = struct.unpack_from("<BBH", cubin, at)
            if (kind, attribute) == wanted:
                x, y, z = struct.unpack_from("<3I", cubin, at + 4)
                found[section.removeprefix(".nv.info.")] = x * y * z
            at += 4 + (value if kind == _SIZED else 0)
    return found


_SIZED = 4
_MAX_THREADS, _CLUSTER = (_SIZED, 5), (_SIZED, 0x3D)  # `__launch_bounds__`, `__cluster_dims__`


def _nvrtc() -> Any:
    """The NVRTC bindings of cuda-python, with a library that loads."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendUnavailable(
            f'[kernels] NVRTC is missing; got {type(error).__name__}: {error}: pip install "dlgpu[test]"'
        ) from error
    return nvrtc
