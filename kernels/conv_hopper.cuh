// Convolution as implicit GEMM by wgmma, its images brought by TMA in im2col mode: channels_last, one group, half or
// bfloat16, channels in multiples of 8. No column matrix and no turned copy of the weights exists.
#pragma once
#include "hopper_tile.cuh"

namespace dl {

// How the rows of the product walk over the images: row m is position (m / width / height, m / width % height, m % width),
// whose window begins at (h * step_h + low_h, ...); tap (r, s) is (r * move_h, s * move_w) on. depth: channels of a tap.
struct ImageWalk {
  int rows, columns, depth, R, S, height, width;
  int step_h, step_w, low_h, low_w, move_h, move_w;
};
static_assert(sizeof(ImageWalk) == 13 * 4, "Python passes 13 packed ints");

#if DL_HOPPER

// The window of a row: its first tap, in the images.
struct WindowAt {
  int w, h, n;
};
__device__ inline WindowAt window_at(const ImageWalk& g, int m) {
  const int line = m / g.width;
  return {m % g.width * g.step_w + g.low_w, line % g.height * g.step_h + g.low_h, line / g.height};
}

// A step of the depth, which runs over taps and their channels: 64 of these.
struct DepthAt {
  int channel, r, s;

  __device__ void next(const ImageWalk& g) {
    channel += kHopperDepth;
    if (channel < g.depth) return;
    channel = 0;
    if (++s < g.S) return;
    s = 0;
    ++r;
  }
};

// A step of a tile's depth: of its rows' windows, and of the other operand from element n on.
struct StepAt {
  WindowAt window;
  DepthAt k;
  int n;
};

// Has TMA fetch windows from one on, as many as the map has, at one step of the depth; all moved by (down, right).
template <int kBlocks = 1>
__device__ inline void load_windows(unsigned char* to, const TensorMap& images, Barrier* full, const ImageWalk& g, WindowAt at,
                                    DepthAt k, int down = 0, int right = 0) {
  tma_load_im2col<kBlocks>(to, images, full, k.channel, at.w, at.h, at.n, k.s * g.move_w + right, k.r * g.move_h + down);
}

#endif  // DL_HOPPER

// y from x: rows are output pixels, columns filters.
// Maps: images in im2col mode (128 pixels of 64 channels); filters with the axes (C, R * S, K); out (columns, rows, 1).
template <typename T, int BN, int kCluster>
__global__ void DL_CLUSTER(kCluster) __launch_bounds__(kHopperThreads, 1)
    conv_hopper(const __grid_constant__ TensorMap images, const __grid_constant__ TensorMap filters,
                const __grid_constant__ TensorMap out, const T* __restrict__ residual, const T* __restrict__ bias,
                ImageWalk g, int relu) {
#if DL_HOPPER
  struct Work {
    const TensorMap &images, &filters, &out;
    const ImageWalk& g;
    Epilogue<T> end;
    TileGrid tiles;
    int steps;

    using Place = StepAt;
    __device__ Place start(TileAt at, int n) const { return {window_at(g, at.row * kHopperRows), {}, n}; }
    __device__ void load(Place& at, unsigned char* to_a, unsigned char* to_b, Barrier* full) const {
      load_windows(to_a, images, full, g, at.window, at.k);
      tma_load<kCluster>(to_b, filters, full, at.k.channel, at.k.r * g.S + at.k.s, at.n);
      at.k.next(g);
    }
    __device__ void store(TileAt at, int consumer, T* panels, const float (&sums)[BN / 2]) const {
      const int m = at.row * kHopperRows + 64 * consumer;
      store_panels<T, BN>(StoreByTma{out, m, 0}, end, panels, sums, consumer, m, at.column * BN, g.rows, g.columns, 0,
                          g.columns);
    }
  };
  const Epilogue<T> end = {residual, bias, nullptr, 1.0f, 1.0f, relu != 0};
  const TileGrid tiles = {1, ceil_div(g.rows, kHopperRows), ceil_div(g.columns, BN)};
  hopper_product<T, BN, true, true, kCluster>(
      Work{images, filters, out, g, end, tiles, g.R * g.S * ceil_div(g.depth, kHopperDepth)});
#else
  __trap();
#endif
}

// The 2x2 maxima of relu(y) and their places in the window. g walks over pooling windows, so its steps are two strides; a
// tile holds 32 of them, a consumer 16: in its rows 0 to 15 the first pixel of each, in 16 to 31 the second, ..., so that
// one load brings one pixel of 16 windows. Maps: images in im2col mode (16 pixels of 64 channels); filters as above.
template <typename T, int BN, int kCluster>
__global__ void DL_CLUSTER(kCluster) __launch_bounds__(kHopperThreads, 1)
    conv_hopper_pooled(const __grid_constant__ TensorMap images, const __grid_constant__ TensorMap filters,
                       T* __restrict__ y, unsigned char* __restrict__ argmax, const T* __restrict__ bias, ImageWalk g) {
#if DL_HOPPER
  struct Work {
    const TensorMap &images, &filters;
    T* y;
    unsigned char* argmax;
    const ImageWalk& g;
    Epilogue<T> end;
    TileGrid tiles;
    int steps;

    struct Place {
      WindowAt windows[kConsumers];
      DepthAt k;
      int n;
    };
    __device__ Place start(TileAt at, int n) const {
      const int first = at.row * (kHopperRows / 4);
      return {{window_at(g, first), window_at(g, first + 16)}, {}, n};
    }
    __device__ void load(Place& at, unsigned char* to_a, unsigned char* to_b, Barrier* full) const {
#pragma unroll
      for (int part = 0; part < kHopperRows / 16; ++part) {
        load_windows(to_a + part * 2 * kAtom, images, full, g, at.windows[part / 4], at.k, part % 4 / 2 * (g.step_h / 2),
                     part % 2 * (g.step_w / 2));
      }
      tma_load<kCluster>(to_b, filters, full, at.k.channel, at.k.r * g.S + at.k.s, at.n);
      at.k.next(g);
    }
    __device__ void store(TileAt at, int consumer, T* panels, const float (&sums)[BN / 2]) const {
      auto put = [&](T* from, int n) {
        const int i = threadIdx.x % 128, column = n + i % 8 * 8;
        const int window = at.row * (kHopperRows / 4) + consumer * 16 + i / 8;
        if (window >= g.rows || column >= g.columns) return;
        Best best[8];
#pragma unroll
        for (int place = 0; place < 4; ++place) {
          float values[8];
          dl::load<8>(swizzled(from, place * 16 + i / 8, i % 8 * 8), true, values);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const Best candidate = {values[e], place};
            best[e] = place == 0 ? candidate : better(best[e], candidate);
          }
        }
        const long long to = (long long)window * g.columns + column;
        float values[8];
        Vector<unsigned char, 8> places;
#pragma unroll
        for (int e = 0; e < 8; ++e) values[e] = best[e].value, places.v[e] = best[e].place;
        dl::store<8>(y + to, values);
        *reinterpret_cast<Vector<unsigned char, 8>*>(argmax + to) = places;
      };
      store_panels<T, BN>(put, end, panels, sums, consumer, 0, at.column * BN, 64, g.columns, 0, 0);
    }
  };
  const Epilogue<T> end = {nullptr, bias, nullptr, 1.0f, 0.0f, true};
  const TileGrid tiles = {1, ceil_div(g.rows, kHopperRows / 4), ceil_div(g.columns, BN)};
  hopper_product<T, BN, true, true, kCluster>(
      Work{images, filters, y, argmax, g, end, tiles, g.R * g.S * ceil_div(g.depth, kHopperDepth)});
#else
  __trap();
#endif
}

// The pixels of dx at first, first + stride, ..., which meet the same taps of the filter (`Phase` in operand.cuh): tap
// (r, s) of their window is place last_tap - r * tap_row - s * tap_step of the filter's R * S.
struct Lattice {
  int height, width, first_h, first_w, stride_h, stride_w;
  int last_tap, tap_row, tap_step;
};
static_assert(sizeof(Lattice) == 9 * 4, "Python passes 9 packed ints");

// One phase of dx from dy: rows are its pixels, columns input channels; R, S, height, width are the phase's. Without taps
// dx is zero. Maps: dy in im2col mode (128 pixels of 64 channels); filters as above.
template <typename T, int BN, int kCluster>
__global__ void DL_CLUSTER(kCluster) __launch_bounds__(kHopperThreads, 1)
    conv_hopper_grad_input(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap filters,
                           T* __restrict__ dx, ImageWalk g, Lattice to) {
#if DL_HOPPER
  struct Work {
    const TensorMap &dy, &filters;
    T* dx;
    const ImageWalk& g;
    const Lattice& to;
    TileGrid tiles;
    int steps;

    using Place = StepAt;
    __device__ Place start(TileAt at, int n) const { return {window_at(g, at.row * kHopperRows), {}, n}; }
    __device__ void load(Place& at, unsigned char* to_a, unsigned char* to_b, Barrier* full) const {
      load_windows(to_a, dy, full, g, at.window, at.k);
      const int tap = to.last_tap - at.k.r * to.tap_row - at.k.s * to.tap_step;
      for (int i = 0; i < BN / 64 / kCluster; ++i) {
        tma_load<kCluster>(to_b + i * kPanel, filters, full, at.n + 64 * i, tap, at.k.channel);
      }
      at.k.next(g);
    }
    __device__ void store(TileAt at, int consumer, T* panels, const float (&sums)[BN / 2]) const {
      const Epilogue<T> end = {nullptr, nullptr, nullptr, 1.0f, 0.0f, false};
      const int m = at.row * kHopperRows + 64 * consumer;
      auto put = [&](T* from, int n) {  // the rows' pixels have no one stride that TMA could take
#pragma unroll
        for (int i = threadIdx.x % 128; i < 64 * 8; i += 128) {  // 8 elements each
          const int row = m + i / 8, column = n + i % 8 * 8, line = row / g.width;
          if (row < g.rows && column < g.columns) {
            const int h = line % g.height * to.stride_h + to.first_h, w = row % g.width * to.stride_w + to.first_w;
            const long long pixel = ((long long)(line / g.height) * to.height + h) * to.width + w;
            *reinterpret_cast<uint4*>(dx + pixel * g.columns + column) =
                *reinterpret_cast<const uint4*>(swizzled(from, i / 8, i % 8 * 8));
          }
        }
      };
      store_panels<T, BN>(put, end, panels, sums, consumer, m, at.column * BN, g.rows, g.columns, 0, g.columns);
    }
  };
  const TileGrid tiles = {1, ceil_div(g.rows, kHopperRows), ceil_div(g.columns, BN)};
  hopper_product<T, BN, true, false, kCluster>(
      Work{dy, filters, dx, g, to, tiles, g.R * g.S * ceil_div(g.depth, kHopperDepth)});
#else
  __trap();
#endif
}

// dw from dy (N, P, Q, K) and x: rows are filters, columns the channels of taps in chunks of 64, the depth runs over output
// pixels, `steps` times 64 in each of `splits` parts; beyond the last one TMA finds zeros. Writes slabs (splits, K, R, S, C).
// Maps: dy with the axes (K, pixels, 1), x in im2col mode (64 pixels of 64 channels). g.rows: filters; g.columns: chunks.
template <typename T, int BN, int kCluster>
__global__ void DL_CLUSTER(kCluster) __launch_bounds__(kHopperThreads, 1)
    conv_hopper_grad_weight(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap images,
                            float* __restrict__ slabs, ImageWalk g, int steps, int splits) {
#if DL_HOPPER
  constexpr int kPanels = BN / 64 / kCluster;  // of B, that this block loads
  struct Work {
    const TensorMap &dy, &images;
    const ImageWalk& g;
    float* slabs;
    TileGrid tiles;
    int steps;

    struct Place {
      int row, m;               // in dy
      WindowAt window, far;     // of pixel m; from there to the next step's
      DepthAt taps[kPanels];    // of the panels
    };
    __device__ Place start(TileAt at, int n) const {
      const int m = at.batch * steps * kHopperDepth, chunks = ceil_div(g.depth, 64), line = kHopperDepth / g.width;
      Place place = {at.row * kHopperRows, m, window_at(g, m)};
      place.far = {kHopperDepth % g.width * g.step_w, line % g.height * g.step_h, line / g.height};
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        const int chunk = min(n / 64 + i, g.columns - 1), tap = chunk / chunks;  // beyond: not stored
        place.taps[i] = {chunk % chunks * 64, tap / g.S, tap % g.S};
      }
      return place;
    }
    __device__ void load(Place& at, unsigned char* to_a, unsigned char* to_b, Barrier* full) const {
      for (int i = 0; i < kHopperRows / 64; ++i) tma_load(to_a + i * kPanel, dy, full, at.row + 64 * i, at.m, 0);
#pragma unroll
      for (int i = 0; i < kPanels; ++i) load_windows<kCluster>(to_b + i * kPanel, images, full, g, at.window, at.taps[i]);
      at.m += kHopperDepth;
      at.window.w += at.far.w;
      at.window.h += at.far.h;
      at.window.n += at.far.n;
      if (at.window.w >= g.low_w + g.width * g.step_w) at.window.w -= g.width * g.step_w, at.window.h += g.step_h;
      if (at.window.h >= g.low_h + g.height * g.step_h) at.window.h -= g.height * g.step_h, ++at.window.n;
    }
    __device__ void store(TileAt at, int consumer, T*, const float (&sums)[BN / 2]) const {
      const int thread = threadIdx.x % 128, chunks = ceil_div(g.depth, 64);
      const int first = at.row * kHopperRows + 64 * consumer + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
      for (int i = 0; i < BN / 4; ++i) {  // pairs of neighbours
        const int row = first + i % 2 * 8, chunk = at.column * (BN / 64) + i / 16;
        const int c = chunk % chunks * 64 + i / 2 % 8 * 8 + thread % 4 * 2;
        if (row < g.rows && chunk < g.columns && c < g.depth) {
          const long long filter = (long long)at.batch * g.rows + row;
          dl::store<2>(slabs + (filter * g.R * g.S + chunk / chunks) * g.depth + c, sums + 2 * i);
        }
      }
    }
  };
  const TileGrid tiles = {splits, ceil_div(g.rows, kHopperRows), ceil_div(g.columns, BN / 64)};
  hopper_product<T, BN, false, false, kCluster>(Work{dy, images, g, slabs, tiles, steps});
#else
  __trap();
#endif
}

}  // namespace dl
