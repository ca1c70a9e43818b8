// The state of the block or cluster that is running, for the files of the runtime. There is one at a time: launches are
// serial.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "kernel.h"
#include "runtime.h"

extern uint3 threadIdx, blockIdx;  // to the kernels they are constants
extern dim3 blockDim, gridDim;

namespace dl::host {

constexpr unsigned kMaxThreads = 1024, kMaxShared = 227 << 10, kMaxStaticShared = 48 << 10, kMaxCluster = 2;

struct Kernel {
  std::string name;
  const Parameter* parameters;
  int count;
  Function function;
  void (*call)(Function kernel, void** arguments);
};
std::vector<Kernel>& kernels();  // one for each DL_KERNEL line of the linked files

struct Copy {  // one cp.async
  void* to;
  const void* from;
  int bytes;
  bool valid, landed;
  unsigned group;
  const void* pc;
};

struct Thread;
// Runs once, when all lanes of `who` have arrived at a warp operation: lane i is lanes[i].
using WarpOperation = void (*)(Thread* lanes, unsigned who);

struct Thread {
  uint3 index{};
  unsigned id = 0, lane = 0, block = 0;  // `id` counts through all blocks that run, `block` is one of them
  enum State { ready, waiting, done } state = ready;
  Fiber* fiber = nullptr;  // from its first turn on

  // While waiting: the CUDA name of what for; then, for a barrier, where, and for a warp operation, the rest.
  const char* waits_for = nullptr;
  const char* file = nullptr;
  int line = 0;
  WarpOperation operation = nullptr;
  unsigned mask = 0;
  const void* pc = nullptr;
  void* operands = nullptr;

  const void* waits_on = nullptr;  // the object that a wake() has to name

  std::vector<Copy> copies;  // not yet waited for
  unsigned copy_group = 0;   // the one that the next commit closes
};

struct Warp {
  unsigned live = 0, arrived = 0;  // lanes that have not ended; lanes waiting at a warp operation
};

struct SharedPiece {
  const char* name;
  char* begin;
  unsigned bytes, element_bytes;
};

struct Argument {  // memory that the kernel may touch
  char *begin, *end;
  unsigned element_bytes;
  std::string name;
};

enum class Order { forward, reverse, random };  // in the order of those in launchers/host.py
enum class Copies { late, early, random };
struct Options {
  Order order = Order::forward, block_order = Order::forward;
  Copies copies = Copies::late;
  unsigned seed = 0;
};
extern Options options;

extern Thread* self;  // the running thread
extern Thread threads[kMaxThreads];
extern unsigned thread_count, block_threads, block_count;  // of all blocks that run, of each; how many they are
extern uint3 block_index[kMaxCluster];
extern std::vector<SharedPiece> shared_pieces;
extern char* const shared_memory;  // kArenaBytes for each block
extern const unsigned kArenaBytes;
inline char* own_shared() { return shared_memory + block_offset; }
extern std::mt19937 dice;

// Suspends the thread until every live lane of `mask` has called the same; the last to come runs the operation for all.
void warp_operation(const char* name, unsigned mask, void* operands, WarpOperation operation, const void* pc);
#define DL_ALL_LANES 0xffffffffu
#define DL_RETURN_ADDRESS __builtin_return_address(0)

// Suspends the thread until somebody wakes those who wait on `what`.
void sleep_on(const void* what, const char* name, const void* pc);
void wake(const void* what);
char* in_block(void* own, unsigned rank);  // the same place in another block of the cluster (mapa); null if it has none
float from_16_bits(Input type, unsigned bits);  // half or bfloat16

// hopper.cpp: what the copy engine and the tensor cores still have to do.
void begin_block_async();
bool advance_async();  // lands one copy, when no thread can run; false if there is none
void end_thread_async();
std::string end_block_async();  // what is wrong, or ""

[[noreturn]] void fail(const std::string& message);
std::string describe(const uint3& index);   // (x,y,z)
std::string code_position(const void* pc);  // "@+0x1234@"; the Python side turns it into file:line
void finish_copies();                       // at the end of a thread: an error if any are left

// Throws std::runtime_error with what went wrong in which kernel, block and thread.
void launch(const Kernel& kernel, dim3 grid, dim3 block, void** arguments, const std::vector<Argument>& memory,
            long long shared_bytes);

}  // namespace dl::host
