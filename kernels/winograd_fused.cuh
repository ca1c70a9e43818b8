// F(2 x 2, 3 x 3) of one group in one kernel: transformed tiles and products never leave the multiprocessor.
//
// A block makes 32 tiles by FILTERS filters. Each of its 8 warps makes the products of two of the 16 places, a thread
// 8 tiles by FILTERS / 8 filters of each, as `simt.cuh` does: two by two squares of four by four.
// Channels come 8 at a time. A thread loads one channel of one tile, its 16 pixels, while 8 others are multiplied, and
// transforms them on the way into shared memory. Transformed filters come 4 channels at a time by cp.async.
#pragma once
#include "simt.cuh"
#include "winograd.cuh"

namespace dl {

constexpr int kFusedTiles = 32, kFusedChannels = 8, kFusedSteps = 2;
constexpr int kFusedDepth = kFusedChannels / kFusedSteps;  // channels of filters that come at a time

// U for the fused kernel, in the order in which it is read: (K / FILTERS, C / 4, 16 places, 4 channels, FILTERS), with
// zeros for channels up to a multiple of 8 and filters up to a multiple of FILTERS. One filter and channel per thread.
// K and C are those of the product; `turned` as in winograd_filter: weight is (C, K, 3, 3).
template <typename T, int FILTERS>
__global__ void __launch_bounds__(256)
    winograd2_fused_filter(const T* __restrict__ weight, float* __restrict__ u, int K, int C, int turned, Strides strides,
                           unsigned count) {
  constexpr int kSlab = kFusedDepth * FILTERS;  // of one place
  const int steps = ceil_div(C, kFusedChannels) * kFusedSteps;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int slab = i / kSlab, c = slab % steps * kFusedDepth + i / FILTERS % kFusedDepth;
    const int k = slab / steps * FILTERS + i % FILTERS;
    float out[4][4] = {};
    if (k < K && c < C) transformed_filter(weight, strides, turned ? c : k, turned ? k : c, turned != 0, out);
#pragma unroll
    for (int p = 0; p < 16; ++p) u[((long long)slab * 16 + p) * kSlab + i % kSlab] = out[p / 4][p % 4];
  }
}

// u from winograd2_fused_filter. grid: (tiles / 32, K / FILTERS). in: the tiles as x shows them; out: as y does (g.C is
// K). Dynamic shared memory: V [2 buffers][16 places][8 channels][32 tiles], U [2 buffers][16][4 channels][FILTERS].
// Tile t of channel c lies at t ^ (4 c): lanes that store 8 channels of 4 tiles then use 32 banks.
template <typename T, int FILTERS>
__global__ void __launch_bounds__(256, 1)
    winograd2_fused(const T* __restrict__ x, const float* __restrict__ u, const T* __restrict__ residual,
                    const T* __restrict__ bias, T* __restrict__ y, unsigned char* __restrict__ argmax, Tiles in, Tiles out,
                    int relu) {
  constexpr int kVBytes = 16 * kFusedChannels * kFusedTiles * 4, kUBytes = 16 * kFusedDepth * FILTERS * 4;
  constexpr int kColumns = FILTERS / 8;  // of a thread's outputs
  DL_DYNAMIC_SHARED(char, shared);
  char* const u_shared = shared + 2 * kVBytes;
  const int tiles = in.N * in.I * in.J, first_tile = blockIdx.x * kFusedTiles, first_k = blockIdx.y * FILTERS;
  const int rounds = ceil_div(in.C, kFusedChannels);

  // Images: where the pixels of this thread's tile are, and a bit for each that exists. The others stay zero. A channel
  // that does not exist leaves the pixels of 8 channels before, which will meet zeros: an infinite one, whose tile's
  // transforms mix infinities of both signs as it is, then makes NaN.
  const int my_channel = threadIdx.x % kFusedChannels, my_tile = threadIdx.x / kFusedChannels;
  const auto [n, h, w] = corner<2>(in, first_tile + my_tile);
  const T* images[2] = {x + my_channel, x + my_channel + in.C};
  int pixels[8], channels = in.C - my_channel;  // from this thread's on
#pragma unroll
  for (int p = 0; p < 8; ++p) pixels[p] = ((n * in.H + h + p / 2) * in.W + w + p % 2 * 2) * in.C;
  unsigned exist = 0;
#pragma unroll
  for (int p = 0; p < 16; ++p) {
    const bool inside = unsigned(h + p / 4) < unsigned(in.H) && unsigned(w + p % 4) < unsigned(in.W);
    exist |= unsigned(inside && first_tile + my_tile < tiles) << p;
  }
  float d[4][4] = {};
  const auto fetch_image = [&] {
    const unsigned present = channels > 0 ? exist : 0;
#pragma unroll
    for (int p = 0; p < 16; ++p) {  // kept: addresses of 64 bits, computed once, would fill 32 registers
      if (present >> p & 1) d[p / 4][p % 4] = to_float(images[p % 2][kept(pixels[p / 2])]);
    }
    images[0] += kFusedChannels;
    images[1] += kFusedChannels;
    channels -= kFusedChannels;
  };
  int v_to = (my_channel * kFusedTiles + (my_tile ^ (4 * my_channel))) * 4;
  const auto store_image = [&] {
    float v[4][4];
    both_sides<4, 4>(d, v, [](const float(&line)[4], float(&to)[4]) { transform_input(line, to); });
#pragma unroll
    for (int p = 0; p < 16; ++p) *reinterpret_cast<float*>(shared + v_to + p * (kVBytes / 16)) = v[p / 4][p % 4];
  };

  // Filters.
  const float* filters = u + (long long)blockIdx.y * rounds * kFusedSteps * (kUBytes / 4) + threadIdx.x * 4;
  const auto fetch_filters = [&](int step, bool exists) {
#pragma unroll
    for (int i = 0; i < kUBytes / 4096; ++i) {
      cp_async16(u_shared + step * kUBytes + threadIdx.x * 16 + i * 4096, filters + i * 1024, exists);
    }
    cp_async_commit();
    filters += kUBytes / 4;
  };

  // Multiplying: what is multiplied now, and next.
  const auto warp = [] { return thread_index_x() / 32; };
  int v_from[kFusedDepth];
#pragma unroll
  for (int c = 0; c < kFusedDepth; ++c) v_from[c] = warp() * 2 * (kVBytes / 16) + (SimtThread::in_warp().m ^ (4 * c)) * 4;
  const char* const u_from = u_shared + warp() * 2 * (kUBytes / 16) + SimtThread::in_warp().n * 4;
  float left[2][8], right[2][kColumns], sums[2][8][kColumns] = {};
  const auto read = [&](int step, int i) {  // place i % 2 of the warp's, channel i / 2 of the step's
    const int place = i % 2, c = i / 2;
    const char* const v = shared + v_from[c] + place * (kVBytes / 16) + (step * kFusedDepth + c) * kFusedTiles * 4;
#pragma unroll
    for (int square = 0; square < 2; ++square) {  // in the second step the tile's bit 4 is turned over
      read4(v + (square ^ step) * 64, left[i % 2] + square * 4);
    }
#pragma unroll
    for (int square = 0; square < kColumns / 4; ++square) {
      read4(u_from + step * kUBytes + (place * kFusedDepth + c) * FILTERS * 4 + square * 128, right[i % 2] + square * 4);
    }
  };
  const auto multiply = [&](int i) {
#pragma unroll
    for (int row = 0; row < 8; ++row) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        sums[i % 2][row][column] = fmaf(left[i % 2][row], right[i % 2][column], sums[i % 2][row][column]);
      }
    }
  };

  fetch_filters(0, true);
  fetch_image();
  store_image();
  cp_async_wait<0>();
  __syncthreads();
  read(0, 0);
#pragma unroll 1
  for (int left = rounds; left > 0; --left) {  // one round too much is loaded, and found not to exist
    fetch_image();
    v_to ^= kVBytes;
#pragma unroll
    for (int step = 0; step < kFusedSteps; ++step) {
      fetch_filters(1 - step, step == 0 || left > 1);
#pragma unroll
      for (int i = 0; i < 2 * kFusedDepth; ++i) {
        if (i < 2 * kFusedDepth - 1) {
          read(step, i + 1);
        } else {  // the other buffers were last read before the last barrier
          if (step == 1) {
            store_image();
#pragma unroll
            for (int c = 0; c < kFusedDepth; ++c) v_from[c] ^= kVBytes;
          }
          cp_async_wait<0>();
          __syncthreads();
          read(1 - step, 0);
        }
        multiply(i);
      }
    }
  }

  // The 16 places of an output meet in shared memory, for two of each thread's rows at a time: [16][8 tiles][FILTERS].
  // A pitch of 8 more than a multiple of 16: lanes that store two rows further then use the other half of the banks.
  constexpr int kPitch = FILTERS + 8;
  constexpr int kProducts = 16 * 8 * kPitch;
  static_assert(kProducts * 4 + sizeof(Corner) * kFusedTiles <= 2 * (kVBytes + kUBytes), "they lie where the factors were");
  float* const products = reinterpret_cast<float*>(shared);
  Corner* const corners = reinterpret_cast<Corner*>(products + kProducts);
  const SimtThread lane = SimtThread::in_warp();
  const Epilogue<T> end = {residual, bias, y, 1.0f, 1.0f, relu != 0};
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    __syncthreads();
    if (part == 0 && threadIdx.x < kFusedTiles) corners[threadIdx.x] = corner<2>(out, first_tile + threadIdx.x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place = i / 2, row = i % 2, slot = lane.m / 8 * 4 + lane.m / 4 % 2 * 2 + row;
#pragma unroll
      for (int square = 0; square < kColumns / 4; ++square) {
        store<4>(products + ((warp() * 2 + place) * 8 + slot) * kPitch + lane.n + square * 32,
                 sums[place][part * 2 + row] + square * 4);
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < 8 * FILTERS; i += 256) {
      const int slot = i / FILTERS, k = i % FILTERS;
      const int at = slot / 4 * 8 + slot / 2 % 2 * 4 + slot % 2 + part % 2 * 2 + part / 2 * 16;
      if (first_tile + at >= tiles || first_k + k >= out.C) continue;
      float m[4][4], result[2][2];
#pragma unroll
      for (int p = 0; p < 16; ++p) m[p / 4][p % 4] = products[(p * 8 + slot) * kPitch + k];
      both_sides<4, 2>(m, result, [](const float(&line)[4], float(&to)[2]) { transform_output(line, to); });
      store_tile(result, end, argmax, out, corners[at], first_k + k);
    }
  }
}

}  // namespace dl
