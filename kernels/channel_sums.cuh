// Sums over each channel of an array (N, C, spatial) in either memory format: element (n, c, i) lies at
// n * stride_n + c * stride_c + i * stride_i. Arrays are dense, so element j of memory belongs to channel
// j / stride_c % C.
//
// In parts: a block adds a stretch of the positions (n, i) for one channel, or, where channels lie side by side, for many
// of them at once, so that a warp reads along memory either way. The parts are joined in order by a second kernel.
// grid: (blocks of channels, parts).
#pragma once
#include "shapes.cuh"
#include "vector.cuh"

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

// V neighbouring elements are of V channels where those lie side by side, else V places of one channel. A plan takes V > 1
// where the channels, or else the places of one, are a multiple of V and every array begins at a multiple of 16 bytes.
__device__ inline bool side_by_side(const Norm& g) { return g.stride_c == 1; }

// What `vector` (one float per channel; null: `otherwise`) says of V neighbouring elements, the first of channel `c`.
template <int V>
__device__ inline void of_channels(const Norm& g, const float* vector, int c, float otherwise, float (&out)[V]) {
  if (vector != nullptr && side_by_side(g)) {
    load_some<V>(vector + c, V, out);
  } else {
    const float value = vector == nullptr ? otherwise : vector[c];
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = value;
  }
}

// add(values, place in memory, channel, n) for V elements at a time, `values` being V sums, one for each of them; Value has
// `join` and is zero by {}. `across` threads have channels side by side, the others of a block share them. slabs: (parts, C).
template <int V, class Value, class Add>
__device__ inline void channel_parts(const Norm& g, int across, Value* slabs, Add add) {
  DL_SHARED(Value, partial, [256]);
  const int sharing = 256 / across, first = threadIdx.x / across;
  const int channels = side_by_side(g) ? V : 1, places = V / channels;  // of a vector
  const int c = (blockIdx.x * across + threadIdx.x % across) * channels, each = g.spatial / places;
  const Stretch part = stretch(g.N * each, blockIdx.y, gridDim.y);
  Value own[V] = {};
  if (c < g.C) {
    for (int j = part.first + first; j < part.first + part.count; j += sharing) {
      const int n = j / each;
      add(own, norm_offset(g, n, c, j % each * places), c, n);
    }
  }
  if (places > 1) {
#pragma unroll
    for (int v = 1; v < V; ++v) own[0] = Value::join(own[0], own[v]);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v == channels) break;
    __syncthreads();  // what the channel before left has been read
    partial[threadIdx.x] = own[v];
    for (int half = sharing / 2; half > 0; half /= 2) {
      __syncthreads();
      if (first < half) partial[threadIdx.x] = Value::join(partial[threadIdx.x], partial[threadIdx.x + half * across]);
    }
    if (first == 0 && c < g.C) slabs[blockIdx.y * g.C + c + v] = partial[threadIdx.x];
  }
}

// All parts of channel c, in order.
template <class Value>
__device__ inline Value joined(const Value* slabs, int parts, int C, int c) {
  Value all = slabs[c];
  for (int part = 1; part < parts; ++part) all = Value::join(all, slabs[part * C + c]);
  return all;
}

}  // namespace dl
