// The gradient of a bias: the sum of each channel over batch and pixels, in a fixed order.
#pragma once
#include "channel_sums.cuh"

namespace dl {

struct Total {
  float sum;

  static __device__ Total join(Total a, Total b) { return {a.sum + b.sum}; }
};

// grad_output (N, C, spatial) -> slabs (parts, C), which add_slabs (gemm_tc.cuh) adds up.
template <typename T, int V>
__global__ void __launch_bounds__(256)
    grad_bias(const T* __restrict__ grad_output, float* __restrict__ slabs, Norm g, int across) {
  channel_parts<V>(g, across, reinterpret_cast<Total*>(slabs), [&](Total(&own)[V], int at, int, int) {
    float d[V];
    load<V>(grad_output + at, true, d);
#pragma unroll
    for (int v = 0; v < V; ++v) own[v].sum += d[v];
  });
}

}  // namespace dl
