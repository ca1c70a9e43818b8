"""mbarriers, TMA, wgmma, clusters of the host launcher: a correct pipeline passes in every order, each bug is named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlgpu.backends.kernels.tensor_map import Im2col, Tiled
from dlgpu.backends.launchers.host import HostLauncher
from dlgpu.errors import BackendUnavailable, ShapeError

SOURCE = Path(__file__).parent / "host_kernels" / "hopper.cu"
FLAVOUR = os.environ.get("DLGPU_HOST_FLAVOUR")
SETTINGS = list(itertools.product(("forward", "reverse", "random"), ("late", "early", "random")))


@pytest.fixture(scope="module", params=[FLAVOUR] if FLAVOUR else ["fast", "check"])
def host(request: pytest.FixtureRequest) -> HostLauncher:
    try:
        return HostLauncher(request.param, [SOURCE], project_kernels=False)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def run(host: HostLauncher, bug: int, cluster: int, steps: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Two clusters. -> (what the kernel made, the truth)."""
    rng = np.random.default_rng(0)
    blocks = 2 * cluster
    a, b = (rng.standard_normal((rows, 64 * steps)).astype(np.float16) for rows in (64 * blocks, 128))
    out = np.full((len(a), 128), np.nan, np.float32)
    maps = [
        host.tensor_map(Tiled((x.shape[1], x.shape[0], 1), (2 * x.shape[1], x.nbytes), (64, lines, 1)), x)
        for x, lines in ((a, 64), (b, 128 // cluster))
    ]
    shared = 2 * 192 * 128 + 2048
    host.launch(f"tma_product<{bug}, {cluster}>", (blocks, 1, 1), (256, 1, 1), (*maps, out, steps), shared)
    return out, a.astype(np.float64) @ b.astype(np.float64).T


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize(("order", "copies"), SETTINGS)
def test_a_correct_pipeline(host: HostLauncher, order: str, copies: str, cluster: int) -> None:
    for seed in range(3):
        host.configure(order=order, block_order=order, copies=copies, seed=seed)
        got, truth = run(host, 0, cluster)
        np.testing.assert_allclose(got, truth, atol=320 * 2.0**-23 * 64)


NAMED = {
    1: "reads what TMA loads, but thread .* did not wait for it",
    2: "over one that nobody has read|more arrivals than the phase takes|into what a wgmma may still read",
    3: "with a wgmma in flight|into what a wgmma may still read",
    4: "without wgmma.fence",
    5: "the mbarrier was not initialised",
    6: "mbarrier.arrive .*: more arrivals than the phase takes|over one that nobody has read|may still read|deadlock",
    7: "a TMA load .* needs shared memory at a multiple of 1024",
    8: "a descriptor with 128-byte swizzle",
    9: "of more bytes than its phase expects",
    10: r"deadlock: .* wait at mbarrier.try_wait \(\S+hopper.cu:\d+\)",
    11: r"mbarrier.arrive \(\S+hopper.cu:\d+\) to a block that may have ended: no barrier.cluster after it",
    12: "over one that nobody has read|into what a wgmma may still read",
    13: "to a block that has not met us since its mbarrier.init|the mbarrier was not initialised",
    14: r"deadlock: .* wait at mbarrier.try_wait \(\S+hopper.cu:\d+\)",
    15: r"a TMA load \(\S+hopper.cu:\d+\) to block 2 of a cluster of 2",
    16: "over one that nobody has read|into what a wgmma may still read|more bytes than its phase expects",
    17: r"deadlock: .* wait at barrier.cluster \(\S+hopper.cu:\d+\)",
}
BUGS = [(1, bug) for bug in range(1, 11)] + [(2, bug) for bug in (1, 2, 3, 6, *range(9, 18))]


@pytest.mark.parametrize(("cluster", "bug"), BUGS)
@pytest.mark.parametrize(("order", "copies"), SETTINGS)
def test_a_bug_is_named(host: HostLauncher, bug: int, order: str, copies: str, cluster: int) -> None:
    host.configure(order=order, block_order=order, copies=copies, seed=bug)
    with pytest.raises(RuntimeError, match=NAMED[bug]):
        run(host, bug, cluster)
    host.configure()
    got, truth = run(host, 0, cluster)  # the launcher survives it
    np.testing.assert_allclose(got, truth, atol=320 * 2.0**-23 * 64)


@pytest.mark.parametrize(
    "wrong",
    [
        Tiled((64, 64, 1), (120, 8192), (64, 64, 1)),  # a stride that is no multiple of 16
        Tiled((64, 65, 1), (128, 8320), (64, 64, 1)),  # beyond the array
        Tiled((64, 0, 1), (128, 8192), (64, 64, 1)),
        Im2col((64, 8, 8, 1), (128, 1024, 8192), 64, 64, (-129, 0), (0, 0), (1, 1)),
        Im2col((64, 8, 8, 1), (128, 1024, 8192), 64, 64, (0, 0), (0, 0), (9, 1)),
    ],
)
def test_maps_that_the_driver_would_refuse(host: HostLauncher, wrong: Any) -> None:
    with pytest.raises(ShapeError, match="TMA takes no such map"):
        host.tensor_map(wrong, np.zeros((64, 64), np.float16))
