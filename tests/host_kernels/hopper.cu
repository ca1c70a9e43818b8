// A product by TMA and wgmma, small enough to break: out (64, 128) = a (64, K) @ b (128, K)^T, K in steps of 64, by a
// producer and a consumer warpgroup over two stages. What each Bug leaves out or does wrong:
//   1 the wait for a full stage   2 the wait for an empty one   3 the wait for the products   4 wgmma.fence
//   5 mbarrier.init               6 an arrival too many         7 a stage that begins between two atoms
//   8 a descriptor without swizzle   9 fewer bytes expected than loaded   10 the last load, which never comes
#include "hopper.cuh"

template <int Bug>
__global__ void tma_product(const __grid_constant__ dl::TensorMap a, const __grid_constant__ dl::TensorMap b, float* out,
                            int steps) {
#if DL_HOPPER
  constexpr int kBytesA = 64 * 128, kBytes = kBytesA + 128 * 128;
  DL_DYNAMIC_SHARED(unsigned char, raw);
  unsigned char* const shared = raw + (1024 - dl::shared_space_offset(raw) % 1024) % 1024 + (Bug == 7 ? 512 : 0);
  dl::Barrier* const full = reinterpret_cast<dl::Barrier*>(shared + 2 * kBytes);
  dl::Barrier* const empty = full + 2;
  if (threadIdx.x == 0 && Bug != 5) {
    for (int s = 0; s < 2; ++s) dl::barrier_init(full + s, 1), dl::barrier_init(empty + s, 4);
    dl::barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < steps - (Bug == 10); ++i) {
      unsigned char* const stage = shared + i % 2 * kBytes;
      if (Bug != 2) dl::barrier_wait(empty + i % 2, i / 2 % 2 ^ 1);
      dl::barrier_arrive_expect(full + i % 2, Bug == 9 ? kBytesA : kBytes);
      dl::tma_load(stage, a, full + i % 2, 64 * i, 0, 0);
      dl::tma_load(stage + kBytesA, b, full + i % 2, 64 * i, 0, 0);
    }
  }
  if (threadIdx.x < 128) return;
  float sums[64];
  for (int i = 0; i < steps; ++i) {
    const unsigned char* const stage = shared + i % 2 * kBytes;
    if (Bug != 1) dl::barrier_wait(full + i % 2, i / 2 % 2);
    if (Bug != 4) dl::wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      const unsigned long long no_swizzle = Bug == 8 ? 1ull << 62 : 0;
      dl::wgmma<true, true>(__half(), sums, dl::operand_descriptor(stage + 32 * k, 0, 1024) ^ no_swizzle,
                            dl::operand_descriptor(stage + kBytesA + 32 * k, 0, 1024), i + k > 0);
    }
    dl::wgmma_commit();
    if (Bug != 3) dl::wgmma_wait<0>();
    if (threadIdx.x % 32 == 0 || Bug == 6) dl::barrier_arrive(empty + i % 2);
  }
  const int thread = threadIdx.x - 128, row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  for (int i = 0; i < 64; ++i) out[(row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + column + i % 2] = sums[i];
#else
  __trap();
#endif
}

DL_KERNEL(tma_product<0>)
DL_KERNEL(tma_product<1>)
DL_KERNEL(tma_product<2>)
DL_KERNEL(tma_product<3>)
DL_KERNEL(tma_product<4>)
DL_KERNEL(tma_product<5>)
DL_KERNEL(tma_product<6>)
DL_KERNEL(tma_product<7>)
DL_KERNEL(tma_product<8>)
DL_KERNEL(tma_product<9>)
DL_KERNEL(tma_product<10>)
