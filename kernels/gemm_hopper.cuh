// Matrix products by wgmma and TMA: out = relu(alpha * op(a) @ op(b) + beta * c + bias), for a batch of row-major
// matrices of half or bfloat16, added in float. Extents along memory are multiples of 8.
#pragma once
#include "hopper_tile.cuh"

namespace dl {

// Maps have the axes (along memory, lines, batch), boxes of 64 elements by a tile's lines (`plan` in gemm_hopper.py).
// grid: as many blocks as stay on the GPU. c: laid out as out (ldo, stride_o), or null; bias: N for every row, or null.
template <typename T, bool TransposeA, bool TransposeB, int BN, int kCluster>
__global__ void DL_CLUSTER(kCluster) __launch_bounds__(kHopperThreads, 1)
    gemm_hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                const __grid_constant__ TensorMap out, const T* __restrict__ c, const T* __restrict__ bias, Gemm g,
                float alpha, float beta, int relu, int batches, long long stride_o) {
#if DL_HOPPER
  struct Work {
    const TensorMap &a, &b, &out;
    const Gemm& g;
    Epilogue<T> end;
    long long stride_o;
    TileGrid tiles;
    int steps;

    struct Place {
      int m, n, k, batch;
    };
    __device__ Place start(TileAt at, int n) const { return {at.row * kHopperRows, n, 0, at.batch}; }
    __device__ void load(Place& at, unsigned char* to_a, unsigned char* to_b, Barrier* full) const {
      if constexpr (TransposeA) {
        for (int i = 0; i < kHopperRows / 64; ++i) tma_load(to_a + i * kPanel, a, full, at.m + 64 * i, at.k, at.batch);
      } else {
        tma_load(to_a, a, full, at.k, at.m, at.batch);
      }
      if constexpr (TransposeB) {
        tma_load<kCluster>(to_b, b, full, at.k, at.n, at.batch);
      } else {
        for (int i = 0; i < BN / 64 / kCluster; ++i) {
          tma_load<kCluster>(to_b + i * kPanel, b, full, at.n + 64 * i, at.k, at.batch);
        }
      }
      at.k += kHopperDepth;
    }
    __device__ void store(TileAt at, int consumer, T* panels, const float (&sums)[BN / 2]) const {
      const int m = at.row * kHopperRows + 64 * consumer;
      store_panels<T, BN>(StoreByTma{out, m, at.batch}, end, panels, sums, consumer, m, at.column * BN, g.M, g.N,
                          at.batch * stride_o, g.ldo);
    }
  };
  const Epilogue<T> end = {c, bias, nullptr, alpha, beta, relu != 0};
  const TileGrid tiles = {batches, ceil_div(g.M, kHopperRows), ceil_div(g.N, BN)};
  hopper_product<T, BN, !TransposeA, TransposeB, kCluster>(
      Work{a, b, out, g, end, stride_o, tiles, ceil_div(g.K, kHopperDepth)});
#else
  __trap();
#endif
}

}  // namespace dl
