// Four neighbouring elements at a time, where they exist and their address allows it.
#pragma once
#include "numeric.cuh"

namespace dl {

// Whether 4 elements from `p` on can be read or written at once.
template <typename T>
__device__ inline bool aligned4(const T* p) {
  return (unsigned long long)p % (4 * sizeof(T)) == 0;
}

struct alignas(8) Half4 {
  __half v[4];
};
struct alignas(8) Bfloat4 {
  __nv_bfloat16 v[4];
};
template <typename T>
struct Vector4;
template <>
struct Vector4<float> {
  using type = float4;
};
template <>
struct Vector4<__half> {
  using type = Half4;
};
template <>
struct Vector4<__nv_bfloat16> {
  using type = Bfloat4;
};

// Four neighbouring elements of a row, of which `valid` exist; the others read as zero.
template <typename T>
__device__ inline void load4(const T* p, int valid, float (&out)[4]) {
  using V = typename Vector4<T>::type;
  static_assert(sizeof(V) == 4 * sizeof(T), "one vector load reads exactly four elements");
  if (valid >= 4 && aligned4(p)) {
    const V vector = *reinterpret_cast<const V*>(p);
    const T* values = reinterpret_cast<const T*>(&vector);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = to_float(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = i < valid ? to_float(p[i]) : 0.0f;
  }
}

template <typename T>
__device__ inline void store4(T* p, int valid, const float (&in)[4]) {
  using V = typename Vector4<T>::type;
  if (valid >= 4 && aligned4(p)) {
    V vector;
    T* values = reinterpret_cast<T*>(&vector);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = from_float<T>(in[i]);
    *reinterpret_cast<V*>(p) = vector;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < valid) p[i] = from_float<T>(in[i]);
    }
  }
}

}  // namespace dl
