// The part of CUDA's device vocabulary that the kernels use, for g++: common.cuh includes this instead of nvcc's built-ins
// when DL_HOST is defined.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernel.h"
#include "runtime.h"

#undef __shared__
#define __shared__ static_assert(false, "declare shared memory with DL_SHARED, so that the host build can check it");
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#define DL_JOIN_(a, b) a##b
#define DL_JOIN(a, b) DL_JOIN_(a, b)
#define DL_KERNEL(...) static const dl::host::Registered DL_JOIN(dl_kernel_, __COUNTER__)(#__VA_ARGS__, &__VA_ARGS__);

#define DL_SHARED(T, name, ...)                                                           \
  typedef T name##_type __VA_ARGS__;                                                      \
  static dl::host::SharedVariable name##_variable{#name, sizeof(name##_type), sizeof(T)}; \
  name##_type& name = *static_cast<name##_type*>(dl::host::address(name##_variable))
#define DL_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(dl::host::dynamic_shared())

// Thin wrappers are inlined even into themselves at -O0, so that a return address in the runtime is one in the kernel.
#define DL_THIN inline __attribute__((always_inline))

extern const uint3 threadIdx, blockIdx;  // constant while a thread lives, so g++ may keep them in registers
extern const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers ----
#define DL_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()  // defaults are taken at the call
DL_THIN void __syncthreads(DL_CALLER) { dl::host::barrier("__syncthreads", false, file, line); }
DL_THIN int __syncthreads_or(int predicate, DL_CALLER) {
  return dl::host::barrier("__syncthreads_or", predicate, file, line) > 0;
}
DL_THIN void __syncwarp(unsigned mask = 0xffffffffu) { dl::host::sync_warp(mask); }

// ---- warp ----
#define DL_SHUFFLE(name, kind, Operand)                                                       \
  template <typename T>                                                                       \
  DL_THIN T name(unsigned mask, T value, Operand operand, int width = 32) {                   \
    dl::host::shuffle(dl::host::Shuffle::kind, mask, &value, sizeof(T), int(operand), width); \
    return value;                                                                             \
  }
DL_SHUFFLE(__shfl_sync, index, int)
DL_SHUFFLE(__shfl_up_sync, up, unsigned)
DL_SHUFFLE(__shfl_down_sync, down, unsigned)
DL_SHUFFLE(__shfl_xor_sync, exclusive_or, int)
#undef DL_SHUFFLE

DL_THIN unsigned __ballot_sync(unsigned mask, int p) { return dl::host::ballot("__ballot_sync", mask, p); }
DL_THIN int __any_sync(unsigned mask, int p) { return dl::host::ballot("__any_sync", mask, p) != 0; }
DL_THIN int __all_sync(unsigned mask, int p) { return dl::host::ballot("__all_sync", mask, !p) == 0; }
DL_THIN unsigned __activemask() { return dl::host::live_lanes(); }

// ---- memory ----
// Atomics are one step because nothing interrupts a thread. Not inlined and not instrumented: the checker hears of them
// as atomics, from the place that called them.
#define DL_ATOMIC(name, expression)                                                         \
  template <typename T>                                                                     \
  __attribute__((noinline, no_sanitize_thread)) T name(T* p, std::common_type_t<T> value) { \
    dl::host::note_atomic(p, sizeof(T), __builtin_return_address(0));                       \
    T old = *p;                                                                             \
    *p = T(expression);                                                                     \
    return old;                                                                             \
  }
DL_ATOMIC(atomicAdd, old + value)
DL_ATOMIC(atomicMax, value > old ? value : old)
DL_ATOMIC(atomicMin, value < old ? value : old)
DL_ATOMIC(atomicExch, value)
#undef DL_ATOMIC

DL_THIN void __trap() { dl::host::fail("__trap()"); }

// ---- numbers ----
template <typename To, typename From>
DL_THIN To dl_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
DL_THIN float __int_as_float(int x) { return dl_bits<float>(x); }
DL_THIN float __uint_as_float(unsigned x) { return dl_bits<float>(x); }
DL_THIN unsigned __float_as_uint(float x) { return dl_bits<unsigned>(x); }

// As CUDA has them: of two integers or of two floats, also of unlike sizes. Those of floats drop a NaN, like fminf.
#define DL_EXTREME(name, of_floats, b_wins)                                                          \
  template <typename A, typename B>                                                                  \
  DL_THIN constexpr std::common_type_t<A, B> name(A a, B b) {                                        \
    static_assert(std::is_floating_point_v<A> == std::is_floating_point_v<B>, "ambiguous for nvcc"); \
    using T = std::common_type_t<A, B>;                                                              \
    if constexpr (std::is_floating_point_v<T>)                                                       \
      return T(of_floats(T(a), T(b)));                                                               \
    else                                                                                             \
      return b_wins ? T(b) : T(a);                                                                   \
  }
DL_EXTREME(min, std::fmin, T(b) < T(a))
DL_EXTREME(max, std::fmax, T(a) < T(b))
#undef DL_EXTREME
