"""How a product is cut up among blocks: the tile of each, and parts of the depth; with tensor cores or without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlgpu.backends.kernels.plan import MOST_YZ
from dlgpu.errors import ShapeError

ENOUGH_BLOCKS = 132  # one for each SM of the largest GPUs
LEAST_DEPTH_BYTES = 512  # of depth, in each part of a split product: hides a block's start and its epilogue
SLAB_BYTES = 1 << 26  # most workspace for the parts of a split product
CHUNK_BYTES = 16  # what is loaded at once
ITEMSIZE = {"float": 4, "__half": 2, "__nv_bfloat16": 2}


@dataclass(frozen=True)
class Tile:
    """A square tile of the output for each block, and how many blocks share the depth of each.

    `kernels` ("_tc" on tensor cores, "_simt" without) and `types` complete a kernel's name.
    """

    edge: int
    splits: int
    threads: int
    kernels: str
    types: str
    grid: tuple[int, int, int]
    why: str


def choose(
    op: str,
    dtype: str,
    batches: int,
    rows: int,
    columns: int,
    depth: int,
    *,
    vector: bool,
    terms: int,
    split: bool = True,
) -> Tile:
    """Large tiles where they fill the GPU; with `split`, a long depth is shared where the output has too few tiles.

    Args:
        vector: loads of 16 bytes fit every extent and address (without: element by element).
        terms: products on tensor cores for each multiplication; 0: float32 without tensor cores.

    Raises:
        ShapeError: more tiles than a grid has blocks.
    """
    vector = vector and (terms > 0 or dtype == "float")  # the other types without tensor cores: last resort

    def blocks(edge: int) -> int:
        return batches * -(-rows // edge) * -(-columns // edge)

    most = 1
    if split:
        parts = depth * ITEMSIZE[dtype] // LEAST_DEPTH_BYTES
        most = max(1, min(parts, SLAB_BYTES // max(4, 4 * batches * rows * columns), MOST_YZ // max(1, batches)))
    large = vector and rows > 64 and columns > 64 and blocks(128) * most >= ENOUGH_BLOCKS
    edge = 128 if large else 64
    small_simt = not terms and not large
    resident = 6 if small_simt else 2  # blocks of the kernel on one SM
    splits = max(1, min(most, ENOUGH_BLOCKS * resident // max(1, blocks(edge))))

    across, down = -(-columns // edge), -(-rows // edge)
    if down > MOST_YZ or batches * splits > MOST_YZ:
        raise ShapeError(
            f"[{op}] a launch makes at most {MOST_YZ * edge} rows of {MOST_YZ} products; got {rows} of {batches}"
        )
    how = f"{str(vector).lower()}, {terms}" if terms else str(4 if vector else 1)
    why = f"{batches} x {rows}x{columns}x{depth}, tiles {edge}x{edge}"
    why += (f", depth in {splits}" if splits > 1 else "") + ("" if vector else ", element by element")
    return Tile(
        edge,
        splits,
        64 if small_simt else 256,
        "_tc" if terms else "_simt",
        f"{edge}, {edge}, {how}",
        (across, down, batches * splits),
        why,
    )


def fits(dtype: str, extents: Iterable[int]) -> bool:
    """Whether vectors of 16 bytes fit these extents, in elements."""
    return all(extent % (CHUNK_BYTES // ITEMSIZE[dtype]) == 0 for extent in extents)
