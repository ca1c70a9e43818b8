// Storage types and arithmetic: values are stored as float, half or bfloat16 and computed in float.
#pragma once
#include "common.cuh"

namespace dl {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest even.
template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// NVRTC has no INFINITY.
__device__ inline float infinity() { return __int_as_float(0x7f800000); }

}  // namespace dl
