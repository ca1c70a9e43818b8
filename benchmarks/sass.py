"""The machine code of a cubin, read with NVIDIA's disassembler: what a kernel's inner loop really consists of."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dlgpu.backends.kernels.compile import compile_family

# A label, or an instruction after its address (in braces if it starts together with the next one).
LINE = re.compile(r"\.(L_x_\d+:)|\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*([^;]*?)\s*;")


def disassembler() -> str | None:
    """nvdisasm from the CUDA toolkit, or from the wheel nvidia-cuda-nvdisasm; None if neither is there."""
    found = shutil.which("nvdisasm")
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    wheels = [path for folder in folders or () for path in sorted(Path(folder).glob("*/bin/nvdisasm"))]
    return found or next(map(str, wheels), None)


def machine_code(family: str, arch: str, only: Sequence[str] = ()) -> dict[str, list[str]]:
    """Instantiation -> its lines as `functions` has them, of a family or `only` some. Raises as the compiler does."""
    compiled = compile_family(family, arch, only)
    code = functions(compiled.cubin)
    return {name: code[mangled] for name, mangled in compiled.names.items()}


def functions(cubin: bytes) -> dict[str, list[str]]:
    """Mangled name -> its lines: labels ("L_x_3:") and instructions ("@P0 LDG.E.128 R4, [R2.64]")."""
    tool = disassembler()
    assert tool, "callers skip without a disassembler"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"\.text\.(\w+):", line):
            lines = found.setdefault(match[1], [])
        elif match := LINE.match(line):
            lines.append(match[1] or match[2])
    return found


def opcode(instruction: str) -> str:
    """ "@!P0 LDG.E.128 R4, [R2.64]" -> "LDG.E.128"."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def main_loop(lines: list[str], unit: str) -> list[str]:
    """The opcodes of the innermost loop with most `unit` instructions: from the target of a backward branch to it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
            continue
        instructions.append(line)
        target = re.search(r"L_x_\d+", line)
        if opcode(line).startswith("BRA") and target and target[0] in labels:
            loops.append((labels[target[0]], len(instructions)))

    def units(loop: tuple[int, int]) -> int:
        return sum(opcode(i).startswith(unit) for i in instructions[slice(*loop)])

    loops = [loop for loop in loops if units(loop)]
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    assert innermost, f"no loop with {unit}"
    return [opcode(i) for i in instructions[slice(*max(innermost, key=units))]]
