// Copies between storage types and memory formats: casts and layout transposes.
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

// x (N, C, H, W) -> y of the same logical shape, in any formats. Threads walk over y in its memory order.
template <typename From, typename To>
__global__ void __launch_bounds__(256)
    copy(const From* __restrict__ x, To* __restrict__ y, int C, int H, int W, unsigned count, Strides x_strides, Strides y_strides) {
  const bool channels_last = y_strides.c == 1;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int w = channels_last ? i / C % W : i % W;
    const int h = channels_last ? i / (C * W) % H : i / W % H;
    const int c = channels_last ? i % C : i / (W * H) % C;
    const int n = i / (C * H * W);
    y[offset(y_strides, n, c, h, w)] = from_float<To>(to_float(x[offset(x_strides, n, c, h, w)]));
  }
}

}  // namespace dl
