// im2col: x (N, C, H, W) -> col (N*P*Q, C*R*S), one row per window, zeros where a window lies in the padding.
// col2im: its adjoint. Each pixel gathers from the windows that see it, so nothing is added atomically and the order of
// the sum is fixed.
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

// Neighbouring threads write neighbouring elements of a row.
template <typename T>
__global__ void __launch_bounds__(256) im2col(const T* __restrict__ x, T* __restrict__ col, Window2d g, Strides x_strides) {
  const unsigned row_length = g.C * g.R * g.S;
  const unsigned count = g.N * g.P * g.Q * row_length;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int j = i % row_length;    // [0, C*R*S)
    const int row = i / row_length;  // [0, N*P*Q)
    const int s = j % g.S, r = j / g.S % g.R, c = j / (g.S * g.R);
    const int q = row % g.Q, p = row / g.Q % g.P, n = row / (g.Q * g.P);
    const int h = p * g.stride_h - g.pad_top + r * g.dilation_h;
    const int w = q * g.stride_w - g.pad_left + s * g.dilation_w;
    const bool inside = h >= 0 && h < g.H && w >= 0 && w < g.W;
    col[i] = inside ? x[offset(x_strides, n, c, h, w)] : from_float<T>(0.0f);
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
