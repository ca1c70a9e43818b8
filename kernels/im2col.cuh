// im2col: x (N, C, H, W) -> col (N*P*Q, C*R*S), one row per window, zeros where a window lies in the padding.
// col2im: its adjoint. Each pixel gathers from the windows that see it, so nothing is added atomically and the order of
// the sum is fixed.
#pragma once
#include "shapes.cuh"
#include "vector.cuh"

namespace dl {

// A thread writes V neighbouring elements of the columns at once; they may belong to two rows.
template <typename T>
__global__ void __launch_bounds__(256) im2col(const T* __restrict__ x, T* __restrict__ col, Window2d g, Strides x_strides) {
  constexpr int V = vector_of<T>();
  const unsigned row_length = g.C * g.R * g.S;
  const unsigned count = g.N * g.P * g.Q * row_length;
  for (unsigned first = V * first_index(); first < count; first += V * index_step()) {
    const int j = first % row_length;  // [0, C*R*S)
    int row = first / row_length;      // [0, N*P*Q)
    int s = j % g.S, r = j / g.S % g.R, c = j / (g.S * g.R);
    int top, left, image;  // of the row's window: its first pixel, and where its image begins
    const auto look = [&] {
      top = row / g.Q % g.P * g.stride_h - g.pad_top;
      left = row % g.Q * g.stride_w - g.pad_left;
      image = row / (g.Q * g.P) * x_strides.n;
    };
    look();
    const int valid = min(count - first, (unsigned)V);
    float values[V] = {};
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i < valid) {
        const int h = top + r * g.dilation_h, w = left + s * g.dilation_w;
        const bool inside = h >= 0 && h < g.H && w >= 0 && w < g.W;
        if (inside) values[i] = to_float(x[image + c * x_strides.c + h * x_strides.h + w * x_strides.w]);
        if (++s == g.S) s = 0, ++r;
        if (r == g.R) r = 0, ++c;
        if (c == g.C) c = 0, ++row, look();
      }
    }
    store_some<V>(col + first, valid, values);
  }
}

// One thread per pixel of x, in logical (N, C, H, W) order.
template <typename T>
__global__ void __launch_bounds__(256) col2im(const T* __restrict__ col, T* __restrict__ x, Window2d g, Strides x_strides) {
  const int row_length = g.C * g.R * g.S;
  const unsigned count = g.N * g.C * g.H * g.W;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int w = i % g.W, h = i / g.W % g.H, c = i / (g.W * g.H) % g.C, n = i / (g.W * g.H * g.C);
    float sum = 0.0f;
    for (int r = 0; r < g.R; ++r) {
      const int p = window_at(h, g.pad_top, r, g.dilation_h, g.stride_h, g.P);
      if (p < 0) continue;
      for (int s = 0; s < g.S; ++s) {
        const int q = window_at(w, g.pad_left, s, g.dilation_w, g.stride_w, g.Q);
        if (q < 0) continue;
        const int row = (n * g.P + p) * g.Q + q;
        sum += to_float(col[row * row_length + (c * g.R + r) * g.S + s]);
      }
    }
    x[offset(x_strides, n, c, h, w)] = from_float<T>(sum);
  }
}

}  // namespace dl
