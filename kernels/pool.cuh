// Max pooling with a one-byte argmax, average pooling, and their gradients in gather form (no atomics, fixed order).
//
// Ties: the first place of the window in row order wins. NaN: the first NaN wins over everything. Padding is never
// chosen; a window that sees nothing else gives -inf and place 0 (see the op contract).
//
// V > 1: every array is channels_last with C a multiple of V, and a thread handles V channels with loads of 16 bytes.
#pragma once
#include "shapes.cuh"
#include "vector.cuh"

namespace dl {

// Walks over the elements (n, c, y, x) of what is written in the order in which they lie in memory, V channels at a time,
// so that neighbouring threads touch neighbouring elements in both memory formats.
struct Place {
  int n, c, y, x;
};

template <int V>
__device__ inline Place place_of(unsigned i, int C, int height, int width, bool channels_last) {
  Place at;
  if (V > 1 || channels_last) {
    at.c = i % (C / V) * V, i /= C / V;
    at.x = i % width, i /= width;
    at.y = i % height, at.n = i / height;
  } else {
    at.x = i % width, i /= width;
    at.y = i % height, i /= height;
    at.c = i % C, at.n = i / C;
  }
  return at;
}

// x (N, C, H, W) -> y, argmax (N, C, P, Q). A is uint8, or uint16 for windows of more than 256 places.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(256, 4)  // left alone, the compiler spills to have fewer registers
    max_pool2d(const T* __restrict__ x, T* __restrict__ y, A* __restrict__ argmax, Window2d g, Strides x_strides, Strides y_strides) {
  const unsigned count = g.N * g.C * g.P * g.Q / V;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const Place at = place_of<V>(i, g.C, g.P, g.Q, y_strides.c == 1);
    float best[V];
    Vector<A, V> places = {};
#pragma unroll
    for (int v = 0; v < V; ++v) best[v] = -infinity();
    bool met = false;
    for (int r = 0; r < g.R; ++r) {
      const int h = at.y * g.stride_h - g.pad_top + r * g.dilation_h;
      if (h < 0 || h >= g.H) continue;
      for (int s = 0; s < g.S; ++s) {
        const int w = at.x * g.stride_w - g.pad_left + s * g.dilation_w;
        if (w < 0 || w >= g.W) continue;
        float values[V];
        load<V>(x + offset(x_strides, at.n, at.c, h, w), true, values);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          // !(value <= best) is true for a greater value and for a NaN on either side; best == best keeps the first NaN.
          if (!met || (!(values[v] <= best[v]) && best[v] == best[v])) {
            best[v] = values[v];
            places.v[v] = (A)(r * g.S + s);
          }
        }
        met = true;
      }
    }
    const int out = offset(y_strides, at.n, at.c, at.y, at.x);
    store<V>(y + out, best);
    *reinterpret_cast<Vector<A, V>*>(argmax + out) = places;
  }
}

// grad_output, argmax (N, C, P, Q) -> grad_input (N, C, H, W): each pixel asks the windows that see it.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(256) max_pool2d_grad(const T* __restrict__ grad_output, const A* __restrict__ argmax,
                                                       T* __restrict__ grad_input, Window2d g, Strides y_strides,
                                                       Strides argmax_strides, Strides x_strides) {
  const unsigned count = g.N * g.C * g.H * g.W / V;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const Place at = place_of<V>(i, g.C, g.H, g.W, x_strides.c == 1);
    float sums[V] = {};
    for (int r = 0; r < g.R; ++r) {
      const int p = window_at(at.y, g.pad_top, r, g.dilation_h, g.stride_h, g.P);
      if (p < 0) continue;
      for (int s = 0; s < g.S; ++s) {
        const int q = window_at(at.x, g.pad_left, s, g.dilation_w, g.stride_w, g.Q);
        if (q < 0) continue;
        const A* const place = argmax + offset(argmax_strides, at.n, at.c, p, q);
        const Vector<A, V> places = *reinterpret_cast<const Vector<A, V>*>(place);
        float grads[V];
        load<V>(grad_output + offset(y_strides, at.n, at.c, p, q), true, grads);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (places.v[v] == r * g.S + s) sums[v] += grads[v];
        }
      }
    }
    store<V>(grad_input + offset(x_strides, at.n, at.c, at.y, at.x), sums);
  }
}

// The divisor along one axis for window `index`: all places of the window that lie within [low, high).
__device__ inline int extent(int index, int stride, int pad, int kernel, int low, int high) {
  const int start = index * stride - pad, end = start + kernel;
  return (end < high ? end : high) - (start > low ? start : low);
}

struct AvgPool {
  Window2d window;
  // What counts towards the divisor: the input with its padding, or without. Rows [low_h, high_h), columns [low_w, high_w).
  int low_h, high_h, low_w, high_w;
};
static_assert(sizeof(AvgPool) == 18 * 4, "Python passes 18 packed ints");

__device__ inline float divisor(const AvgPool& a, int p, int q) {
  const Window2d& g = a.window;
  return (float)(extent(p, g.stride_h, g.pad_top, g.R, a.low_h, a.high_h) *
                 extent(q, g.stride_w, g.pad_left, g.S, a.low_w, a.high_w));
}

// x (N, C, H, W) -> y (N, C, P, Q): mean of each window.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    avg_pool2d(const T* __restrict__ x, T* __restrict__ y, AvgPool a, Strides x_strides, Strides y_strides) {
  const Window2d& g = a.window;
  const unsigned count = g.N * g.C * g.P * g.Q / V;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const Place at = place_of<V>(i, g.C, g.P, g.Q, y_strides.c == 1);
    float sums[V] = {};
    for (int r = 0; r < g.R; ++r) {
      const int h = at.y * g.stride_h - g.pad_top + r;
      if (h < 0 || h >= g.H) continue;
      for (int s = 0; s < g.S; ++s) {
        const int w = at.x * g.stride_w - g.pad_left + s;
        if (w < 0 || w >= g.W) continue;
        float values[V];
        load<V>(x + offset(x_strides, at.n, at.c, h, w), true, values);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] += values[v];
      }
    }
    const float places = divisor(a, at.y, at.x);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] /= places;
    store<V>(y + offset(y_strides, at.n, at.c, at.y, at.x), sums);
  }
}

// grad_output (N, C, P, Q) -> grad_input (N, C, H, W): each pixel adds its share of the windows that see it.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    avg_pool2d_grad(const T* __restrict__ grad_output, T* __restrict__ grad_input, AvgPool a, Strides y_strides, Strides x_strides) {
  const Window2d& g = a.window;
  const unsigned count = g.N * g.C * g.H * g.W / V;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const Place at = place_of<V>(i, g.C, g.H, g.W, x_strides.c == 1);
    float sums[V] = {};
    for (int r = 0; r < g.R; ++r) {
      const int p = window_at(at.y, g.pad_top, r, 1, g.stride_h, g.P);
      if (p < 0) continue;
      for (int s = 0; s < g.S; ++s) {
        const int q = window_at(at.x, g.pad_left, s, 1, g.stride_w, g.Q);
        if (q < 0) continue;
        float grads[V];
        load<V>(grad_output + offset(y_strides, at.n, at.c, p, q), true, grads);
        const float places = divisor(a, p, q);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[v] += grads[v] / places;
      }
    }
    store<V>(grad_input + offset(x_strides, at.n, at.c, at.y, at.x), sums);
  }
}

}  // namespace dl
