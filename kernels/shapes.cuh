// Geometry, passed to kernels by value. Twins of dlgpu/backends/shapes.py: only 32-bit ints, so that the layout is the
// same for every compiler; dlgpu/backends/kernels/sources.py reads the fields from this text.
//
// N C H W batch, channels, height, width; K output channels; R S filter height, width; P Q output height, width;
// G groups.
#pragma once
#include "common.cuh"

namespace dl {

// How far apart, in elements, neighbours along each axis of an (N, C, H, W) array are: the memory format.
struct Strides {
  int n, c, h, w;
};
static_assert(sizeof(Strides) == 4 * 4, "Python passes 4 packed ints");

__device__ inline int offset(Strides s, int n, int c, int h, int w) { return n * s.n + c * s.c + h * s.h + w * s.w; }

// A window that slides over an (N, C, H, W) input and gives P x Q positions.
struct Window2d {
  int N, C, H, W, R, S, P, Q;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};
static_assert(sizeof(Window2d) == 14 * 4, "Python passes 14 packed ints");

// Along one axis: the window whose tap number `tap` sees position `at`, or -1. Gather-form gradients ask this for every
// tap instead of scattering from the windows.
__device__ inline int window_at(int at, int pad, int tap, int dilation, int stride, int windows) {
  const int from = at + pad - tap * dilation;
  if (from < 0 || from % stride != 0) return -1;
  const int window = from / stride;
  return window < windows ? window : -1;
}

// A convolution of an (N, C, H, W) input with (K, C/G, R, S) weights to an (N, K, P, Q) output.
struct Conv2d {
  int N, C, H, W, K, R, S, P, Q, G;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};
static_assert(sizeof(Conv2d) == 16 * 4, "Python passes 16 packed ints");

// One batch of matrix products: out (M, N) = alpha * op(a) (M, K) @ op(b) (K, N) + beta * c (M, N), row-major. A stride is
// the distance between matrices of a batch; 0 repeats one matrix.
struct Gemm {
  int M, N, K;
  int lda, ldb, ldo;  // elements between rows of a, b as stored, and of c and out
};
static_assert(sizeof(Gemm) == 6 * 4, "Python passes 6 packed ints");

// The stretch of the depth that split number `split` of `splits` adds: (first tile, tiles).
struct Stretch {
  int first, count;
};
__device__ inline Stretch stretch(int tiles, int split, int splits) {
  const int each = ceil_div(tiles, splits), first = split * each;
  return {first, max(0, min(each, tiles - first))};
}

}  // namespace dl
