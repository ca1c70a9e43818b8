"""Every instantiation compiles for every architecture, with NVRTC from pip wheels: no GPU needed."""

from __future__ import annotations

import re

import pytest

from dlgpu.backends.kernels import gemm_hopper, sources
from dlgpu.backends.kernels.compile import ARCHITECTURES, Compiled, compile_family
from dlgpu.backends.kernels.occupancy import occupancy, resident_blocks
from dlgpu.backends.kernels.tiles import Product
from dlgpu.backends.shapes import Gemm
from dlgpu.errors import UnknownName


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=sources.families())
def compiled(request: pytest.FixtureRequest, arch: str) -> Compiled:
    return compile_family(request.param, arch)


def test_no_warning_no_spill_no_local_memory(compiled: Compiled) -> None:
    assert compiled.warnings == ""
    assert compiled.cubin[:4] == b"\x7fELF"
    offenders = {name: r for name, r in compiled.resources.items() if r.spill_bytes or r.stack_bytes}
    assert offenders == {}


def test_block_fits_the_register_file_and_shared_memory(compiled: Compiled, arch: str) -> None:
    # At least one block per SM, within the 48 KiB of static shared memory.
    assert all(occupancy(arch, r) > 0 and r.shared_bytes <= 48 * 1024 for r in compiled.resources.values())


# What is between is: a tile's edge, twice; without tensor cores the elements of a vector; with them whether there are
# vectors, and terms.
PRODUCT = re.compile(r"dl::(gemm|conv2d\w*)_(simt|tc)<(\w+), .*?(\d+), \4, (?:(true|false), )?(\d)>")


def test_the_cost_model_counts_the_blocks_that_fit(compiled: Compiled, arch: str) -> None:
    """Exactly for large tiles; of small ones one in two more may fit."""
    capability = int(arch.removeprefix("sm_").rstrip("a"))
    for name, r in compiled.resources.items():
        if (match := PRODUCT.fullmatch(name)) is None:
            continue
        family, how, dtype, edge, vector, last = match.groups()
        terms, vectors = (int(last), vector == "true") if how == "tc" else (0, last == "4")
        product = Product(dtype, 1, 1, 1, 1, vectors, terms, gathered=family != "gemm")
        counted, fit = (
            product.resident(int(edge), capability),
            resident_blocks(arch, r.threads, r.registers, r.shared_bytes),
        )
        assert counted <= fit <= (counted if edge == "128" else 1.5 * counted), (name, counted, fit)


def test_one_hopper_block_fits(compiled: Compiled, arch: str) -> None:
    """As `gemm_hopper.resident` has it: registers and shared memory hold one, and one they hold."""
    for name, r in compiled.resources.items():
        if arch == "sm_90a" and (match := re.fullmatch(r"dl::\w*_hopper\w*<.*(128|256), (1|2)>", name)):
            plan = gemm_hopper.plan(Gemm(1, 512, 512, 512), "__half", False, True, columns=int(match[1]))
            assert plan is not None
            assert resident_blocks(arch, r.threads, r.registers, plan.launch.shared_bytes) == 1, name


def test_every_instantiation_is_there(compiled: Compiled) -> None:
    assert set(compiled.resources) in [set(names) for names in sources.families().values()]
    assert len(set(compiled.names.values())) == len(compiled.names)


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'gemm'"):
        compile_family("gem", "sm_90")
    with pytest.raises(UnknownName, match="Did you mean 'sm_90'"):
        compile_family("gemm", "sm90")
    with pytest.raises(UnknownName, match=r"Did you mean 'dl::dropout<float>'"):
        compile_family("dropout", "sm_90", ["dl::dropout<flot>"])
