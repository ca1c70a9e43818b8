"""Matrix products by wgmma and TMA on Hopper: plans.

No GPU has run these kernels yet, so nothing chooses them by itself: `with dlgpu.backends.tuning.hopper():` does, and
`dlgpu.autotune` does where their results agree and they are faster.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlgpu.backends.kernels.plan import MOST_ELEMENTS, Plan
from dlgpu.backends.kernels.sources import pack
from dlgpu.backends.kernels.tensor_map import LINE, MappedPlan, Tiled, encodable
from dlgpu.backends.kernels.tiles import ANY, Target
from dlgpu.backends.shapes import Gemm

ROWS, DEPTH, STAGES, THREADS = 128, 64, 4, 384  # of hopper_tile.cuh
WIDTHS = (256, 128)  # columns of a tile
NARROW = 1.22  # time per product of a tile of 128 columns, which loads more for it (anchor: +22 % for the wider one)
CLUSTERS = (1, 2)  # blocks, one tile below the other, that load the columns' operand once for all


def plan(
    g: Gemm,
    dtype: str,
    transpose_a: bool,
    transpose_b: bool,
    *,
    columns: int = 0,
    alpha: float = 1.0,
    beta: float = 1.0,
    relu: bool = False,
    leading: tuple[int, int, int] | None = None,
    strides: tuple[int, int, int] | None = None,
    target: Target = ANY,
) -> MappedPlan | None:
    """Arrays, each at a multiple of 16 bytes: a, b, out (as maps), c or None, bias or None (one for the whole batch).

    Args:
        columns: of a tile, one of `WIDTHS`; 0: as waves make it sensible.
        leading, strides: of a, b, out in elements, between lines and between matrices; None: dense.

    Returns:
        None if the kernel cannot do it: another type, extents along memory that are no multiples of 8, an empty
        product.
    """
    tiles, columns = tiled(g.B, -(-g.M // ROWS), g.N, columns, target)
    if dtype not in ("__half", "__nv_bfloat16") or columns not in WIDTHS:
        return None
    size_a, size_b = (g.M, g.K) if transpose_a else (g.K, g.M), (g.K, g.N) if transpose_b else (g.N, g.K)
    sizes = (size_a, size_b, (g.N, g.M))
    leading = leading or (size_a[0], size_b[0], g.N)
    strides = strides or (g.M * g.K, g.K * g.N, g.M * g.N)
    cluster = tiles.cluster(target)
    lines = (DEPTH if transpose_a else ROWS, columns // cluster if transpose_b else DEPTH, 64)
    maps = tuple(
        Tiled((*size, g.B), (2 * ld, 2 * stride if g.B > 1 else 2 * ld * size[1]), (LINE, box, 1))
        for size, ld, stride, box in zip(sizes, leading, strides, lines, strict=True)
    )
    if not all(encodable(m) for m in maps) or g.N % 8 or tiles.count > MOST_ELEMENTS:
        return None
    flags = ", ".join(str(flag).lower() for flag in (transpose_a, transpose_b))
    args = (pack("Gemm", g.M, g.N, g.K, *leading), float(alpha), float(beta), int(relu), g.B, strides[2])
    why = f"{g.B} x {g.M}x{g.N}x{g.K}, {tiles.count} tiles {ROWS}x{columns}, wgmma"
    kernel = f"dl::gemm_hopper<{dtype}, {flags}, {columns}, {cluster}>"
    return MappedPlan(launch(kernel, tiles, columns, cluster, args, why, target), maps)


@dataclass(frozen=True)
class TileGrid:
    """How many an output has."""

    batches: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.batches * self.rows * self.columns

    def blocks(self, cluster: int) -> int:
        """Blocks with one tile each; an odd row of tiles has a neighbour without one."""
        return self.batches * -(-self.rows // cluster) * cluster * self.columns

    def cluster(self, target: Target) -> int:
        """What the target asks for; else two where something is shared and the tiles outside cost no further wave."""
        waves = [-(-self.blocks(cluster) // resident(cluster, target)) for cluster in CLUSTERS]
        return target.cluster or (2 if self.rows > 1 and waves[1] <= waves[0] else 1)


def resident(cluster: int, target: Target) -> int:
    """Blocks that are there at a time, one on each multiprocessor."""
    return max(target.sms // cluster, 1) * cluster


def cost(tiles: TileGrid, columns: int, target: Target) -> float:
    """Of the waves of these tiles, as wide as this: for comparing widths."""
    cluster = tiles.cluster(target)
    return -(-tiles.blocks(cluster) // resident(cluster, target)) * columns * (NARROW if columns == 128 else 1)


def tiled(batches: int, rows: int, across: int, columns: int, target: Target) -> tuple[TileGrid, int]:
    """The tiles of outputs `rows` tiles high and `across` elements wide, and the columns of one: if 0, the cheapest."""

    def grid(width: int) -> TileGrid:
        return TileGrid(batches, rows, -(-across // width))

    columns = columns or min(WIDTHS, key=lambda width: cost(grid(width), width, target))
    return grid(columns), columns


def launch(
    kernel: str, tiles: TileGrid, columns: int, cluster: int, args: tuple[object, ...], why: str, target: Target
) -> Plan:
    """Blocks that stay."""
    shared = STAGES * (ROWS + columns) * 128 + 4 * 64 * 128 + 2 * STAGES * 8 + 1024  # hopper_shared_bytes
    blocks, slots = tiles.blocks(cluster), resident(cluster, target)
    why += f": {blocks / slots:.2f} waves of {slots}"
    return Plan(kernel, (min(blocks, slots), 1, 1), (THREADS, 1, 1), args, shared, why)
