// Matrix products without tensor cores: out = relu(alpha * op(a) @ op(b) + beta * c + bias), for a batch of row-major
// matrices; bias and ReLU where asked.
#pragma once
#include "simt.cuh"

namespace dl {

// grid: (tiles of N, tiles of M, batches * splits). With several splits of the depth the sums go to `slabs` (splits,
// batches, M, N), to be added up by `add_slabs`; with one they go through the epilogue into `out`. `c` (laid out as `out`)
// and `bias` (N per batch, for every row) may be null. A stride of 0 between matrices repeats one. V: elements loaded and
// stored at once; extents, strides and addresses are multiples of it.
template <typename T, bool TransposeA, bool TransposeB, int BM, int BN, int V>
__global__ void __launch_bounds__(simt_threads(BM, BN), simt_blocks(BM, V))
    gemm_simt(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c, const T* __restrict__ bias,
         T* __restrict__ out, float* __restrict__ slabs, Gemm g, float alpha, float beta, int relu, int batches, int splits,
         long long stride_a, long long stride_b, long long stride_o) {
  const int batch = blockIdx.z % batches;
  const Stretch part = stretch(ceil_div(g.K, kSimtDepth), blockIdx.z / batches, splits);
  const Matrix<T, !TransposeA> rows = {a, g.M, g.K, g.lda, int(batch * stride_a)};
  const Matrix<T, TransposeB> columns = {b, g.N, g.K, g.ldb, int(batch * stride_b)};
  float sums[8][8] = {};
  simt_product<T, BM, BN, V>(rows, columns, part, sums);

  if (splits > 1) {
    for_each_output<BM, BN, V>(g.M, g.N, sums, [&](int m, int n, const float* some) {
      store<V>(slabs + (blockIdx.z * g.M + m) * g.N + n, some);
    });
    return;
  }
  const Epilogue<T> end = {c, bias == nullptr ? nullptr : bias + blockIdx.z * g.N, out, alpha, beta, relu != 0};
  for_each_output<BM, BN, V>(g.M, g.N, sums, [&](int m, int n, const float* some) {
    const long long at = blockIdx.z * stride_o + (long long)m * g.ldo + n;
    float y[V];
    end.values(some, at, n, y);
    store<V>(out + at, y);
  });
}

}  // namespace dl
