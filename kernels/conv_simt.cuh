// Convolution as implicit GEMM in float32 without tensor cores, in channels_last: x (N, H, W, C), weights (K, R, S, C/G),
// y (N, P, Q, K). The products read their factors from the images (operand.cuh); no column matrix exists.
// V: elements loaded and stored at once; C/G and K/G are multiples of it, addresses are aligned to it.
#pragma once
#include "conv_operands.cuh"
#include "simt.cuh"

namespace dl {

// y = relu(x * w + residual + bias), or its 2x2 maxima and their places: rows are output pixels, columns filters of a
// group, the depth runs over (r, s, c). grid: (tiles of K/G, tiles of rows, G).
template <typename T, int BM, int BN, int V>
__global__ void __launch_bounds__(simt_threads(BM, BN), simt_blocks(BM, V))
    conv2d_simt(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ residual,
                const T* __restrict__ bias, T* __restrict__ y, unsigned char* __restrict__ argmax, Conv2d g, int relu) {
  const bool pooled = argmax != nullptr;
  const int filters = g.K / g.G, depth = g.R * g.S * (g.C / g.G);
  const int rows = pooled ? g.N * (g.P / 2) * (g.Q / 2) * 4 : g.N * g.P * g.Q;
  const WindowRows<T> a = {forward_windows(x, g, blockIdx.z, pooled)};
  const Matrix<T, true> b = {weight, filters, depth, depth, int(blockIdx.z) * filters * depth};
  float sums[8][8] = {};
  simt_product<T, BM, BN, V>(a, b, {0, ceil_div(depth, kSimtDepth)}, sums);

  const int first = blockIdx.z * filters;
  const Epilogue<T> end = {residual, bias, y, 1.0f, 1.0f, relu != 0};
  if (!pooled) {
    for_each_output<BM, BN, V>(rows, filters, sums, [&](int m, int n, const float* some) {
      const long long at = (long long)m * g.K + first + n;
      float out[V];
      end.values(some, at, first + n, out);
      store<V>(y + at, out);
    });
    return;
  }
  for_each_square<BM, BN, V>(rows, filters, sums, [&](int m, int n, const float (&square)[4][V]) {
    Best best[V];
#pragma unroll
    for (int place = 0; place < 4; ++place) {
      float out[V];
      end.values(square[place], 0, first + n, out);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const Best candidate = {to_float(from_float<T>(out[e])), place};  // what would have been stored
        best[e] = place == 0 ? candidate : better(best[e], candidate);
      }
    }
    const long long at = (long long)(m / 4) * g.K + first + n;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      y[at + e] = from_float<T>(best[e].value);
      argmax[at + e] = best[e].place;
    }
  });
}

// dx from dy and the weights: rows are input pixels of one phase (pixels whose coordinates are equal modulo the strides
// meet the same taps), columns input channels of a group, the depth runs over (r, s, k).
// grid: (tiles of C/G, tiles of the largest phase's pixels, G * stride_h * stride_w).
template <typename T, int BM, int BN, int V>
__global__ void __launch_bounds__(simt_threads(BM, BN), simt_blocks(BM, V))
    conv2d_grad_input_simt(const T* __restrict__ dy, const T* __restrict__ weight, T* __restrict__ dx, Conv2d g) {
  const int channels = g.C / g.G, filters = g.K / g.G, phases = g.stride_h * g.stride_w;
  const int group = blockIdx.z / phases, first_h = blockIdx.z % phases / g.stride_w, first_w = blockIdx.z % g.stride_w;
  const Phase vertical = phase(first_h, g.H, g.R, g.stride_h, g.pad_top, g.dilation_h);
  const Phase horizontal = phase(first_w, g.W, g.S, g.stride_w, g.pad_left, g.dilation_w);
  const int rows = g.N * vertical.pixels * horizontal.pixels;
  if (int(blockIdx.y) * BM >= rows) return;
  const WindowRows<T> a = {backward_windows(dy, g, group, vertical, horizontal)};
  const TurnedFilters<T> b = turned_filters(weight, g, group, vertical, horizontal);
  float sums[8][8] = {};
  simt_product<T, BM, BN, V>(a, b, {0, ceil_div(vertical.taps * horizontal.taps * filters, kSimtDepth)}, sums);

  for_each_output<BM, BN, V>(rows, channels, sums, [&](int m, int n, const float* some) {
    store<V>(dx + pixel_of_phase(m, g, vertical, horizontal) * g.C + group * channels + n, some);
  });
}

// dw from dy and x: rows are filters of a group, columns the weights (r, s, c) of one, the depth runs over (n, p, q), in
// `splits` parts. Writes slabs (splits, K, R, S, C/G), and, unless bias_slabs is null, the sums of dy (splits, K).
// grid: (tiles of R*S*C/G, tiles of K/G, G * splits).
template <typename T, int BM, int BN, int V>
__global__ void __launch_bounds__(simt_threads(BM, BN), simt_blocks(BM, V))
    conv2d_grad_weight_simt(const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ slabs,
                            float* __restrict__ bias_slabs, Conv2d g, int splits) {
  const int group = blockIdx.z % g.G, split = blockIdx.z / g.G;
  const int filters = g.K / g.G, weights = g.R * g.S * (g.C / g.G), depth = g.N * g.P * g.Q;
  const Stretch part = stretch(ceil_div(depth, kSimtDepth), split, splits);
  const int end = min(depth, (part.first + part.count) * kSimtDepth);  // what lies beyond must not enter the row sums
  const Matrix<T, false> a = {dy, filters, end, g.K, group * filters};
  const WindowColumns<T> b = forward_columns(x, g, group, kSimtDepth);
  const int first = split * g.K + group * filters;  // row of the slabs
  float* const row_sums = bias_slabs != nullptr && blockIdx.x == 0 ? bias_slabs + first : nullptr;
  float sums[8][8] = {};
  simt_product<T, BM, BN, V, true>(a, b, part, sums, filters, row_sums);

  for_each_output<BM, BN, V>(filters, weights, sums, [&](int m, int n, const float* some) {
    store<V>(slabs + (long long)(first + m) * weights + n, some);
  });
}

}  // namespace dl
