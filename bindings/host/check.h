// The checker of the "check" flavour: races, reads of shared memory that nobody wrote, accesses out of bounds, bank
// conflicts. The kernels are compiled with -fsanitize=thread but linked without its library: check.cpp itself defines
// __tsan_read4 and its kin, and so sees every load and store. In the other flavours these calls are nothing.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "block.h"

namespace dl::host::check {

struct Conflicts {
  const void* pc;
  unsigned long long wavefronts, needed;  // passes through shared memory; how many a conflict-free pattern takes
};

#ifdef DL_CHECK
void begin_launch(const std::vector<Argument>& memory);
void new_shared(const SharedPiece& piece);
void begin_block();
void end_block();
void barrier();
void cluster_barrier();
void sync_warp(Thread* lanes, unsigned who);
void read(const void* address, int bytes, const void* pc, const Thread& thread);  // on behalf of `thread`
void copy_begins(void* address, int bytes, const void* pc);
void copy_ends(void* address, int bytes, const void* pc);
std::vector<Conflicts> bank_conflicts();  // of the last launch, in the block that ran first
#else
inline void begin_launch(const std::vector<Argument>&) {}
inline void new_shared(const SharedPiece&) {}
inline void begin_block() {}
inline void end_block() {}
inline void barrier() {}
inline void cluster_barrier() {}
inline void sync_warp(Thread*, unsigned) {}
inline void read(const void*, int, const void*, const Thread&) {}
inline void copy_begins(void*, int, const void*) {}
inline void copy_ends(void*, int, const void*) {}
inline std::vector<Conflicts> bank_conflicts() { return {}; }
#endif

}  // namespace dl::host::check
