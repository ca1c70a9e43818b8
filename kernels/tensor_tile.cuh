// The main loop on tensor cores: a block's tile of out = A @ B^T from any two operands (operand.cuh).
//
// Tiles of A (BM x BK) and B (BN x BK), BK being 64 bytes, go through shared memory in kStages buffers: while the warps
// multiply one pair, cp.async brings the next ones. A 16-byte chunk is what is copied, and what a lane of ldmatrix reads.
// Chunks of a line are stored in an order that depends on the line (XOR), so that neither the copies nor ldmatrix ever
// meet twice in a bank.
#pragma once
#include "arch.cuh"
#include "operand.cuh"
#include "vector.cuh"

namespace dl {

constexpr int kStages = 3;
constexpr int kTileBytes = 64;  // of one row along the depth
constexpr int kThreads = 256;

// Blocks of a multiprocessor to leave registers for: as many as nothing spills for. Gathered operands keep more, three
// terms have more fragments. (`Product.resident` in tiles.py counts with it.)
__host__ __device__ constexpr int tensor_blocks(int BM, int kTerms, bool gathered) {
  if (DL_ARCH < 800) return 1;  // shared memory holds no more of the large tiles, two of the small ones
  return (BM == 128 ? 2 : gathered ? 3 : 4) - (kTerms == 3);
}

// One thread's part in copying the tiles of an operand. kVector: copy chunks with cp.async; else element by element,
// which fits operands of any extent. A line of a tile is a row of the operand, or (else) a place of its depth. Its chunks
// go to as many threads, which copy kTimes lines: rows far apart, of which each keeps what it knows, or neighbours in
// depth, of which it keeps one and finds the next from it.
template <typename T, int EDGE, bool kVector, typename Operand>
struct Feeder {
  static constexpr int kChunk = 16 / sizeof(T);  // elements
  static constexpr int BK = kTileBytes / sizeof(T);
  static constexpr bool kDeepFast = Operand::kDeepFast;
  static constexpr int kAcross = (kDeepFast ? BK : EDGE) / kChunk;  // chunks of a line
  static constexpr int kTimes = EDGE * BK / kChunk / kThreads;
  static constexpr int kApart = kDeepFast ? kThreads / kAcross : 1;  // lines of a thread
  static constexpr int kLineBytes = kAcross * 16, kBytes = EDGE * kTileBytes;
  static_assert(kThreads % kAcross == 0 && kTimes > 0, "a thread keeps its place along the lines");
  static_assert(kDeepFast ? kApart % 8 == 0 : kTimes <= 2, "a thread's lines may be counted on from its first one");

  const Operand& operand;
  typename Operand::Row rows[kDeepFast ? kTimes : 1];
  const T* bases[kDeepFast ? kTimes : 1];  // of the rows: an address is then one instruction away
  typename Operand::Deep first;  // in depth
  int first_row, first_deep;     // of the tile
  int to;                        // where in a tile this thread's first chunk goes, in bytes

  __device__ Feeder(const Operand& from, int row, int deep) : operand(from), first_row(row), first_deep(deep) {
    to = kept(place(line(0), threadIdx.x % kAcross));
    if constexpr (kVector) {
      const int along = threadIdx.x % kAcross * kChunk;
#pragma unroll
      for (int t = 0; t < (kDeepFast ? kTimes : 1); ++t) {
        rows[t] = operand.row(row + (kDeepFast ? line(t) : along));
        bases[t] = kept(operand.data + rows[t].offset);
      }
      first = operand.deep(deep + (kDeepFast ? along : line(0)));
    }
  }

  static __device__ int line(int t) { return threadIdx.x / kAcross * (kDeepFast ? 1 : kTimes) + t * kApart; }

  // What the chunks of a line are exchanged by: chunk c lies at c ^ turn. Repeats after 8 lines.
  static __device__ constexpr int turn(int line) {
    return kDeepFast ? line / 2 % 4 : sizeof(T) == 2 ? line % 8 : line % 4 * 2;
  }

  // Where a chunk of a line lies in a tile, in bytes.
  static __device__ int place(int line, int chunk) { return line * kLineBytes + (chunk ^ turn(line)) * 16; }

  // The same place `lines` further on, of a line that is a multiple of a power of two above `lines`: turns then add up.
  static __device__ int further(int place, int lines) { return (place ^ turn(lines) * 16) + lines * kLineBytes; }

  // Starts copying the tile at hand.
  __device__ void copy(char* tile) const {
    auto deep = first;
#pragma unroll
    for (int t = 0; t < kTimes; ++t) {
      char* const chunk = tile + further(to, t * kApart);
      if constexpr (kVector) {
        const int row = kDeepFast ? t : 0;
        if constexpr (!kDeepFast) deep = t == 0 ? first : operand.beside(deep);
        cp_async16(chunk, bases[row] + operand.offset(deep), operand.exists(rows[row], deep));
      } else {
#pragma unroll 1
        for (int e = 0; e < kChunk; ++e) {
          const int along = threadIdx.x % kAcross * kChunk + e;
          const auto row = operand.row(first_row + (kDeepFast ? line(t) : along));
          const auto deep = operand.deep(first_deep + (kDeepFast ? along : line(t)));
          const bool exists = operand.exists(row, deep);
          reinterpret_cast<T*>(chunk)[e] = exists ? operand.data[row.offset + operand.offset(deep)] : from_float<T>(0.0f);
        }
      }
    }
  }

  __device__ void next() {
    first_deep += BK;
    if constexpr (kVector) operand.next(first, BK);
  }
};

// Splits floats into what tf32 keeps and what it loses, itself in tf32.
template <int N>
__device__ inline void split(const unsigned (&bits)[N], unsigned (&large)[N], unsigned (&small)[N]) {
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float value = __uint_as_float(bits[e]);
    large[e] = to_tf32(value);
    small[e] = to_tf32(value - __uint_as_float(large[e]));
  }
}

// sums += A @ B for 16 x 8 outputs. Floats go through tf32: with one term each factor is rounded to its 10 bits, with
// three each is a sum of two such numbers, of whose products only the smallest is left out.
template <typename T, int kTerms>
__device__ inline void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (sizeof(T) == 2) {
    mma_m16n8k16<T>(sums, a, b0, b1);
  } else {
    const unsigned b[2] = {b0, b1};
    unsigned large_a[4], small_a[4], large_b[2], small_b[2];
    split(a, large_a, small_a);
    split(b, large_b, small_b);
    if constexpr (kTerms == 3) {
      mma_m16n8k8_tf32(sums, small_a, large_b[0], large_b[1]);
      mma_m16n8k8_tf32(sums, large_a, small_b[0], small_b[1]);
    }
    mma_m16n8k8_tf32(sums, large_a, large_b[0], large_b[1]);
  }
}

// The sums of a BM x BN tile, spread over 8 warps of 32 lanes: a warp has (16 kM) x (8 kN) of them.
// With g = lane / 4 and t = lane % 4, sums[i][j] are rows 16 i + g (0, 1) and 16 i + g + 8 (2, 3), columns 8 j + 2 t and
// the next one, of the warp's part.
template <typename T, int BM, int BN, bool kVector, int kTerms, typename A, typename B>
struct TensorTile {
  using FeedA = Feeder<T, BM, kVector, A>;
  using FeedB = Feeder<T, BN, kVector, B>;
  static constexpr int kWarpsM = 2, kWarpsN = 4;
  static constexpr int kM = BM / kWarpsM / 16, kN = BN / kWarpsN / 8;
  static constexpr int kStageBytes = FeedA::kBytes + FeedB::kBytes;
  static constexpr int kSharedElements = kStages * kStageBytes / sizeof(T);
  static_assert(kN % 2 == 0, "B's fragments are loaded for two blocks of columns at a time");
  float sums[kM][kN][4];
  float row_sums[2] = {};
  int warp_m, warp_n;    // first row and column of the warp's part
  int first_a, first_b;  // where in a tile of A and of B this lane reads its share of the first fragment, in bytes
  int first_summed;      // where in a tile of A this thread's rows for `add_rows` begin

  __device__ TensorTile() {
    const int lane = threadIdx.x % 32;
    warp_m = threadIdx.x / 32 / kWarpsN * (BM / kWarpsM);
    warp_n = threadIdx.x / 32 % kWarpsN * (BN / kWarpsN);
    const int within = lane / 4 % 4 * 4;  // a chunk, in bytes: floats that ldmatrix cannot turn are read one by one
    first_a = kept(A::kDeepFast      ? FeedA::place(warp_m + lane % 16, lane / 16)
                   : sizeof(T) == 2 ? FeedA::place(lane % 8 + lane / 16 * 8, warp_m / 8 + lane / 8 % 2)
                                     : FeedA::place(lane % 4, warp_m / 4 + lane / 16) + within);
    first_b = kept(B::kDeepFast      ? FeedB::place(warp_n + lane % 8 + lane / 16 * 8, lane / 8 % 2)
                   : sizeof(T) == 2 ? FeedB::place(lane % 16, warp_n / 8 + lane / 16)
                                     : FeedB::place(lane % 4, warp_n / 4 + lane / 16) + within);
    if constexpr (!A::kDeepFast) {
      const int row = threadIdx.x % (BM / 2) * 2, line = threadIdx.x / (BM / 2) * kShare;
      first_summed = kept(FeedA::place(line, row / FeedA::kChunk) + row % FeedA::kChunk * (int)sizeof(T));
    }
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
      }
    }
  }

  // Adds `steps` tiles of BK from `first_deep` on; where asked, also A's rows themselves, for `add_up`.
  __device__ void run(const A& a, const B& b, int first_m, int first_n, int first_deep, int steps, T* tiles,
                      bool with_row_sums = false) {
    char* const shared = reinterpret_cast<char*>(tiles);
    FeedA feed_a(a, first_m, first_deep);
    FeedB feed_b(b, first_n, first_deep);
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) {
      if (stage < steps) fetch(feed_a, feed_b, shared + stage * kStageBytes);
      cp_async_commit();
    }
#pragma unroll 1
    for (int step = 0; step < steps;) {
#pragma unroll
      for (int round = 0; round < kStages; ++round) {  // unrolled: a stage's place is in the instruction
        if (step == steps) break;
        cp_async_wait<kStages - 2>();
        __syncthreads();  // everyone's copies of this stage are there, and the stage before has been read
        if (step + kStages - 1 < steps) fetch(feed_a, feed_b, shared + (round + kStages - 1) % kStages * kStageBytes);
        cp_async_commit();
        const char* const stage = shared + round * kStageBytes;
        multiply_tiles(stage, stage + FeedA::kBytes);
        if (with_row_sums) add_rows(stage);
        ++step;
      }
    }
  }

  __device__ void fetch(FeedA& feed_a, FeedB& feed_b, char* stage) const {
    feed_a.copy(stage);
    feed_b.copy(stage + FeedA::kBytes);
    feed_a.next();
    feed_b.next();
  }

  // A's rows, where they lie along its tile's lines: a thread adds two neighbours over some of the depth.
  static constexpr int kSharing = kThreads / (BM / 2);  // threads of the same rows
  static constexpr int kShare = FeedA::BK / kSharing;   // of the depth, each
  __device__ void add_rows(const char* tile) {
#pragma unroll
    for (int k = 0; k < kShare; ++k) {
      float pair[2];
      load<2>(reinterpret_cast<const T*>(tile + FeedA::further(first_summed, k)), true, pair);
      row_sums[0] += pair[0];
      row_sums[1] += pair[1];
    }
  }

  // out[first_row + i] = the sum of row i, for rows below `rows`, the threads that share it in their order. All threads of
  // the block; `scratch` is shared memory of 2 * kThreads.
  __device__ void add_up(float* scratch, int first_row, int rows, float* out) const {
    static_assert(!A::kDeepFast, "rows lie along the lines");
    __syncthreads();  // the tiles have been read
    for (int i = 0; i < 2; ++i) scratch[2 * threadIdx.x + i] = row_sums[i];
    __syncthreads();
    const int row = threadIdx.x;
    if (row < BM && first_row + row < rows) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kSharing; ++i) sum += scratch[i * BM + row];
      out[first_row + row] = sum;
    }
  }

  __device__ void multiply_tiles(const char* a_tile, const char* b_tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // two chunks deep each: one mma
      unsigned a[kM][4], b[kN / 2][4];
#pragma unroll
      for (int i = 0; i < kM; ++i) load_a(a[i], a_tile, i, half);
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) load_b(b[j], b_tile, j, half);
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int j = 0; j < kN; ++j) multiply<T, kTerms>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Where a lane reads of fragment `block` (16 rows each) in `half` the depth, `first` being its place in the first one.
  // Chunks are turned by their line modulo 8: 16 lines on the turn is the same, and two chunks on is an XOR.
  template <typename Feed>
  static __device__ const char* place_in(const char* tile, int first, int block, int half) {
    constexpr int kTwoChunks = 2 * 16, kLines = 16 * Feed::kLineBytes;
    const int chunks = Feed::kDeepFast ? half : block, lines = Feed::kDeepFast ? block : half;
    return tile + (first ^ chunks * kTwoChunks) + lines * kLines;  // in this order: the last sum is in the instruction
  }

  // Rows 16 i .. 16 i + 15 of the warp's, in the order of mma: (rows 0-7, chunk 0), (8-15, 0), (0-7, 1), (8-15, 1).
  __device__ void load_a(unsigned (&fragment)[4], const char* tile, int i, int half) const {
    if constexpr (A::kDeepFast) {
      ldmatrix_x4(fragment, place_in<FeedA>(tile, first_a, i, half));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(fragment, place_in<FeedA>(tile, first_a, i, half));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) fragment[e] = element<FeedA>(tile, first_a, 4 * i + e % 2 * 2, 8 * half + e / 2 * 4);
    }
  }

  // Columns 16 j .. 16 j + 15 of the warp's: (columns 0-7, chunk 0), (0-7, 1), (8-15, 0), (8-15, 1).
  __device__ void load_b(unsigned (&fragment)[4], const char* tile, int j, int half) const {
    if constexpr (B::kDeepFast) {
      ldmatrix_x4(fragment, place_in<FeedB>(tile, first_b, j, half));
    } else if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(fragment, place_in<FeedB>(tile, first_b, j, half));
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) fragment[e] = element<FeedB>(tile, first_b, 4 * j + e / 2 * 2, 8 * half + e % 2 * 4);
    }
  }

  // A float of a tile whose lines are places of the depth: so many chunks and lines (a multiple of 4) from the lane's first
  // one on. Turns are by 2, 4 and 6 chunks and repeat after 4 lines, so the rest is in the instruction.
  template <typename Feed>
  static __device__ unsigned element(const char* tile, int first, int chunks, int lines) {
    const int further = chunks / 8 * 8 * 16 + lines * Feed::kLineBytes;
    return __float_as_uint(*reinterpret_cast<const float*>(tile + (first ^ chunks % 8 * 16) + further));
  }
};

}  // namespace dl
