// Where the factors of a matrix product come from. out (M, N) = A (M, K) @ B (N, K)^T reads each factor through an
// operand: `rows` (M or N) by `depth` (K). A convolution is such a product whose operands are gathered from images:
// implicit GEMM, without a column matrix.
//
// An operand has
//   kDeepFast                  neighbours in memory are neighbours along the depth, else along the rows
//   Row row(int i)             what is known of row i, computed once for the whole product
//   Deep deep(int k)           the same of a place along the depth
//   void next(Deep&, int by)   moves on, without divisions
//   const T* at(Row, Deep)     the element, or null where there is none: it counts as zero
//   const T* base()            any valid address
// A vector of elements along the fast axis may be read from one address if the extent of that axis (for a convolution:
// the channels of a group) is a multiple of the vector, and the first address is aligned to it.
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

template <typename T, bool DeepFast>
struct Matrix {
  static constexpr bool kDeepFast = DeepFast;
  using Row = int;
  using Deep = int;
  const T* data;
  int rows, depth, ld;  // ld: elements between lines of the fast axis

  __device__ Row row(int i) const { return i; }
  __device__ Deep deep(int k) const { return k; }
  __device__ void next(Deep& k, int by) const { k += by; }
  __device__ const T* at(Row i, Deep k) const {
    return i < rows && k < depth ? data + (DeepFast ? (long long)i * ld + k : (long long)k * ld + i) : nullptr;
  }
  __device__ const T* base() const { return data; }
};

// Images (N, H, W, pitch) seen through windows: position (n, p, q) and tap (r, s, c) meet at the pixel
// (p * stride + first + r * step, ...), channel c of C. Pixels outside count as zero.
// With `pooled`, four consecutive positions are one 2x2 block of outputs, so that a product's rows come in pool windows.
template <typename T>
struct Windows {
  const T* x;
  int H, W, pitch, C;
  int N, P, Q, R, S;
  int stride_h, stride_w, first_h, first_w, step_h, step_w;
  bool pooled;

  struct Position {
    int n, p, q;
  };
  struct Tap {
    int r, s, c;
  };

  __device__ Position position(int i) const {
    if (pooled) {
      const int columns = Q / 2, block = i / 4, row = block / columns;
      return {row / (P / 2), row % (P / 2) * 2 + i % 4 / 2, block % columns * 2 + i % 2};
    }
    const int row = i / Q;
    return {row / P, row % P, i % Q};
  }
  __device__ Tap tap(int k) const {
    const int place = k / C;
    return {place / S, place % S, k % C};
  }
  __device__ void next(Position& at, int by) const {  // not for pooled positions
    at.q += by;
    while (at.q >= Q) {
      at.q -= Q;
      if (++at.p == P) {
        at.p = 0;
        ++at.n;
      }
    }
  }
  __device__ void next(Tap& at, int by) const {
    at.c += by;
    while (at.c >= C) {
      at.c -= C;
      if (++at.s == S) {
        at.s = 0;
        ++at.r;
      }
    }
  }
  __device__ const T* at(Position at, Tap tap) const {
    const int h = at.p * stride_h + first_h + tap.r * step_h;
    const int w = at.q * stride_w + first_w + tap.s * step_w;
    const bool inside = at.n < N && tap.r < R && unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W);
    return inside ? x + ((at.n * H + h) * W + w) * pitch + tap.c : nullptr;
  }
};

// Rows are positions, the depth runs over taps: the images of a forward convolution, the gradients of a backward one.
template <typename T>
struct WindowRows {
  static constexpr bool kDeepFast = true;
  using Row = typename Windows<T>::Position;
  using Deep = typename Windows<T>::Tap;
  Windows<T> windows;

  __device__ Row row(int i) const { return windows.position(i); }
  __device__ Deep deep(int k) const { return windows.tap(k); }
  __device__ void next(Deep& k, int by) const { windows.next(k, by); }
  __device__ const T* at(Row i, Deep k) const { return windows.at(i, k); }
  __device__ const T* base() const { return windows.x; }
};

// Rows are taps, the depth runs over positions: the images of a weight gradient.
template <typename T>
struct WindowColumns {
  static constexpr bool kDeepFast = false;
  using Row = typename Windows<T>::Tap;
  using Deep = typename Windows<T>::Position;
  Windows<T> windows;

  __device__ Row row(int i) const { return windows.tap(i); }
  __device__ Deep deep(int k) const { return windows.position(k); }
  __device__ void next(Deep& k, int by) const { windows.next(k, by); }
  __device__ const T* at(Row i, Deep k) const { return windows.at(k, i); }
  __device__ const T* base() const { return windows.x; }
};

// Filters (K, R, S, C) for the gradient of the input: rows are input channels, the depth runs over (r, s, k), where the
// taps are every step-th of the filter from `first` on.
template <typename T>
struct TurnedFilters {
  static constexpr bool kDeepFast = false;
  struct Deep {
    int r, s, k;
  };
  using Row = int;
  const T* weight;
  int K, C, R, S, filter_width;  // R, S: taps of this phase
  int first_r, first_s, step_r, step_s;
  int filter;  // elements of one filter

  __device__ Row row(int c) const { return c; }
  __device__ Deep deep(int i) const {
    const int place = i / K;
    return {place / S, place % S, i % K};
  }
  __device__ void next(Deep& at, int by) const {
    at.k += by;
    while (at.k >= K) {
      at.k -= K;
      if (++at.s == S) {
        at.s = 0;
        ++at.r;
      }
    }
  }
  __device__ const T* at(Row c, Deep d) const {
    const int place = (first_r + d.r * step_r) * filter_width + first_s + d.s * step_s;
    return c < C && d.r < R ? weight + (long long)d.k * filter + place * C + c : nullptr;
  }
  __device__ const T* base() const { return weight; }
};

// One axis of the gradient of the input, for the pixels at first, first + stride, ...: only every step-th tap reaches
// them. Pixel first + stride * i and tap first_tap + step * j meet output position first_out + i - out_step * j.
struct Phase {
  int pixels, taps, first_tap, step, first_out, out_step;
};

__device__ inline Phase phase(int first, int size, int filter, int stride, int pad, int dilation) {
  int step = stride;  // stride / gcd(stride, dilation)
  for (int divisor = 2; divisor <= stride; ++divisor) {
    if (stride % divisor == 0 && dilation % divisor == 0) step = stride / divisor;
  }
  Phase found = {first < size ? ceil_div(size - first, stride) : 0, 0, 0, step, 0, step * dilation / stride};
  for (int tap = 0; tap < step && tap < filter; ++tap) {
    const int from = first + pad - tap * dilation;
    if (from % stride == 0) {
      found.taps = ceil_div(filter - tap, step);
      found.first_tap = tap;
      found.first_out = from / stride;
      break;
    }
  }
  return found;
}

}  // namespace dl
