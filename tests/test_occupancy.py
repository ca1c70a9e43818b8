"""Resident blocks per SM: worked out by hand, and against NVIDIA's own cuda_occupancy.h, compiled with g++."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from dlgpu.backends.cuda_headers import cuda_headers
from dlgpu.backends.kernels.compile import ARCHITECTURES, Resources, compile_family
from dlgpu.backends.kernels.occupancy import MULTIPROCESSORS, occupancy, resident_blocks
from dlgpu.backends.launchers.host import check_requirements
from dlgpu.errors import BackendUnavailable


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared_bytes", "blocks"),
    [
        ("sm_90", 256, 32, 0, 8),  # 64 warps / 8
        ("sm_80", 256, 128, 0, 2),  # 128 * 256 registers: two blocks fill the 65,536
        ("sm_80", 256, 129, 0, 1),  # 129 * 32 rounds up to 4,352 a warp: 3 warps a partition, 12 in all
        ("sm_75", 256, 128, 33 * 1024, 1),  # 64 KiB of shared memory hold one of 33
        ("sm_75", 256, 128, 32 * 1024, 2),
        ("sm_80", 256, 32, 40 * 1024, 4),  # 41 KiB with the reserved one: 4 times into 164
        ("sm_86", 256, 32, 0, 6),  # 48 warps / 8
        ("sm_86", 32, 32, 0, 16),  # the most blocks
        ("sm_89", 32, 32, 0, 24),
        ("sm_90", 64, 168, 0, 6),  # 5,376 a warp: 3 a partition, 12 warps of 2 a block
        ("sm_90", 1024, 64, 0, 1),
        ("sm_90", 1024, 65, 0, 0),  # 32 warps of 2,304: over 65,536
    ],
)
def test_by_hand(arch: str, threads: int, registers: int, shared_bytes: int, blocks: int) -> None:
    assert resident_blocks(arch, threads, registers, shared_bytes) == blocks


def test_occupancy_is_a_share_of_the_warps() -> None:
    assert occupancy("sm_80", Resources(128, 0, 0, 0, 256, 1)) == 16 / 64
    assert occupancy("sm_86", Resources(128, 0, 0, 0, 256, 1)) == 16 / 48
    assert occupancy("sm_90", Resources(20, 0, 0, 0, 96, 1)) == 63 / 64


def test_every_architecture_is_in_the_table() -> None:
    assert set(MULTIPROCESSORS) == set(ARCHITECTURES)


def test_threads_are_read_from_the_cubin() -> None:
    try:
        compiled = compile_family("dropout", "sm_80")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    assert {r.threads for r in compiled.resources.values()} == {256}  # __launch_bounds__ in kernels/dropout.cuh


PROGRAM = """
#include <climits>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, warps, threads, registers;
  size_t shared_sm, reserved, shared;
  while (scanf("%d %d %d %zu %zu %d %d %zu", &major, &minor, &warps, &shared_sm, &reserved, &threads, &registers,
               &shared) == 8) {
    cudaOccDeviceProp sm;
    sm.computeMajor = major, sm.computeMinor = minor, sm.warpSize = 32;
    sm.maxThreadsPerBlock = 1024, sm.maxThreadsPerMultiprocessor = warps * 32;
    sm.regsPerBlock = sm.regsPerMultiprocessor = 65536;
    sm.sharedMemPerBlock = sm.sharedMemPerBlockOptin = shared_sm - reserved, sm.sharedMemPerMultiprocessor = shared_sm;
    sm.reservedSharedMemPerBlock = reserved, sm.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX, kernel.numRegs = registers, kernel.sharedSizeBytes = shared;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF, kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = INT_MAX, kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &sm, &kernel, &state, threads, 0)) return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_agrees_with_nvidias_calculator(tmp_path: Path) -> None:
    try:
        check_requirements()
        folders = cuda_headers("cuda_occupancy.h")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(PROGRAM)
    subprocess.run(["g++", "-w", *(f"-I{f}" for f in folders), str(source), "-o", str(program)], check=True)
    threads, registers = (32, 64, 96, 128, 256, 384, 512, 1024), (8, 33, 63, 64, 65, 128, 129, 168, 255)
    shared_bytes = (0, 1, 4096, 16_896, 33_792, 49_152)
    cases = list(itertools.product(ARCHITECTURES, threads, registers, shared_bytes))
    lines = []
    for arch, *sizes in cases:
        sm, version = MULTIPROCESSORS[arch], arch.removeprefix("sm_").rstrip("a")
        limits = (version[:-1], version[-1], sm.warps, sm.shared_bytes, sm.reserved_bytes)
        lines.append(" ".join(map(str, (*limits, *sizes))))
    run = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True)
    theirs = list(map(int, run.stdout.split()))
    assert [resident_blocks(*case) for case in cases] == theirs
