// The gradient of a bias: the sum of each channel over batch and pixels, in a fixed order.
#pragma once
#include "norm.cuh"

namespace dl {

// grad_output (N, C, spatial) -> grad_bias (C), one block per channel.
template <typename T>
__global__ void __launch_bounds__(256) grad_bias(const T* __restrict__ grad_output, T* __restrict__ grad, Norm g) {
  const int c = blockIdx.x;
  float sum = 0.0f;
  for (int j = threadIdx.x; j < g.N * g.spatial; j += blockDim.x) {
    sum += to_float(grad_output[norm_offset(g, j / g.spatial, c, j % g.spatial)]);
  }
  sum = block_reduce<Sum>(sum);
  if (threadIdx.x == 0) grad[c] = from_float<T>(sum);
}

}  // namespace dl
