"""`dlgpu kernels`: what the CUDA kernels are, what they take, which would run, and which run fastest here."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import click
import numpy as np

from dlgpu.backends.precision import PRECISIONS
from dlgpu.errors import BackendUnavailable, UnknownName

MOST_CANDIDATES = 8  # are printed


@click.group()
def kernels() -> None:
    """The CUDA kernels: list them, compile them (no GPU needed), show what would run, tune."""


@kernels.command("list")
def list_kernels() -> None:
    """Every instantiation, by family."""
    from dlgpu.backends.kernels import sources

    for family, names in sources.families().items():
        click.secho(f"{family} ({len(names)})", bold=True)
        for name in names:
            click.echo(f"  {name.replace('dl::', '')}")


@kernels.command("compile")
@click.option("--arch", "archs", multiple=True, help="sm_75 ... sm_120, several allowed [default: all]")
@click.option("--family", "only", multiple=True, help="several allowed [default: all]")
def compile_kernels(archs: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Compile with NVRTC and print what each kernel takes as a Markdown table (docs/kernels.md).

    Threads and shared bytes per block; for each architecture registers per thread, what was spilled, and occupancy.
    """
    from dlgpu.backends.kernels import compile as nvrtc
    from dlgpu.backends.kernels import sources
    from dlgpu.backends.kernels.occupancy import occupancy

    def cell(arch: str, r: nvrtc.Resources) -> str:
        spill = f" ({r.spill_bytes} spilled)" if r.spill_bytes else ""
        return f"{r.registers}{spill} · {occupancy(arch, r):.0%}"

    chosen = archs or nvrtc.ARCHITECTURES
    click.echo(f"| kernel | threads | shared bytes | {' | '.join(chosen)} |\n|{'---|' * (len(chosen) + 3)}")
    for family in only or sources.families():
        compiled = {arch: nvrtc.compile_family(family, arch).resources for arch in chosen}
        for name, first in compiled[chosen[0]].items():
            cells = [cell(arch, resources[name]) for arch, resources in compiled.items()]
            sizes = f"{first.threads} | {first.shared_bytes}"
            click.echo(f"| `{name.replace('dl::', '')}` | {sizes} | {' | '.join(cells)} |")


@kernels.command("plan")
@click.argument("op", type=click.Choice(["conv2d", "conv2d_grad_input", "conv2d_grad_weight"]))
@click.argument("sizes", nargs=5, type=int, metavar="N C H W K")
@click.option("--kernel", "kernel_size", default=3, show_default=True, help="filter height and width")
@click.option("--stride", default=1, show_default=True)
@click.option("--padding", default=0, show_default=True)
@click.option("--groups", default=1, show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16")
@click.option("--layout", default="channels_last", show_default=True, help="contiguous or channels_last")
@click.option("--algorithm", default="auto", show_default=True, help="auto, im2col, implicit_gemm, winograd2, ...")
@click.option("--capability", default=90, show_default=True, help="of the device: 75, 80, 86, 89, 90, 100 or 120")
def show_plan(
    op: str,
    sizes: tuple[int, ...],
    kernel_size: int,
    stride: int,
    padding: int,
    groups: int,
    dtype: str,
    layout: str,
    algorithm: str,
    capability: int,
) -> None:
    """What an op would launch, and why: `dlgpu kernels plan conv2d 32 64 56 56 128 --padding 1`.

    Then what `dlgpu.autotune()` would try instead, by the predicted clock cycles of its matrix products, and what it
    has chosen on the GPUs of this machine.
    """
    from dlgpu import dtypes, memory_format
    from dlgpu.backends.kernels.recorder import Recorder
    from dlgpu.backends.shapes import Conv2d

    n, c, h, w, k = sizes
    geometry = Conv2d.of(op, (n, c, h, w), (k, c // groups, kernel_size, kernel_size), None, stride, padding, 1, groups)
    ops, kind, stored = Recorder(capability), dtypes.parse(dtype), memory_format.parse(layout)
    x, weight, y = (
        memory_format.empty(ops.xp, shape, kind, stored)
        for shape in (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    )
    how: dict[str, Any] = dict(stride=stride, padding=padding, groups=groups, algorithm=algorithm)
    click.echo(f"{op} {x.shape} by {weight.shape} -> {y.shape}: {2 * geometry.macs / 1e9:,.3f} GFLOP")
    args: tuple[Any, ...] = (x, weight, ops.xp.empty(k, kind))
    if op == "conv2d_grad_input":
        args, how = (y, weight), how | dict(input_shape=x.shape)
    elif op == "conv2d_grad_weight":
        args, how = (y, x), how | dict(weight_shape=weight.shape)
    getattr(ops, op)(*args, **how)
    for text, times in Counter(map(str, ops.plans)).items():
        click.echo(f"  {text}" + (f", {times} times" if times > 1 else ""))
    _show_candidates(op, args, how, ops.launcher)


def _show_candidates(op: str, args: tuple[Any, ...], options: dict[str, Any], launcher: Any) -> None:
    """What a tuner would try, and what one has found."""
    from dlgpu.backends.kernels import autotune
    from dlgpu.backends.kernels.programs import Call, stand_in

    values = [stand_in(v) if isinstance(v, np.ndarray) else v for v in (*args, *options.values())]
    call = Call(op, len(args), tuple(options), tuple(values))
    if not autotune.tunable(call):
        return
    launcher.prepare = lambda plan: None  # nothing will run
    found = list(autotune.candidates(call, launcher))
    found.sort(key=lambda candidate: candidate[1].cycles or math.inf)
    click.echo(f"\n{len(found)} candidates, by the predicted cycles of their matrix products:")
    for choice, program in found[:MOST_CANDIDATES]:
        cycles = f"{program.cycles:>14,.0f}" if program.cycles else f"{'no prediction':>14}"
        click.echo(f"{cycles}  {choice}: {len(program.steps)} launches, {program.workspace / 1e6:,.1f} MB of workspace")
    if len(found) > MOST_CANDIDATES:
        click.echo(f"{'...':>14}  and {len(found) - MOST_CANDIDATES} more")
    entries = autotune.known(autotune.key(call))
    for entry in entries:
        choice, gpu = autotune.Choice(**entry["choice"]), entry["identity"]["gpu"]
        click.echo(f"tuned on {gpu}: {choice}, {1e6 * entry['seconds']:,.1f} us")
    if not entries:
        click.echo("not tuned on this machine")


@kernels.command("tune")
@click.option("--network", required=True, help="vgg16, resnet50, ...: see `dlgpu models`")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="images")
@click.option("--dtype", default="float32", show_default=True, help=f"of products: {', '.join(PRECISIONS)}")
@click.option("--layout", default="channels_last", show_default=True, help="contiguous or channels_last")
@click.option("--image-size", type=click.IntRange(1), help="input height and width [default: the model's]")
@click.option("--device", default="cuda", show_default=True, help="cuda, or host-kernels (emulated, for trying out)")
def tune(network: str, batch: int, dtype: str, layout: str, image_size: int | None, device: str) -> None:
    """Find the fastest kernels for a training step of a network, for every later `with dlgpu.autotune():`.

    One step runs on random images. What is on this machine's disk for this GPU, driver and version is not tried again.

    \b
    dlgpu kernels tune --network vgg16 --batch 64 --dtype float16
    """
    import dlgpu
    from dlgpu import backends, models
    from dlgpu import functional as F
    from dlgpu.backends import precision
    from dlgpu.backends.kernels import autotune

    launcher = getattr(backends.get(device), "launcher", None)
    if launcher is None:
        raise BackendUnavailable(f"[kernels] tuning wants a device that runs kernels; got --device {device}")
    if dtype not in PRECISIONS:
        raise UnknownName("kernels", "dtype", dtype, PRECISIONS)
    if network not in models.MODELS:
        raise UnknownName("kernels", "network", network, models.MODELS)
    entry = models.MODELS[network]
    size = image_size or entry.image_size
    model = models.build(network, image_size=size, in_channels=entry.in_channels)
    model.to(device, memory_format=layout)
    images = dlgpu.randn(batch, entry.in_channels, size, size, device=device).to(memory_format=layout)
    labels = dlgpu.tensor(np.zeros(batch, np.int64), device=device)
    store = autotune.Store(launcher.identity())
    before = {entry["call"] for entry in store.entries()}
    with dlgpu.autotune(), precision.use(dtype):
        outputs = model(images)
        for logits in outputs if isinstance(outputs, tuple) else (outputs,):
            F.cross_entropy(logits, labels).backward()
    tuned = [entry for entry in store.entries() if entry["call"] not in before]
    for found in tuned:
        click.echo(f"{1e6 * found['seconds']:>12,.1f} us  {autotune.Choice(**found['choice'])}  {found['call']}")
    click.echo(f"{len(tuned)} calls tuned, for {store.identity['gpu']}; {len(before)} were known")
