// Correct kernels for the tests of the host launcher: no flavour, order or copy timing may find fault with them.
#include "arch.cuh"

struct Line {
  float slope, offset;
  int count;
};

template <typename T>
__global__ void affine(const T* x, T* y, Line line) {
  for (long long i = dl::first_index(); i < line.count; i += dl::index_step())
    y[i] = T(line.slope * float(x[i]) + line.offset);
}

// What each parameter type becomes; out[i] holds parameter i.
__global__ void scalars(double* out, int a, unsigned char b, long long c, float d, bool e, __half f, const void* g) {
  out[0] = a, out[1] = b, out[2] = double(c), out[3] = d, out[4] = e, out[5] = float(f), out[6] = g != nullptr;
}

// C (m x n) = A (m x k) * B (k x n), row-major; blocks of 64 x 64, 256 threads with 4 x 4 results each.
__global__ void __launch_bounds__(256) sgemm(const float* A, const float* B, float* C, int m, int n, int k) {
  constexpr int T = 64, K = 16;
  DL_SHARED(float, a, [2][K][T + 4]);
  DL_SHARED(float, b, [2][K][T]);
  const int t = threadIdx.x, row0 = blockIdx.y * T, column0 = blockIdx.x * T;
  const int load_row = t / 4, load_k = t % 4 * 4, load_k_b = t / 16, load_column = t % 16 * 4;
  auto load = [&](int stage, int k0) {
    for (int i = 0; i < 4; ++i) {
      int row = row0 + load_row, kk = k0 + load_k + i;
      a[stage][load_k + i][load_row] = row < m && kk < k ? A[row * k + kk] : 0.f;
    }
    float4 v = make_float4(0, 0, 0, 0);
    int kk = k0 + load_k_b, column = column0 + load_column;
    if (kk < k) {
      if (n % 4 == 0 && column < n)
        v = *reinterpret_cast<const float4*>(&B[kk * n + column]);
      else if (n % 4) {
        if (column + 0 < n) v.x = B[kk * n + column];
        if (column + 1 < n) v.y = B[kk * n + column + 1];
        if (column + 2 < n) v.z = B[kk * n + column + 2];
        if (column + 3 < n) v.w = B[kk * n + column + 3];
      }
    }
    *reinterpret_cast<float4*>(&b[stage][load_k_b][load_column]) = v;
  };
  float c[4][4] = {};
  load(0, 0);
  for (int k0 = 0, stage = 0; k0 < k; k0 += K, stage ^= 1) {
    __syncthreads();
    if (k0 + K < k) load(stage ^ 1, k0 + K);
#pragma unroll
    for (int p = 0; p < K; ++p) {
      float4 x = *reinterpret_cast<const float4*>(&a[stage][p][t / 16 * 4]);
      float4 y = *reinterpret_cast<const float4*>(&b[stage][p][t % 16 * 4]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] = fmaf(xs[i], ys[j], c[i][j]);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      int row = row0 + t / 16 * 4 + i, column = column0 + t % 16 * 4 + j;
      if (row < m && column < n) C[row * n + column] = c[i][j];
    }
}

// out[row] = sum of x[row]; one block a row, any number of warps.
__global__ void row_sum(const float* x, float* out, int columns) {
  DL_SHARED(float, partial, [32]);
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += x[blockIdx.x * columns + i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

// The sum of 64 numbers by one warp through shared memory, ordered by __syncwarp alone.
__global__ void warp_sum(const float* x, float* out) {
  DL_SHARED(float, s, [64]);
  const int lane = threadIdx.x;
  s[lane] = x[lane];
  s[lane + 32] = x[lane + 32];
  __syncwarp();
  for (int step = 32; step > 0; step /= 2) {
    if (lane < step) s[lane] += s[lane + step];
    __syncwarp();
  }
  if (lane == 0) *out = s[0];
}

// counts[v] = how often v occurs: atomics in shared memory, then in global memory.
__global__ void histogram(const int* values, int* counts, int n) {
  DL_SHARED(int, local, [16]);
  if (threadIdx.x < 16) local[threadIdx.x] = 0;
  __syncthreads();
  for (int i = int(dl::first_index()); i < n; i += int(dl::index_step())) atomicAdd(&local[values[i] % 16], 1);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

// y = x transposed, n x n with n a multiple of 32; blocks of 32 x 8.
template <int Padding>
__global__ void transpose(const float* x, float* y, int n) {
  DL_SHARED(float, tile, [32][32 + Padding]);
  for (int i = threadIdx.y; i < 32; i += 8)
    tile[i][threadIdx.x] = x[(blockIdx.y * 32 + i) * n + blockIdx.x * 32 + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8)
    y[(blockIdx.x * 32 + i) * n + blockIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][i];
}

// C (m x n, float) = A (m x k) * B (k x n) with m, n multiples of 64 and k of 32: mma.sync, ldmatrix, cp.async in three
// stages. 4 warps in 2 x 2, each 32 x 32. Rows of shared memory are padded by 16 bytes against bank conflicts.
template <typename T>
__global__ void __launch_bounds__(128) tensor_gemm(const T* A, const T* B, float* C, int n, int k) {
  constexpr int M = 64, K = 32, Stages = 3, PitchA = K + 8, PitchB = M + 8, Stage = M * PitchA + K * PitchB;
  DL_DYNAMIC_SHARED(T, shared);
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, row0 = blockIdx.y * M, column0 = blockIdx.x * M;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32, steps = k / K;
  auto fetch = [&](int step) {
    if (step < steps) {
      T* a = shared + step % Stages * Stage;
      T* b = a + M * PitchA;
      for (int i = t; i < M * K / 8; i += 128)
        dl::cp_async16(a + i / 4 * PitchA + i % 4 * 8, A + (row0 + i / 4) * k + step * K + i % 4 * 8);
      for (int i = t; i < M * K / 8; i += 128)
        dl::cp_async16(b + i / 8 * PitchB + i % 8 * 8, B + (step * K + i / 8) * n + column0 + i % 8 * 8);
    }
    dl::cp_async_commit();
  };
  float c[2][4][4] = {};
  for (int i = 0; i < Stages - 1; ++i) fetch(i);
  for (int step = 0; step < steps; ++step) {
    dl::cp_async_wait<Stages - 2>();
    __syncthreads();
    fetch(step + Stages - 1);  // into the stage that was read before the barrier
    const T* a = shared + step % Stages * Stage;
    const T* b = a + M * PitchA;
#pragma unroll
    for (int p = 0; p < K; p += 16) {
      unsigned af[2][4], bf[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        dl::ldmatrix_x4(af[i], a + (warp_row + 16 * i + lane % 16) * PitchA + p + lane / 16 * 8);
        dl::ldmatrix_x4_trans(bf[i], b + (p + lane % 16) * PitchB + warp_column + 16 * i + lane / 16 * 8);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) dl::mma_m16n8k16<T>(c[i][j], af[i], bf[j / 2][j % 2 * 2], bf[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        int row = row0 + warp_row + 16 * i + lane / 4 + r / 2 * 8;
        C[row * n + column0 + warp_column + 8 * j + lane % 4 * 2 + r % 2] = c[i][j][r];
      }
}

// One 16 x 8 tile: C = A (16 x 8) * B (8 x 8), fragments loaded by hand as the PTX ISA draws them.
__global__ void mma_tf32(const float* A, const float* B, float* C) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned a[4] = {dl::to_tf32(A[g * 8 + t]), dl::to_tf32(A[(g + 8) * 8 + t]), dl::to_tf32(A[g * 8 + t + 4]),
                         dl::to_tf32(A[(g + 8) * 8 + t + 4])};
  float c[4] = {};
  dl::mma_m16n8k8_tf32(c, a, dl::to_tf32(B[t * 8 + g]), dl::to_tf32(B[(t + 4) * 8 + g]));
  for (int i = 0; i < 4; ++i) C[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

__global__ void mma_f16_k8(const __half* A, const __half* B, float* C) {
  DL_SHARED(__half, a, [16][8]);
  DL_SHARED(__half, b, [8][8]);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 128; i += 32) a[i / 8][i % 8] = A[i];
  for (int i = lane; i < 64; i += 32) b[i / 8][i % 8] = B[i];
  __syncwarp();
  unsigned af[2], bf[1], again[2], first[1];
  dl::ldmatrix_x2(af, &a[lane % 16][0]);
  dl::ldmatrix_x1_trans(bf, &b[lane % 8][0]);
  dl::ldmatrix_x2_trans(again, &a[lane % 16][0]);  // the same element twice where row and column are the same
  dl::ldmatrix_x1(first, &a[lane % 8][0]);
  float c[4] = {};
  dl::mma_m16n8k8_f16(c, af[0], af[1], bf[0]);
  const bool same = first[0] == af[0] && (g != 2 * t || (again[0] & 0xffff) == (af[0] & 0xffff));
  for (int i = 0; i < 4; ++i) C[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = __all_sync(0xffffffffu, same) ? c[i] : -1.f;
}

// Each lane's results of the votes and shuffles, 8 per lane.
__global__ void warp_words(int* out) {
  const int lane = threadIdx.x;
  int* o = out + 8 * lane;
  o[0] = __shfl_sync(0xffffffffu, lane, 5, 8);
  o[1] = __shfl_up_sync(0xffffffffu, lane, 2, 16);
  o[2] = __shfl_down_sync(0xffffffffu, lane, 3);
  o[3] = __shfl_xor_sync(0xffffffffu, lane, 1);
  o[4] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
  o[5] = lane < 16 ? __any_sync(0x0000ffffu, lane == 3) : __any_sync(0xffff0000u, lane == 3);
  o[6] = int(__activemask());
  __half2 pair = __shfl_xor_sync(0xffffffffu, __floats2half2_rn(float(lane), 0.5f), 16);
  o[7] = int(__low2float(pair) + 2 * __high2float(pair));
}

__global__ void block_votes(int* out) {
  const int t = threadIdx.x;
  out[2 * t] = __syncthreads_or(t == 40);
  out[2 * t + 1] = __syncthreads_or(t == 70);
}

// 6 results for each x.
__global__ void functions(const float* xs, float* out, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  const float x = xs[i];
  const __nv_bfloat16 b = __float2bfloat16(x);
  float* o = out + 6 * i;
  o[0] = fmaf(x, x, 1.f), o[1] = float(b * b + b), o[2] = __int_as_float(int(__float_as_uint(x)));
  o[3] = min(x, 2.f), o[4] = max(i, 2u), o[5] = max(x, __int_as_float(0x7fc00000));  // NaN
}

DL_KERNEL(affine<float>)
DL_KERNEL(affine<__half>)
DL_KERNEL(affine<__nv_bfloat16>)
DL_KERNEL(scalars)
DL_KERNEL(sgemm)
DL_KERNEL(row_sum)
DL_KERNEL(warp_sum)
DL_KERNEL(histogram)
DL_KERNEL(transpose<0>)
DL_KERNEL(transpose<1>)
DL_KERNEL(tensor_gemm<__half>)
DL_KERNEL(tensor_gemm<__nv_bfloat16>)
DL_KERNEL(mma_tf32)
DL_KERNEL(mma_f16_k8)
DL_KERNEL(warp_words)
DL_KERNEL(block_votes)
DL_KERNEL(functions)
