// The operands of implicit GEMM from a convolution's geometry; operand.cuh says what an operand is.
#pragma once
#include "operand.cuh"

namespace dl {

// x (N, H, W, C) seen through the windows of the forward convolution.
template <typename T>
__device__ Windows<T> forward_windows(const T* x, const Conv2d& g, int group, bool pooled) {
  const int channels = g.C / g.G;
  return {x + group * channels, g.H, g.W, g.C, channels, g.N, g.P, g.Q, g.R, g.S, g.stride_h, g.stride_w,
          -g.pad_top, -g.pad_left, g.dilation_h, g.dilation_w, pooled};
}

// The same, its positions along the depth: `by` of them are passed at a time.
template <typename T>
__device__ WindowColumns<T> forward_columns(const T* x, const Conv2d& g, int group, int by) {
  const Windows<T> windows = forward_windows(x, g, group, false);
  return {windows, WindowColumns<T>::step_of(windows, by)};
}

// Taps of a phase along each axis; where one has none, the product has no depth.
struct Taps {
  int R, S;
};
__device__ inline Taps taps(const Phase& vertical, const Phase& horizontal) {
  return {horizontal.taps > 0 ? vertical.taps : 0, max(horizontal.taps, 1)};
}

// dy (N, P, Q, K) seen from the input pixels of a phase.
template <typename T>
__device__ Windows<T> backward_windows(const T* dy, const Conv2d& g, int group, const Phase& vertical,
                                       const Phase& horizontal) {
  const int filters = g.K / g.G;
  const Taps seen = taps(vertical, horizontal);
  return {dy + group * filters, g.P, g.Q, g.K, filters, g.N, vertical.pixels, horizontal.pixels, seen.R, seen.S, 1, 1,
          vertical.first_out, horizontal.first_out, -vertical.out_step, -horizontal.out_step, false};
}

template <typename T>
__device__ TurnedFilters<T> turned_filters(const T* weight, const Conv2d& g, int group, const Phase& vertical,
                                           const Phase& horizontal) {
  const int filters = g.K / g.G, channels = g.C / g.G, filter = g.R * g.S * channels;
  const Taps seen = taps(vertical, horizontal);
  return {weight + (long long)group * filters * filter, filters, channels, seen.R, seen.S, g.S,
          vertical.first_tap, horizontal.first_tap, vertical.step, horizontal.step, filter};
}

// The input pixel (n * H + h) * W + w of row m of a phase.
__device__ inline long long pixel_of_phase(int m, const Conv2d& g, const Phase& vertical, const Phase& horizontal) {
  const int row = m / horizontal.pixels, n = row / vertical.pixels;
  const int first_h = (int)(blockIdx.z % (g.stride_h * g.stride_w)) / g.stride_w, first_w = blockIdx.z % g.stride_w;
  const int h = first_h + row % vertical.pixels * g.stride_h, w = first_w + m % horizontal.pixels * g.stride_w;
  return (long long)(n * g.H + h) * g.W + w;
}

}  // namespace dl
