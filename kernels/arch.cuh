// What only some architectures have, each behind a function: cp.async, ldmatrix, mma.sync. Every wrapper compiles for
// every architecture; where the hardware lacks the instruction it does the same with plainer ones if it can, and traps
// if it cannot. In the host build each has the meaning that the PTX ISA gives it (bindings/host).
#pragma once
#include "common.cuh"

namespace dl {

#ifdef __CUDA_ARCH__
#define DL_ARCH __CUDA_ARCH__
#else
#define DL_ARCH 0  // nvcc's host pass, which never runs these, and the host build
#endif

// ---- cp.async: 16 bytes from global to shared memory that pass no register (sm_80; before, an ordinary copy) ----

#if !defined(DL_HOST)
__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
#endif

// Zeros if not valid; then `global` is not read. Both 16-byte aligned.
__device__ inline void cp_async16(void* shared, const void* global, bool valid = true) {
#if defined(DL_HOST)
  host::copy_async(shared, global, 16, valid);
#elif DL_ARCH >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  // __ldg: a pinned pointer (`kept`) no longer tells the compiler that it is global.
  *static_cast<uint4*>(shared) = valid ? __ldg(static_cast<const uint4*>(global)) : make_uint4(0, 0, 0, 0);
#endif
}

// Closes the group of this thread's copies since the last commit.
__device__ inline void cp_async_commit() {
#if defined(DL_HOST)
  host::commit_copies();
#elif DL_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most the last `Left` groups of this thread are in flight. Other threads' copies need a barrier after it.
template <int Left>
__device__ inline void cp_async_wait() {
#if defined(DL_HOST)
  host::wait_copies(Left);
#elif DL_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// ---- ldmatrix: 8x8 matrices of 16-bit elements as mma fragments (sm_75) ----
// Lane 8 m + r passes the address of row r of matrix m: 16 bytes of shared memory. Register m of lane 4 i + j receives
// elements 2 j and 2 j + 1 of row i; transposed: of column i.

#if defined(DL_HOST)
#define DL_LDMATRIX(name, count, transposed, ptx, constraints, ...)           \
  __device__ inline void name(unsigned (&fragment)[count], const void* row) { \
    host::load_matrix(fragment, count, transposed, row);                      \
  }
#elif DL_ARCH >= 750 || DL_ARCH == 0
#define DL_LDMATRIX(name, count, transposed, ptx, registers, ...)               \
  __device__ inline void name(unsigned (&fragment)[count], const void* row) {   \
    asm volatile("ldmatrix.sync.aligned.m8n8." ptx ".shared.b16 " registers ";" \
                 : __VA_ARGS__                                                  \
                 : "r"(shared_address(row))                                     \
                 : "memory");                                                   \
  }
#else
#define DL_LDMATRIX(name, count, transposed, ptx, registers, ...) \
  __device__ inline void name(unsigned (&)[count], const void*) { __trap(); }
#endif
#define DL_REGISTER(i) "=r"(fragment[i])
DL_LDMATRIX(ldmatrix_x1, 1, false, "x1", "{%0}, [%1]", DL_REGISTER(0))
DL_LDMATRIX(ldmatrix_x2, 2, false, "x2", "{%0, %1}, [%2]", DL_REGISTER(0), DL_REGISTER(1))
DL_LDMATRIX(ldmatrix_x4, 4, false, "x4", "{%0, %1, %2, %3}, [%4]", DL_REGISTER(0), DL_REGISTER(1), DL_REGISTER(2),
            DL_REGISTER(3))
DL_LDMATRIX(ldmatrix_x1_trans, 1, true, "x1.trans", "{%0}, [%1]", DL_REGISTER(0))
DL_LDMATRIX(ldmatrix_x2_trans, 2, true, "x2.trans", "{%0, %1}, [%2]", DL_REGISTER(0), DL_REGISTER(1))
DL_LDMATRIX(ldmatrix_x4_trans, 4, true, "x4.trans", "{%0, %1, %2, %3}, [%4]", DL_REGISTER(0), DL_REGISTER(1),
            DL_REGISTER(2), DL_REGISTER(3))
#undef DL_REGISTER
#undef DL_LDMATRIX

// ---- mma.sync: C (16 x 8, float32) += A (16 x k) * B (k x 8) by the 32 lanes of a warp ----
// With g = lane / 4 and t = lane % 4, a lane holds C[g][2t, 2t+1], C[g+8][2t, 2t+1]; 16-bit types:
//   a[0] = A[g][2t, 2t+1], a[1] = A[g+8][2t, 2t+1], a[2], a[3] the same, column + 8; b0 = B[2t, 2t+1][g], b1 row + 8
// and tf32: a[0] = A[g][t], a[1] = A[g+8][t], a[2], a[3] the same, column + 4; b0 = B[t][g], b1 row + 4.

// The accumulators; what follows the macro are the operands.
#define DL_MMA(shape, types, A, B)                                      \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." types          \
               ".f32 {%0, %1, %2, %3}, " A ", " B ", {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])

// k = 8, float16 (sm_75): a[0], a[1] and b0 of the above.
__device__ inline void mma_m16n8k8_f16(float (&c)[4], unsigned a0, unsigned a1, unsigned b0) {
#if defined(DL_HOST)
  const unsigned a[2] = {a0, a1};
  host::mma(host::Input::half, 8, c, a, &b0);
#elif DL_ARCH >= 750
  DL_MMA("m16n8k8", "f16.f16", "{%4, %5}", "{%6}") : "r"(a0), "r"(a1), "r"(b0));
#else
  __trap();
#endif
}

// k = 16, T = __half (sm_80; on sm_75 as two halves of k = 8) or __nv_bfloat16 (sm_80).
template <typename T>
__device__ inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ inline void mma_m16n8k16<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(DL_HOST)
  const unsigned b[2] = {b0, b1};
  host::mma(host::Input::half, 16, c, a, b);
#elif DL_ARCH >= 800
  DL_MMA("m16n8k16", "f16.f16", "{%4, %5, %6, %7}", "{%8, %9}")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  mma_m16n8k8_f16(c, a[0], a[1], b0);
  mma_m16n8k8_f16(c, a[2], a[3], b1);
#endif
}

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(DL_HOST)
  const unsigned b[2] = {b0, b1};
  host::mma(host::Input::bfloat16, 16, c, a, b);
#elif DL_ARCH >= 800
  DL_MMA("m16n8k16", "bf16.bf16", "{%4, %5, %6, %7}", "{%8, %9}")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// k = 8, tf32 (sm_80): float bits of which the hardware reads the upper 19; to_tf32 rounds to them.
__device__ inline void mma_m16n8k8_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if defined(DL_HOST)
  const unsigned b[2] = {b0, b1};
  host::mma(host::Input::tf32, 8, c, a, b);
#elif DL_ARCH >= 800
  DL_MMA("m16n8k8", "tf32.tf32", "{%4, %5, %6, %7}", "{%8, %9}")
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// To nearest, ties away from zero (sm_80; before, the plain bits).
__device__ inline unsigned to_tf32(float x) {
#if DL_ARCH >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#elif defined(DL_HOST)
  const unsigned bits = __float_as_uint(x);
  return x - x == 0.f ? (bits + 0x1000u) & ~0x1fffu : bits;  // infinities and NaN as they are
#else
  return __float_as_uint(x);
#endif
}

#undef DL_MMA

}  // namespace dl
