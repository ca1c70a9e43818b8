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

// Elements of 16 bytes: what a thread should read and write at once to keep memory busy.
template <typename T>
__host__ __device__ constexpr int vector_of() {
  return 16 / sizeof(T);
}

// Whether V elements from `p` on can be read or written at once.
template <int V, typename T>
__device__ inline bool aligned(const T* p) {
  return (unsigned long long)p % (V * sizeof(T)) == 0;
}

// V neighbouring elements of a row, of which `valid` exist; the others read as zero.
template <int V, typename T>
__device__ inline void load_some(const T* p, int valid, float (&out)[V]) {
  if (valid >= V && aligned<V>(p)) {
    load<V>(p, true, out);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = i < valid ? to_float(p[i]) : 0.0f;
  }
}

template <int V, typename T>
__device__ inline void store_some(T* p, int valid, const float (&in)[V]) {
  if (valid >= V && aligned<V>(p)) {
    store<V>(p, in);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (i < valid) p[i] = from_float<T>(in[i]);
    }
  }
}

}  // namespace dl
