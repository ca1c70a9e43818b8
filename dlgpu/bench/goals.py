"""What is to be reached on a GPU, and how far a run got: each goal is a ratio to a baseline of the same run.

`ship` is what makes an op good enough, `stretch` what would make it the best. They were set for one H200, from
published figures and rooflines, before anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlgpu.bench.cases import Case

Row = dict[str, Any]
HALF = ("float16", "bfloat16")
NCHW, NHWC = ("torch",), ("torch channels_last",)
TORCH = (*NCHW, *NHWC)
CUDNN = (*TORCH, "cudnn")
CUBLAS = ("torch", "cublas (CuPy)")


@dataclass(frozen=True)
class Goal:
    """`takes` says which cases answer it; `against` names the baselines, of which the fastest counts.

    Without any baseline it is a share of the measured copy bandwidth.
    """

    text: str
    takes: Callable[[Case], bool]
    against: tuple[str, ...]
    ship: float
    stretch: float

    def reached(self, row: Row, floor_us: float | None) -> tuple[float, str] | None:
        """How far a row of results got, and by which of our contestants: the fastest. None if there are no figures.

        What fits into the cache says nothing about bandwidth.
        """
        timed = [result for result in row.get("results", ()) if "us" in result]
        ours = min((r for r in timed if r["ours"]), key=lambda r: r["us"], default=None)
        times = [r["us"] for r in timed if r["by"] in self.against]
        if not self.against and floor_us and not row["cached"]:
            times = [floor_us]
        return (min(times) / ours["us"], ours["by"]) if ours and times else None

    def verdict(self, reached: float | None) -> str:
        """Met or not."""
        if reached is None:
            return "not measured"
        return "met, and the stretch" if reached >= self.stretch else "met" if reached >= self.ship else "not met"

    def shown(self, value: float | None) -> str:
        """Ratios as "0.95x", shares as "85%"."""
        return "-" if value is None else f"{value:.2f}x" if self.against else f"{value:.0%}"


def _batched(case: Case) -> bool:
    return (case.batch or 0) >= 32


def _conv(case: Case, op: str, dtypes: tuple[str, ...] = HALF) -> bool:
    return case.op == op and case.dtype in dtypes and case.sizes["groups"] == 1 and _batched(case)


def _wide(case: Case, op: str) -> bool:
    return _conv(case, op) and case.sizes["R"] == 3 and min(case.sizes["C"], case.sizes["K"]) >= 128


def _narrow(case: Case, op: str) -> bool:
    return _conv(case, op) and min(case.sizes["C"], case.sizes["K"]) <= 64


def _strict(case: Case, fewest: int, most: int) -> bool:
    s = case.sizes
    return _conv(case, "conv2d", ("float32",)) and (s["R"], s["stride"]) == (3, 1) and fewest <= s["C"] <= most


def _cube(case: Case, dtype: str, *sizes: int) -> bool:
    return case.op == "gemm" and case.dtype == dtype and case.sizes["M"] in sizes


def _images(case: Case, *ops: str) -> bool:
    return case.op in ops and _batched(case)


def _rows(case: Case, op: str) -> bool:
    return case.op == op and case.sizes["C"] >= 4096


def _dense(case: Case) -> bool:
    return case.op == "linear" and case.sizes["K"] == 25088 and case.dtype in HALF


def _large_arenas(case: Case) -> bool:
    return case.op in ("sgd_step", "adam_step") and case.sizes["size"] > 1e6


def _winograd_products(case: Case) -> bool:
    return case.op == "batched_gemm" and case.sizes["B"] in (16, 36) and case.dtype in ("bfloat16", "float32")


FUSED = "conv2d_bias_relu"
TURNED = ("to_channels_last", "to_contiguous")
MOVED = ("cast_to_float16", "relu", "dropout")
NORMS = ("batch_norm_train", "batch_norm_add_relu", "batch_norm_grad")
GOALS = (
    Goal("bfloat16 product, 8192", lambda c: _cube(c, "bfloat16", 8192), CUBLAS, 0.95, 1.02),
    Goal("float32 product, strict, 8192", lambda c: _cube(c, "float32", 8192), CUBLAS, 0.95, 1.0),
    Goal("half conv, 3x3, C and K >= 128", lambda c: _wide(c, "conv2d"), CUDNN, 0.85, 1.0),
    Goal("half conv + bias + ReLU, 3x3, C and K >= 128", lambda c: _wide(c, FUSED), NHWC, 1.05, 1.2),
    Goal("half conv + bias + ReLU, C or K <= 64", lambda c: _narrow(c, FUSED), NHWC, 1.5, 2.0),
    Goal("half grad_input, 3x3, C and K >= 128", lambda c: _wide(c, "conv2d_grad_input"), CUDNN, 0.85, 1.0),
    Goal("half grad_weight, 3x3, C and K >= 128", lambda c: _wide(c, "conv2d_grad_weight"), CUDNN, 0.8, 0.95),
    Goal("float32 conv, 3x3, C <= 128 (Winograd)", lambda c: _strict(c, 5, 128), CUDNN, 1.4, 1.8),
    Goal("float32 conv, 3x3, C >= 256 (Winograd)", lambda c: _strict(c, 256, 1 << 20), CUDNN, 1.8, 2.5),
    Goal("max-pooling and its gradient", lambda c: _images(c, "max_pool2d", "max_pool2d_grad"), (), 0.85, 0.93),
    Goal("max-pooling and its gradient", lambda c: _images(c, "max_pool2d", "max_pool2d_grad"), TORCH, 1.5, 1.8),
    Goal("softmax, loss and gradient in one, long rows", lambda c: _rows(c, "cross_entropy_with_grad"), (), 0.85, 0.95),
    Goal("optimizer steps", _large_arenas, (), 0.88, 0.95),
    Goal("layout changes", lambda c: _images(c, *TURNED), (), 0.9, 0.95),
    Goal("bfloat16 products, 4096 and 2048", lambda c: _cube(c, "bfloat16", 4096, 2048), CUBLAS, 1.0, 1.07),
    Goal("half dense layers", _dense, CUBLAS, 1.0, 1.07),
    Goal("batches of 16 and 36 products", _winograd_products, CUBLAS, 0.95, 1.1),
    Goal("tf32 product, 8192", lambda c: _cube(c, "tf32", 8192), CUBLAS, 0.92, 1.0),
    Goal("float32x3 product, 8192, strict float32", lambda c: _cube(c, "float32x3", 8192), CUBLAS, 2.0, 2.4),
    Goal("half conv + bias + ReLU, NCHW", lambda c: _conv(c, FUSED), NCHW, 2.0, 3.0),
    Goal("casts, ReLU, dropout", lambda c: _images(c, *MOVED), (), 0.9, 0.95),
    Goal("im2col and col2im", lambda c: _images(c, "im2col", "col2im"), (), 0.9, 0.95),
    Goal("batch norm and its gradient", lambda c: _images(c, *NORMS), (), 0.8, 0.9),
    Goal("batch norm and its gradient", lambda c: _images(c, *NORMS), TORCH, 1.2, 1.6),
)
