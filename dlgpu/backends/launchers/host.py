"""Runs the CUDA kernels on the CPU: g++ compiles kernels/*.cu against bindings/host, for tests and for finding bugs.

Flavours, all of the same kernel sources:

- ``fast``: optimised.
- ``ubsan``: finds array indices out of bounds, misaligned vector accesses, bad shifts, integer overflow.
- ``asan``: ubsan and out of bounds in global and shared memory. Needs a process of its own::

      python -m dlgpu.backends.launchers.host --flavour asan -- pytest tests/test_kernels.py

- ``check``: finds races, reads of shared memory that nobody wrote, out of bounds; counts bank conflicts.

All of them find divergent barriers and warps, deadlocks, launches beyond the limits, and poison shared memory with NaN.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.launching import Start, filled
from dlgpu.backends.kernels.plan import Plan
from dlgpu.backends.kernels.tensor_map import Im2col, TensorMap, encodable
from dlgpu.backends.launchers import host_arguments
from dlgpu.backends.launchers.host_arguments import Parameter
from dlgpu.errors import BackendUnavailable, DlgpuError, ShapeError, UnknownName
from dlgpu.files import cache_folder

ROOT = Path(__file__).parents[3]
KERNELS, RUNTIME = ROOT / "kernels", ROOT / "bindings" / "host"

_UNDEFINED = "-fsanitize=bounds-strict,alignment,shift,integer-divide-by-zero,signed-integer-overflow"
# flavour: how the kernels are compiled, how the runtime is, how both are linked
FLAVOURS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "fast": ([], [], []),
    "ubsan": ([_UNDEFINED], [], []),
    "asan": ([_UNDEFINED, "-fsanitize=address"], ["-DDL_ASAN"], ["-fsanitize=address"]),
    # Without libtsan: bindings/host/check.cpp is what the instrumented code calls.
    "check": (
        [_UNDEFINED, "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fno-tree-vectorize"],
        ["-DDL_CHECK"],
        [],
    ),
}
ORDERS, COPIES = ("forward", "reverse", "random"), ("late", "early", "random")  # as in bindings/host/block.h
_COMMON = ["-std=c++17", "-O2", "-fPIC", "-DDL_HOST", "-Wno-unknown-pragmas", "-Wno-psabi"]
_COMMON += ["-fno-strict-aliasing"]  # kernels read floats as float4
_COMMON += ["-fvisibility=hidden", "-fno-gnu-unique"]  # two flavours in one process must not share statics
_COMMON += ["-g1"]  # line tables, for the positions in errors


class HostLauncher:
    """The kernels of kernels/*.cu on the CPU, compiled at the first use of a flavour and kept in a cache folder.

    Args:
        flavour: a key of `FLAVOURS`; None: `$DLGPU_HOST_FLAVOUR`, or "fast".
        extra_sources: more .cu files.
        project_kernels: False leaves out kernels/*.cu.

    Raises:
        BackendUnavailable: no g++, CUDA headers, pybind11 or sources, or the flavour needs a process of its own.
        DlgpuError: a source does not compile.
    """

    xp, null = numpy, None
    capability, sms, device = 90, 132, 0  # plans are made as for an H100

    def __init__(
        self, flavour: str | None = None, extra_sources: Iterable[Path] = (), *, project_kernels: bool = True
    ) -> None:
        self.flavour = flavour or os.environ.get("DLGPU_HOST_FLAVOUR", "fast")
        if self.flavour not in FLAVOURS:
            raise UnknownName("host launcher", "flavour", self.flavour, FLAVOURS)
        if self.flavour == "asan" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
            raise BackendUnavailable(
                "[host launcher] the asan flavour needs its library loaded before Python's; "
                "run `python -m dlgpu.backends.launchers.host --flavour asan -- COMMAND`"
            )
        own = sorted(KERNELS.glob("*.cu")) if project_kernels else []
        self._library = build(self.flavour, [*own, *map(Path, extra_sources)])
        name = f"{self._library.parent.name}.dlgpu_host"  # pybind11 keeps one module per name, also from other files
        loader = importlib.machinery.ExtensionFileLoader(name, str(self._library))
        spec = importlib.util.spec_from_file_location(name, self._library, loader=loader)
        assert spec
        self._module: Any = importlib.util.module_from_spec(spec)
        loader.exec_module(self._module)
        self._kernels: dict[str, tuple[str, list[Parameter]]] = {}  # by canonical name; as its DL_KERNEL line spells it
        for line in self._module.names():
            found = line, [Parameter(*fields) for fields in self._module.parameters(line)]
            if self._kernels.setdefault(_canonical(line), found) is not found:
                raise DlgpuError(f"[host launcher] two DL_KERNEL lines register {line}")

    def kernels(self) -> list[str]:
        """What the DL_KERNEL lines name."""
        return list(self._kernels)

    def signature(self, kernel: str) -> list[str]:
        """The kernel's parameter types as C++ spells them: "const float*", "int", "dl::Pool2d"."""
        return [parameter.text for parameter in self._kernel(kernel)[1]]

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: tuple[Any, ...],
        shared_bytes: int = 0,
    ) -> None:
        """Runs `kernel` to its end.

        Args:
            kernel: one of `kernels()`; spaces do not matter.
            grid, block: sizes along x, y, z.
            args: arrays (of any strides: the kernel gets the data pointer) or None for pointers, numbers, and NumPy
                structured scalars or bytes for structs.
            shared_bytes: of dynamic shared memory.

        Raises:
            TypeError, ValueError, OverflowError: an argument does not fit the kernel's parameter.
            RuntimeError: the launch breaks a limit, or the kernel a rule of CUDA: which, where, in which thread.
        """
        name, parameters = self._kernel(kernel)
        values, memory = host_arguments.packed(name, parameters, args)
        try:
            self._module.launch(name, grid, block, values, memory, shared_bytes)
        except RuntimeError as error:
            raise RuntimeError(_positions_to_lines(self._library, str(error))) from None

    def _kernel(self, kernel: str) -> tuple[str, list[Parameter]]:
        try:
            return self._kernels[_canonical(kernel)]
        except KeyError:
            raise UnknownName("host launcher", "kernel", kernel, self._kernels) from None

    def identity(self) -> dict[str, str]:
        """Of the processor."""
        return {"gpu": f"none: {platform.machine()} {self.flavour}", "driver": "g++"}

    def prepare(self, plan: Plan) -> Start:
        """The plan as a function of its arrays."""
        kernel, grid, block, args, shared = plan.kernel, plan.grid, plan.block, plan.args, plan.shared_bytes
        return lambda values: self.launch(kernel, grid, block, filled(args, values), shared)

    def tensor_map(self, description: TensorMap, array: numpy.ndarray) -> numpy.ndarray:
        """What bindings/host/hopper.cpp reads in place of the driver's CUtensorMap; refuses what the driver would."""
        if not encodable(description) or array.ctypes.data % 16 or description.extent > array.nbytes:
            raise ShapeError(f"[host launcher] TMA takes no such map; got {description} of {array.nbytes} bytes")
        m = description
        corners = (*m.lower, *m.upper, 1, *m.steps, 1) if isinstance(m, Im2col) else (0, 0, 0, 0, 1, 1, 1, 1)
        box = (m.channels, m.pixels) if isinstance(m, Im2col) else m.box
        sizes, strides, boxes = ((*t, *(0,) * 4)[:n] for t, n in ((m.sizes, 4), (m.strides, 3), (box, 4)))
        head = (0x4D414D54, len(m.sizes), isinstance(m, Im2col), array.itemsize, 1, array.ctypes.data)
        raw = struct.pack("=I4BQ4I3Q4H4b4B", *head, *sizes, *strides, *boxes, *corners)
        return numpy.frombuffer(raw.ljust(128, b"\0"), sources.struct("TensorMap")).reshape(())

    def configure(
        self, order: str = "forward", block_order: str = "forward", copies: str = "late", seed: int = 0
    ) -> None:
        """The order of threads and blocks (forward, reverse, random); when cp.async lands (late, early, random)."""
        for what, value, known in [
            ("order", order, ORDERS),
            ("order", block_order, ORDERS),
            ("copies", copies, COPIES),
        ]:
            if value not in known:
                raise UnknownName("host launcher", what, value, known)
        self._module.configure(ORDERS.index(order), ORDERS.index(block_order), COPIES.index(copies), seed)

    def bank_conflicts(self) -> dict[str, float]:
        """Line -> passes through shared memory per pass needed, of the last launch (check flavour, its first block)."""
        passes: dict[str, list[int]] = {}
        for position, taken, needed in self._module.bank_conflicts():
            line = _positions_to_lines(self._library, position)
            total = passes.setdefault(line, [0, 0])
            total[0] += taken
            total[1] += needed
        return {line: taken / needed for line, (taken, needed) in passes.items()}


def _canonical(kernel: str) -> str:
    """ "f< float,8 >" -> "f<float, 8>": the same name however it is spaced."""
    return re.sub(r"\s*([<>,])\s*", r"\1", kernel.strip()).replace(",", ", ")


def check_requirements() -> None:
    """Everything that a build needs is there; raises `BackendUnavailable`, which names what is not."""
    if not (RUNTIME / "shim.h").exists():
        raise BackendUnavailable(f"[host launcher] needs a source checkout of dlgpu; {RUNTIME} does not exist")
    for requirement in (_compiler, _cuda_includes, _python_includes):
        requirement()


def build(flavour: str, sources: Sequence[Path]) -> Path:
    """The compiled module of `sources` and the runtime; only objects that no earlier build made are compiled."""
    check_requirements()
    kernel_flags, runtime_flags, link_flags = FLAVOURS[flavour]
    compile_ = [_compiler(), *_COMMON, *_machine_flags(), *_cuda_includes(), f"-I{RUNTIME}", f"-I{KERNELS}"]
    jobs: list[tuple[Path, list[str]]] = []
    for source in sorted(RUNTIME.glob("*.cpp")):  # first, so that the linker prefers its copies of inline functions
        python = _python_includes() if source.name == "module.cpp" else []
        jobs.append((source, [*compile_, *python, *runtime_flags]))
    jobs += [(source, [*compile_, *kernel_flags, "-x", "c++"]) for source in sources]

    folder = cache_folder("host")
    objects = [(folder / "objects" / f"{source.stem}-{_digest(source, command)}.o") for source, command in jobs]
    link = [_compiler(), "-shared", *link_flags, "-Wl,-Bsymbolic"]
    key = hashlib.sha256(repr((link, sorted(map(str, objects)))).encode()).hexdigest()[:16]
    library = folder / f"{flavour}-{key}" / f"dlgpu_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        with _locked(folder):
            missing = [(job, o) for job, o in zip(jobs, objects, strict=True) if not o.exists()]
            with ThreadPoolExecutor(max_workers=2) as pool:
                for done in [pool.submit(_produce, o, [*flags, "-c", str(s)]) for (s, flags), o in missing]:
                    done.result()
            if not library.exists():
                _produce(library, [*link, *map(str, objects)])
    return library


def _produce(target: Path, command: list[str]) -> None:
    """Runs a compiler whose output takes the name `target` only when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    result = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error:" in line] or result.stderr.splitlines()
        raise DlgpuError(f"[host launcher] {command[-1]} does not compile:\n" + "\n".join(errors[:8]))
    part.replace(target)


def _digest(source: Path, command: list[str]) -> str:
    """Of all that the object depends on: compiler, flags, the source and what it includes by name."""
    digest = hashlib.sha256(repr((_compiler_version(), command)).encode())
    waiting, seen = [source], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_bytes()
        digest.update(str(path).encode() + text)  # the path too: error positions name it
        for name in re.findall(rb'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            candidates = [folder / name.decode() for folder in (path.parent, KERNELS, RUNTIME)]
            waiting += [c for c in candidates if c.exists()][:1]
    return digest.hexdigest()[:16]


@cache
def _compiler() -> str:
    gxx = os.environ.get("CXX") or shutil.which("g++")
    if not gxx:
        raise BackendUnavailable(
            "[host launcher] needs g++ to compile the kernels; install it (Debian: apt install g++)"
        )
    return gxx


@cache
def _compiler_version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _machine_flags() -> list[str]:
    """AVX2 and half-precision conversion where the CPU has them: the kernels run up to three times faster."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return ["-march=x86-64-v3"] if {"avx2", "bmi2", "fma", "f16c", "movbe", "abm"} <= flags else []


@cache
def _cuda_includes() -> list[str]:
    return [f"-isystem{folder}" for folder in cuda_headers("cuda_fp16.h", "crt/host_defines.h", "nv/target")]


@cache
def _python_includes() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise BackendUnavailable('[host launcher] needs pybind11; `pip install "dlgpu[test]"`') from None
    return [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time: parallel test workers wait for the first instead of repeating its work."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _positions_to_lines(library: Path, text: str) -> str:
    """Replaces the code addresses @+0x1234@ in an error by the kernel lines that they belong to."""
    return re.sub(r"@\+(0x[0-9a-f]+)@", lambda match: _line_of(library, int(match[1], 16)), text)


@cache
def _line_of(library: Path, address: int) -> str:
    tool = shutil.which("addr2line")
    if not tool:
        return hex(address)
    command = [tool, "-i", "-e", str(library), hex(address - 1)]  # a return address: the call is before it
    frames = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    lines = [frame.split(" (")[0] for frame in frames if frame]
    wrappers = (str(RUNTIME), str(KERNELS / "arch.cuh"), str(KERNELS / "hopper.cuh"), "??")
    return next((line for line in lines if not line.startswith(wrappers)), hex(address))


def own_process_environment(flavour: str) -> dict[str, str]:
    """The variables under which a process runs the kernels in `flavour`, also if that needs a library loaded first."""
    environment = {"DLGPU_HOST_FLAVOUR": flavour}
    if flavour == "asan":
        # libstdc++ too: else AddressSanitizer finds no `throw` to wrap, and dies at the first C++ exception.
        names = ("libasan.so", "libstdc++.so.6")
        found = [
            subprocess.run([_compiler(), f"-print-file-name={n}"], capture_output=True, text=True).stdout.strip()
            for n in names
        ]
        environment |= {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dlgpu.backends.launchers.host", description=main.__doc__)
    parser.add_argument("--flavour", choices=FLAVOURS, default="fast")
    parser.add_argument("command", nargs="+", help="after --: what to run, for example pytest")
    arguments = parser.parse_args()
    os.execvpe(arguments.command[0], arguments.command, os.environ | own_process_environment(arguments.flavour))


if __name__ == "__main__":
    main()
