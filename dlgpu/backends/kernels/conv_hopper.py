"""Convolution by wgmma and TMA's im2col mode on Hopper: plans. Like `gemm_hopper`, only where it is asked for."""

from __future__ import annotations

from dlgpu.backends.kernels.gemm_hopper import DEPTH, ROWS, WIDTHS, TileGrid, launch
from dlgpu.backends.kernels.plan import MOST_ELEMENTS
from dlgpu.backends.kernels.sources import pack
from dlgpu.backends.kernels.tensor_map import LINE, Im2col, MappedPlan, Tiled, encodable
from dlgpu.backends.kernels.tiles import ANY, Target
from dlgpu.backends.shapes import Conv2d

LEAST_STEPS = 8  # of depth in each part of a split product
MOST_MOVE = 255  # of a tap from the first one, in pixels: what the instruction's offsets hold


def forward_plan(
    g: Conv2d, dtype: str, *, columns: int = 256, relu: bool = False, target: Target = ANY
) -> MappedPlan | None:
    """Arrays, channels_last and at multiples of 16 bytes: x, weight, y (as maps), residual or None, bias or None.

    None if the kernel cannot do it: another type, groups, channels that are no multiples of 8, padding or dilation
    beyond what TMA counts, strides above 8.
    """
    return _plan(target, g, dtype, columns, relu, (g.C, g.W, g.H), (g.P, g.Q), g.K, *_corners(g), g.stride)


def grad_input_plan(g: Conv2d, dtype: str, *, columns: int = 256, target: Target = ANY) -> MappedPlan | None:
    """Arrays as above: dy, weight, dx (as maps), None, None. Strides are 1."""
    if g.stride != (1, 1):
        return None
    low = g.padding[0][0] - (g.R - 1) * g.dilation[0], g.padding[1][0] - (g.S - 1) * g.dilation[1]
    high = low[0] + g.H - g.P, low[1] + g.W - g.Q
    return _plan(target, g, dtype, columns, None, (g.K, g.Q, g.P), (g.H, g.W), g.C, low, high, (1, 1))


def grad_weight_plan(
    g: Conv2d, dtype: str, *, columns: int = 256, target: Target = ANY
) -> tuple[MappedPlan, int] | None:
    """-> (plan, parts of the depth). Arrays: dy, x (as maps), slabs of float32 (parts, K, R, S, C)."""
    if _plan(target, g, dtype, columns, None, (g.C, g.W, g.H), (g.P, g.Q), g.K, *_corners(g), g.stride) is None:
        return None  # it has the same limits, but for the rows
    low, high = _corners(g)
    pixels, taps = g.N * g.P * g.Q, g.R * g.S
    chunks = taps * -(-g.C // LINE)
    rows, across = -(-g.K // ROWS), -(-chunks * LINE // columns)
    steps = -(-pixels // DEPTH)
    slabs = target.workspace // (4 * g.K * taps * g.C)
    parts = max(1, min(target.sms // (rows * across), slabs, steps // LEAST_STEPS))
    each = -(-steps // parts)
    sizes, strides = (g.C, g.W, g.H, g.N), (2 * g.C, 2 * g.C * g.W, 2 * g.C * g.W * g.H)
    walk = Im2col(sizes, strides, LINE, DEPTH, low[::-1], high[::-1], g.stride[::-1])
    dy = Tiled((g.K, pixels, 1), (2 * g.K, 2 * g.K * pixels), (LINE, DEPTH, 1))
    numbers = (g.K, chunks, g.C, g.R, g.S, g.P, g.Q, *g.stride, *low, *g.dilation)
    why = f"{g.K}x{taps * g.C}x{pixels}, tiles {ROWS}x{columns}, depth in {parts}, wgmma on im2col by TMA"
    tiles = TileGrid(parts, rows, across)
    cluster = tiles.cluster(target)
    kernel = f"dl::conv_hopper_grad_weight<{dtype}, {columns}, {cluster}>"
    args = (pack("ImageWalk", *numbers), each, parts)
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), (dy, walk)), parts


def _corners(g: Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the first window begins, and how far from the last pixel the last one does; along (h, w)."""
    low = -g.padding[0][0], -g.padding[1][0]
    high = low[0] + (g.P - 1) * g.stride[0] - (g.H - 1), low[1] + (g.Q - 1) * g.stride[1] - (g.W - 1)
    return low, high


def _plan(
    target: Target,
    g: Conv2d,
    dtype: str,
    columns: int,
    relu: bool | None,
    image: tuple[int, int, int],
    positions: tuple[int, int],
    width: int,
    low: tuple[int, int],
    high: tuple[int, int],
    step: tuple[int, int],
) -> MappedPlan | None:
    """`image`: channels, width and height of what is walked over; `relu` None: the gradient. Pairs are (h, w)."""
    moves = tuple((taps - 1) * dilation for taps, dilation in zip((g.R, g.S), g.dilation, strict=True))
    rows = g.N * positions[0] * positions[1]
    if dtype not in ("__half", "__nv_bfloat16") or columns not in WIDTHS or g.G != 1 or max(moves) > MOST_MOVE:
        return None
    if rows < 1 or rows * width > MOST_ELEMENTS:
        return None
    c, w, h = image
    backward = relu is None
    sizes, strides = (c, w, h, g.N), (2 * c, 2 * c * w, 2 * c * w * h)
    walk = Im2col(sizes, strides, LINE, ROWS, (low[1], low[0]), (high[1], high[0]), (step[1], step[0]))
    taps = g.R * g.S
    tiles = TileGrid(1, -(-rows // ROWS), -(-width // columns))
    cluster = tiles.cluster(target)
    lines = DEPTH if backward else columns // cluster
    filters = Tiled((g.C, taps, g.K), (2 * g.C, 2 * g.C * taps), (LINE, 1, lines))
    out = Tiled((width, rows, 1), (2 * width, 2 * width * rows), (LINE, 64, 1))
    maps = (walk, filters, out)
    if not all(encodable(m) for m in maps):
        return None
    numbers = (rows, width, c, g.R, g.S, *positions, *step, *low, *g.dilation)
    why = f"{rows}x{width}x{taps * c}, {tiles.count} tiles {ROWS}x{columns}, wgmma on im2col by TMA"
    kernel = f"dl::conv_hopper<{dtype}, {columns}, {str(backward).lower()}, {cluster}>"
    args = (pack("ImageWalk", *numbers), int(bool(relu)))
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), maps)
