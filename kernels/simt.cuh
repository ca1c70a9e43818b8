// Products without tensor cores: the main loop, in float32, and what becomes of its sums. What the factors are is the
// operands' affair (operand.cuh).
//
// A block makes a tile of BM x BN outputs, a warp 32 x 64 of it, a thread 8 x 8: two by two squares of four by four, so
// that four reads of 128 bits from shared memory serve 64 multiply-adds. The tile's factors go through shared memory in
// steps of 8 along the depth, twice buffered: while a block multiplies one step, the next is on its way. Within a step,
// what the next 64 multiply-adds need is read while the last 64 run.
#pragma once
#include "arch.cuh"
#include "epilogue.cuh"
#include "numeric.cuh"
#include "operand.cuh"

namespace dl {

constexpr int kSimtDepth = 8;

__host__ __device__ constexpr int simt_threads(int BM, int BN) { return BM * BN / 64; }
// Blocks per SM that the registers must allow: 128 per thread for the large tile (128 x 128); 168 for the small one
// (64 x 64), which loads twice as much per thread; 255 where sm_100's compiler would spill, element by element.
__host__ __device__ constexpr int simt_blocks(int BM, int V) {
  return BM == 128 ? 2 : V == 4 || DL_ARCH < 1000 ? 6 : 4;
}

// First row and column of a thread's outputs in the tile; its second squares are 16 rows, 32 columns further. Lanes that
// differ in one of the low bits read the same rows, or the same columns: eight neighbours, which a 128-bit read serves at a
// time, want two different places of the one and four of the other, never two in one bank.
struct SimtThread {
  int m, n;

  static __device__ SimtThread in_warp() {
    const int lane = thread_index_x() % 32;
    return {lane / 16 * 8 + lane % 2 * 4, lane / 2 % 8 * 4};
  }
  template <int BM>
  static __device__ SimtThread of() {
    const int warp = thread_index_x() / 32;
    return {warp % (BM / 32) * 32 + in_warp().m, warp / (BM / 32) * 64 + in_warp().n};
  }
};

// Four neighbours from shared memory, with one read.
__device__ inline void read4(const char* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// What one thread brings of a tile, EDGE rows by 8 of an operand, from global to shared memory: vectors of V elements along
// the axis that is contiguous in memory, of several rows and all at the same depth. Shared memory has the rows side by
// side for each step of depth, with a gap that keeps the lanes of a warp in different banks. Vectors along the depth pass
// through registers and are scattered; float vectors along the rows go straight there if the chip can (cp.async).
// With SUMS it also adds up each of its rows.
template <typename T, class Operand, int EDGE, int V, int THREADS, bool SUMS = false>
struct Stage {
  static constexpr bool kDeepFast = Operand::kDeepFast;
  static constexpr bool kAsync = !kDeepFast && !SUMS && V == 4 && sizeof(T) == 4 && (DL_ARCH == 0 || DL_ARCH >= 800);
  static constexpr int kAcross = kDeepFast ? kSimtDepth / V : THREADS / kSimtDepth;  // threads along the contiguous axis
  static constexpr int kItems = EDGE * kSimtDepth / V / THREADS;
  static constexpr int kStride = kDeepFast ? THREADS / kAcross : kAcross * V;  // rows from one item to the next
  static constexpr int kPitch = (EDGE + (!kDeepFast && V == 1 ? 8 : 4)) * 4;   // bytes from one depth to the next
  static constexpr int kBytes = kSimtDepth * kPitch;
  static_assert(kItems * V * THREADS == EDGE * kSimtDepth && kItems * kStride == EDGE,
                "threads share the tile evenly");
  typename Operand::Row rows[kItems];
  typename Operand::Deep deep;
  float values[kItems][V];
  float sums[kItems][V] = {};
  int to;  // where in the tile the first item goes, in bytes

  __device__ Stage(const Operand& operand, int first_row, int first_deep) {
    const int line = threadIdx.x / kAcross, along = threadIdx.x % kAcross * V;
    const int row = kDeepFast ? line : along, k = kDeepFast ? along : line;
#pragma unroll
    for (int i = 0; i < kItems; ++i) rows[i] = operand.row(first_row + row + i * kStride);
    deep = operand.deep(first_deep + k);
    to = k * kPitch + row * 4;
  }

  // Starts to load, and steps on.
  __device__ void fetch(const Operand& operand, char* tile) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const T* const from = operand.data + (rows[i].offset + operand.offset(deep));
      if constexpr (kAsync) {
        cp_async16(tile + to + i * kStride * 4, from, operand.exists(rows[i], deep));
      } else {
        load<V>(from, operand.exists(rows[i], deep), values[i]);
      }
    }
    operand.next(deep, kSimtDepth);
  }

  // Puts what has come into the tile, unless it is there.
  __device__ void store(char* tile) {
    if constexpr (SUMS) {
      static_assert(!kDeepFast, "each element of a vector belongs to another row");
#pragma unroll
      for (int i = 0; i < kItems * V; ++i) sums[i / V][i % V] += values[i / V][i % V];
    }
    if constexpr (!kAsync) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        char* const p = tile + to + i * kStride * 4;
        if constexpr (kDeepFast || V == 1) {
#pragma unroll
          for (int e = 0; e < V; ++e) *reinterpret_cast<float*>(p + e * kPitch) = values[i][e];
        } else {
          *reinterpret_cast<float4*>(p) = make_float4(values[i][0], values[i][1], values[i][2], values[i][3]);
        }
      }
    }
  }

  // out[first_row + i] = the sum of row i, for rows below `rows`: over the threads' depths, in their order. All threads of
  // the block; `scratch` is shared memory of kBytes.
  __device__ void add_up(float* scratch, int first_row, int rows, float* out) const {
    __syncthreads();  // the tiles have been read
#pragma unroll
    for (int i = 0; i < kItems * V; ++i) scratch[to / 4 + i / V * kStride + i % V] = sums[i / V][i % V];
    __syncthreads();
    for (int row = threadIdx.x; row < EDGE && first_row + row < rows; row += THREADS) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kSimtDepth; ++k) sum += scratch[k * (kPitch / 4) + row];
      out[first_row + row] = sum;
    }
  }
};

// sums += the rows of A that this block makes (blockIdx.y) times the rows of B (blockIdx.x), over the steps `part` of the
// depth. With SUMS, and if it is not null, row_sums receives the sums of A's rows themselves, of which there are
// `rows`.
template <typename T, int BM, int BN, int V, bool SUMS = false, class A, class B>
__device__ inline void simt_product(const A& a, const B& b, Stretch part, float (&sums)[8][8], int rows = 0,
                                    float* row_sums = nullptr) {
  using StageA = Stage<T, A, BM, V, simt_threads(BM, BN), SUMS>;
  using StageB = Stage<T, B, BN, V, simt_threads(BM, BN)>;
  constexpr int kTileA = StageA::kBytes, kBuffer = kTileA + StageB::kBytes;
  DL_SHARED(float, tiles, [2 * kBuffer / 4]);
  char* const shared = reinterpret_cast<char*>(tiles);
  StageA a_stage(a, blockIdx.y * BM, part.first * kSimtDepth);
  StageB b_stage(b, blockIdx.x * BN, part.first * kSimtDepth);
  const SimtThread thread = SimtThread::of<BM>();

  auto fetch = [&](int buffer) {
    a_stage.fetch(a, shared + buffer);
    b_stage.fetch(b, shared + buffer + kTileA);
    cp_async_commit();
  };
  auto store = [&](int buffer) {
    a_stage.store(shared + buffer);
    b_stage.store(shared + buffer + kTileA);
    cp_async_wait<0>();
    __syncthreads();
  };
  float column[2][8], row[2][8];  // of A and of B: what is multiplied now, and next
  auto read = [&](int buffer, int k) {
    const char* const a_from = shared + buffer + k * StageA::kPitch + thread.m * 4;
    const char* const b_from = shared + buffer + kTileA + k * StageB::kPitch + thread.n * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      read4(a_from + i * 16 * 4, column[k % 2] + 4 * i);
      read4(b_from + i * 32 * 4, row[k % 2] + 4 * i);
    }
  };
  auto step = [&](int now, int next) {
    fetch(next);
#pragma unroll
    for (int k = 0; k < kSimtDepth; ++k) {
      if (k < kSimtDepth - 1) {
        read(now, k + 1);
      } else {  // the other buffer was last read before the last barrier
        store(next);
        read(next, 0);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(column[k % 2][i], row[k % 2][j], sums[i][j]);
      }
    }
  };

  fetch(0);
  store(0);
  read(0, 0);
  // Two steps a round, so that the buffers' addresses are constants. One step too much is loaded, and found not to exist.
#pragma unroll 1
  for (int left = part.count; left > 0; left -= 2) {
    step(0, kBuffer);
    if (left == 1) break;
    step(kBuffer, 0);
  }
  if (SUMS && row_sums != nullptr) a_stage.add_up(tiles, blockIdx.y * BM, rows, row_sums);
}

// f(m, n, V sums) for all outputs of this thread that are there, m < M and n < N.
template <int BM, int BN, int V, class F>
__device__ inline void for_each_output(int M, int N, const float (&sums)[8][8], F f) {
  const SimtThread thread = SimtThread::of<BM>();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int m = blockIdx.y * BM + thread.m + i / 4 * 16 + i % 4;
#pragma unroll
    for (int j = 0; j < 8; j += V) {
      const int n = blockIdx.x * BN + thread.n + j / 4 * 32 + j % 4;
      if (m < M && n < N) f(m, n, sums[i] + j);
    }
  }
}

// f(m, n, sums [4][V]) for every four neighbouring rows from m on, m a multiple of 4.
template <int BM, int BN, int V, class F>
__device__ inline void for_each_square(int M, int N, const float (&sums)[8][8], F f) {
  const SimtThread thread = SimtThread::of<BM>();
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const int m = blockIdx.y * BM + thread.m + i / 4 * 16;
#pragma unroll
    for (int j = 0; j < 8; j += V) {
      const int n = blockIdx.x * BN + thread.n + j / 4 * 32 + j % 4;
      float part[4][V];
#pragma unroll
      for (int e = 0; e < 4 * V; ++e) part[e / V][e % V] = sums[i + e / V][j + e % V];
      if (m < M && n < N) f(m, n, part);
    }
  }
}

}  // namespace dl
