// Sums over each channel of an array (N, C, spatial) in either memory format: element (n, c, i) lies at
// n * stride_n + c * stride_c + i * stride_i. Arrays are dense, so element j of memory belongs to channel
// j / stride_c % C.
//
// In parts: a block adds a stretch of the positions (n, i) for one channel, or, where channels lie side by side, for 32 of
// them at once, so that a warp reads along memory either way. The parts are joined in order by a second kernel.
// grid: (blocks of channels, parts).
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

struct Norm {
  int N, C, G, spatial;  // G groups of channels
  int stride_n, stride_c, stride_i;
};
static_assert(sizeof(Norm) == 7 * 4, "Python passes 7 packed ints");

__device__ inline int norm_offset(const Norm& g, int n, int c, int i) {
  return n * g.stride_n + c * g.stride_c + i * g.stride_i;
}

__device__ inline int channel_at(const Norm& g, unsigned j) { return j / g.stride_c % g.C; }

constexpr int kSideBySide = 32;

// add(value, place in memory, channel, n) for each element; Value has `join` and is zero by {}. slabs: (parts, C).
template <class Value, class Add>
__device__ inline void channel_parts(const Norm& g, Value* slabs, Add add) {
  DL_SHARED(Value, partial, [256]);
  const int across = g.stride_c == 1 ? kSideBySide : 1, sharing = 256 / across;  // threads that share a channel
  const int c = blockIdx.x * across + threadIdx.x % across, first = threadIdx.x / across;
  const Stretch part = stretch(g.N * g.spatial, blockIdx.y, gridDim.y);
  Value own = {};
  if (c < g.C) {
    for (int j = part.first + first; j < part.first + part.count; j += sharing) {
      const int n = j / g.spatial;
      add(own, norm_offset(g, n, c, j % g.spatial), c, n);
    }
  }
  partial[threadIdx.x] = own;
  for (int half = sharing / 2; half > 0; half /= 2) {
    __syncthreads();
    if (first < half) partial[threadIdx.x] = Value::join(partial[threadIdx.x], partial[threadIdx.x + half * across]);
  }
  if (first == 0 && c < g.C) slabs[blockIdx.y * g.C + c] = partial[threadIdx.x];
}

// All parts of channel c, in order.
template <class Value>
__device__ inline Value joined(const Value* slabs, int parts, int C, int c) {
  Value all = slabs[c];
  for (int part = 1; part < parts; ++part) all = Value::join(all, slabs[part * C + c]);
  return all;
}

}  // namespace dl
