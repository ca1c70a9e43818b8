// Convolution by its definition, in channels_last, for few input channels per filter: the first layer of a network (1 or 3
// channels) and depthwise layers. x (N, H, W, C), weights (R, S, C/G, K), y (N, P, Q, K).
#pragma once
#include "epilogue.cuh"
#include "shapes.cuh"
#include "vector.cuh"

namespace dl {

// How the four filters of a thread see the input: all the same channels (one group), each the channel of its own number
// (depthwise), or whatever the groups say.
enum class Sees { same, own, any };

// A thread makes kStrip neighbouring pixels of a row for four filters. Threads run over (n, p, strip, filters / 4).
constexpr int kStrip = 4;

template <typename T, Sees kSees>
__global__ void __launch_bounds__(256, 4)  // up to 64 registers: left alone, the compiler spills to have 48
    direct(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ residual,
           const T* __restrict__ bias, T* __restrict__ y, Conv2d g, int relu, unsigned count) {
  const int channels = g.C / g.G, filters = g.K / g.G;
  const int fours = ceil_div(g.K, 4), strips = ceil_div(g.Q, kStrip);
  const Epilogue<T> end = {residual, bias, y, 1.0f, 1.0f, relu != 0};
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int k = i % fours * 4, q = i / fours % strips * kStrip;
    const int row = i / fours / strips, p = row % g.P, n = row / g.P;  // row of all images' rows
    float sums[kStrip][4] = {};
    for (int r = 0; r < g.R; ++r) {
      const int h = p * g.stride_h - g.pad_top + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;
      const T* const line = x + (n * g.H + h) * g.W * g.C;
      for (int s = 0; s < g.S; ++s) {
#pragma unroll 1
        for (int c = 0; c < channels; ++c) {
          float w[4];
          load_some<4>(weight + ((r * g.S + s) * channels + c) * g.K + k, g.K - k, w);
#pragma unroll
          for (int j = 0; j < kStrip; ++j) {
            const int column = (q + j) * g.stride_w - g.pad_left + s * g.dilation_w;
            if (column < 0 || column >= g.W) continue;
            const T* const pixel = line + column * g.C;
            float seen[4];
            if constexpr (kSees == Sees::own) {
              load_some<4>(pixel + k, g.K - k, seen);
            } else {
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                const int group = kSees == Sees::same ? k / filters : min(k + e, g.K - 1) / filters;
                seen[e] = to_float(pixel[group * channels + c]);
              }
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[j][e] = fmaf(seen[e], w[e], sums[j][e]);
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (q + j >= g.Q) continue;
      const long long at = (long long)(row * g.Q + q + j) * g.K + k;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (k + e < g.K) sums[j][e] = end.value(sums[j][e], at + e, k + e);
      }
      store_some<4>(y + at, g.K - k, sums[j]);
    }
  }
}

// dx (N, H, W, C), one element per thread: gathers from the windows that saw it.
template <typename T>
__global__ void __launch_bounds__(256)
    direct_grad_input(const T* __restrict__ dy, const T* __restrict__ weight, T* __restrict__ dx, Conv2d g,
                      unsigned count) {
  const int channels = g.C / g.G, filters = g.K / g.G;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int channel = i % g.C, group = channel / channels, c = channel % channels;
    const int w = i / g.C % g.W, h = i / g.C / g.W % g.H, n = i / g.C / g.W / g.H;
    float sum = 0.0f;
    for (int r = 0; r < g.R; ++r) {
      const int p = window_at(h, g.pad_top, r, g.dilation_h, g.stride_h, g.P);
      if (p < 0) continue;
      for (int s = 0; s < g.S; ++s) {
        const int q = window_at(w, g.pad_left, s, g.dilation_w, g.stride_w, g.Q);
        if (q < 0) continue;
        const T* const gradient = dy + ((n * g.P + p) * g.Q + q) * g.K + group * filters;
        const T* const factor = weight + ((r * g.S + s) * channels + c) * g.K + group * filters;
        for (int k = 0; k < filters; ++k) sum = fmaf(to_float(gradient[k]), to_float(factor[k]), sum);
      }
    }
    dx[i] = from_float<T>(sum);
  }
}

// One weight (r, s, c, k) per thread, over one part of the output rows: slabs (splits, R, S, C/G, K), and unless
// bias_slabs is null the sums of dy (splits, K). grid: (threads over weights, splits).
template <typename T>
__global__ void __launch_bounds__(256)
    direct_grad_weight(const T* __restrict__ dy, const T* __restrict__ x, float* __restrict__ slabs,
                       float* __restrict__ bias_slabs, Conv2d g, unsigned weights, int splits) {
  const unsigned i = first_index();
  if (i >= weights) return;
  const int channels = g.C / g.G, filters = g.K / g.G;
  const int k = i % g.K, c = i / g.K % channels, s = i / g.K / channels % g.S, r = i / g.K / channels / g.S;
  const int each = ceil_div(g.N * g.P, splits), first = blockIdx.y * each, last = min(first + each, g.N * g.P);
  const int channel = k / filters * channels + c;
  float sum = 0.0f, bias = 0.0f;
  for (int row = first; row < last; ++row) {
    const int n = row / g.P, h = row % g.P * g.stride_h - g.pad_top + r * g.dilation_h;
    const bool inside = h >= 0 && h < g.H;
    const T* const gradients = dy + (long long)row * g.Q * g.K + k;
    const T* const line = x + (n * g.H + h) * g.W * g.C + channel;
    for (int q = 0; q < g.Q; ++q) {
      const float d = to_float(gradients[q * g.K]);
      const int w = q * g.stride_w - g.pad_left + s * g.dilation_w;
      if (inside && w >= 0 && w < g.W) sum = fmaf(d, to_float(line[w * g.C]), sum);
      bias += d;
    }
  }
  slabs[(long long)blockIdx.y * weights + i] = sum;
  if (bias_slabs != nullptr && i < g.K) bias_slabs[blockIdx.y * g.K + i] = bias;
}

}  // namespace dl
