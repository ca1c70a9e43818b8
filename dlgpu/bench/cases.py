"""What is measured: every case as data; selecting, shrinking and ordering them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from dlgpu.bench.goals import GOALS
from dlgpu.bench.networks import NETWORKS, layers
from dlgpu.bench.ops import FAMILIES, OPS, Op, Sizes
from dlgpu.errors import ShapeError, UnknownName

BATCHES = (64, 1, 256, 32)  # in the order in which they tell most
DTYPES = ("float32", "float16", "bfloat16", "tf32", "float32x3")
ITEMSIZE = {"float32": 4, "tf32": 4, "float32x3": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One op on one shape in one precision.

    Attributes:
        op: a key of `ops.OPS`.
        group: the network or set of shapes it belongs to.
        name: of the layer or shape in its group.
        dtype: of `DTYPES`.
        sizes: what `ops` reads.
        rank: 0 for the most important shape of its group.
    """

    op: str
    group: str
    name: str
    dtype: str
    sizes: Sizes
    rank: int = 0

    @property
    def id(self) -> str:
        batch = f" x{self.sizes['N']}" if self.batch else ""
        return f"{self.op} {self.group} {self.name}{batch} {self.dtype}"

    @property
    def batch(self) -> int | None:
        """Images; None for products and arenas, which have none."""
        return self.sizes["N"] if "H" in self.sizes or "classes" in self.group else None

    @property
    def what(self) -> Op:
        return OPS[self.op]

    @property
    def storage(self) -> str:
        """The element type in memory."""
        return "float32" if self.dtype in ("tf32", "float32x3") else self.dtype

    @property
    def flops(self) -> int:
        return self.what.flops(self.sizes)

    @property
    def bytes(self) -> int:
        return self.what.bytes(self.sizes, ITEMSIZE[self.dtype])


# --- the shapes -------------------------------------------------------------------------------------------------------

# op -> group -> name -> sizes (N is set to each batch)
Shapes = dict[str, dict[str, dict[str, dict[str, Any]]]]


def _window(C: int, H: int, R: int, stride: int, padding: int = 0) -> dict[str, Any]:
    return dict(C=C, H=H, R=R, stride=stride, padding=padding)


_CONVOLUTIONS = {
    network: {
        layer.name: _window(layer.C, layer.H, layer.R, layer.stride, layer.padding)
        | dict(K=layer.K, groups=layer.groups)
        for layer in layers(network)
    }
    for network in NETWORKS
}
# the last convolution of each of VGG16's stages, with the pooling behind it
_POOLED = {
    "vgg16": {name: _CONVOLUTIONS["vgg16"][name] for name in ("conv1_2", "conv2_2", "conv3_2", "conv4_2", "conv5_1")}
}
_MAX_POOLS = {
    "vgg16": {"pool1": _window(64, 224, 2, 2), "pool3": _window(256, 56, 2, 2)},
    "resnet50": {"pool1": _window(64, 112, 3, 2, 1)},
    "alexnet": {"pool1": _window(96, 55, 3, 2)},
    "googlenet": {"3a_pool": _window(192, 28, 3, 1, 1)},
}
_AVG_POOLS = {"resnet50": {"pool5": _window(2048, 7, 7, 7)}, "googlenet": {"pool5": _window(1024, 7, 7, 7)}}
_NORMS = {
    "resnet50": {
        "bn2c": dict(C=256, H=56, G=32),
        "bn1": dict(C=64, H=112, G=32),
        "bn4b": dict(C=256, H=14, G=32),
        "bn5c": dict(C=2048, H=7, G=32),
    }
}
_LRN = {"alexnet": {"norm1": dict(C=96, H=55), "norm2": dict(C=256, H=27)}}
_FEATURES = {
    "vgg16": {"relu1_2": dict(C=64, H=224), "relu3_3": dict(C=256, H=56)},
    "resnet50": {"relu2c": dict(C=256, H=56)},
}
_COLUMNS = {"vgg16": {"conv3_2": _window(256, 56, 3, 1, 1)}, "alexnet": {"conv2": _window(48, 27, 5, 1, 2)}}
_PARAMETERS = {"vgg16": 138_357_544, "resnet50": 25_557_032, "lenet5": 61_706}

WITH_BATCH: Shapes = {
    "conv2d": _CONVOLUTIONS,
    "conv2d_bias_relu": _CONVOLUTIONS,
    "conv2d_relu_max_pool2d": _POOLED,
    "conv2d_grad_input": _CONVOLUTIONS,
    "conv2d_grad_weight": _CONVOLUTIONS,
    "max_pool2d": _MAX_POOLS,
    "max_pool2d_grad": _MAX_POOLS,
    "avg_pool2d": _AVG_POOLS,
    "avg_pool2d_grad": _AVG_POOLS,
    "batch_norm_train": _NORMS,
    "batch_norm_add_relu": _NORMS,
    "batch_norm_grad": _NORMS,
    "group_norm": _NORMS,
    "group_norm_grad": _NORMS,
    "local_response_norm": _LRN,
    "relu": _FEATURES,
    "dropout": _FEATURES,
    "grad_bias": _FEATURES,
    "cast_to_float16": _FEATURES,
    "to_channels_last": _FEATURES,
    "to_contiguous": _FEATURES,
    "im2col": _COLUMNS,
    "col2im": _COLUMNS,
}
_CLASSES = {
    "imagenet": {"classes": dict(N=256, C=1000)},
    "long_rows": {"classes": dict(N=4096, C=32768)},
    "mnist": {"classes": dict(N=128, C=10)},
}
_ARENAS = {network: {"parameters": dict(size=count)} for network, count in _PARAMETERS.items()}
ALONE: Shapes = {
    "gemm": {"ladder": {str(n): dict(M=n, N=n, K=n) for n in (4096, 8192, 1024, 2048, 512)}},
    # the first dense layer of AlexNet and VGG16
    "linear": {"fc6": {f"{rows}": dict(M=rows, N=4096, K=25088) for rows in (64, 256, 512, 128)}},
    # Winograd F(4x4) and F(2x2) of VGG16's conv3_2 and conv5_1, 64 images: 36 or 16 products over the tiles
    "batched_gemm": {
        "winograd": {
            "36 x conv3_2": dict(B=36, M=64 * 14 * 14, N=256, K=256),
            "16 x conv3_2": dict(B=16, M=64 * 28 * 28, N=256, K=256),
            "36 x conv5_1": dict(B=36, M=64 * 4 * 4, N=512, K=512),
            "16 x conv5_1": dict(B=16, M=64 * 7 * 7, N=512, K=512),
        }
    },
    "softmax": _CLASSES,
    "cross_entropy": _CLASSES,
    "cross_entropy_grad": _CLASSES,
    "cross_entropy_with_grad": _CLASSES,
    "sgd_step": _ARENAS,
    "adam_step": _ARENAS,
}


def every_case(batches: Sequence[int] = BATCHES) -> Iterator[Case]:
    """Every op on every shape, batch and precision that it has, in no particular order."""
    for op in OPS:
        given = batches if op in WITH_BATCH else (None,)
        for group, shapes in (WITH_BATCH.get(op) or ALONE[op]).items():
            for rank, (name, sizes) in enumerate(shapes.items()):
                for batch in given:
                    whole = sizes if batch is None else sizes | dict(N=batch)
                    for dtype in OPS[op].dtypes:
                        yield Case(op, group, name, dtype, whole, rank)


# --- selecting, shrinking, ordering -----------------------------------------------------------------------------------


def select(
    ops: Sequence[str] = (),
    networks: Sequence[str] = (),
    batches: Sequence[int] = (),
    dtypes: Sequence[str] = (),
) -> list[Case]:
    """The cases that all given filters let through (an empty filter lets everything through), best first.

    `ops` are op names or families ("conv", "gemm", ...), `networks` groups of shapes ("vgg16", "ladder", ...).

    Raises:
        UnknownName: a filter names nothing there is.
        ShapeError: nothing is left.
    """
    cases = list(every_case(batches or BATCHES))
    groups = dict.fromkeys(case.group for case in cases)
    for kind, given, known in (
        ("op or family", ops, (*OPS, *FAMILIES)),
        ("network", networks, groups),
        ("dtype", dtypes, DTYPES),
    ):
        for name in given:
            if name not in known:
                raise UnknownName("bench", kind, name, known)
    chosen = [
        case
        for case in cases
        if (not ops or case.op in ops or case.what.family in ops)
        and (not networks or case.group in networks)
        and (not dtypes or case.dtype in dtypes)
    ]
    if not chosen:
        raise ShapeError(
            f"[bench] at least one case must be left; got none for ops {list(ops)}, networks {list(networks)}, "
            f"batches {list(batches)}, dtypes {list(dtypes)}: `dlgpu bench --list` shows them all"
        )
    return by_information(chosen)


def by_information(cases: Iterable[Case]) -> list[Case]:
    """The order in which a short run learns most: the first case of every goal, the second, then everything else.

    That is dealt in rounds. In each, every op and precision gives its next few (`Op.turns`), one after the other; ops
    that only move bytes show float32 in the first round and one precision more in each further one; float32x3 comes a
    round later. Within an op and precision, the heaviest layers of all networks come first, at batch 64; other batches
    follow three ranks later each.
    """
    queues: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        queues.setdefault((case.op, case.dtype), []).append(case)
    dealt: list[tuple[float, Case]] = []
    for (_, dtype), queue in queues.items():
        queue.sort(key=_importance)
        what = queue[0].what
        late = int(dtype == "float32x3") if what.flops(queue[0].sizes) else what.dtypes.index(dtype)
        dealt += [(late + index / what.turns, case) for index, case in enumerate(queue)]
    order = [case for _, case in sorted(dealt, key=lambda turn: turn[0])]  # stable: within a turn, ops stay in order
    per_goal = [[case for case in order if goal.takes(case)][:2] for goal in GOALS]
    first = [case for turn in zip_longest(*per_goal) for case in turn if case]
    return list({case.id: case for case in (*first, *order)}.values())


def _importance(case: Case) -> int:
    return case.rank + (3 * BATCHES.index(case.batch) if case.batch in BATCHES else 0)


# What a tiny case may have at most: enough for an edge and a second tile, small enough for an emulated GPU.
TINY = dict(N=2, C=20, K=40, H=15, M=70, B=2, size=1000)


def tiny(cases: Iterable[Case]) -> list[Case]:
    """The same kinds of cases on small arrays, each geometry once: for emulation, sanitizers and tests."""
    small: dict[str, Case] = {}
    for case in cases:
        sizes = {name: min(value, TINY.get(name, value)) for name, value in case.sizes.items()}
        if "M" in sizes:
            sizes |= dict(N=min(case.sizes["N"], 70), K=min(case.sizes["K"], 40))
        if sizes.get("groups", 1) > 1:  # depthwise stays depthwise, two towers stay two
            sizes["groups"] = sizes["C"] if case.sizes["groups"] == case.sizes["C"] else 2
            sizes["K"] = sizes["C"] if case.sizes["groups"] == case.sizes["C"] else sizes["K"]
        if "G" in sizes:
            sizes["G"] = 4
        if "R" in sizes:
            sizes["H"] = max(sizes["H"], sizes["R"])
        shrunk = replace(case, sizes=sizes, name=f"{case.name} (tiny)")
        small.setdefault(f"{case.op} {case.dtype} {sizes}", shrunk)
    return list(small.values())
