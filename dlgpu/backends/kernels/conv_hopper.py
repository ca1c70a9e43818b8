"""Convolution by wgmma and TMA's im2col mode on Hopper: plans. Like `gemm_hopper`, only where it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlgpu.backends.kernels.gemm_hopper import DEPTH, ROWS, WIDTHS, TileGrid, cost, launch, tiled
from dlgpu.backends.kernels.plan import MOST_ELEMENTS
from dlgpu.backends.kernels.sources import pack
from dlgpu.backends.kernels.tensor_map import LINE, Im2col, MappedPlan, TensorMap, Tiled, encodable
from dlgpu.backends.kernels.tiles import ANY, Target
from dlgpu.backends.shapes import Conv2d

LEAST_STEPS = 8  # of depth in each part of a split product
MOST_MOVE = 255  # of a tap from the first one, in pixels: what the instruction's offsets hold


def forward_plan(
    g: Conv2d, dtype: str, *, columns: int = 0, relu: bool = False, target: Target = ANY
) -> MappedPlan | None:
    """Arrays, channels_last and at multiples of 16 bytes: x, weight, y (as maps), residual or None, bias or None.

    `columns` are of a tile, one of `WIDTHS`; 0: as waves make it sensible. None if the kernel cannot do it: another
    type, groups, channels that are no multiples of 8, padding or dilation beyond what TMA counts, strides above 8.
    """
    low, high = _corners(g)
    rows = g.N * g.P * g.Q
    tiles, columns = tiled(1, -(-rows // ROWS), g.K, columns, target)
    cluster = tiles.cluster(target)
    out = Tiled((g.K, rows, 1), (2 * g.K, 2 * g.K * rows), (LINE, 64, 1))
    maps = (_walk(g.C, g.W, g.H, g.N, low, high, g.stride), _filters(g, columns // cluster), out)
    moves = (g.R - 1) * g.dilation[0], (g.S - 1) * g.dilation[1]
    if not _possible(g, dtype, columns, rows * g.K, moves, maps):
        return None
    numbers = (rows, g.K, g.C, g.R, g.S, g.P, g.Q, *g.stride, *low, *g.dilation)
    why = f"{rows}x{g.K}x{g.R * g.S * g.C}, {tiles.count} tiles {ROWS}x{columns}, wgmma on im2col by TMA"
    kernel = f"dl::conv_hopper<{dtype}, {columns}, {cluster}>"
    args = (pack("ImageWalk", *numbers), int(relu))
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), maps)


def pooled_plan(g: Conv2d, dtype: str, *, columns: int = 0, target: Target = ANY) -> MappedPlan | None:
    """With ReLU and 2x2 max-pooling. Arrays: x, weight (as maps), y, argmax, bias or None. Strides are at most 4."""
    positions, step = (g.P // 2, g.Q // 2), (2 * g.stride[0], 2 * g.stride[1])
    rows = g.N * positions[0] * positions[1]
    low = -g.padding[0][0], -g.padding[1][0]
    high = low[0] + (positions[0] - 1) * step[0] - (g.H - 1), low[1] + (positions[1] - 1) * step[1] - (g.W - 1)
    tiles, columns = tiled(1, -(-rows // (ROWS // 4)), g.K, columns, target)
    cluster = tiles.cluster(target)
    maps = _walk(g.C, g.W, g.H, g.N, low, high, step, 16), _filters(g, columns // cluster)
    moves = (g.R - 1) * g.dilation[0] + g.stride[0], (g.S - 1) * g.dilation[1] + g.stride[1]
    if not _possible(g, dtype, columns, 4 * rows * g.K, moves, maps) or g.K % 8:
        return None
    numbers = (rows, g.K, g.C, g.R, g.S, *positions, *step, *low, *g.dilation)
    why = f"{4 * rows}x{g.K}x{g.R * g.S * g.C}, {tiles.count} tiles {ROWS}x{columns}, pooled, wgmma on im2col by TMA"
    kernel = f"dl::conv_hopper_pooled<{dtype}, {columns}, {cluster}>"
    args = (pack("ImageWalk", *numbers),)
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), maps)


def grad_input_plans(g: Conv2d, dtype: str, *, columns: int = 0, target: Target = ANY) -> list[MappedPlan] | None:
    """One for each phase: pixels a stride apart meet the same taps. Arrays: dy, weight (as maps), dx."""
    axes = zip((g.H, g.W), (g.R, g.S), g.stride, (g.padding[0][0], g.padding[1][0]), g.dilation, strict=True)
    vertical, horizontal = ([_phase(i, *axis) for i in range(min(axis[0], axis[2]))] for axis in axes)
    plans = [_phase_plan(g, dtype, columns, target, v, h) for v in vertical for h in horizontal]
    found = [plan for plan in plans if plan is not None]
    return found if found and len(found) == len(plans) else None


@dataclass(frozen=True)
class Phase:
    """Of one axis of the gradient, as in operand.cuh: pixel first + stride * i and the j-th of its taps meet position
    first_out + i - out_step * j of dy."""

    first: int
    pixels: int
    taps: int
    first_tap: int
    step: int
    first_out: int
    out_step: int

    @property
    def low(self) -> int:
        """Where the last tap of the first pixel is."""
        return self.first_out - self.out_step * self.move

    @property
    def move(self) -> int:
        """From the first tap to the last one, in taps."""
        return max(self.taps - 1, 0)


def _phase(first: int, size: int, taps: int, stride: int, padding: int, dilation: int) -> Phase:
    shared = math.gcd(stride, dilation)
    step, out_step, pixels = stride // shared, dilation // shared, -(-(size - first) // stride)
    for tap in range(min(step, taps)):
        out, beside = divmod(first + padding - tap * dilation, stride)
        if beside == 0:
            return Phase(first, pixels, -(-(taps - tap) // step), tap, step, out, out_step)
    return Phase(first, pixels, 0, 0, step, 0, out_step)


def _phase_plan(g: Conv2d, dtype: str, columns: int, target: Target, v: Phase, h: Phase) -> MappedPlan | None:
    rows, taps = g.N * v.pixels * h.pixels, v.taps * h.taps
    low = v.low, h.low
    high = v.low + v.pixels - g.P, h.low + h.pixels - g.Q
    tiles, columns = tiled(1, -(-rows // ROWS), g.C, columns, target)
    cluster = tiles.cluster(target)
    maps = _walk(g.K, g.Q, g.P, g.N, low, high, (1, 1)), _filters(g, DEPTH)
    if not _possible(g, dtype, columns, rows * g.C, (v.move * v.out_step, h.move * h.out_step), maps):
        return None
    numbers = (rows, g.C, g.K, v.taps, h.taps, v.pixels, h.pixels, 1, 1, *low, v.out_step, h.out_step)
    last = (v.first_tap + v.step * v.move) * g.S + h.first_tap + h.step * h.move
    lattice = pack("Lattice", g.H, g.W, v.first, h.first, *g.stride, last, v.step * g.S, h.step)
    why = f"{rows}x{g.C}x{taps * g.K}, {tiles.count} tiles {ROWS}x{columns}, wgmma on im2col by TMA"
    kernel = f"dl::conv_hopper_grad_input<{dtype}, {columns}, {cluster}>"
    args = (pack("ImageWalk", *numbers), lattice)
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), maps)


def grad_weight_plan(g: Conv2d, dtype: str, *, columns: int = 0, target: Target = ANY) -> tuple[MappedPlan, int] | None:
    """-> (plan, parts of the depth). Arrays: dy, x (as maps), slabs of float32 (parts, K, R, S, C)."""
    if forward_plan(g, dtype, columns=columns, target=target) is None:
        return None  # it has the same limits, but for the rows
    low, high = _corners(g)
    pixels, taps = g.N * g.P * g.Q, g.R * g.S
    chunks = taps * -(-g.C // LINE)
    rows, steps = -(-g.K // ROWS), -(-pixels // DEPTH)
    most = min(target.workspace // (4 * g.K * taps * g.C), steps // LEAST_STEPS)

    def grid(width: int) -> TileGrid:
        across = -(-chunks * LINE // width)
        return TileGrid(max(1, min(target.sms // (rows * across), most)), rows, across)

    def total(width: int) -> float:
        return cost(grid(width), width, target) * -(-steps // grid(width).batches)

    columns = columns or min(WIDTHS, key=total)
    tiles = grid(columns)
    parts, each = tiles.batches, -(-steps // tiles.batches)
    walk = _walk(g.C, g.W, g.H, g.N, low, high, g.stride, DEPTH)
    dy = Tiled((g.K, pixels, 1), (2 * g.K, 2 * g.K * pixels), (LINE, DEPTH, 1))
    numbers = (g.K, chunks, g.C, g.R, g.S, g.P, g.Q, *g.stride, *low, *g.dilation)
    why = f"{g.K}x{taps * g.C}x{pixels}, tiles {ROWS}x{columns}, depth in {parts}, wgmma on im2col by TMA"
    cluster = tiles.cluster(target)
    kernel = f"dl::conv_hopper_grad_weight<{dtype}, {columns}, {cluster}>"
    args = (pack("ImageWalk", *numbers), each, parts)
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), (dy, walk)), parts


def _corners(g: Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the first window begins, and how far from the last pixel the last one does; along (h, w)."""
    low = -g.padding[0][0], -g.padding[1][0]
    high = low[0] + (g.P - 1) * g.stride[0] - (g.H - 1), low[1] + (g.Q - 1) * g.stride[1] - (g.W - 1)
    return low, high


def _walk(
    c: int, w: int, h: int, n: int, low: tuple[int, int], high: tuple[int, int], step: tuple[int, int], rows: int = ROWS
) -> Im2col:
    """Over images (n, h, w, c); pairs are (h, w)."""
    strides = 2 * c, 2 * c * w, 2 * c * w * h
    return Im2col((c, w, h, n), strides, LINE, rows, low[::-1], high[::-1], step[::-1])


def _filters(g: Conv2d, lines: int) -> Tiled:
    taps = g.R * g.S
    return Tiled((g.C, taps, g.K), (2 * g.C, 2 * g.C * taps), (LINE, 1, lines))


def _possible(
    g: Conv2d, dtype: str, columns: int, outputs: int, moves: tuple[int, int], maps: tuple[TensorMap, ...]
) -> bool:
    fits = dtype in ("__half", "__nv_bfloat16") and columns in WIDTHS and g.G == 1
    return fits and 1 <= outputs <= MOST_ELEMENTS and max(moves) <= MOST_MOVE and all(encodable(m) for m in maps)
