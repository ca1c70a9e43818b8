// A product by TMA and wgmma, small enough to break: out (64 rows for each block of the cluster, 128) = a @ b (128, K)^T,
// K in steps of 64, by a producer and a consumer warpgroup over two stages. Each block of a cluster loads its rows of a, and
// its share of b for all. What each Bug leaves out or does wrong:
//   1 the wait for a full stage   2 the wait for an empty one   3 the wait for the products   4 wgmma.fence
//   5 mbarrier.init               6 an arrival too many         7 a stage that begins between two atoms
//   8 a descriptor without swizzle   9 fewer bytes expected than loaded   10 the last load, which never comes
// In clusters only:
//   11 the barrier before the end    12 arrivals at the other block's empty stages    13 the barrier after mbarrier.init
//   14 b's share for the own block alone   15 for a block too many   16 a for both   17 one block leaves at once
#include "hopper.cuh"

template <int Bug, int kCluster>
__global__ void DL_CLUSTER(kCluster)
    tma_product(const __grid_constant__ dl::TensorMap a, const __grid_constant__ dl::TensorMap b, float* out, int steps) {
#if DL_HOPPER
  constexpr int kBytesA = 64 * 128, kBytes = kBytesA + 128 * 128, kShare = 128 / kCluster;
  constexpr int kToA = Bug == 16 ? 2 : 1, kToB = Bug == 14 ? 1 : Bug == 15 ? 3 : kCluster;
  const int rank = dl::cluster_rank<kCluster>();
  if (Bug == 17 && rank == 1) return;
  DL_DYNAMIC_SHARED(unsigned char, raw);
  unsigned char* const shared = raw + (1024 - dl::shared_space_offset(raw) % 1024) % 1024 + (Bug == 7 ? 512 : 0);
  dl::Barrier* const full = reinterpret_cast<dl::Barrier*>(shared + 2 * kBytes);
  dl::Barrier* const empty = full + 2;
  if (threadIdx.x == 0 && Bug != 5) {
    for (int s = 0; s < 2; ++s) dl::barrier_init(full + s, 1), dl::barrier_init(empty + s, Bug == 12 ? 4 : 4 * kCluster);
    dl::barrier_init_fence();
  }
  kCluster > 1 && Bug != 13 ? dl::cluster_barrier() : __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < steps - (Bug == 10); ++i) {
      unsigned char* const stage = shared + i % 2 * kBytes;
      if (Bug != 2) dl::barrier_wait(empty + i % 2, i / 2 % 2 ^ 1);
      dl::barrier_arrive_expect(full + i % 2, Bug == 9 ? kBytesA : kBytes);
      dl::tma_load<kToA>(stage, a, full + i % 2, 64 * i, 64 * blockIdx.x, 0);
      dl::tma_load<kToB>(stage + kBytesA + kShare * rank * 128, b, full + i % 2, 64 * i, kShare * rank, 0);
    }
  }
  if (threadIdx.x >= 128) {
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
      const int lane = threadIdx.x % 32;
      if (kCluster > 1 && Bug != 12) {
        if (lane < kCluster || Bug == 6) dl::barrier_arrive(empty + i % 2, lane % kCluster);
      } else {
        if (lane == 0 || Bug == 6) dl::barrier_arrive(empty + i % 2);
      }
    }
    const int thread = threadIdx.x - 128, column = thread % 4 * 2;
    const int row = 64 * blockIdx.x + thread / 32 * 16 + thread % 32 / 4;
    for (int i = 0; i < 64; ++i) out[(row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + column + i % 2] = sums[i];
  }
  if (kCluster > 1 && Bug != 11) dl::cluster_barrier();
#else
  __trap();
#endif
}

DL_KERNEL(tma_product<0, 1>)
DL_KERNEL(tma_product<1, 1>)
DL_KERNEL(tma_product<2, 1>)
DL_KERNEL(tma_product<3, 1>)
DL_KERNEL(tma_product<4, 1>)
DL_KERNEL(tma_product<5, 1>)
DL_KERNEL(tma_product<6, 1>)
DL_KERNEL(tma_product<7, 1>)
DL_KERNEL(tma_product<8, 1>)
DL_KERNEL(tma_product<9, 1>)
DL_KERNEL(tma_product<10, 1>)
DL_KERNEL(tma_product<0, 2>)
DL_KERNEL(tma_product<1, 2>)
DL_KERNEL(tma_product<2, 2>)
DL_KERNEL(tma_product<3, 2>)
DL_KERNEL(tma_product<6, 2>)
DL_KERNEL(tma_product<9, 2>)
DL_KERNEL(tma_product<10, 2>)
DL_KERNEL(tma_product<11, 2>)
DL_KERNEL(tma_product<12, 2>)
DL_KERNEL(tma_product<13, 2>)
DL_KERNEL(tma_product<14, 2>)
DL_KERNEL(tma_product<15, 2>)
DL_KERNEL(tma_product<16, 2>)
DL_KERNEL(tma_product<17, 2>)
