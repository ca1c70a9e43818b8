"""Break each kernel on purpose and see the tests go red: `python tests/break_kernels.py [FILE.cuh ...]`.

Works on a copy of the checkout. Every row must say "red"; exit code 1 if one does not. All of them take about half an
hour; with names of files, only their rows are tried.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from test_kernels_flavours import QUICK, kernel_tests

ROOT = Path(__file__).parents[1]

# file, what it says, what the broken kernel says, the tests that must notice, the launcher's flavour
BREAKS = [
    ("im2col.cuh", "w >= 0 && w < g.W", "w >= 0 && w <= g.W", "test_im2col", "fast"),
    ("im2col.cuh", "top + r * g.dilation_h", "top + r", "test_im2col", "fast"),
    ("im2col.cuh", "c = 0, ++row, look();", "c = 0, ++row;", "test_im2col", "fast"),
    ("shapes.cuh", "return window < windows ? window : -1;", "return window;", "test_max_pool", "check"),
    ("pool.cuh", "!(values[v] <= best[v]) && best[v] == best[v]", "values[v] >= best[v]", "test_max_pool", "fast"),
    ("pool.cuh", "i % (C / V) * V", "i % (C / V)", "pool", "fast"),
    ("pool.cuh", "at.y * g.stride_h - g.pad_top + r;", "at.y * g.stride_w - g.pad_top + r;", "test_avg_pool", "fast"),
    ("simt.cuh", "cp_async_wait<0>();\n    __syncthreads();", "cp_async_wait<0>();", "test_kernels_gemm", "check"),
    ("simt.cuh", "        store(next);", "        store(now);", "test_kernels_gemm", "fast"),
    ("simt.cuh", "if (left == 1) break;", "", "test_kernels_gemm", "check"),
    ("simt.cuh", "(EDGE + (!kDeepFast && V == 1 ? 8 : 4)) * 4", "EDGE * 4", "no_bank_conflicts", "check"),
    ("simt.cuh", "k < kSimtDepth; ++k) sum +=", "k < kSimtDepth - 1; ++k) sum +=", "three_products", "fast"),
    ("gemm.cuh", "blockIdx.z * stride_o", "batch * stride_o / 2", "test_kernels_gemm", "fast"),
    ("conv_simt.cuh", "const int end = min(depth, ", "const int end = max(depth, ", "three_products", "fast"),
    ("conv_simt.cuh", "better(best[e], candidate)", "better(candidate, best[e])", "ties", "fast"),
    ("conv_simt.cuh", "(long long)(m / 4) * g.K + first", "(long long)(m / 4) * filters + first", "epilogues", "fast"),
    ("reduce.cuh", "  __syncthreads();  // an earlier call's partial results have been read\n", "", "norm", "check"),
    ("reduce.cuh", "lane < warps ? partial[lane]", "lane <= warps ? partial[lane]", "norm", "fast"),
    ("norm.cuh", "var * all.count / (all.count - 1)", "var", "test_batch_norm", "fast"),
    ("channel_sums.cuh", "half /= 2) {\n      __syncthreads();", "half /= 2) {", "norm", "check"),
    ("channel_sums.cuh", "    __syncthreads();  // what the channel before left has been read\n", "", "parts", "check"),
    ("channel_sums.cuh", "for (int v = 1; v < V; ++v) own[0]", "for (int v = 2; v < V; ++v) own[0]", "norm", "fast"),
    ("channel_sums.cuh", "load_some<V>(vector + c, V, out);", "load_some<V>(vector, V, out);", "norm", "fast"),
    ("channel_sums.cuh", "for (int part = 1; part < parts", "for (int part = 2; part < parts", "parts", "fast"),
    ("channel_sums.cuh", "j / g.stride_c % g.C", "j % g.C", "norm", "fast"),
    ("norm.cuh", "o = c - (size - 1) / 2", "o = c - size / 2", "test_local_response_norm", "fast"),
    ("operand.cuh", "(i < rows ? i : 0)", "i", "test_kernels_gemm", "asan"),
    ("operand.cuh", "return k.k < depth;", "return k.k <= depth;", "test_kernels_gemm", "asan"),
    ("operand.cuh", "< unsigned(W));", "<= unsigned(W));", "three_products", "fast"),
    ("operand.cuh", "(k.left > 0) & ", "", "three_products", "asan"),
    ("operand.cuh", "      at.h += x.stride_h;\n", "", "three_products", "fast"),
    ("operand.cuh", "(x.H - x.P * x.stride_h)", "x.H", "three_products", "fast"),
    ("operand.cuh", "if (at.h == R * step_h) at.h = kNowhere;", "", "past_the_last_tap", "fast"),
    ("operand.cuh", "(step_r * filter_width - S * step_s)", "(step_r - S * step_s)", "three_products", "fast"),
    ("epilogue.cuh", "beta * added[i]", "added[i]", "test_kernels_gemm", "fast"),
    (
        "operand.cuh",
        "i % 4 / 2, block % columns * 2 + i % 2",
        "i % 2, block % columns * 2 + i % 4 / 2",
        "epilogues",
        "fast",
    ),
    ("operand.cuh", "ceil_div(filter - tap, step)", "(filter - tap) / step", "three_products", "fast"),
    ("tensor_tile.cuh", "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", "test_kernels_gemm", "fast"),
    ("tensor_tile.cuh", "__syncthreads();  // everyone's", "// everyone's", "test_kernels_gemm", "check"),
    ("tensor_tile.cuh", "(place ^ turn(lines) * 16)", "place", "three_products", "fast"),
    ("tensor_tile.cuh", "i < kSharing; ++i) sum", "i < kSharing - 1; ++i) sum", "three_products", "fast"),
    ("tensor_tile.cuh", "    __syncthreads();  // the tiles have been read\n", "", "three_products", "check"),
    ("tensor_tile.cuh", "lane / 16 * 8, lane / 8 % 2)", "lane / 16 * 8, lane / 16)", "test_kernels_gemm", "fast"),
    ("tensor_tile.cuh", "first ^ chunks * kTwoChunks", "first + chunks * kTwoChunks", "test_kernels_gemm", "fast"),
    ("tensor_tile.cuh", "large_a, small_b[0], small_b[1]", "large_a, small_b[0], small_b[0]", "three_terms", "fast"),
    ("gemm_tc.cuh", "split < splits; ++split) sum", "split < splits - 1; ++split) sum", "split_depth", "fast"),
    ("epilogue.cuh", "a.value >= b.value ? a : b", "a.value > b.value ? a : b", "epilogues or ties", "fast"),
    ("conv_tc.cuh", "(long long)(m / 4) * g.K + k", "(long long)(m / 4) * filters + k", "epilogues", "fast"),
    (
        "conv_operands.cuh",
        "g.stride_h * g.stride_w)) / g.stride_w",
        "g.stride_h * g.stride_w)) / g.stride_h",
        "random_geometry",
        "fast",
    ),
    (
        "direct.cuh",
        "if (column < 0 || column >= g.W) continue;",
        "if (column < 0) continue;",
        "test_kernels_direct",
        "fast",
    ),
    (
        "direct.cuh",
        "each, g.N * g.P);\n  const int channel",
        "each + 1, g.N * g.P);\n  const int channel",
        "test_kernels_direct",
        "fast",
    ),
    (
        "winograd.cuh",
        "out[3] = odd + 8.0f * far_odd + m[5];",
        "out[3] = odd + 8.0f * far_odd;",
        "test_kernels_winograd",
        "fast",
    ),
    ("winograd.cuh", "turned ? 2 - r : r, turned", "r, turned", "test_kernels_winograd", "fast"),
    ("winograd_fused.cuh", "          __syncthreads();\n          read(1", "          read(1", "winograd", "check"),
    ("winograd_fused.cuh", "          cp_async_wait<0>();\n", "", "winograd", "check"),
    ("winograd_fused.cuh", "    v_to ^= kVBytes;\n", "", "winograd", "check"),
    ("winograd_fused.cuh", "channels > 0 ? exist : 0", "exist", "winograd", "asan"),
    ("winograd_fused.cuh", "step == 0 || left > 1", "true", "winograd", "asan"),
    ("winograd_fused.cuh", "k < K && c < C", "k < K", "winograd", "asan"),
    ("winograd_fused.cuh", "turned ? c : k, turned ? k : c", "k, c", "winograd", "fast"),
    ("winograd_fused.cuh", "(square ^ step) * 64", "square * 64", "winograd", "fast"),
    ("winograd_fused.cuh", "slot / 2 % 2 * 4 + slot % 2", "slot / 2 % 2 * 2 + slot % 2", "winograd", "fast"),
    ("winograd_fused.cuh", " || first_k + k >= out.C", "", "winograd", "asan"),
    (
        "softmax.cuh",
        "sum += expf(to_float(x[c * g.inner]) - safe)",
        "sum += expf(to_float(x[c]) - safe)",
        "softmax",
        "fast",
    ),
    ("softmax.cuh", "g.sharing == 1 ? value : ", "", "softmax", "fast"),
    ("softmax.cuh", "g.sharing == 32 ? warp_reduce<Op>(value) : ", "", "softmax", "fast"),
    ("softmax.cuh", "smoothing / g.classes", "smoothing", "test_cross_entropy", "fast"),
    ("dropout.cuh", "round < 10", "round < 9", "test_dropout", "fast"),
    ("activation.cuh", "d * (1.0f - saved * saved)", "d * (1.0f - saved)", "test_activations", "fast"),
    ("optim.cuh", "* root + eps", "+ eps", "test_optimizer", "fast"),
    ("optim.cuh", "nesterov ? momentum * v + step : v", "v", "test_optimizer", "fast"),
    ("movement.cuh", "tile[along * kPitch + i]", "tile[along * kEdge + i]", "turned", "fast"),
    ("movement.cuh", "  __syncthreads();\n", "", "turned", "check"),
    ("vector.cuh", "i < valid ? to_float(p[i])", "i + 1 < valid ? to_float(p[i])", "test_activations", "fast"),
    ("hopper_tile.cuh", "barrier_wait(full", "if (false) barrier_wait(full", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "barrier_wait(empty", "if (false) barrier_wait(empty", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "      wgmma_wait<0>();\n", "", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "    async_fence();\n", "", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "p == 0 ? tma_store_wait_read<0>() : ", "", "test_kernels_hopper", "fast"),
    (
        "hopper_tile.cuh",
        "tma_store_wait_read<0>() : tma_store_wait_read<1>()",
        "tma_store_wait_read<0>() : (void)0",
        "test_kernels_hopper",
        "fast",
    ),
    ("hopper_tile.cuh", "DeepB ? 32 : 2 * kAtom", "32", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "column / 8 ^ line % 8", "column / 8", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "step + k > 0", "k > 0", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "4 * kConsumers * kCluster", "4 * kConsumers", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "if (lane < kCluster)", "if (lane == 0)", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "kCluster > 1 ? cluster_barrier() :", "", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "  if (kCluster > 1) cluster_barrier();", "", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "kBytesA + share * 128", "kBytesA", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "* kCluster + rank, rest", "* kCluster, rest", "test_kernels_hopper", "fast"),
    ("hopper.cuh", "return (1 << blocks) - 1;", "return 1;", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "to.last_tap - at.k.r * to.tap_row", "to.last_tap", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "part % 2 * (g.step_w / 2)", "0", "test_kernels_hopper", "fast"),
    (
        "conv_hopper.cuh",
        "place == 0 ? candidate : better(best[e], candidate)",
        "candidate",
        "test_kernels_hopper",
        "fast",
    ),
    ("conv_hopper.cuh", "* to.stride_w + to.first_w", "* to.stride_w", "test_kernels_hopper", "fast"),
    ("hopper_tile.cuh", "sums[j] = 0.0f;", ";", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "m % g.width * g.step_w", "m % g.width", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "at.batch * steps * kHopperDepth", "0 * kHopperDepth", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "at.window.h += g.step_h;", "at.window.h += 0;", "test_kernels_hopper", "fast"),
    ("conv_hopper.cuh", "at.window.h -= g.height * g.step_h, ++at", "++at", "test_kernels_hopper", "fast"),
    ("im2col.cuh", "(c * g.R + r) * g.S + s", "(c * g.S + r) * g.R + s", "im2col", "fast"),
    ("pool.cuh", "places.v[v] == r * g.S + s", "places.v[v] == r + s", "test_max_pool", "fast"),
    ("pool.cuh", "grads[v] / places", "grads[v]", "test_avg_pool", "fast"),
    ("movement.cuh", "load_some<V>(x + at, valid", "load_some<V>(x, valid", "cast", "fast"),
    ("movement.cuh", "i / (C * W) % H", "i / C % H", "test_cast_and_layout", "fast"),
    (
        "direct.cuh",
        "- g.pad_left + s * g.dilation_w;\n            if",
        "- g.pad_left + s;\n            if",
        "direct",
        "fast",
    ),
    ("direct.cuh", "+ c) * g.K + group * filters;", "+ c) * g.K;", "direct", "fast"),
    ("direct.cuh", "last = min(first + each,", "last = min(first + each - 1,", "direct", "fast"),
    (
        "conv_simt.cuh",
        "first_w = blockIdx.z % g.stride_w",
        "first_w = blockIdx.z % g.stride_h",
        "three_products",
        "fast",
    ),
    ("conv_tc.cuh", "best.place < other.place", "best.place > other.place", "ties", "fast"),
    ("conv_tc.cuh", "first_w = blockIdx.z % g.stride_w", "first_w = blockIdx.z % g.stride_h", "three_products", "fast"),
    ("conv_tc.cuh", "bias_slabs + split * g.K + group * filters", "bias_slabs + split * g.K", "three_products", "fast"),
    ("gemm_hopper.cuh", "at.batch * stride_o", "0 * stride_o", "test_kernels_hopper", "fast"),
    ("winograd.cuh", "turned ? 2 - s : s", "s", "winograd", "fast"),
    ("winograd.cuh", "unsigned(w + b) < unsigned(g.W)", "unsigned(w + b) <= unsigned(g.W)", "winograd", "fast"),
    ("winograd.cuh", "p + a < g.H && q + b < g.W;", "p + a < g.H;", "winograd", "fast"),
    ("winograd.cuh", "8.0f * far_odd + m[5]", "8.0f * far_odd", "winograd", "fast"),
    ("winograd.cuh", "far * (1.0f / 6) + u[5]", "far * (1.0f / 6)", "winograd", "fast"),
    ("norm.cuh", "(values[v] - m[v]) * (r[v] * w[v])", "values[v] * (r[v] * w[v])", "test_batch_norm", "fast"),
    ("norm.cuh", "d[v] - share * sum[v]", "d[v]", "test_batch_norm", "fast"),
    ("norm.cuh", "d[v] * (values[v] - m[v]) * r[v]", "d[v] * values[v] * r[v]", "test_batch_norm", "fast"),
    (
        "norm.cuh",
        "sqrtf(all.squares / count + eps)",
        "sqrtf(all.squares / (count - 1) + eps)",
        "test_group_norm",
        "fast",
    ),
    ("norm.cuh", "(d[v] - sum - ", "(d[v] - ", "test_group_norm", "fast"),
    ("norm.cuh", "n * g.G + c / (g.C / g.G)", "n * g.G", "test_group_norm", "fast"),
    ("norm.cuh", "o <= c + (size - 1) / 2", "o <= c + size / 2", "test_local_response_norm", "fast"),
    ("softmax.cuh", "value * (d - sum)", "value * d", "softmax", "fast"),
    ("softmax.cuh", "log_sum + line.peak;", "log_sum;", "test_cross_entropy", "fast"),
    ("softmax.cuh", " - lse[row]", "", "test_cross_entropy", "fast"),
    ("activation.cuh", "alpha * expm1f(x)", "expm1f(x)", "test_activations", "fast"),
    ("optim.cuh", "state[0] += d * d;", "state[0] = d * d;", "test_optimizer", "fast"),
    ("optim.cuh", "rest * (d * d - state[0])", "rest * (d * d)", "test_optimizer", "fast"),
    ("optim.cuh", "found |= !(", "found = !(", "scaler or finite", "fast"),
    ("optim.cuh", "good < growth_interval", "good <= growth_interval", "scaler or finite", "fast"),
    (
        "grad_bias.cuh",
        "own[v].sum += d[v]",
        "own[v].sum = d[v]",
        "test_conv2d",
        "fast",
    ),
]


def main() -> int:
    """Try every break and print the table."""
    green = 0
    rows = [row for row in BREAKS if row[0] in (sys.argv[1:] or [row[0]])]
    if not rows:
        raise SystemExit(f"no row breaks {' '.join(sys.argv[1:])}; known: {', '.join(sorted({b[0] for b in BREAKS}))}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "dlgpu"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__"))
        for name, right, wrong, tests, flavour in rows:
            path = copy / "kernels" / name
            text = path.read_text()
            if text.count(right) < 1:
                print(f"STALE  {name}: {right!r} is not there any more")
                green += 1
                continue
            path.write_text(text.replace(right, wrong))
            red = run(copy, tests, flavour)
            path.write_text(text)
            green += not red
            change = f"{right.strip()[:50]!r} -> {wrong.strip()[:40]!r}"
            print(f"{'red  ' if red else 'GREEN'} {name:<16} {flavour:<6} {change}", flush=True)
    return 1 if green else 0


def run(checkout: Path, tests: str, flavour: str) -> bool:
    """Whether the kernel tests fail."""
    chosen = tests if "bank_conflicts" in tests else f"({tests}) and {QUICK}"
    result = kernel_tests(flavour, chosen, checkout)
    # A broken kernel may also end the process by a signal; pytest's own codes above 1 are no verdict.
    if result.returncode > 1 or "does not compile" in result.stdout:
        raise SystemExit(f"the tests did not run: {result.stdout[-2000:]}{result.stderr[-500:]}")
    return result.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
