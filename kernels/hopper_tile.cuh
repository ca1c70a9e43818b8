// The main loop on Hopper: blocks that stay, each a producer and two consumers, make tiles of out = A @ B^T one after the
// other. One thread of warpgroup 0 has TMA fill kPipe stages of shared memory, ahead of warpgroups 1 and 2, which multiply
// with wgmma, 64 rows each, and store their part while the producer fetches the next tile.
//
//   full[s]   TMA -> consumers: the stage holds tiles of A and B          (1 arrival, and their bytes)
//   empty[s]  consumers -> producers: nothing reads the stage any more    (1 arrival of each consumer warp of the cluster)
//
// Two blocks of a cluster make two tiles one below the other. Both need the same tile of B: each loads one half of it into
// the shared memory of both. An odd last tile has a neighbour that lies outside: zeros, and nothing is stored.
#pragma once
#include "epilogue.cuh"
#include "hopper.cuh"
#include "shapes.cuh"

namespace dl {

constexpr int kPipe = 4, kConsumers = 2, kHopperThreads = 128 * (1 + kConsumers);
constexpr int kHopperRows = 64 * kConsumers, kHopperDepth = 64;  // of a tile; 64 elements of 16 bits are one swizzled line
constexpr int kAtom = 1024, kPanel = 64 * 128;                   // bytes: 8 lines; 64 lines

__host__ __device__ constexpr int hopper_stage_bytes(int columns) { return (kHopperRows + columns) * 128; }
// Stages, two panels of 64 x 64 outputs for each consumer, barriers, and what it takes to begin at a multiple of 1024.
__host__ __device__ constexpr int hopper_shared_bytes(int columns) {
  return kPipe * hopper_stage_bytes(columns) + 2 * kConsumers * kPanel + 2 * kPipe * 8 + kAtom;
}

// The order in which tiles are made: columns of kBand rows of tiles, so that blocks at work share operands in L2.
struct TileGrid {
  int batches, rows, columns;  // counted in tiles
};
struct TileAt {
  int batch, row, column;
};
// The tile of block `rank` of a cluster whose tiles have together the number i.
template <int kCluster>
__device__ inline TileAt tile_at(const TileGrid& tiles, int i, int rank) {
  constexpr int kBand = 8 / kCluster;
  const int rows = ceil_div(tiles.rows, kCluster), batch = i / (rows * tiles.columns), in = i % (rows * tiles.columns);
  const int first = in / (kBand * tiles.columns) * kBand, height = min(kBand, rows - first);
  const int rest = in - first * tiles.columns;
  return {batch, (first + rest % height) * kCluster + rank, rest / height};
}

#if DL_HOPPER

// The 16 bytes of `line` at `chunk` of a panel as TMA swizzles it.
template <typename T>
__device__ inline T* swizzled(T* panel, int line, int column) {
  return panel + line * 64 + ((column / 8 ^ line % 8) * 8 + column % 8);
}

// `Work` says which product:
//   TileGrid tiles, int steps                     of the output; of the depth of each tile
//   Place start(TileAt, column)                the first step of a tile, and of what this block loads of B's for the
//                                              cluster: BN / kCluster columns of the product from `column` on
//   load(Place&, a, b, barrier)                has TMA fetch that, and moves on to the next step: without divisions, for
//                                              one thread does it against the tensor cores
//   store(TileAt, consumer, panels, sums)      finishes 64 rows by way of two panels
// DeepA, DeepB: the operand's tile is K-major: lines of 64 along the depth. Else panels of 64 rows, a line for each depth.
template <typename T, int BN, bool DeepA, bool DeepB, int kCluster, typename Work>
__device__ void hopper_product(const Work& work) {
  DL_DYNAMIC_SHARED(unsigned char, raw);
  unsigned char* const shared = raw + (kAtom - shared_space_offset(raw) % kAtom) % kAtom;
  unsigned char* const panels = shared + kPipe * hopper_stage_bytes(BN);
  Barrier* const full = reinterpret_cast<Barrier*>(panels + 2 * kConsumers * kPanel);
  Barrier* const empty = full + kPipe;
  constexpr int kBytesA = kHopperRows * 128;
  const int rank = cluster_rank<kCluster>(), share = rank * (BN / kCluster);
  const int tiles = work.tiles.batches * ceil_div(work.tiles.rows, kCluster) * work.tiles.columns;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kPipe; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * kConsumers * kCluster);
    }
    barrier_init_fence();
  }
  kCluster > 1 ? cluster_barrier() : __syncthreads();
  auto release = [empty](unsigned turn) {  // a lane of each warp for each block
    const unsigned lane = threadIdx.x % 32;
    Barrier* const stage = empty + turn % kPipe;
    if (lane < kCluster) kCluster > 1 ? barrier_arrive(stage, lane) : barrier_arrive(stage);
  };

  const int warpgroup = threadIdx.x / 128;
  unsigned turn = 0;  // stages used so far: turn % kPipe is the next one, turn / kPipe the phase of its barriers
  if (warpgroup == 0) {
    fewer_registers<40>();
    if (threadIdx.x == 0) {
      for (int i = blockIdx.x / kCluster; i < tiles; i += gridDim.x / kCluster) {
        const TileAt at = tile_at<kCluster>(work.tiles, i, rank);
        auto place = work.start(at, at.column * BN + share);
        for (int step = 0; step < work.steps; ++step, ++turn) {
          unsigned char* const stage = shared + turn % kPipe * hopper_stage_bytes(BN);
          barrier_wait(empty + turn % kPipe, turn / kPipe % 2 ^ 1);  // the first round finds all stages empty
          barrier_arrive_expect(full + turn % kPipe, hopper_stage_bytes(BN));
          work.load(place, stage, stage + kBytesA + share * 128, full + turn % kPipe);
        }
      }
    }
  } else {
    more_registers<232>();
    const int consumer = warpgroup - 1;
    for (int i = blockIdx.x / kCluster; i < tiles; i += gridDim.x / kCluster) {
      float sums[BN / 2];
      if (work.steps == 0) {
#pragma unroll
        for (int j = 0; j < BN / 2; ++j) sums[j] = 0.0f;
      }
      for (int step = 0; step < work.steps; ++step, ++turn) {
        const unsigned char* const stage = shared + turn % kPipe * hopper_stage_bytes(BN);
        barrier_wait(full + turn % kPipe, turn / kPipe % 2);
        const unsigned long long a = operand_descriptor(stage + consumer * kPanel, kPanel, kAtom);  // its 64 rows
        const unsigned long long b = operand_descriptor(stage + kBytesA, kPanel, kAtom);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kHopperDepth / 16; ++k) {
          const unsigned long long from_a = further(a, k * (DeepA ? 32 : 2 * kAtom));
          wgmma<DeepA, DeepB>(T(), sums, from_a, further(b, k * (DeepB ? 32 : 2 * kAtom)), step + k > 0);
        }
        wgmma_commit();
        if (step > 0) {
          wgmma_wait<1>();  // the stage before has been read
          release(turn - 1);
        }
      }
      wgmma_wait<0>();
      if (work.steps > 0) release(turn - 1);
      work.store(tile_at<kCluster>(work.tiles, i, rank), consumer, reinterpret_cast<T*>(panels + 2 * consumer * kPanel), sums);
    }
    if (threadIdx.x % 128 == 0) tma_store_wait_read<0>();
  }
  if (kCluster > 1) cluster_barrier();  // a block that ends takes its shared memory along
}

// Has TMA store a panel at column n of the rows from m on.
struct StoreByTma {
  const TensorMap& map;
  int m, z;

  template <typename T>
  __device__ void operator()(T* panel, int n) const {
    if (threadIdx.x % 128 == 0) {
      tma_store(map, panel, n, m, z);
      tma_store_commit();
    }
  }
};

// Finishes 64 x BN sums of a consumer, from output (m, n) on, and has its threads put(panel, n) them by panels of 64
// columns, in turns; rows and columns outside are left out. `offset`: of the output's element (0, 0), as the residual lies.
template <typename T, int BN, typename Put>
__device__ void store_panels(const Put& put, const Epilogue<T>& end, T* panels, const float (&sums)[BN / 2], int consumer,
                             int m, int n, int rows, int columns, long long offset, int ldo) {
  const int thread = threadIdx.x % 128, line = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int p = 0; p < BN / 64; ++p) {
    if (n + 64 * p >= columns) break;
    T* const panel = panels + p % 2 * (kPanel / sizeof(T));
    if (thread == 0) p == 0 ? tma_store_wait_read<0>() : tma_store_wait_read<1>();  // what it held before is out
    consumer == 0 ? named_barrier<1, 128>() : named_barrier<2, 128>();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = line + 8 * half, column = 8 * j + thread % 4 * 2, at_n = n + 64 * p + column;
        float y[2] = {};
        if (m + row < rows && at_n < columns) {
          end.values(sums + 32 * p + 4 * j + 2 * half, offset + (long long)(m + row) * ldo + at_n, at_n, y);
        }
        store<2>(swizzled(panel, row, column), y);
      }
    }
    async_fence();
    consumer == 0 ? named_barrier<1, 128>() : named_barrier<2, 128>();
    put(panel, n + 64 * p);
  }
}

#endif  // DL_HOPPER

}  // namespace dl
