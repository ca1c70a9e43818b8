"""What the compiler made of the inner loops: shares and widths counted in the machine code, without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from benchmarks import sass
from dlgpu.backends.kernels.sources import families
from dlgpu.errors import BackendUnavailable

# One of each generation of instruction sets.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
STAGES = 3  # kStages: the loops of mma.sync are unrolled as often

pytestmark = pytest.mark.skipif(
    sass.disassembler() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm, or the CUDA toolkit"
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


def code_of(family: str, arch: str, chosen: Callable[[str], bool]) -> dict[str, list[str]]:
    """Instantiation -> its code, of those chosen."""
    try:
        return sass.machine_code(family, arch, [name for name in families()[family] if chosen(name)])
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def gemm(arch: str) -> dict[str, list[str]]:
    """The float32 products with vectors: two tiles, every transposition."""
    return code_of("gemm", arch, lambda name: name.startswith("dl::gemm_simt<float") and name.endswith(" 4>"))


def test_loops_are_found() -> None:
    lines = "MOV R1, R2|L_x_0:|FFMA R0, R1|L_x_1:|@P0 LDS.128 R4, [R2]|FFMA R0|FFMA R3|@!P1 BRA `(.L_x_1)|BRA `(.L_x_0)"
    assert sass.main_loop(lines.split("|"), "FFMA") == ["LDS.128", "FFMA", "FFMA", "BRA"]


def test_float32_products_are_nearly_all_multiply_adds(arch: str, gemm: dict[str, list[str]]) -> None:
    """At least 85 % of the main loop is FFMA, fed by 128-bit loads from global and from shared memory alone."""
    assert len(gemm) == 8
    for name, code in gemm.items():
        loop = sass.main_loop(code, "FFMA")
        count = Counter(loop)
        assert count["FFMA"] == 2 * 8 * 64, name  # two steps of the depth, 8 x 8 outputs
        assert count["FFMA"] >= 0.85 * len(loop), (name, count["FFMA"] / len(loop), count)
        from_global = {op for op in loop if op.startswith(("LDG.", "LDGSTS"))}
        assert from_global, name
        assert all(".128" in op for op in from_global), (name, from_global)
        # Two squares of rows and two of columns at each depth. (ptxas adds 32-bit reads that wait for cp.async.)
        reads = {op: n for op, n in count.items() if op.startswith("LDS") and ".128" in op}
        assert sum(reads.values()) == 2 * 8 * 4, (name, reads)
        assert sum(n for op, n in count.items() if op.startswith("LDS") and ".128" not in op) <= 6, (name, count)
        assert not any(op.startswith(("LDL", "STL")) for op in loop), name


def test_cp_async_where_the_chip_has_it(arch: str, gemm: dict[str, list[str]]) -> None:
    """Factors that are contiguous along their rows never pass a register."""
    name = "dl::gemm_simt<float, true, false, 128, 128, 4>"
    loop = sass.main_loop(gemm[name], "FFMA")
    assert any(op.startswith("LDGSTS") for op in loop) == (arch != "sm_75")
    assert any(op.startswith("STS") for op in loop) == (arch == "sm_75")


def test_fused_winograd_is_mostly_multiply_adds(arch: str) -> None:
    """Over 80 % of the loop, with four 128-bit reads per 64 of them, though it transforms the images as well."""
    code = code_of(
        "winograd_fused", arch, lambda name: name.startswith("dl::winograd2_fused<") and name.endswith(" 64>")
    )
    assert len(code) == 3
    for name in code:
        loop = sass.main_loop(code[name], "FFMA")
        count = Counter(op.split(".")[0] for op in loop)
        assert count["FFMA"] == 2 * 8 * 64, name  # two places, 8 channels, 8 x 8 outputs
        assert count["FFMA"] >= 0.8 * len(loop), (name, count["FFMA"] / len(loop), count)
        assert sum(op.startswith("LDS") and ".128" in op for op in loop) == 2 * 8 * 4, (name, count)
        assert count["LDG"] == 16 + (8 if arch == "sm_75" else 0), (name, count)  # pixels; filters without cp.async
        assert count["LDL"] + count["STL"] == 0, (name, count)


def test_half_products_are_tensor_cores_fed_by_ldmatrix_and_cp_async(arch: str) -> None:
    """Of memory, the main loop has ldmatrix and cp.async and nothing else (sm_75: loads and stores for cp.async)."""
    code = code_of("gemm_tc", arch, lambda name: name.startswith("dl::gemm_tc<__half") and name.endswith("true, 1>"))
    assert len(code) == 6  # two tiles, three transpositions
    for name in code:
        edge = int(name.split(", ")[3])
        fragments = edge // 2 // 16, edge // 4 // 8  # of a warp's part: rows by columns
        chunks = 2 * edge * 64 // 16 // 256  # that a thread copies of both tiles
        count = Counter(op.split(".")[0] for op in sass.main_loop(code[name], "HMMA"))
        assert count["HMMA"] == STAGES * 2 * fragments[0] * fragments[1] * (2 if arch == "sm_75" else 1), (name, count)
        assert count["LDSM"] == STAGES * 2 * (fragments[0] + fragments[1] // 2), (name, count)
        if arch == "sm_75":
            assert count["LDG"] == count["STS"] == STAGES * chunks, (name, count)
        else:
            assert count["LDGSTS"] == STAGES * chunks, (name, count)
            assert count["LDG"] + count["STS"] == 0, (name, count)
            assert count["LDS"] <= STAGES * 3, (name, count)  # ptxas's own, which wait for cp.async
        assert count["LDL"] + count["STL"] + count["ST"] + count["LD"] == 0, (name, count)


@pytest.mark.parametrize("family", ["norm", "grad_bias"])
def test_channel_kernels_move_16_bytes_at_once(arch: str, family: str) -> None:
    """The arrays of an instantiation with vectors go by 128 bits; what goes by 32 are numbers of channels."""
    code = code_of(family, arch, lambda name: name.endswith((" 4>", " 8>")))
    assert len(code) == {"norm": 21, "grad_bias": 3}[family]
    for name in code:
        access = {sass.opcode(line) for line in code[name] if "LDG" in line or "STG" in line}
        assert any(op.startswith("LDG") and ".128" in op for op in access), (name, access)
        assert not any(op.endswith((".U16", ".U8", ".64")) for op in access), (name, access)
        writes = any(kind in name for kind in ("apply", "norm_grad", "group_norm<"))
        assert any(op.startswith("STG") and ".128" in op for op in access) == writes, (name, access)
