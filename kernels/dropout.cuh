// Dropout: a mask that is a function of (seed, offset, logical element index) alone, so forward and backward compute it
// anew and nothing is stored. Philox4x32-10: Salmon, Moraes, Dror and Shaw, SC 2011.
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

// The `index`-th 32-bit word of the stream. Key: `seed`, low word first; counter: offset + index / 4, low word first.
__device__ inline unsigned philox_word(unsigned long long seed, unsigned long long offset, unsigned index) {
  const unsigned long long block = offset + index / 4;
  unsigned c[4] = {(unsigned)block, (unsigned)(block >> 32), 0u, 0u};
  unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = (unsigned long long)c[0] * 0xD2511F53u, p1 = (unsigned long long)c[2] * 0xCD9E8D57u;
    const unsigned c1 = c[1], c3 = c[3];
    c[0] = (unsigned)(p1 >> 32) ^ c1 ^ k0;
    c[1] = (unsigned)p1;
    c[2] = (unsigned)(p0 >> 32) ^ c3 ^ k1;
    c[3] = (unsigned)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // selected without a dynamic index, which would put the array into local memory
  const unsigned low = index & 1 ? c[1] : c[0], high = index & 1 ? c[3] : c[2];
  return index & 2 ? high : low;
}

// y = x / (1 - p) where the element is kept, else 0; used for the gradient too. Arrays are (N, C, H, W) in any memory
// format (others come as (1, 1, 1, count)).
template <typename T>
__global__ void __launch_bounds__(256) dropout(const T* __restrict__ x, T* __restrict__ y, int C, int H, int W, unsigned count,
                                               Strides x_strides, Strides y_strides, float p, float scale,
                                               unsigned long long seed, unsigned long long offset_) {
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const float uniform = (philox_word(seed, offset_, i) >> 8) * (1.0f / (1 << 24));
    const int w = i % W, h = i / W % H, c = i / (W * H) % C, n = i / (W * H * C);
    const float value = to_float(x[offset(x_strides, n, c, h, w)]);
    y[offset(y_strides, n, c, h, w)] = from_float<T>(uniform >= p ? value * scale : 0.0f);
  }
}

}  // namespace dl
