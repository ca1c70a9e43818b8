// Convolution as implicit GEMM on tensor cores, in channels_last: x (N, H, W, C), weights (K, R, S, C/G), y (N, P, Q, K).
// The products read their factors from the images (operand.cuh); no column matrix exists.
#pragma once
#include "conv_operands.cuh"
#include "epilogue.cuh"
#include "gemm_tc.cuh"

namespace dl {

// y = relu(x * w + residual + bias), or its 2x2 maxima and their places: rows are output pixels, columns filters of a
// group, the depth runs over (r, s, c). grid: (tiles of K/G, tiles of rows, G).
template <typename T, int BM, int BN, bool kVector, int kTerms>
__global__ void __launch_bounds__(kThreads, tensor_blocks(BM, kTerms, true))
    conv2d_tc(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ residual,
              const T* __restrict__ bias, T* __restrict__ y, unsigned char* __restrict__ argmax, Conv2d g, int relu) {
  using A = WindowRows<T>;
  using B = Matrix<T, true>;
  using Tile = TensorTile<T, BM, BN, kVector, kTerms, A, B>;
  constexpr int BK = kTileBytes / sizeof(T);
  DL_SHARED(T, shared, [Tile::kSharedElements]);
  const bool pooled = argmax != nullptr;
  const int group = blockIdx.z, filters = g.K / g.G, depth = g.R * g.S * (g.C / g.G);
  const int first_m = blockIdx.y * BM, first_n = blockIdx.x * BN;
  const int rows = pooled ? g.N * (g.P / 2) * (g.Q / 2) * 4 : g.N * g.P * g.Q;
  const A a = {forward_windows(x, g, group, pooled)};
  const B b = {weight + (long long)group * filters * depth, filters, depth, depth};
  Tile tile;
  tile.run(a, b, first_m, first_n, 0, ceil_div(depth, BK), shared);

  const Epilogue<T> end = {residual, bias, y, 1.0f, 1.0f, relu != 0};
  if (!pooled) {
    for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
      if (m < rows && n < filters) {
        const int k = group * filters + n;
        const long long at = (long long)m * g.K + k;
        y[at] = from_float<T>(end.value(sum, at, k));
      }
    });
    return;
  }
  for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
    // Rows 4i .. 4i + 3 are a pool window, in lanes 4 apart: the whole warp takes part in both exchanges.
    const int k = group * filters + min(n, filters - 1);
    Best best = {to_float(from_float<T>(end.value(sum, 0, k))), m % 4};
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const Best other = {__shfl_xor_sync(0xffffffffu, best.value, 4 * step),
                          __shfl_xor_sync(0xffffffffu, best.place, 4 * step)};
      best = best.place < other.place ? better(best, other) : better(other, best);
    }
    if (m % 4 == 0 && m < rows && n < filters) {
      const long long at = (long long)(m / 4) * g.K + k;
      y[at] = from_float<T>(best.value);
      argmax[at] = best.place;
    }
  });
}

// dx from dy and the weights: rows are input pixels of one phase (pixels whose coordinates are equal modulo the strides
// meet the same taps), columns input channels of a group, the depth runs over (r, s, k).
// grid: (tiles of C/G, tiles of the largest phase's pixels, G * stride_h * stride_w).
template <typename T, int BM, int BN, bool kVector, int kTerms>
__global__ void __launch_bounds__(kThreads, tensor_blocks(BM, kTerms, true))
    conv2d_grad_input_tc(const T* __restrict__ dy, const T* __restrict__ weight, T* __restrict__ dx, Conv2d g) {
  using A = WindowRows<T>;
  using B = TurnedFilters<T>;
  using Tile = TensorTile<T, BM, BN, kVector, kTerms, A, B>;
  constexpr int BK = kTileBytes / sizeof(T);
  DL_SHARED(T, shared, [Tile::kSharedElements]);
  const int channels = g.C / g.G, filters = g.K / g.G, phases = g.stride_h * g.stride_w;
  const int group = blockIdx.z / phases, first_h = blockIdx.z % phases / g.stride_w, first_w = blockIdx.z % g.stride_w;
  const Phase vertical = phase(first_h, g.H, g.R, g.stride_h, g.pad_top, g.dilation_h);
  const Phase horizontal = phase(first_w, g.W, g.S, g.stride_w, g.pad_left, g.dilation_w);
  const int first_m = blockIdx.y * BM, first_n = blockIdx.x * BN;
  const int rows = g.N * vertical.pixels * horizontal.pixels;
  if (first_m >= rows) return;
  const A a = {backward_windows(dy, g, group, vertical, horizontal)};
  const B b = turned_filters(weight, g, group, vertical, horizontal);
  Tile tile;
  const int depth = vertical.taps * horizontal.taps * filters;
  tile.run(a, b, first_m, first_n, 0, ceil_div(depth, BK), shared);

  for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
    if (m < rows && n < channels) {
      dx[pixel_of_phase(m, g, vertical, horizontal) * g.C + group * channels + n] = from_float<T>(sum);
    }
  });
}

// dw from dy and x: rows are filters of a group, columns the weights (r, s, c) of one, the depth runs over (n, p, q), in
// `splits` parts. Writes slabs (splits, K, R, S, C/G), and, unless bias_slabs is null, the sums of dy (splits, K).
// grid: (tiles of R*S*C/G, tiles of K/G, G * splits).
template <typename T, int BM, int BN, bool kVector, int kTerms>
__global__ void __launch_bounds__(kThreads, tensor_blocks(BM, kTerms, true))
    conv2d_grad_weight_tc(const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ slabs,
                          float* __restrict__ bias_slabs, Conv2d g, int splits) {
  using A = Matrix<T, false>;
  using B = WindowColumns<T>;
  using Tile = TensorTile<T, BM, BN, kVector, kTerms, A, B>;
  constexpr int BK = kTileBytes / sizeof(T);
  DL_SHARED(T, shared, [Tile::kSharedElements]);
  const int group = blockIdx.z % g.G, split = blockIdx.z / g.G;
  const int filters = g.K / g.G, weights = g.R * g.S * (g.C / g.G), depth = g.N * g.P * g.Q;
  const int first_m = blockIdx.y * BM, first_n = blockIdx.x * BN;
  const A a = {dy + group * filters, filters, depth, g.K};
  const B b = forward_columns(x, g, group, BK);
  const Stretch part = stretch(ceil_div(depth, BK), split, splits);
  const bool with_bias = bias_slabs != nullptr && blockIdx.x == 0;
  Tile tile;
  tile.run(a, b, first_m, first_n, part.first * BK, part.count, shared, with_bias);

  float* const slab = slabs + ((long long)split * g.K + group * filters) * weights;
  for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
    if (m < filters && n < weights) slab[(long long)m * weights + n] = sum;
  });
  if (with_bias) {
    tile.add_up(reinterpret_cast<float*>(shared), first_m, filters, bias_slabs + split * g.K + group * filters);
  }
}

}  // namespace dl
