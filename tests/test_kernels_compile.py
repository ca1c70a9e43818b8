"""Every instantiation compiles for every architecture, with NVRTC from pip wheels: no GPU needed."""

from __future__ import annotations

import pytest

from dlgpu.backends.kernels import sources
from dlgpu.backends.kernels.compile import ARCHITECTURES, Compiled, compile_family
from dlgpu.backends.kernels.occupancy import occupancy
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
