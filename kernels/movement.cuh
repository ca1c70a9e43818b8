// Copies between storage types and memory formats: casts and layout transposes.
#pragma once
#include "shapes.cuh"
#include "vector.cuh"

namespace dl {

// x -> y, both dense and in the same format.
template <typename From, typename To>
__global__ void __launch_bounds__(256) cast(const From* __restrict__ x, To* __restrict__ y, unsigned count) {
  constexpr int V = sizeof(From) > sizeof(To) ? vector_of<From>() : vector_of<To>();
  for (unsigned at = V * first_index(); at < count; at += V * index_step()) {
    const int valid = min(count - at, (unsigned)V);
    float values[V];
    load_some<V>(x + at, valid, values);
    store_some<V>(y + at, valid, values);
  }
}

// Between contiguous and channels_last: x (N, rows, columns) -> y (N, columns, rows), where one is the channels and the
// other the pixels. A block turns a tile of 64 by 64 in shared memory, so that both sides are read and written along
// their lines. grid: (tiles of columns, tiles of rows, N).
template <typename T>
__global__ void __launch_bounds__(256) transpose(const T* __restrict__ x, T* __restrict__ y, int rows, int columns) {
  constexpr int kEdge = 64, kLines = 256 / kEdge;
  constexpr int kPitch = kEdge + 4 / sizeof(T);  // one bank further on each line
  DL_SHARED(T, tile, [kEdge * kPitch]);
  const int along = threadIdx.x % kEdge, line = threadIdx.x / kEdge;
  const int row = blockIdx.y * kEdge, column = blockIdx.x * kEdge;
  const long long image = (long long)blockIdx.z * rows * columns;
#pragma unroll
  for (int i = line; i < kEdge; i += kLines) {
    if (row + i < rows && column + along < columns) {
      tile[i * kPitch + along] = x[image + (long long)(row + i) * columns + column + along];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = line; i < kEdge; i += kLines) {
    if (column + i < columns && row + along < rows) {
      y[image + (long long)(column + i) * rows + row + along] = tile[along * kPitch + i];
    }
  }
}

// x (N, C, H, W) of any strides -> y of the same logical shape. Threads walk over y in its memory order.
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
