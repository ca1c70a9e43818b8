// Kernels with one bug each, for the tests of the host launcher. The template argument switches the bug on; with
// `false` the kernel is correct, and no flavour may find fault with it.
#include "arch.cuh"

// Each thread reads its neighbour's value. Bug: no barrier before that.
template <bool Bug>
__global__ void missing_syncthreads(const float* x, float* y) {
  DL_SHARED(float, s, [256]);
  s[threadIdx.x] = x[threadIdx.x];
  if (!Bug) __syncthreads();
  y[threadIdx.x] = s[(threadIdx.x + 1) % blockDim.x];
}

// The second round overwrites what others still read. Bug: no barrier between the rounds.
template <bool Bug>
__global__ void missing_second_syncthreads(const float* x, float* y) {
  DL_SHARED(float, s, [256]);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    s[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    sum += s[(threadIdx.x + 1) % blockDim.x];
    if (!Bug) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

// All read, then one of the readers writes. Bug: no barrier in between.
template <bool Bug>
__global__ void reader_writes(const float* x, float* y) {
  DL_SHARED(float, s, [1]);
  if (threadIdx.x == 0) s[0] = x[0];
  __syncthreads();
  y[threadIdx.x] = s[0];
  if (!Bug) __syncthreads();
  if (threadIdx.x == blockDim.x - 2) s[0] = 2.f;
}

template <bool Bug>
__global__ void missing_syncwarp(const float* x, float* y) {
  DL_SHARED(float, s, [32]);
  s[threadIdx.x] = x[threadIdx.x];
  if (!Bug) __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

// Two stages of shared memory, filled by cp.async one step ahead. Bug 1: nobody waits for the copies. Bug 2: no barrier
// between the reads of a stage and its refill. Bug 3: the last copy is never waited for.
template <int Bug>
__global__ void pipeline(const float* x, float* y, int steps) {
  DL_SHARED(float, s, [2][256]);
  const int t = threadIdx.x;
  float sum = 0;
  auto fetch = [&](int step) {
    if (t < 64 && step < steps + (Bug == 3)) dl::cp_async16(&s[step % 2][4 * t], &x[256 * (step % steps) + 4 * t]);
    dl::cp_async_commit();
  };
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);
    if (Bug != 1) dl::cp_async_wait<1>();
    __syncthreads();
    sum += s[step % 2][(t + 1) % 256];
    if (Bug != 2) __syncthreads();
  }
  if (Bug != 3) dl::cp_async_wait<0>();
  y[t] = sum;
}

template <bool Bug>
__global__ void missing_atomic(const int* values, int* counts) {
  const int v = values[blockIdx.x * blockDim.x + threadIdx.x];
  if (Bug)
    counts[v] += 1;
  else
    atomicAdd(&counts[v], 1);
}

// Bug: block b also writes the first element of block b + 1.
template <bool Bug>
__global__ void blocks_overlap(float* y) {
  const int last = Bug && blockIdx.x + 1 < gridDim.x ? 33 : 32;
  for (int i = threadIdx.x; i < last; i += blockDim.x) y[blockIdx.x * 32 + i] = 1.f;
}

template <bool Bug>
__global__ void global_overrun(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  if (Bug ? i <= n : i < n) y[i] = 2 * x[i < n ? i : 0];
}

template <bool Bug>
__global__ void global_read_overrun(const float* x, float* y, int n) {
  const int i = threadIdx.x;
  if (i < n) y[i] = x[Bug ? i + 1 : i];
}

template <bool Bug>
__global__ void shared_overrun(float* y, int n) {
  DL_SHARED(float, s, [64]);
  const int i = threadIdx.x;
  if (Bug ? i <= n : i < n) s[i] = 1.f;
  __syncthreads();
  y[i] = i < n ? s[i] : 0.f;
}

// Bug: the column 16 of a row of 16, which is the first of the next row.
template <bool Bug>
__global__ void inner_overrun(float* y, int columns) {
  DL_SHARED(float, s, [4][16]);
  for (int r = 0; r < 4; ++r)
    if (int(threadIdx.x) < 16) s[r][threadIdx.x] = 1.f;
  __syncwarp();
  float sum = 0;
  for (int c = 0; c < columns + Bug; ++c) sum += s[1][c];
  y[threadIdx.x] = sum;
}

template <bool Bug>
__global__ void dynamic_overrun(float* y) {
  DL_DYNAMIC_SHARED(float, s);
  s[threadIdx.x + Bug] = 1.f;
  y[threadIdx.x] = s[threadIdx.x + Bug];
}

template <bool Bug>
__global__ void uninitialised(float* y) {
  DL_SHARED(float, s, [64]);
  if (threadIdx.x < (Bug ? 32u : 64u)) s[threadIdx.x] = 1.f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

template <bool Bug>
__global__ void divergent_barrier(float* y) {
  y[threadIdx.x] = 1.f;
  if (Bug && threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

template <bool Bug>
__global__ void early_return(float* y, int n) {
  if (Bug && int(threadIdx.x) >= n) return;
  __syncthreads();
  if (int(threadIdx.x) < n) y[threadIdx.x] = 1.f;
}

template <bool Bug>
__global__ void absent_lane(float* y) {
  const unsigned mask = Bug ? 0x0000ffffu : 0xffffffffu;
  float v = float(threadIdx.x);
  if (!Bug || threadIdx.x < 16) v = __shfl_sync(mask, v, 20);
  y[threadIdx.x] = v;
}

template <bool Bug>
__global__ void divergent_shuffle(float* y) {
  float v = float(threadIdx.x);
  if (!Bug || threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
  __syncthreads();
  y[threadIdx.x] = v;
}

template <bool Bug>
__global__ void misaligned_vector(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + Bug);
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

template <bool Bug>
__global__ void too_much_shared(float* y) {
  DL_SHARED(float, a, [Bug ? 12000 : 6000]);
  DL_SHARED(float, b, [1000]);
  a[threadIdx.x] = b[threadIdx.x] = 1.f;
  y[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}

DL_KERNEL(missing_syncthreads<false>)
DL_KERNEL(missing_syncthreads<true>)
DL_KERNEL(missing_second_syncthreads<false>)
DL_KERNEL(missing_second_syncthreads<true>)
DL_KERNEL(reader_writes<false>)
DL_KERNEL(reader_writes<true>)
DL_KERNEL(missing_syncwarp<false>)
DL_KERNEL(missing_syncwarp<true>)
DL_KERNEL(pipeline<0>)
DL_KERNEL(pipeline<1>)
DL_KERNEL(pipeline<2>)
DL_KERNEL(pipeline<3>)
DL_KERNEL(missing_atomic<false>)
DL_KERNEL(missing_atomic<true>)
DL_KERNEL(blocks_overlap<false>)
DL_KERNEL(blocks_overlap<true>)
DL_KERNEL(global_overrun<false>)
DL_KERNEL(global_overrun<true>)
DL_KERNEL(global_read_overrun<false>)
DL_KERNEL(global_read_overrun<true>)
DL_KERNEL(shared_overrun<false>)
DL_KERNEL(shared_overrun<true>)
DL_KERNEL(inner_overrun<false>)
DL_KERNEL(inner_overrun<true>)
DL_KERNEL(dynamic_overrun<false>)
DL_KERNEL(dynamic_overrun<true>)
DL_KERNEL(uninitialised<false>)
DL_KERNEL(uninitialised<true>)
DL_KERNEL(divergent_barrier<false>)
DL_KERNEL(divergent_barrier<true>)
DL_KERNEL(early_return<false>)
DL_KERNEL(early_return<true>)
DL_KERNEL(absent_lane<false>)
DL_KERNEL(absent_lane<true>)
DL_KERNEL(divergent_shuffle<false>)
DL_KERNEL(divergent_shuffle<true>)
DL_KERNEL(misaligned_vector<false>)
DL_KERNEL(misaligned_vector<true>)
DL_KERNEL(too_much_shared<false>)
DL_KERNEL(too_much_shared<true>)
