// Sums and maxima over a warp and over a block, in a fixed order: the same inputs give the same bits.
#pragma once
#include "numeric.cuh"

namespace dl {

struct Sum {
  static __device__ float start() { return 0.0f; }
  static __device__ float join(float a, float b) { return a + b; }
};

// Keeps NaN, which fmaxf would drop.
struct Max {
  static __device__ float start() { return -infinity(); }
  static __device__ float join(float a, float b) { return a > b || a != a ? a : b; }
};

template <typename Op>
__device__ float warp_reduce(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = Op::join(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Every thread of the block calls this, with one value each, and gets the result. Whole warps only; at most 1024 threads.
template <typename Op>
__device__ float block_reduce(float value) {
  DL_SHARED(float, partial, [32]);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  value = warp_reduce<Op>(value);
  __syncthreads();  // an earlier call's partial results have been read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_reduce<Op>(lane < warps ? partial[lane] : Op::start());
}

}  // namespace dl
