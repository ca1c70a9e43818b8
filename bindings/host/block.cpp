// Runs the blocks of a launch one after the other, or cluster by cluster, and their threads in turns: a thread keeps going
// until it waits for others (a barrier, a warp operation) or ends, and then hands over to the next one that can run.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>

#include "check.h"

#ifdef DL_ASAN
#include <sanitizer/asan_interface.h>
#else
static void __asan_poison_memory_region(const void*, size_t) {}
static void __asan_unpoison_memory_region(const void*, size_t) {}
static void __asan_set_error_report_callback(void (*)(const char*)) {}
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace dl::host {

Options options;
Thread* self = nullptr;
Thread threads[kMaxThreads];
unsigned thread_count = 0, block_threads, block_count;
uint3 block_index[kMaxCluster];
unsigned long block_offset = 0;
std::vector<SharedPiece> shared_pieces;
unsigned long long launch_number = 0;
std::mt19937 dice;

extern const unsigned kArenaBytes = 1 << 20;  // room for red zones around many small variables
char* const shared_memory = static_cast<char*>(
    mmap(nullptr, kMaxCluster * kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));

namespace {

constexpr unsigned kRedZone = 128;  // between shared variables: nobody may touch it

const Kernel* kernel = nullptr;
void** arguments = nullptr;
Warp warps[kMaxThreads / 32];
unsigned order[kMaxThreads];  // in which threads get their turns
unsigned cursor, runnable;
unsigned static_bytes, dynamic_bytes, arena_used;
std::string error;

struct Barrier {
  const char *name = nullptr, *file = nullptr;
  int line = 0;
  unsigned arrived = 0, votes = 0, result = 0;
} barriers[kMaxCluster];
unsigned prepared_blocks;                      // how many have threads and shared memory in this launch
std::set<unsigned long long> ran_in_clusters;  // blocks whose turn has still to come

Fiber scheduler;  // the stack that Python called us on
Fiber fibers[kMaxThreads];
std::vector<Fiber*> idle;

void shuffle_order(Order how, unsigned* first, unsigned count) {
  std::iota(first, first + count, 0u);
  if (how == Order::reverse) std::reverse(first, first + count);
  if (how == Order::random) std::shuffle(first, first + count, dice);
}

void thread_main();

void prepare_fibers() {
  static char* stacks = map_stacks(kMaxThreads);
  idle.clear();
  for (unsigned i = kMaxThreads; i-- > 0;) {
    fibers[i].bottom = stacks + i * kStackBytes;
    fibers[i].bytes = kStackBytes;
    prepare(fibers[i], &thread_main);
    idle.push_back(&fibers[i]);
  }
}

bool all_done() {
  return std::all_of(threads, threads + thread_count, [](auto& t) { return t.state == Thread::done; });
}

Thread* next_runnable() {
  while (!runnable)
    if (all_done() || !advance_async()) return nullptr;
  for (;;) {
    if (cursor == thread_count) {
      cursor = 0;
      if (options.order == Order::random) std::shuffle(order, order + thread_count, dice);
    }
    Thread& thread = threads[order[cursor++]];
    if (thread.state == Thread::ready) return &thread;
  }
}

void enter(Thread* thread) {
  self = thread;
  if (!thread) return;
  threadIdx = thread->index;
  blockIdx = block_index[thread->block];
  block_offset = thread->block * kArenaBytes;
}

// Leaves the stack `from` for that of `next`, or for the scheduler if there is none.
void hand_over(Fiber& from, Thread* next) {
  Fiber* to = &scheduler;
  if (next) {
    if (!next->fiber) {
      next->fiber = idle.back();
      idle.pop_back();
    }
    to = next->fiber;
  }
  enter(next);
  if (to != &from) switch_fiber(from, *to);
}

void suspend() {
  Thread* thread = self;
  if (thread->state == Thread::waiting) hand_over(*thread->fiber, next_runnable());
}

void release(Thread& thread) {
  thread.state = Thread::ready;
  ++runnable;
}

void wait(const char* name) {
  self->waits_for = name;
  self->state = Thread::waiting;
  --runnable;
}

// Runs the operation that `lane` of the warp waits for, if all are there.
void complete(unsigned warp_index, unsigned lane) {
  Warp& warp = warps[warp_index];
  Thread* lanes = threads + 32 * warp_index;
  unsigned who = lanes[lane].mask & warp.live;
  if ((warp.arrived & who) != who) return;
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1 && lanes[i].mask != lanes[lane].mask) return;  // it waits at another operation
  lanes[lane].operation(lanes, who);
  warp.arrived &= ~who;
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1) release(lanes[i]);
}

void end_thread() {
  finish_copies();
  end_thread_async();
  self->state = Thread::done;
  --runnable;
  Warp& warp = warps[self->id / 32];
  warp.live &= ~(1u << self->lane);
  for (unsigned i = 0; i < 32; ++i)  // they may have waited for this thread only
    if (warp.arrived >> i & 1) complete(self->id / 32, i);
}

void thread_main() {
  for (;;) {
    kernel->call(kernel->function, arguments);
    end_thread();
    Fiber* fiber = self->fiber;
    self->fiber = nullptr;
    Thread* next = next_runnable();
    if (next && !next->fiber) {  // a thread that has not begun can do so here: no switch at all
      next->fiber = fiber;
      enter(next);
    } else {
      idle.push_back(fiber);
      hand_over(*fiber, next);
    }
  }
}

std::string position(const Thread& thread) {
  if (thread.waits_on) return code_position(thread.pc);
  if (!thread.operation) return std::string(thread.file) + ":" + std::to_string(thread.line);
  char mask[24];
  snprintf(mask, sizeof mask, "mask 0x%08x, ", thread.mask);
  return mask + code_position(thread.pc);
}

// Who waits where, when nobody can run.
std::string deadlock() {
  std::map<std::string, std::vector<const Thread*>> groups;
  for (unsigned i = 0; i < thread_count; ++i) {
    const Thread& t = threads[i];
    groups[t.state == Thread::done ? "ended" : std::string("wait at ") + t.waits_for + " (" + position(t) + ")"]
        .push_back(&t);
  }
  std::string text = "deadlock: the threads do not meet";
  for (const auto& [where, who] : groups) {
    text += "; " + std::to_string(who.size()) + " " + where + ", thread " + describe(who[0]->index);
    if (who.size() > 1) text += " ... " + describe(who.back()->index);
  }
  return text;
}

void prepare(SharedPiece piece, unsigned block) {
  piece.begin += block * kArenaBytes;
  __asan_unpoison_memory_region(piece.begin, piece.bytes);
  memset(piece.begin, 0xFF, piece.bytes);  // NaN in every floating-point type, so that a read before a write is seen
  check::new_shared(piece);
}

void place(const char* name, unsigned bytes, unsigned element_bytes) {
  shared_pieces.push_back({name, shared_memory + arena_used, bytes, element_bytes});
  arena_used += (bytes + kRedZone - 1) / kRedZone * kRedZone + kRedZone;
  if (arena_used > kArenaBytes) fail("too many __shared__ variables");
  for (unsigned block = 0; block < prepared_blocks; ++block) prepare(shared_pieces.back(), block);
}

// Threads and shared memory of one more block of this launch.
void prepare_block() {
  const unsigned block = prepared_blocks++;
  for (unsigned i = 0; i < block_threads; ++i) {
    Thread& thread = threads[block * block_threads + i];
    thread.id = block * block_threads + i;
    thread.lane = i % 32;
    thread.block = block;
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  }
  for (const SharedPiece& piece : shared_pieces) prepare(piece, block);
}

// One more block joins those that run.
void begin_block(uint3 index) {
  const unsigned block = block_count++;
  if (block == prepared_blocks) prepare_block();
  block_index[block] = index;
  barriers[block] = {};
  for (const SharedPiece& piece : shared_pieces) memset(piece.begin + block * kArenaBytes, 0xFF, piece.bytes);
  for (unsigned i = thread_count; i < thread_count + block_threads; ++i) {
    threads[i].state = Thread::ready;
    threads[i].copy_group = 0;
    threads[i].waits_on = nullptr;
    if (i % 32 == 0) warps[i / 32] = {};
    warps[i / 32].live |= 1u << i % 32;
  }
  thread_count += block_threads;
  runnable += block_threads;
  shuffle_order(options.order, order, thread_count);
  cursor = 0;
}

void run_block(uint3 index) {
  thread_count = block_count = runnable = 0;
  begin_block_async();
  begin_block(index);
  check::begin_block();
  hand_over(scheduler, next_runnable());
  if (error.empty() && !all_done()) error = "block " + describe(blockIdx) + ": " + deadlock();
  if (error.empty()) error = end_block_async();
  check::end_block();
  if (error.empty()) return;
  for (Thread& thread : threads) {  // the suspended stacks are abandoned: kernels own nothing that needs a destructor
    thread.fiber = nullptr;
    thread.copies.clear();
  }
  prepare_fibers();
  throw std::runtime_error("[" + kernel->name + "] " + error);
}

// AddressSanitizer ends the process after its report; this adds whose doing it was.
void name_thread(const char*) {
  if (self)
    fprintf(stderr, "[%s] block %s thread %s\n", kernel->name.c_str(), describe(blockIdx).c_str(),
            describe(self->index).c_str());
}

void check_limits(dim3 grid, dim3 block, long long shared_bytes) {
  auto demand = [](bool holds, const std::string& rule) {
    if (!holds) throw std::runtime_error("[" + kernel->name + "] " + rule);
  };
  auto text = [](dim3 d) { return describe(uint3{d.x, d.y, d.z}); };
  demand(grid.x && grid.y && grid.z && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535,
         "a grid has 1 to 2^31-1, 65535, 65535 blocks along x, y, z; got " + text(grid));
  demand(block.x && block.y && block.z && block.z <= 64 && 1ull * block.x * block.y * block.z <= kMaxThreads &&
             block.x <= kMaxThreads && block.y <= kMaxThreads,
         "a block has 1 to 1024 threads, at most 64 along z; got " + text(block));
  demand(shared_bytes >= 0 && shared_bytes <= kMaxShared, "a block has at most " + std::to_string(kMaxShared) +
                                                              " bytes of shared memory; asked for " +
                                                              std::to_string(shared_bytes));
}

}  // namespace

void fail(const std::string& message) {
  error = "block " + describe(blockIdx) + " thread " + describe(self->index) + ": " + message;
  hand_over(*self->fiber, nullptr);
  __builtin_unreachable();
}

void fail(const char* message) { fail(std::string(message)); }

std::string describe(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;  // where the linker put this module

std::string code_position(const void* pc) {
  char text[32];
  snprintf(text, sizeof text, "@+0x%zx@", size_t(static_cast<const char*>(pc) - &__ehdr_start));
  return text;
}

void allocate(SharedVariable& variable) {
  static_bytes += (variable.bytes + 15) / 16 * 16;
  if (static_bytes > kMaxStaticShared || static_bytes + dynamic_bytes > kMaxShared)
    fail("too much shared memory at variable " + std::string(variable.name) + ": " + std::to_string(static_bytes) +
         " bytes static (at most " + std::to_string(kMaxStaticShared) + ") + " + std::to_string(dynamic_bytes) +
         " dynamic (at most " + std::to_string(kMaxShared) + " in all)");
  variable.address = shared_memory + arena_used;
  variable.launch = launch_number;
  place(variable.name, variable.bytes, variable.element_bytes);
}

void* dynamic_shared() { return shared_memory + block_offset + kRedZone; }

int barrier(const char* name, bool predicate, const char* file, int line) {
  Barrier& b = barriers[self->block];
  Thread *const first = threads + self->block * block_threads, *const end = first + block_threads;
  self->file = file;
  self->line = line;
  self->operation = nullptr;
  if (b.arrived && (b.line != line || (b.file != file && strcmp(b.file, file)) || strcmp(b.name, name))) {
    const Thread* other = std::find_if(
        first, end, [](auto& t) { return t.state == Thread::waiting && !t.operation && !t.waits_on; });
    fail("divergent barrier: this thread is at " + std::string(name) + " (" + position(*self) + ") while thread " +
         describe(other->index) + " waits at " + other->waits_for + " (" + position(*other) + ")");
  }
  b.name = name;
  b.file = file;
  b.line = line;
  b.votes += predicate;
  if (++b.arrived < block_threads) {  // threads that have ended count too: to leave before a barrier is a bug
    wait(name);
    suspend();
    return b.result;
  }
  b.result = b.votes;
  b.arrived = b.votes = 0;
  for (Thread* other = first; other < end; ++other)
    if (other != self) release(*other);
  check::barrier();
  return b.result;
}

void warp_operation(const char* name, unsigned mask, void* operands, WarpOperation operation, const void* pc) {
  unsigned warp_index = self->id / 32;
  Warp& warp = warps[warp_index];
  self->mask = mask;
  self->operation = operation;
  self->operands = operands;
  self->pc = pc;
  if (!(mask >> self->lane & 1)) fail(std::string(name) + " (" + position(*self) + ") by a lane not in its mask");
  for (unsigned there = warp.arrived & mask; there; there &= there - 1) {
    const Thread& other = threads[32 * warp_index + __builtin_ctz(there)];
    if (!(other.mask >> self->lane & 1)) continue;  // it waits for others, and may come here later
    bool agrees = other.mask == mask && other.operation == operation &&
                  (other.waits_for == name || !strcmp(other.waits_for, name));
    if (agrees) break;  // and so do the rest: they agreed with it when they came
    fail("divergent warp: this lane is at " + std::string(name) + " (" + position(*self) + ") while lane " +
         std::to_string(other.lane) + " waits at " + other.waits_for + " (" + position(other) + ")");
  }
  warp.arrived |= 1u << self->lane;
  wait(name);
  complete(warp_index, self->lane);
  suspend();
}

void sleep_on(const void* what, const char* name, const void* pc) {
  self->waits_on = what;
  self->operation = nullptr;
  self->pc = pc;
  wait(name);
  suspend();
}

void wake(const void* what) {
  for (unsigned i = 0; i < thread_count; ++i)
    if (threads[i].state == Thread::waiting && threads[i].waits_on == what) {
      threads[i].waits_on = nullptr;
      release(threads[i]);
    }
}

// What `__cluster_dims__` says to nvcc only the kernel's code says here.
unsigned cluster_rank(unsigned size) {
  const unsigned rank = blockIdx.x % size;
  if (block_count == size) return rank;
  const bool fits = size <= kMaxCluster && size * block_threads <= kMaxThreads && block_threads % 32 == 0;
  if (block_count > 1 || !fits || gridDim.x % size)
    fail("here a cluster has at most " + std::to_string(kMaxCluster) + " blocks of whole warps, with " +
         std::to_string(kMaxThreads) + " threads, and divides the grid; got " + std::to_string(size) + " blocks");
  uint3 other = blockIdx;
  for (unsigned r = 0; r < size; ++r) {
    if (r == rank) continue;
    other.x = blockIdx.x - rank + r;
    ran_in_clusters.insert(other.x + 1ull * gridDim.x * (other.y + 1ull * gridDim.y * other.z));
    begin_block(other);
  }
  return rank;
}

char* in_block(void* own, unsigned rank) {
  for (unsigned block = 0; block < block_count; ++block)
    if (block_index[block].x % block_count == rank)
      return static_cast<char*>(own) - block_offset + block * kArenaBytes;
  return nullptr;
}

unsigned live_lanes() { return warps[self->id / 32].live; }

void launch(const Kernel& what, dim3 grid, dim3 block, void** values, const std::vector<Argument>& memory,
            long long shared_bytes) {
  kernel = &what;
  check_limits(grid, block, shared_bytes);
  static bool prepared = (prepare_fibers(), true);
  (void)prepared;
  arguments = values;
  gridDim = grid;
  blockDim = block;
  ++launch_number;
  dice.seed(options.seed);
  error.clear();
  scheduler = Fiber();
  check::begin_launch(memory);

  __asan_set_error_report_callback(&name_thread);
  __asan_poison_memory_region(shared_memory, kMaxCluster * kArenaBytes);
  shared_pieces.clear();
  static_bytes = 0;
  arena_used = kRedZone;
  dynamic_bytes = unsigned(shared_bytes);
  block_threads = block.x * block.y * block.z;
  prepared_blocks = 0;
  ran_in_clusters.clear();
  prepare_block();
  place("dynamic shared memory", dynamic_bytes, 1);

  auto run = [&](unsigned long long i) {
    if (ran_in_clusters.erase(i)) return;
    run_block({unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (1ull * grid.x * grid.y))});
  };
  unsigned long long blocks = 1ull * grid.x * grid.y * grid.z;
  std::vector<unsigned> sequence;
  if (options.block_order == Order::random) {
    sequence.resize(blocks);
    shuffle_order(Order::random, sequence.data(), unsigned(blocks));
  }
  for (unsigned long long i = 0; i < blocks; ++i)
    run(!sequence.empty() ? sequence[i] : options.block_order == Order::reverse ? blocks - 1 - i : i);
}

}  // namespace dl::host
