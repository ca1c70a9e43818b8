// Convolution with 3x3 filters, stride 1, by Winograd's minimal filtering F(M x M, 3 x 3), in channels_last. docs/winograd.md
// has the algebra: Y = A^T [(G g G^T) * (B^T d B)] A for each tile of M x M outputs, which sees (M + 2) x (M + 2) inputs.
//
// The places of a transformed tile, (M + 2)^2, are the batch of a matrix product over channels:
//   V (places, groups, tiles, C/G) @ U (places, groups, K/G, C/G)^T = products (places, groups, tiles, K/G),  all float.
#pragma once
#include "arch.cuh"
#include "epilogue.cuh"
#include "shapes.cuh"

namespace dl {

// Where the tiles of an (N, H, W, C) image lie: tile (n, i, j) of a grid of I x J begins at (i * M + first_h, ...).
struct Tiles {
  int N, H, W, C, G;
  int I, J, first_h, first_w;
};
static_assert(sizeof(Tiles) == 9 * 4, "Python passes 9 packed ints");

// Where tile number `tile` begins: image, row, column.
struct Corner {
  int n, h, w;
};
template <int M>
__device__ inline Corner corner(const Tiles& g, int tile) {
  return {tile / (g.I * g.J), tile / g.J % g.I * M + g.first_h, tile % g.J * M + g.first_w};
}

// ---- the matrices, applied to one line of a tile at a time (Lavin and Gray 2015, section 4) ----

// B^T d, points 0, 1, -1 (2, -2) and infinity.
__device__ inline void transform_input(const float (&d)[4], float (&out)[4]) {
  out[0] = d[0] - d[2];
  out[1] = d[1] + d[2];
  out[2] = d[2] - d[1];
  out[3] = d[1] - d[3];
}
__device__ inline void transform_input(const float (&d)[6], float (&out)[6]) {
  const float even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const float far_even = d[4] - d[2], far_odd = 2.0f * (d[3] - d[1]);
  out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far_even + far_odd;
  out[4] = far_even - far_odd;
  out[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// G g.
__device__ inline void transform_filter(const float (&g)[3], float (&out)[4]) {
  const float ends = 0.5f * (g[0] + g[2]), middle = 0.5f * g[1];
  out[0] = g[0];
  out[1] = ends + middle;
  out[2] = ends - middle;
  out[3] = g[2];
}
__device__ inline void transform_filter(const float (&g)[3], float (&out)[6]) {
  const float near = -(g[0] + g[2]) * (1.0f / 6), far = g[0] * (1.0f / 24) + g[2] * (1.0f / 6);
  out[0] = 0.25f * g[0];
  out[1] = near - g[1] * (1.0f / 6);
  out[2] = near + g[1] * (1.0f / 6);
  out[3] = far + g[1] * (1.0f / 12);
  out[4] = far - g[1] * (1.0f / 12);
  out[5] = g[2];
}

// A^T m.
__device__ inline void transform_output(const float (&m)[4], float (&out)[2]) {
  out[0] = m[0] + m[1] + m[2];
  out[1] = m[1] - m[2] - m[3];
}
__device__ inline void transform_output(const float (&m)[6], float (&out)[4]) {
  const float even = m[1] + m[2], odd = m[1] - m[2], far_even = m[3] + m[4], far_odd = m[3] - m[4];
  out[0] = m[0] + even + far_even;
  out[1] = odd + 2.0f * far_odd;
  out[2] = even + 4.0f * far_even;
  out[3] = odd + 8.0f * far_odd + m[5];
}

// A y: what the gradient of the outputs is for the products.
__device__ inline void transform_gradient(const float (&y)[2], float (&out)[4]) {
  out[0] = y[0];
  out[1] = y[0] + y[1];
  out[2] = y[0] - y[1];
  out[3] = -y[1];
}
__device__ inline void transform_gradient(const float (&y)[4], float (&out)[6]) {
  const float even = y[0] + y[2], odd = y[1] + y[3], far_even = y[0] + 4.0f * y[2], far_odd = 2.0f * y[1] + 8.0f * y[3];
  out[0] = y[0];
  out[1] = even + odd;
  out[2] = even - odd;
  out[3] = far_even + far_odd;
  out[4] = far_even - far_odd;
  out[5] = y[3];
}

// G^T u: from the gradient of the transformed filter to the filter's.
__device__ inline void transform_back(const float (&u)[4], float (&out)[3]) {
  out[0] = u[0] + 0.5f * (u[1] + u[2]);
  out[1] = 0.5f * (u[1] - u[2]);
  out[2] = 0.5f * (u[1] + u[2]) + u[3];
}
__device__ inline void transform_back(const float (&u)[6], float (&out)[3]) {
  const float near = -(u[1] + u[2]) * (1.0f / 6), far = u[3] + u[4];
  out[0] = 0.25f * u[0] + near + far * (1.0f / 24);
  out[1] = (u[2] - u[1]) * (1.0f / 6) + (u[3] - u[4]) * (1.0f / 12);
  out[2] = near + far * (1.0f / 6) + u[5];
}

// X t X^T for a square tile, line by line; `transform` is X on one line.
template <int IN, int OUT, typename Transform>
__device__ inline void both_sides(const float (&t)[IN][IN], float (&out)[OUT][OUT], Transform transform) {
  float half[IN][OUT];  // t X^T
#pragma unroll
  for (int i = 0; i < IN; ++i) transform(t[i], half[i]);
#pragma unroll
  for (int j = 0; j < OUT; ++j) {
    float line[IN], turned[OUT];
#pragma unroll
    for (int i = 0; i < IN; ++i) line[i] = half[i][j];
    transform(line, turned);
#pragma unroll
    for (int i = 0; i < OUT; ++i) out[i][j] = turned[i];
  }
}

// ---- kernels ----

// G g G^T of filter k and channel c of weights of any strides, or of that filter turned by 180 degrees.
template <int E, typename T>
__device__ inline void transformed_filter(const T* weight, const Strides& strides, int k, int c, bool turned,
                                          float (&out)[E][E]) {
  float g[3][3];
#pragma unroll
  for (int r = 0; r < 3; ++r) {
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      g[r][s] = to_float(weight[offset(strides, k, c, turned ? 2 - r : r, turned ? 2 - s : s)]);
    }
  }
  both_sides<3, E>(g, out, [](const float(&line)[3], float(&to)[E]) { transform_filter(line, to); });
}

// U from weights (K, C/G, 3, 3) of any strides, one filter and channel per thread. `turned`: the filters of the input's
// gradient, turned by 180 degrees, with rows and columns swapped: U (places, G, C/G, K/G).
template <typename T, int M>
__global__ void __launch_bounds__(256)
    winograd_filter(const T* __restrict__ weight, float* __restrict__ u, int K, int C, int G, int turned, Strides strides,
                    unsigned count) {
  constexpr int E = M + 2;
  const int channels = C / G, filters = K / G;  // of a group
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int c = i % channels, k = i / channels;  // k counts through all groups
    float out[E][E];
    transformed_filter(weight, strides, k, c, turned != 0, out);
    const int group = k / filters, row = turned ? c : k % filters, column = turned ? k % filters : c;
    const int rows = turned ? channels : filters, columns = turned ? filters : channels;
    const unsigned at = (group * rows + row) * columns + column;
#pragma unroll
    for (int p = 0; p < E * E; ++p) u[(long long)p * count + at] = out[p / E][p % E];
  }
}

// V from an image, one tile and channel per thread. count = tiles * C.
template <typename T, int M>
__global__ void __launch_bounds__(256)
    winograd_input(const T* __restrict__ x, float* __restrict__ v, Tiles g, unsigned count) {
  constexpr int E = M + 2;
  const int channels = g.C / g.G, tiles = g.N * g.I * g.J;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int channel = i % g.C, tile = i / g.C;
    const auto [n, h, w] = corner<M>(g, tile);
    float d[E][E], out[E][E];
#pragma unroll
    for (int a = 0; a < E; ++a) {
#pragma unroll
      for (int b = 0; b < E; ++b) {
        const bool inside = unsigned(h + a) < unsigned(g.H) && unsigned(w + b) < unsigned(g.W);
        d[a][b] = inside ? to_float(x[((n * g.H + h + a) * g.W + w + b) * g.C + channel]) : 0.0f;
      }
    }
    both_sides<E, E>(d, out, [](const float(&line)[E], float(&to)[E]) { transform_input(line, to); });
    const unsigned at = (channel / channels * tiles + tile) * channels + channel % channels;
#pragma unroll
    for (int p = 0; p < E * E; ++p) v[(long long)p * count + at] = out[p / E][p % E];
  }
}

// The products of dy's tiles, one tile and filter per thread: count = tiles * K. g.C is K, g.H x g.W are P x Q.
template <typename T, int M>
__global__ void __launch_bounds__(256)
    winograd_gradient(const T* __restrict__ dy, float* __restrict__ products, Tiles g, unsigned count) {
  constexpr int E = M + 2;
  const int filters = g.C / g.G, tiles = g.N * g.I * g.J;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int filter = i % g.C, tile = i / g.C;
    const auto [n, p, q] = corner<M>(g, tile);
    float y[M][M], out[E][E];
#pragma unroll
    for (int a = 0; a < M; ++a) {
#pragma unroll
      for (int b = 0; b < M; ++b) {
        const bool inside = p + a < g.H && q + b < g.W;
        y[a][b] = inside ? to_float(dy[((n * g.H + p + a) * g.W + q + b) * g.C + filter]) : 0.0f;
      }
    }
    both_sides<M, E>(y, out, [](const float(&line)[M], float(&to)[E]) { transform_gradient(line, to); });
    const unsigned at = (filter / filters * tiles + tile) * filters + filter % filters;
#pragma unroll
    for (int e = 0; e < E * E; ++e) products[(long long)e * count + at] = out[e / E][e % E];
  }
}

// Stores a tile's outputs of filter k, or with `argmax` their 2x2 maxima. g.C is K, g.H x g.W are P x Q.
template <typename T, int M>
__device__ void store_tile(const float (&y)[M][M], const Epilogue<T>& end, unsigned char* argmax, const Tiles& g,
                           Corner at_tile, int k) {
  const auto [n, p, q] = at_tile;
  if (argmax == nullptr) {
#pragma unroll
    for (int a = 0; a < M; ++a) {
#pragma unroll
      for (int b = 0; b < M; ++b) {
        if (p + a < g.H && q + b < g.W) {
          const long long at = (long long)((n * g.H + p + a) * g.W + q + b) * g.C + k;
          end.out[at] = from_float<T>(end.value(y[a][b], at, k));
        }
      }
    }
    return;
  }
#pragma unroll
  for (int a = 0; a < M; a += 2) {
#pragma unroll
    for (int b = 0; b < M; b += 2) {
      if (p + a + 1 < g.H && q + b + 1 < g.W) {
        Best best = {to_float(from_float<T>(end.value(y[a][b], 0, k))), 0};
#pragma unroll
        for (int e = 1; e < 4; ++e) {
          best = better(best, {to_float(from_float<T>(end.value(y[a + e / 2][b + e % 2], 0, k))), e});
        }
        const long long at = (long long)((n * (g.H / 2) + (p + a) / 2) * (g.W / 2) + (q + b) / 2) * g.C + k;
        end.out[at] = from_float<T>(best.value);
        argmax[at] = best.place;
      }
    }
  }
}

// The outputs from the products, one tile and filter per thread: count = tiles * K. g.C is K, g.H x g.W are P x Q.
template <typename T, int M>
__global__ void __launch_bounds__(256, 3)  // left alone, the compiler spills to have fewer registers
    winograd_output(const float* __restrict__ products, const T* __restrict__ residual, const T* __restrict__ bias,
                    T* __restrict__ y, unsigned char* __restrict__ argmax, Tiles g, int relu, unsigned count) {
  constexpr int E = M + 2;
  const int filters = g.C / g.G, tiles = g.N * g.I * g.J;
  const Epilogue<T> end = {residual, bias, y, 1.0f, 1.0f, relu != 0};
  for (unsigned i = first_index(); i < count; i += index_step()) {
    const int filter = i % g.C, tile = i / g.C;
    const unsigned at = (filter / filters * tiles + tile) * filters + filter % filters;
    float m[E][E], out[M][M];
#pragma unroll
    for (int e = 0; e < E * E; ++e) m[e / E][e % E] = products[(long long)e * count + at];
    both_sides<E, M>(m, out, [](const float(&line)[E], float(&to)[M]) { transform_output(line, to); });
    store_tile(out, end, argmax, g, corner<M>(g, tile), filter);
  }
}

// dw (K, C/G, 3, 3) from the gradient of U (places, G, K/G, C/G), one filter and channel per thread: count = K * C/G.
template <typename T, int M>
__global__ void __launch_bounds__(256)
    winograd_filter_gradient(const float* __restrict__ du, T* __restrict__ dw, unsigned count) {
  constexpr int E = M + 2;
  for (unsigned i = first_index(); i < count; i += index_step()) {
    float u[E][E], out[3][3];
#pragma unroll
    for (int e = 0; e < E * E; ++e) u[e / E][e % E] = du[(long long)e * count + i];
    both_sides<E, 3>(u, out, [](const float(&line)[E], float(&to)[3]) { transform_back(line, to); });
#pragma unroll
    for (int e = 0; e < 9; ++e) dw[i * 9 + e] = from_float<T>(out[e / 3][e % 3]);
  }
}

}  // namespace dl
