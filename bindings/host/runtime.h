// What a running kernel asks of the host runtime. shim.h and arch.cuh wrap these in CUDA's names, inline and thin: what
// touches memory lies behind these calls, because the runtime, unlike the kernels, is compiled without instrumentation.
#pragma once

namespace dl::host {

[[noreturn]] void fail(const char* message);  // ends the launch: message, block, thread

// A variable of the block. The instance is static in the kernel; `allocate` gives it a place once per launch, the same one
// in the shared memory of each block of a cluster.
struct SharedVariable {
  const char* name;
  unsigned bytes, element_bytes;
  unsigned long long launch = 0;
  void* address = nullptr;
};
extern unsigned long long launch_number;
extern unsigned long block_offset;  // from the shared memory of the cluster's first block to that of the running one
void allocate(SharedVariable& variable);
inline void* address(SharedVariable& variable) {
  if (variable.launch != launch_number) allocate(variable);
  return static_cast<char*>(variable.address) + block_offset;
}
void* dynamic_shared();

// The number of threads whose predicate holds. All must come from the same line.
int barrier(const char* name, bool predicate, const char* file, int line);

enum class Shuffle { index, up, down, exclusive_or };
void shuffle(Shuffle kind, unsigned mask, void* value, int bytes, int operand, int width);
unsigned ballot(const char* name, unsigned mask, bool predicate);
void sync_warp(unsigned mask);
unsigned live_lanes();

void copy_async(void* shared, const void* global, int bytes, bool valid);  // bytes zeros if not valid
void commit_copies();
void wait_copies(int groups_left);

void load_matrix(unsigned* fragment, int count, bool transposed, const void* row);
enum class Input { half, bfloat16, tf32 };
void mma(Input type, int k, float* c, const unsigned* a, const unsigned* b);  // m16n8k8, m16n8k16

// What hopper.cuh has beyond that (hopper.cpp). `at`: coordinates, contiguous axis first; `moves`: of im2col mode, else null;
// `mask`: the blocks of the cluster that get a load, 0: this one.
unsigned cluster_rank(unsigned size);  // of this block; the first to ask starts the others of the cluster
void cluster_barrier();
unsigned shared_offset(const void* shared);  // its address in the shared state space
void barrier_init(void* barrier, unsigned count);
void barrier_arrive(void* barrier, unsigned expected_bytes);
void barrier_arrive_at(void* barrier, unsigned rank);
void barrier_wait(void* barrier, unsigned parity);
void named_barrier(unsigned number, unsigned count);
void tma_load(void* shared, const void* map, void* barrier, const int* at, const unsigned short* moves, unsigned mask);
void tma_store(const void* map, const void* shared, const int* at);
void commit_stores();
void wait_stores(int groups_left);
void async_fence();
void wgmma_fence();
void wgmma(Input type, int n, float* d, unsigned long long a, unsigned long long b, bool add, bool deep_a, bool deep_b);
void wgmma_commit();
void wgmma_wait(int groups_left);

void note_atomic(void* address, int bytes, const void* pc);  // for the checker

}  // namespace dl::host
