// Where the factors of a matrix product come from. out (M, N) = A (M, K) @ B (N, K)^T reads each factor through an
// operand: `rows` (M or N) by `depth` (K). A convolution is such a product whose operands are gathered from images:
// implicit GEMM, without a column matrix.
//
// An operand has
//   kDeepFast                  neighbours in memory are neighbours along the depth, else along the rows
//   Row row(int i)             what is known of row i, computed once for the whole product
//   Deep deep(int k)           the same of a place along the depth
//   void next(Deep&, int by)   moves on, without divisions
//   Deep beside(Deep)          the next place, where neighbours in memory are neighbours along the rows
//   bool exists(Row, Deep)     whether there is an element; else it counts as zero
//   const T* data              where it is, if it exists: data[row.offset + offset(deep)]
//   int offset(Deep)
// A row past the last may have elements, of some other row: the product's row is not stored either.
// A vector of elements along the fast axis may be read from one address if the extent of that axis (for a convolution:
// the channels of a group) is a multiple of the vector, and the first address is aligned to it.
//
// Rows and places along the depth carry their share of the element's offset and of the test whether it exists: main loops
// read often, and then have one sum to make. Offsets have 32 bits: arrays have fewer than 2^31 elements.
#pragma once
#include "numeric.cuh"
#include "shapes.cuh"

namespace dl {

template <typename T, bool DeepFast>
struct Matrix {
  static constexpr bool kDeepFast = DeepFast;
  struct Row {
    int offset;
  };
  struct Deep {
    int k;
  };
  const T* data;
  int rows, depth, ld;  // ld: elements between lines of the fast axis
  int first = 0;        // element of the array

  __device__ Row row(int i) const { return {first + (i < rows ? i : 0) * (DeepFast ? ld : 1)}; }
  __device__ Deep deep(int k) const { return {k}; }
  __device__ void next(Deep& at, int by) const { at.k += by; }
  __device__ Deep beside(Deep at) const { return {at.k + 1}; }
  __device__ bool exists(Row, Deep k) const { return k.k < depth; }
  __device__ int offset(Deep at) const { return at.k * (DeepFast ? 1 : ld); }
};

constexpr int kNowhere = 1 << 29;  // a coordinate outside of every image, whatever tap is added

// Images (N, H, W, pitch) seen through windows: position (n, p, q) and tap (r, s, c) meet at the pixel
// (p * stride + first + r * step, ...), channel c of C. Pixels outside count as zero.
// With `pooled`, four consecutive positions are one 2x2 block of outputs, so that a product's rows come in pool windows.
template <typename T>
struct Windows {
  const T* data;
  int H, W, pitch, C;
  int N, P, Q, R, S;
  int stride_h, stride_w, first_h, first_w, step_h, step_w;
  bool pooled;

  struct Position {
    int offset, h, w;  // of tap (0, 0, 0)
  };
  struct Tap {
    int offset, h, w;  // from tap (0, 0, 0)
    int c;
  };

  __device__ Position position(int i) const {
    if (pooled) {
      const int columns = Q / 2, block = i / 4, row = block / columns;
      return position(row / (P / 2), row % (P / 2) * 2 + i % 4 / 2, block % columns * 2 + i % 2);
    }
    const int row = i / Q;
    return position(row / P, row % P, i % Q);
  }
  __device__ Position position(int n, int p, int q) const {
    if (n >= N) return {0, kNowhere, 0};
    const int h = p * stride_h + first_h, w = q * stride_w + first_w;
    return {((n * H + h) * W + w) * pitch, h, w};
  }
  __device__ Tap tap(int k) const {
    const int place = k / C;
    return tap(place / S, place % S, k % C);
  }
  __device__ Tap tap(int r, int s, int c) const {
    if (r >= R) return {0, kNowhere, s * step_w, c};
    return {(r * step_h * W + s * step_w) * pitch + c, r * step_h, s * step_w, c};
  }
  __device__ void next(Tap& at, int by) const {
    at.c += by;
    at.offset += by;
    while (at.c >= C) {
      at.c -= C;
      at.w += step_w;
      at.offset += step_w * pitch - C;
      if (at.w == S * step_w) {
        at.w = 0;
        at.h += step_h;
        at.offset += (step_h * W - S * step_w) * pitch;
        if (at.h == R * step_h) at.h = kNowhere;
      }
    }
  }
  __device__ bool inside(int h, int w) const { return (unsigned(h) < unsigned(H)) & (unsigned(w) < unsigned(W)); }  // no branch
};

// Rows are positions, the depth runs over taps: the images of a forward convolution, the gradients of a backward one.
template <typename T>
struct WindowRows : Windows<T> {
  static constexpr bool kDeepFast = true;
  using Row = typename Windows<T>::Position;
  using Deep = typename Windows<T>::Tap;

  __device__ Row row(int i) const { return this->position(i); }
  __device__ Deep deep(int k) const { return this->tap(k); }
  __device__ bool exists(Row i, Deep k) const { return this->inside(i.h + k.h, i.w + k.w); }
  __device__ int offset(Deep k) const { return k.offset; }
};

// Rows are taps, the depth runs over positions: the images of a weight gradient.
template <typename T>
struct WindowColumns : Windows<T> {
  static constexpr bool kDeepFast = false;
  using Row = typename Windows<T>::Tap;
  struct Deep {
    int offset, h, w;  // as of a position
    int left;          // positions from here on
  };
  // How far `next` goes, which is always as far, apart from what passes the ends of lines and images: in pixels along
  // each axis, and in elements.
  struct Step {
    int h, w, offset;
  };
  Step step;

  __device__ Row row(int i) const { return this->tap(i); }
  __device__ Deep deep(int k) const {
    const auto at = this->position(k);
    return {at.offset, at.h, at.w, this->N * this->P * this->Q - k};
  }
  static __device__ Step step_of(const Windows<T>& x, int by) {
    const int images = by / (x.P * x.Q), h = by / x.Q % x.P * x.stride_h, w = by % x.Q * x.stride_w;
    return {h, w, ((images * x.H + h) * x.W + w) * x.pitch};
  }
  __device__ void next(Deep& at, int by) const { at = on(at, step, by); }
  __device__ Deep beside(Deep at) const { return on(at, {0, this->stride_w, this->stride_w * this->pitch}, 1); }
  __device__ bool exists(Row i, Deep k) const { return (k.left > 0) & this->inside(i.h + k.h, i.w + k.w); }
  __device__ int offset(Deep k) const { return k.offset; }

  // `by` positions on. At most one line and one image are passed that are not in `far`.
  __device__ Deep on(Deep at, Step far, int by) const {
    const Windows<T>& x = *this;
    at.left -= by;
    at.offset += far.offset;
    at.h += far.h;
    at.w += far.w;
    if (at.w >= x.first_w + x.Q * x.stride_w) {
      at.w -= x.Q * x.stride_w;
      at.h += x.stride_h;
      at.offset += (x.stride_h * x.W - x.Q * x.stride_w) * x.pitch;
    }
    if (at.h >= x.first_h + x.P * x.stride_h) {
      at.h -= x.P * x.stride_h;
      at.offset += (x.H - x.P * x.stride_h) * x.W * x.pitch;
    }
    return at;
  }
};

// Filters (K, R, S, C) for the gradient of the input: rows are input channels, the depth runs over (r, s, k), where the
// taps are every step-th of the filter from `first` on.
template <typename T>
struct TurnedFilters {
  static constexpr bool kDeepFast = false;
  struct Row {
    int offset;
  };
  struct Deep {
    int offset, r, s, k;
  };
  const T* data;
  int K, C, R, S, filter_width;  // R, S: taps of this phase
  int first_r, first_s, step_r, step_s;
  int filter;  // elements of one filter

  __device__ Row row(int c) const { return {c < C ? c : 0}; }
  __device__ Deep deep(int i) const {
    const int tap = i / K, r = tap / S, s = tap % S, k = i % K;
    return {k * filter + ((first_r + r * step_r) * filter_width + first_s + s * step_s) * C, r, s, k};
  }
  __device__ void next(Deep& at, int by) const {
    at.k += by;
    at.offset += by * filter;
    while (at.k >= K) {
      at.k -= K;
      at.offset += step_s * C - K * filter;
      if (++at.s == S) {
        at.s = 0;
        ++at.r;
        at.offset += (step_r * filter_width - S * step_s) * C;
      }
    }
  }
  __device__ Deep beside(Deep at) const { return {at.offset + filter, at.r, at.s, at.k + 1}; }  // K is even
  __device__ bool exists(Row, Deep d) const { return d.r < R; }
  __device__ int offset(Deep at) const { return at.offset; }
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
