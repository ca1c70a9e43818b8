// Matrix products without tensor cores: out = relu(alpha * op(a) @ op(b) + beta * c + bias), for a batch of row-major
// matrices; bias and ReLU where asked.
//
// A block of 256 threads makes a BM x BN tile of the output; each thread TM x TN of it, in registers. Tiles of op(a) and
// op(b), BK deep, go through shared memory twice buffered: while the block multiplies one pair of tiles, the next is on
// its way from global memory into registers. (128 x 128 x 8 with 8 x 8 per thread: 64 multiply-adds for every 16 values
// read from shared memory.)
#pragma once
#include "shapes.cuh"
#include "vector4.cuh"

namespace dl {

// A tile of EDGE rows (of op(a), or columns of op(b)) by BK of the inner axis, four elements per thread. DeepFast says
// that memory is contiguous along the inner axis; then four elements are one row's, else they are four rows'.
template <typename T, int EDGE, int BK, bool DeepFast>
struct Tile {
  static_assert(EDGE * BK == 4 * 256, "256 threads load four elements each");
  static constexpr int kPerLine = (DeepFast ? BK : EDGE) / 4;  // threads along the contiguous axis
  int row, deep;  // first of the four elements, [0, EDGE) and [0, BK)
  float values[4];

  __device__ Tile() {
    const int line = threadIdx.x / kPerLine, at = threadIdx.x % kPerLine * 4;
    row = DeepFast ? line : at;
    deep = DeepFast ? at : line;
  }

  // `first_row`, `first_deep`: where the tile starts in a matrix of `rows` by `depth`; ld: elements between its lines.
  __device__ void fetch(const T* matrix, int ld, int first_row, int rows, int first_deep, int depth) {
    const int r = first_row + row, d = first_deep + deep;
    const int line = DeepFast ? r : d, at = DeepFast ? d : r;
    const bool exists = DeepFast ? r < rows : d < depth;
    const int valid = exists ? (DeepFast ? depth - d : rows - r) : 0;
    load4(matrix + (long long)line * ld + at, valid, values);
  }

  __device__ void store(float (&shared)[BK][EDGE + 4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) shared[DeepFast ? deep + i : deep][DeepFast ? row : row + i] = values[i];
  }
};

// Batches on blockIdx.z (at most 65,535 blocks there; the kernel walks on by gridDim.z), tiles of N on x, of M on y.
// `c` (as `out`) and `bias` (N per batch, added to every row) may be null. A batch stride of 0 uses one matrix for all.
template <typename T, bool TransposeA, bool TransposeB, int BM, int BN, int BK, int TM, int TN>
__global__ void __launch_bounds__(256, BM == 128 ? 1 : 2)
    gemm(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c, const T* __restrict__ bias,
         T* __restrict__ out, Gemm g, float alpha, float beta, int relu, int batches, long long stride_a, long long stride_b,
         long long stride_o) {
  static_assert(BM / TM * (BN / TN) == 256, "each of 256 threads makes TM x TN outputs");
  static_assert(TM % 4 == 0 && TN % 4 == 0, "a thread's outputs come in groups of four neighbours");
  constexpr int kAcross = BN / TN;      // threads along N
  constexpr int kStepM = BM / TM * 4;   // distance of a thread's groups along M
  constexpr int kStepN = kAcross * 4;
  DL_SHARED(float, a_tiles, [2][BK][BM + 4]);
  DL_SHARED(float, b_tiles, [2][BK][BN + 4]);
  const int first_m = blockIdx.y * BM, first_n = blockIdx.x * BN;
  const int thread_m = threadIdx.x / kAcross * 4, thread_n = threadIdx.x % kAcross * 4;
  const int steps = ceil_div(g.K, BK);

  for (int batch = blockIdx.z; batch < batches; batch += gridDim.z) {
    const T* const a_matrix = a + batch * stride_a;
    const T* const b_matrix = b + batch * stride_b;
    float sums[TM][TN] = {};
    Tile<T, BM, BK, !TransposeA> a_next;
    Tile<T, BN, BK, TransposeB> b_next;
    a_next.fetch(a_matrix, g.lda, first_m, g.M, 0, g.K);
    b_next.fetch(b_matrix, g.ldb, first_n, g.N, 0, g.K);
    a_next.store(a_tiles[0]);
    b_next.store(b_tiles[0]);
    __syncthreads();

    for (int step = 0; step < steps; ++step) {
      const int now = step % 2;
      if (step + 1 < steps) {
        a_next.fetch(a_matrix, g.lda, first_m, g.M, (step + 1) * BK, g.K);
        b_next.fetch(b_matrix, g.ldb, first_n, g.N, (step + 1) * BK, g.K);
      }
#pragma unroll
      for (int k = 0; k < BK; ++k) {
        float column[TM], row[TN];
#pragma unroll
        for (int i = 0; i < TM; ++i) column[i] = a_tiles[now][k][thread_m + i / 4 * kStepM + i % 4];
#pragma unroll
        for (int j = 0; j < TN; ++j) row[j] = b_tiles[now][k][thread_n + j / 4 * kStepN + j % 4];
#pragma unroll
        for (int i = 0; i < TM; ++i) {
#pragma unroll
          for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(column[i], row[j], sums[i][j]);
        }
      }
      if (step + 1 < steps) {
        a_next.store(a_tiles[1 - now]);
        b_next.store(b_tiles[1 - now]);
      }
      __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < TM; ++i) {
      const int m = first_m + thread_m + i / 4 * kStepM + i % 4;
      if (m >= g.M) continue;
#pragma unroll
      for (int j = 0; j < TN; j += 4) {
        const int n = first_n + thread_n + j / 4 * kStepN;
        if (n >= g.N) continue;
        const long long at = batch * stride_o + (long long)m * g.ldo + n;
        float four[4] = {}, shift[4] = {};
        if (c != nullptr) load4(c + at, g.N - n, four);
        if (bias != nullptr) load4(bias + batch * g.N + n, g.N - n, shift);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float y = alpha * sums[i][j + e] + beta * four[e] + shift[e];
          four[e] = relu && y < 0.0f ? 0.0f : y;
        }
        store4(out + at, g.N - n, four);
      }
    }
  }
}

}  // namespace dl
