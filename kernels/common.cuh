// What every kernel file includes first: the words that differ between nvcc, NVRTC and the host build, and the few
// index helpers that all kernels share. Device code only: no host calls, no standard headers (NVRTC has none).
#pragma once

#ifdef DL_HOST
#include "shim.h"  // bindings/host: lets g++ compile these files and run them on a CPU
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Static shared memory: DL_SHARED(float, tile, [2][8][132]). A macro, so that the host build can poison and bound it.
#define DL_SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
// Dynamic shared memory, of the size given at launch. The type-erased array is the same symbol in every kernel.
#define DL_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(128) unsigned char dl_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dl_dynamic_shared)
#endif

// The list of instantiations: one line DL_KERNEL(name<types, tiles>) per kernel at the end of each .cu file. Python reads
// the lines as text (CuPy compiles them by name); the ahead-of-time builds give the macro a meaning before they include
// the file.
#ifndef DL_KERNEL
#define DL_KERNEL(...)
#endif

namespace dl {

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The grid-stride loop: `for (unsigned i = first_index(); i < count; i += index_step())`. Any grid covers any count.
// Arrays have fewer than 2^31 elements (the plans see to it), so 32 bits hold every index, and i + step cannot wrap.
__device__ inline unsigned first_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline unsigned index_step() { return gridDim.x * blockDim.x; }

// threadIdx.x, read anew each time: what follows from it needs no register while a loop runs that has none to spare.
__device__ inline int thread_index_x() {
#ifdef DL_HOST
  return threadIdx.x;
#else
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
#endif
}

// The same value, which the compiler then holds in a register: it would compute what is cheap anew in every round of a loop.
__device__ inline int kept(int x) {
#ifndef DL_HOST
  asm volatile("" : "+r"(x));
#endif
  return x;
}
template <typename T>
__device__ inline T* kept(T* p) {
#ifndef DL_HOST
  asm volatile("" : "+l"(p));
#endif
  return p;
}

}  // namespace dl
