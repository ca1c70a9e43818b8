"""What the inner loops of the products consist of, counted in their machine code: needs NVRTC and nvdisasm, no GPU.

    python -m benchmarks.instruction_mix [sm_80 sm_90a ...]

Arithmetic units can only be busy while their instructions are issued, so the share of those instructions bounds what a
loop can reach; everything else in it is the price of feeding them.
"""

from __future__ import annotations

import sys
from collections import Counter

from benchmarks import sass
from dlgpu.backends.kernels.sources import family_of

# kernel, the instruction that does its arithmetic, architectures
KERNELS = [
    ("dl::gemm_simt<float, false, false, 128, 128, 4>", "FFMA", ("sm_80", "sm_90")),
    ("dl::conv2d_simt<float, 128, 128, 4>", "FFMA", ("sm_80", "sm_90")),
    ("dl::winograd2_fused<float, 64>", "FFMA", ("sm_80", "sm_90")),
    ("dl::gemm_tc<__half, false, true, 128, 128, true, 1>", "HMMA", ("sm_80", "sm_90")),
    ("dl::conv2d_tc<__half, 128, 128, true, 1>", "HMMA", ("sm_80", "sm_90")),
    ("dl::conv2d_grad_input_tc<__half, 128, 128, true, 1>", "HMMA", ("sm_80", "sm_90")),
    ("dl::conv2d_grad_weight_tc<__half, 128, 128, true, 1>", "HMMA", ("sm_80", "sm_90")),
    ("dl::conv2d_grad_weight_tc<float, 128, 128, true, 1>", "HMMA", ("sm_80", "sm_90")),
    ("dl::gemm_hopper<__half, false, true, 256, 2>", "HGMMA", ("sm_90a",)),
    ("dl::conv_hopper<__half, 256, 2>", "HGMMA", ("sm_90a",)),
]
MEMORY = ("LDG", "LDGSTS", "LDS", "LDSM", "STS", "STG", "LDL", "STL", "UTMALDG", "UTMASTG")


def main(wanted: list[str]) -> None:
    """Print a table in Markdown."""
    print("| kernel | architecture | instructions | arithmetic | share | memory |")
    print("|---|---|---|---|---|---|")
    for kernel, unit, architectures in KERNELS:
        for arch in architectures:
            if wanted and arch not in wanted:
                continue
            code = sass.machine_code(family_of(kernel), arch, [kernel])[kernel]
            loop = [op.split(".")[0] for op in sass.main_loop(code, unit)]
            count = Counter(loop)
            memory = [f"{n} {op}" for op, n in sorted(count.items()) if op in MEMORY]
            cells = (f"`{kernel.removeprefix('dl::')}`", arch, len(loop), f"{count[unit]} {unit}")
            print("|", " | ".join(map(str, (*cells, f"{count[unit] / len(loop):.0%}", ", ".join(memory)))), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
