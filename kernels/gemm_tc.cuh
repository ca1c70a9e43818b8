// Matrix products on tensor cores: out = relu(alpha * op(a) @ op(b) + beta * c + bias), for a batch of row-major matrices.
// half and bfloat16 are multiplied exactly, float in one or three tf32 products; all are added in float.
#pragma once
#include "epilogue.cuh"
#include "tensor_tile.cuh"

namespace dl {

// Hands every sum of a block's tile to `store(m, n, sum)`, rows and columns counted in the whole product.
template <typename Tile, typename Store>
__device__ void for_each_sum(const Tile& tile, int first_m, int first_n, Store store) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Tile::kM; ++i) {
    // Pinned: else sm_100's compiler reads all that `store` adds ahead of the first sum, and has no registers for it.
    const int row = kept(first_m + tile.warp_m + 16 * i + lane / 4);
#pragma unroll
    for (int j = 0; j < Tile::kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = row + e / 2 * 8;
        const int n = first_n + tile.warp_n + 8 * j + lane % 4 * 2 + e % 2;
        store(m, n, tile.sums[i][j][e]);
      }
    }
  }
}

// grid: (tiles of N, tiles of M, batches * splits). With several splits the sums go to `slabs` (splits, batches, M, N),
// to be added up by `add_slabs`; with one they go through the epilogue into `out`.
template <typename T, bool TransposeA, bool TransposeB, int BM, int BN, bool kVector, int kTerms>
__global__ void __launch_bounds__(kThreads, tensor_blocks(BM, kTerms, false))
    gemm_tc(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c, const T* __restrict__ bias,
            T* __restrict__ out, float* __restrict__ slabs, Gemm g, float alpha, float beta, int relu, int batches,
            int splits, long long stride_a, long long stride_b, long long stride_o) {
  using A = Matrix<T, !TransposeA>;
  using B = Matrix<T, TransposeB>;
  using Tile = TensorTile<T, BM, BN, kVector, kTerms, A, B>;
  constexpr int BK = kTileBytes / sizeof(T);
  DL_SHARED(T, shared, [Tile::kSharedElements]);
  const int first_m = blockIdx.y * BM, first_n = blockIdx.x * BN;
  const int batch = blockIdx.z % batches, split = blockIdx.z / batches;
  const A rows = {a + batch * stride_a, g.M, g.K, g.lda};
  const B columns = {b + batch * stride_b, g.N, g.K, g.ldb};
  const Stretch part = stretch(ceil_div(g.K, BK), split, splits);
  Tile tile;
  tile.run(rows, columns, first_m, first_n, part.first * BK, part.count, shared);

  if (splits > 1) {
    float* const slab = slabs + (long long)blockIdx.z * g.M * g.N;
    for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
      if (m < g.M && n < g.N) slab[(long long)m * g.N + n] = sum;
    });
  } else {
    const Epilogue<T> end = {c, bias == nullptr ? nullptr : bias + batch * g.N, out, alpha, beta, relu != 0};
    for_each_sum(tile, first_m, first_n, [&](int m, int n, float sum) {
      if (m < g.M && n < g.N) {
        const long long at = batch * stride_o + (long long)m * g.ldo + n;
        out[at] = from_float<T>(end.value(sum, at, n));
      }
    });
  }
}

// Adds the slabs of a split product in order and finishes it: slabs (splits, batches, M, N).
template <typename T>
__global__ void __launch_bounds__(256)
    add_slabs(const float* __restrict__ slabs, const T* __restrict__ c, const T* __restrict__ bias, T* __restrict__ out,
              Gemm g, float alpha, float beta, int relu, int batches, int splits, long long stride_o) {
  const unsigned matrix = g.M * g.N, count = batches * matrix;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int batch = i / matrix, m = i % matrix / g.N, n = i % g.N;
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += slabs[(long long)split * count + i];
    const Epilogue<T> end = {c, bias == nullptr ? nullptr : bias + batch * g.N, out, alpha, beta, relu != 0};
    const long long at = batch * stride_o + (long long)m * g.ldo + n;
    out[at] = from_float<T>(end.value(sum, at, n));
  }
}

}  // namespace dl
