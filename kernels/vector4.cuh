// Neighbouring elements read or written at once: as a plan has found that they lie, or where their address allows it.
#pragma once
#include "numeric.cuh"

namespace dl {

template <typename T, int V>
struct alignas(V * sizeof(T)) Vector {
  T v[V];
};

// V elements from `p` on, zeros if they do not exist. `p` is a multiple of their size.
template <int V, typename T>
__device__ inline void load(const T* p, bool exist, float (&out)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) out[i] = 0.0f;
  if (!exist) return;
  const Vector<T, V> vector = *reinterpret_cast<const Vector<T, V>*>(p);
#pragma unroll
  for (int i = 0; i < V; ++i) out[i] = to_float(vector.v[i]);
}

template <int V, typename T>
__device__ inline void store(T* p, const float* in) {
  Vector<T, V> vector;
#pragma unroll
  for (int i = 0; i < V; ++i) vector.v[i] = from_float<T>(in[i]);
  *reinterpret_cast<Vector<T, V>*>(p) = vector;
}

// Whether 4 elements from `p` on can be read or written at once.
template <typename T>
__device__ inline bool aligned4(const T* p) {
  return (unsigned long long)p % (4 * sizeof(T)) == 0;
}

// Four neighbouring elements of a row, of which `valid` exist; the others read as zero.
template <typename T>
__device__ inline void load4(const T* p, int valid, float (&out)[4]) {
  if (valid >= 4 && aligned4(p)) {
    load<4>(p, true, out);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = i < valid ? to_float(p[i]) : 0.0f;
  }
}

template <typename T>
__device__ inline void store4(T* p, int valid, const float (&in)[4]) {
  if (valid >= 4 && aligned4(p)) {
    store<4>(p, in);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) p[i] = from_float<T>(in[i]);
    }
  }
}

}  // namespace dl
