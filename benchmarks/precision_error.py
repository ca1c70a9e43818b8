"""How far products are off in each precision: `python -m benchmarks.precision_error [--device host-kernels]`.

(64, K) @ (K, 64) of standard normal numbers, against float64. An error is relative to the sum of the sizes of an
output's products, which is what rounding errors grow with; the table has the greatest and the root mean square over
all outputs, in units of 2^-24, half the distance between two floats at 1. float16 and bfloat16 also round factors and
outputs. On `host-kernels` tensor cores are emulated: factors are cut as they cut them, sums are float32 in the
kernel's order (within one instruction in the emulator's own).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from dlgpu import backends
from dlgpu.backends import precision
from dlgpu.bench.check import to_float64

DEPTHS = (64, 512, 4096)
PRECISIONS: dict[str, tuple[str, precision.Precision]] = {  # name -> storage, precision of float32 products
    "float32": ("float32", "float32"),
    "float32x3": ("float32", "float32x3"),
    "tf32": ("float32", "tf32"),
    "float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
}


def errors(ops: Any, name: str, depth: int) -> tuple[float, float]:
    """(greatest, root mean square), in units of 2^-24."""
    storage, chosen = PRECISIONS[name]
    rng = np.random.default_rng(depth)
    exact_a, exact_b = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, depth), (depth, 64)))
    a, b = (ops.cast(ops.xp.asarray(x), storage) for x in (exact_a, exact_b))
    with precision.use(chosen):
        got = ops.gemm(a, b)
    wide_a, wide_b = exact_a.astype(np.float64), exact_b.astype(np.float64)
    error = (to_float64(got) - wide_a @ wide_b) / (abs(wide_a) @ abs(wide_b)) * 2**24
    return float(abs(error).max()), float(np.sqrt((error**2).mean()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="host-kernels", help="cuda, or host-kernels (default)")
    ops = backends.get(parser.parse_args().device)
    print("| precision | " + " | ".join(f"K = {depth}: greatest, rms" for depth in DEPTHS) + " |")
    print("|---" * (1 + len(DEPTHS)) + "|")
    for name in PRECISIONS:
        cells = (errors(ops, name, depth) for depth in DEPTHS)
        print(f"| {name} | " + " | ".join(f"{most:.3g}, {rms:.3g}" for most, rms in cells) + " |")


if __name__ == "__main__":
    main()
