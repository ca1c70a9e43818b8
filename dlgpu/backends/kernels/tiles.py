"""How a product is cut up among blocks: the tile of each, and parts of the depth; with tensor cores or without.

`candidates` lists what can run, each with its predicted cost; `choose` takes the cheapest. The prediction counts waves
(all blocks that the GPU holds at a time): a last wave with few blocks costs as much as a full one, almost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlgpu.backends.kernels.plan import MOST_YZ
from dlgpu.errors import ShapeError

LEAST_DEPTH_BYTES = 512  # of depth, in each part of a split product: hides a block's start and its epilogue
MOST_SPLITS_TRIED = 4  # splits that fill 1, 2, ... waves are candidates
CHUNK_BYTES = 16  # what is loaded at once
ITEMSIZE = {"float": 4, "__half": 2, "__nv_bfloat16": 2}
WORKSPACE_BYTES = 1 << 28

# What the prediction assumes of an SM: from the data sheet of an H100 and kernels/*.cuh, not measured.
BYTES_PER_CYCLE = 20  # its share of the memory bandwidth
START_CYCLES = 1500  # until a block's first tiles have come
LAUNCH_CYCLES = 5000  # of one more kernel
SMALL_TILE = 4 / 3  # a 64x64 tile loads twice as much per product as a 128x128 one (anchor: +33 % for the larger)
ALONE = 0.6  # a block without neighbours waits for its own loads: at least this part of a full SM's time passes


@dataclass(frozen=True)
class Target:
    """What plans are made for: the device, the most workspace, and what a tuner asks to be taken instead of the best.

    `edge` and `splits` are those of a `Tile`; None leaves the choice to the prediction. `hopper` is the columns of the
    tiles of wgmma kernels, where those are to be taken (0: the plan's choice), `cluster` how many of their blocks share
    loads.
    """

    sms: int = 132
    workspace: int = WORKSPACE_BYTES
    edge: int | None = None
    splits: int | None = None
    hopper: int | None = None
    cluster: int | None = None
    capability: int = 90


ANY = Target()


@dataclass(frozen=True)
class Tile:
    """A square tile of the output for each block, and how many blocks share the depth of each.

    `kernels` ("_tc" on tensor cores, "_simt" without) and `types` complete a kernel's name. `cycles` is the predicted
    time in clock cycles: good for comparing tiles of one product, for nothing else.
    """

    edge: int
    splits: int
    threads: int
    kernels: str
    types: str
    grid: tuple[int, int, int]
    cycles: float
    why: str


@dataclass(frozen=True)
class Product:
    """`batches` products (rows x depth) by (depth x columns).

    Attributes:
        vector: loads of 16 bytes fit every extent and address (without: element by element).
        terms: products on tensor cores for each multiplication; 0: float32 without tensor cores.
        split: the kernel can share its depth among blocks.
        gathered: its factors are read from images: more registers.
    """

    dtype: str
    batches: int
    rows: int
    columns: int
    depth: int
    vector: bool
    terms: int
    split: bool = True
    gathered: bool = False

    def tiles(self, edge: int) -> int:
        return self.batches * -(-self.rows // edge) * -(-self.columns // edge)

    @property
    def in_vectors(self) -> bool:
        """Without tensor cores, half precision has no kernel with vectors: last resort."""
        return self.vector and (self.terms > 0 or self.dtype == "float")

    def edges(self) -> tuple[int, ...]:
        """The tiles that this product has kernels for."""
        return (128, 64) if self.in_vectors else (64,)

    def resident(self, edge: int, capability: int) -> int:
        """Blocks of its kernel on one SM: `simt_blocks` and `tensor_blocks` in kernels/*.cuh; before sm_80 what fits
        into shared memory. Of 64x64 tiles there may be one in two more, where the compiler takes fewer registers."""
        if not self.terms:
            return 2 if edge == 128 else 6 if self.in_vectors or capability < 100 else 4
        if capability < 80:
            return 1 if edge == 128 else 2
        return (2 if edge == 128 else 3 if self.gathered else 4) - (self.terms == 3)

    @property
    def products_per_cycle(self) -> float:
        """Multiply-adds of an SM: 128 FMA units; mma.sync does 1024 of halves, half as many of tf32."""
        if not self.terms:
            return 128
        return 1024 if ITEMSIZE[self.dtype] == 2 else 512 / self.terms


def predict(p: Product, edge: int, splits: int, target: Target) -> float:
    """Cycles that a product takes: its waves, one after the other, and the sum of the parts of a split one."""
    sms, resident, blocks = target.sms, p.resident(edge, target.capability), p.tiles(edge) * splits
    small = SMALL_TILE if edge == 64 else 1.0
    depth = -(-p.depth // splits)
    block = edge * edge * (depth * small / p.products_per_cycle + 4 / BYTES_PER_CYCLE)
    full, rest = divmod(blocks, sms * resident)
    cycles = full * (START_CYCLES + resident * block)
    if rest:
        cycles += START_CYCLES + max(-(-rest // sms), ALONE * resident) * block
    if splits > 1:
        cycles += LAUNCH_CYCLES + 2 * 4 * splits * p.batches * p.rows * p.columns / (sms * BYTES_PER_CYCLE)
    return cycles


def candidates(op: str, p: Product, target: Target) -> list[Tile]:
    """Every tile and number of splits worth trying, cheapest first; only what `target` asks for, if it does.

    Raises:
        ShapeError: more tiles than a grid has blocks.
    """
    found = [
        _tile(p, edge, splits, target)
        for edge in p.edges()
        if target.edge in (None, edge) and -(-p.rows // edge) <= MOST_YZ and p.batches <= MOST_YZ
        for splits in _splits(p, edge, target)
    ]
    if not found:
        asked = "" if target.edge is None else f"; asked for: tiles {target.edge}, splits {target.splits}"
        most = f"a launch makes at most {MOST_YZ * 64} rows of {MOST_YZ} products"
        raise ShapeError(f"[{op}] {most}; got {p.rows} of {p.batches}{asked}")
    return sorted(found, key=lambda tile: (tile.cycles, tile.splits, -tile.edge))


def choose(op: str, p: Product, target: Target) -> Tile:
    """The cheapest of the candidates."""
    return candidates(op, p, target)[0]


def _splits(p: Product, edge: int, target: Target) -> list[int]:
    """Numbers of parts: 1, and what fills one wave, two, ... as far as depth and workspace allow."""
    most = 1
    if p.split:
        parts = p.depth * ITEMSIZE[p.dtype] // LEAST_DEPTH_BYTES
        slabs = target.workspace // max(4, 4 * p.batches * p.rows * p.columns)
        most = max(1, min(parts, slabs, MOST_YZ // max(1, p.batches)))
    if target.splits is not None:
        return [target.splits] if target.splits <= most else []
    slots, tiles = target.sms * p.resident(edge, target.capability), max(1, p.tiles(edge))
    filling = {min(most, max(1, count * slots // tiles)) for count in range(1, MOST_SPLITS_TRIED + 1)}
    return sorted({1} | filling)


def _tile(p: Product, edge: int, splits: int, target: Target) -> Tile:
    across, down = -(-p.columns // edge), -(-p.rows // edge)
    slots = target.sms * p.resident(edge, target.capability)
    vector = p.in_vectors
    how = f"{str(vector).lower()}, {p.terms}" if p.terms else str(4 if vector else 1)
    why = f"{p.batches} x {p.rows}x{p.columns}x{p.depth}, tiles {edge}x{edge}"
    why += f", depth in {splits}" if splits > 1 else ""
    why += f": {p.tiles(edge) * splits / slots:.2f} waves of {slots}"
    return Tile(
        edge,
        splits,
        64 if edge == 64 and not p.terms else 256,
        "_tc" if p.terms else "_simt",
        f"{edge}, {edge}, {how}",
        (across, down, p.batches * splits),
        predict(p, edge, splits, target),
        why + ("" if vector else ", element by element"),
    )


def fits(dtype: str, extents: Iterable[int]) -> bool:
    """Whether vectors of 16 bytes fit these extents, in elements."""
    return all(extent % (CHUNK_BYTES // ITEMSIZE[dtype]) == 0 for extent in extents)
