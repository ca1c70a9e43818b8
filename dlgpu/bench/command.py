"""From the options of `dlgpu bench` to cases and settings."""

from __future__ import annotations

from collections.abc import Sequence

from dlgpu import memory_format
from dlgpu.backends.contract import ALGORITHMS
from dlgpu.bench.cases import BATCHES, DTYPES, Case, select, tiny
from dlgpu.bench.contestants import BASELINES, HOPPER
from dlgpu.bench.lab import Settings, kind_of
from dlgpu.errors import ShapeError, UnknownName

# Of the reference beside a GPU: 100 MB or a GFLOP take NumPy as long as all other contestants together.
MOST_BESIDE_GPU = 1.0
# A processor should not spend a minute on one case, unless somebody names its op.
MOST_CPU_GFLOP = 50


def choose(
    ops: Sequence[str],
    *,
    networks: Sequence[str],
    batches: Sequence[int],
    dtypes: Sequence[str],
    algorithms: Sequence[str],
    layout: str,
    compare: Sequence[str],
    device: str,
    small: bool,
    check_only: bool,
    autotune: bool = False,
) -> tuple[list[Case], Settings]:
    """What to measure and how.

    Raises:
        UnknownName, ShapeError: an option that there is not, or a choice that leaves nothing.
    """
    for kind, given, known in (
        ("algorithm", algorithms, (*ALGORITHMS, HOPPER)),
        ("baseline", compare, (*BASELINES, "none")),
    ):
        for name in given:
            if name not in known:
                raise UnknownName("bench", kind, name, known)
    if "none" in compare and len(compare) > 1:
        raise ShapeError(f"[bench] --compare none goes alone; got {', '.join(compare)}")
    kind = kind_of(device)
    if autotune and kind == "cpu":
        raise ShapeError("[bench] --autotune chooses among kernels, on --device cuda or host-kernels; got cpu")
    gpu, kernels = kind == "cuda", kind != "cpu"
    every = dtypes or (DTYPES if kernels else ("float32",))
    cases = select(ops, networks, batches or (BATCHES if gpu else (1,)), every)
    if small or kind == "host-kernels":
        cases = tiny(cases)
    elif not gpu and not ops:
        cases = [case for case in cases if case.flops <= MOST_CPU_GFLOP * 1e9]
    usual = () if kind == "host-kernels" else BASELINES  # an emulation competes with nobody
    return cases, Settings(
        device,
        compare=() if "none" in compare else tuple(compare) or usual,
        algorithms=tuple(dict.fromkeys(algorithms)),
        layout=memory_format.parse(layout),
        autotune=autotune,
        ceilings=kind != "host-kernels" and not check_only,
        rounds=0 if check_only else Settings.rounds,
        reference_gflop=MOST_BESIDE_GPU if gpu else Settings.reference_gflop,
    )
