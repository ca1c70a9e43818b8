// Hopper's own instructions (sm_90a), each behind a function: mbarrier, TMA, wgmma, setmaxnreg, named barriers. They exist
// where DL_HOPPER is 1: in machine code for sm_90a, and in the host build, where each has the meaning that the PTX ISA
// gives it (bindings/host/hopper.cpp). A kernel that needs them is `#if DL_HOPPER` its body, else a trap: plans launch it
// on compute capability 9.0 alone.
#pragma once
#include "arch.cuh"

#if defined(DL_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DL_HOPPER 1
#else
#define DL_HOPPER 0
#endif

// Before the name of a kernel: blocks of a cluster, side by side along x. They are a fact of the machine code, so every launch
// starts them together, and its grid is a multiple. On a CPU they start when the first asks for its `cluster_rank`.
#if DL_HOPPER && !defined(DL_HOST)
#define DL_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define DL_CLUSTER(blocks)
#endif

namespace dl {

// What TMA has to know of an array: the bytes of the driver's CUtensorMap on a GPU, the host build's own on a CPU. Made by
// a launcher (`tensor_map`), passed by value as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  unsigned long long words[16];
};
static_assert(sizeof(TensorMap) == 128, "a CUtensorMap");

#if DL_HOPPER

// Where the shared state space has it: swizzling is by that address.
__device__ inline unsigned shared_space_offset(const void* shared) {
#if defined(DL_HOST)
  return host::shared_offset(shared);
#else
  return shared_address(shared);
#endif
}

// ---- clusters (PTX ISA "barrier.cluster", "mapa"): blocks that run together and reach each other's shared memory ----

// The number of this block within its cluster.
template <int kBlocks>
__device__ inline int cluster_rank() {
#if defined(DL_HOST)
  return host::cluster_rank(kBlocks);
#else
  return blockIdx.x % kBlocks;
#endif
}

// All threads of all blocks meet; what they did before is known to all.
__device__ inline void cluster_barrier() {
#if defined(DL_HOST)
  host::cluster_barrier();
#else
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// ---- mbarrier (PTX ISA "Parallel Synchronization and Communication Instructions: mbarrier") ----
// A phase ends when `count` arrivals are in and all bytes that they expect have landed; then the next one begins.
// Phases have numbers 0, 1, ...; to wait for parity p is to wait until the phase at hand has another parity than p.
using Barrier = unsigned long long;

__device__ inline void barrier_init(Barrier* barrier, unsigned count) {
#if defined(DL_HOST)
  host::barrier_init(barrier, count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// Makes this thread's barrier_init known to TMA; the other threads need __syncthreads as well.
__device__ inline void barrier_init_fence() {
#if !defined(DL_HOST)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void barrier_arrive(Barrier* barrier) {
#if defined(DL_HOST)
  host::barrier_arrive(barrier, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives at the barrier that lies at this place in block `rank` of the cluster. Not `.release.cluster`, which puts a
// MEMBAR.ALL.GPU before each arrival (seen in SASS): it may say that wgmma has read its operands, nothing else.
__device__ inline void barrier_arrive(Barrier* barrier, unsigned rank) {
#if defined(DL_HOST)
  host::barrier_arrive_at(barrier, rank);
#else
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}

// Arrives, and lets the phase expect `bytes` from TMA.
__device__ inline void barrier_arrive_expect(Barrier* barrier, unsigned bytes) {
#if defined(DL_HOST)
  host::barrier_arrive(barrier, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

__device__ inline void barrier_wait(Barrier* barrier, unsigned parity) {
#if defined(DL_HOST)
  host::barrier_wait(barrier, parity);
#else
  unsigned done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
#endif
}

// ---- TMA (PTX ISA "cp.async.bulk.tensor"; one thread asks, the copy engine does) ----
// Coordinates count elements from the first axis, the contiguous one, on, and may lie outside: what is read there is zero,
// what would be written there is not. Shared memory is a multiple of 1024 where the map swizzles by 128 bytes. A load for
// several kBlocks (".multicast::cluster") lands at this place in each of the first kBlocks of the cluster, and counts for
// the barrier at this place there.
__device__ constexpr unsigned short cluster_mask(int blocks) { return (1 << blocks) - 1; }

// The box of a map with three axes at (x, y, z); its bytes count for the barrier's phase.
template <int kBlocks = 1>
__device__ inline void tma_load(void* shared, const TensorMap& map, Barrier* barrier, int x, int y, int z) {
#if defined(DL_HOST)
  const int at[] = {x, y, z};
  host::tma_load(shared, &map, barrier, at, nullptr, kBlocks > 1 ? cluster_mask(kBlocks) : 0);
#else
  if constexpr (kBlocks > 1) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "h"(cluster_mask(kBlocks))
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
  }
#endif
}

// Of images (C, W, H, N) in im2col mode ("Tensors: im2col mode"): channels c .. of the map's number of pixels from
// (w, h, n) on, walking over the map's bounding box row by row and image by image, each moved by the offsets of one tap.
template <int kBlocks = 1>
__device__ inline void tma_load_im2col(void* shared, const TensorMap& map, Barrier* barrier, int c, int w, int h, int n,
                                       unsigned short move_w, unsigned short move_h) {
#if defined(DL_HOST)
  const int at[] = {c, w, h, n};
  const unsigned short moves[] = {move_w, move_h};
  host::tma_load(shared, &map, barrier, at, moves, kBlocks > 1 ? cluster_mask(kBlocks) : 0);
#else
  if constexpr (kBlocks > 1) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(shared_address(shared)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(move_w), "h"(move_h),
        "h"(cluster_mask(kBlocks))
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(move_w), "h"(move_h)
        : "memory");
  }
#endif
}

// Shared memory to the box at (x, y, z). What ordinary stores wrote there needs async_fence() by each writer and a barrier.
__device__ inline void tma_store(const TensorMap& map, const void* shared, int x, int y, int z) {
#if defined(DL_HOST)
  const int at[] = {x, y, z};
  host::tma_store(&map, shared, at);
#else
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
               : "memory");
#endif
}

// Closes the group of this thread's stores since the last commit.
__device__ inline void tma_store_commit() {
#if defined(DL_HOST)
  host::commit_stores();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Until at most the last `Left` groups of this thread have still to read their shared memory.
template <int Left>
__device__ inline void tma_store_wait_read() {
#if defined(DL_HOST)
  host::wait_stores(Left);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Left) : "memory");
#endif
}

// This thread's ordinary accesses to shared memory come before later ones by TMA and wgmma.
__device__ inline void async_fence() {
#if defined(DL_HOST)
  host::async_fence();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- threads ----

// The threads of `Count` that call it with this number, 1 to 15, meet.
template <int Number, int Count>
__device__ inline void named_barrier() {
#if defined(DL_HOST)
  host::named_barrier(Number, Count);
#else
  asm volatile("bar.sync %0, %1;" ::"n"(Number), "n"(Count) : "memory");
#endif
}

// Registers of each thread of a warpgroup from here on: a multiple of 8. What some give back, others can get.
template <int Registers>
__device__ inline void fewer_registers() {
#if !defined(DL_HOST)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
__device__ inline void more_registers() {
#if !defined(DL_HOST)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

// ---- wgmma (PTX ISA "Asynchronous Warpgroup Level Matrix Instructions") ----
// D (64 x N, float32) += A (64 x 16) * B (N x 16)^T by the 128 threads of a warpgroup, A and B in shared memory. Thread
// 32 w + 4 g + t holds d[4 j + 0, 1] = D[16 w + g][8 j + 2 t, + 1] and d[4 j + 2, 3] = the same of row + 8.
//
// A descriptor (section "Matrix Descriptor Format") holds bits 4 to 17 of three numbers of bytes, and the swizzle:
//   bits 0-13 the start, 16-29 the leading offset, 32-45 the stride offset, 49-51 base offset 0, 62-63 swizzle 1: 128 bytes.
// With that swizzle the operand consists of atoms of 1024 bytes (section "Shared Memory Matrix Layout"): 8 lines of 128
// bytes, whose 16-byte chunks are stored in the order XOR line % 8, which is what TMA makes of a box 128 bytes wide at a
// multiple of 1024. The meaning of the offsets (section "Strides"; CUTLASS's mma_traits_sm90_gmma.hpp says the same):
//   K-major: a line is 64 places along the depth of one row. Stride: from 8 rows to the next 8; leading: not used.
//   MN-major: a line is 64 rows at one place of the depth. Stride: from 8 places to the next 8; leading: from 64 rows to
//   the next 64.
// The next 16 places of the depth are 32 bytes on within the lines of a K-major operand, two atoms on in an MN-major one.
__device__ inline unsigned long long operand_descriptor(const void* shared, unsigned leading, unsigned stride) {
  return (shared_space_offset(shared) & 0x3ffff) >> 4 | (unsigned long long)(leading >> 4) << 16 | (unsigned long long)(stride >> 4) << 32 |
         1ull << 62;
}

// Of the same operand, so many bytes on.
__device__ inline unsigned long long further(unsigned long long descriptor, unsigned bytes) { return descriptor + (bytes >> 4); }

// Before the first wgmma, and whenever the accumulators or shared memory were touched by other means.
__device__ inline void wgmma_fence() {
#if defined(DL_HOST)
  host::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ inline void wgmma_commit() {
#if defined(DL_HOST)
  host::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most the last `Left` groups are in flight: no other has still to read its operands. With 0 the accumulators are
// there.
template <int Left>
__device__ inline void wgmma_wait() {
#if defined(DL_HOST)
  host::wgmma_wait(Left);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
#endif
}

// Without `add` D starts from zero. Deep: the operand is K-major.
#define DL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DL_D16(i) DL_D4(i), DL_D4(i + 4), DL_D4(i + 8), DL_D4(i + 12)
#define DL_D64(i) DL_D16(i), DL_D16(i + 16), DL_D16(i + 32), DL_D16(i + 48)
#define DL_REGISTERS_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
  "%59, %60, %61, %62, %63"
#define DL_REGISTERS_256 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
  "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
  "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
  "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DL_OPERANDS(a, b, p, turn_a, turn_b) a ", " b ", p, 1, 1, " turn_a ", " turn_b ";\n}"
#if defined(DL_HOST)
#define DL_WGMMA(T, type, kind, N, operands, predicate, ...)                                         \
  template <bool DeepA, bool DeepB>                                                                  \
  __device__ inline void wgmma(T, float (&d)[N / 2], unsigned long long a, unsigned long long b, bool add) { \
    host::wgmma(host::Input::kind, N, d, a, b, add, DeepA, DeepB);                                   \
  }
#else
#define DL_WGMMA(T, type, kind, N, operands, predicate, ...)                                         \
  template <bool DeepA, bool DeepB>                                                                  \
  __device__ inline void wgmma(T, float (&d)[N / 2], unsigned long long a, unsigned long long b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate ", 0;\n"                              \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" DL_REGISTERS_##N "}, " operands \
                 : __VA_ARGS__                                                                       \
                 : "l"(a), "l"(b), "r"(int(add)), "n"(int(!DeepA)), "n"(int(!DeepB)));               \
  }
#endif
#define DL_WGMMAS(T, type, kind)                                                                               \
  DL_WGMMA(T, type, kind, 128, DL_OPERANDS("%64", "%65", "%66", "%67", "%68"), "%66", DL_D64(0))               \
  DL_WGMMA(T, type, kind, 256, DL_OPERANDS("%128", "%129", "%130", "%131", "%132"), "%130", DL_D64(0), DL_D64(64))
DL_WGMMAS(__half, "f16", half)
DL_WGMMAS(__nv_bfloat16, "bf16", bfloat16)
#undef DL_WGMMAS
#undef DL_WGMMA
#undef DL_OPERANDS
#undef DL_REGISTERS_256
#undef DL_REGISTERS_128
#undef DL_D64
#undef DL_D16
#undef DL_D4

#endif  // DL_HOPPER

}  // namespace dl
