"""How many blocks of a kernel one multiprocessor (SM) holds at a time, from what the kernel takes of it.

Limits: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; how they are shared out:
`cuda_occupancy.h` of the CUDA toolkit, with which the tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlgpu.backends.kernels.compile import Resources


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one SM share, besides its registers."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory for each block, by the system
    shared_unit: int  # shared memory is given to blocks in multiples of this


_SM_89 = Multiprocessor(48, 24, 100 * 1024, 1024, 128)
_SM_90 = Multiprocessor(64, 32, 228 * 1024, 1024, 128)
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 * 1024, 0, 256),
    "sm_80": Multiprocessor(64, 32, 164 * 1024, 1024, 128),
    "sm_86": Multiprocessor(48, 16, 100 * 1024, 1024, 128),
    "sm_89": _SM_89,
    "sm_90": _SM_90,
    "sm_90a": _SM_90,
    "sm_100": _SM_90,
    "sm_120": _SM_89,
}
# The same on all of them: registers of an SM, a quarter in each of its partitions, given to warps in multiples of 256.
REGISTERS, PARTITIONS, REGISTER_UNIT = 65_536, 4, 256


def resident_blocks(arch: str, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks of `threads` threads with `registers` each and `shared_bytes` per block that fit on one SM; 0: none."""
    sm = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    per_warp = _round_up(registers * 32, REGISTER_UNIT)
    if per_warp * _round_up(warps, PARTITIONS) > REGISTERS:  # a launch counts every partition like the fullest
        return 0
    by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps
    shared = _round_up(shared_bytes + sm.reserved_bytes, sm.shared_unit)
    by_shared = sm.shared_bytes // shared if shared else sm.blocks
    return min(sm.blocks, sm.warps // warps, by_registers, by_shared)


def occupancy(arch: str, kernel: Resources) -> float:
    """Resident warps as a share of the most that the SM holds, for full blocks without dynamic shared memory."""
    blocks = resident_blocks(arch, kernel.threads, kernel.registers, kernel.shared_bytes)
    return blocks * -(-kernel.threads // 32) / MULTIPROCESSORS[arch].warps


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
