// Every byte that a kernel may touch lies in a region, and every element of a region has a cell that remembers who
// wrote and who read it last. Two accesses of different threads, one a write, are in order only if a barrier lies
// between them.
// Time: `phase` counts barriers and blocks; since a block's last barrier, __syncwarp orders the lanes of a warp by vector
// clocks. Blocks of a cluster have the cluster's barriers.
#include "check.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#ifdef DL_CHECK

namespace dl::host {
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;  // this module in memory
}

namespace dl::host::check {
namespace {

struct Stamp {
  uint32_t phase = 0;  // 0: never
  uint16_t thread = 0;
  uint16_t clock : 14;
  uint16_t atomic : 1;
  uint16_t in_flight : 1;  // a cp.async wrote it and was not waited for
  uint32_t pc = 0;
};

struct Cell {
  Stamp write, reads[2];  // the last readers; two, so that a writer who also reads does not hide another reader
};

struct Region {
  char *begin, *end;
  unsigned element_bytes;
  bool shared;
  std::string name;
  std::unique_ptr<Cell, void (*)(void*)> cells;  // calloc: pages nobody touches cost nothing

  Region(char* begin, char* end, unsigned element_bytes, bool shared, std::string name)
      : begin(begin),
        end(end),
        element_bytes(element_bytes),
        shared(shared),
        name(std::move(name)),
        cells(static_cast<Cell*>(calloc((end - begin) / element_bytes + 1, sizeof(Cell))), free) {}
  bool holds(const char* p) const { return p >= begin && p < end; }
};

std::vector<Region> arguments, shared;
std::vector<uint8_t> shared_at;  // for each 16 bytes of the arena, 1 + index in `shared`; 0: red zone
Region* last_hit;

uint32_t phase = 0, launch_phase, block_phase;   // now; the first of this launch, of this block or cluster
uint32_t last_barrier[kMaxCluster], last_cluster_barrier;  // the phases that they began
std::vector<std::pair<uint32_t, uint3>> blocks;  // the first phase of each block of the launch
struct Clock {
  uint16_t now, seen[32];  // seen[i]: how many ticks of lane i are before us
} clocks[kMaxThreads];
bool clocks_used[kMaxCluster];

uint32_t offset(const void* pc) { return uint32_t(static_cast<const char*>(pc) - &__ehdr_start); }

std::string position(uint32_t pc) { return code_position(&__ehdr_start + pc); }

std::string element(const Region& region, const char* address) {
  return region.name + " + " + std::to_string(address - region.begin) + " bytes";
}

uint3 block_of(uint32_t when) {
  auto later = std::upper_bound(blocks.begin(), blocks.end(), when, [](uint32_t p, auto& b) { return p < b.first; });
  return std::prev(later)->second;
}

[[noreturn]] void race(const Region& region, const char* address, const Stamp& before, bool wrote, const char* now,
                       uint32_t pc, const Thread& thread) {
  unsigned t = before.thread;
  const bool now_running = before.phase >= block_phase, same_block = now_running && threads[t].block == thread.block;
  std::string other = "thread " + describe(threads[t].index);
  if (!same_block)
    other += " of block " + describe(now_running ? block_index[threads[t].block] : block_of(before.phase));
  fail("race on " + element(region, address) + ": thread " + describe(thread.index) + " " + now + " it at " +
       position(pc) + ", " + other + (wrote ? " wrote" : " read") + " it at " + position(before.pc) +
       (same_block ? ", no barrier in between" : ", and blocks have no order"));
}

bool in_order(const Stamp& before, const Thread& thread, uint32_t floor) {
  if (before.phase < floor) return true;  // nobody, or before this launch
  if (before.phase < block_phase) return false;
  if (threads[before.thread].block != thread.block) return before.phase < last_cluster_barrier;
  if (before.phase < last_barrier[thread.block] || before.thread == thread.id) return true;
  return before.thread / 32 == thread.id / 32 && before.clock < clocks[thread.id].seen[before.thread % 32];
}

void count_banks(const char* address, unsigned bytes, uint32_t pc, const Thread& thread);

enum class Kind { read, write, atomic, copy };

void access_cell(const Region& region, char* address, Kind kind, uint32_t pc, const Thread& thread) {
  static const char* const kVerbs[] = {"reads", "writes", "updates", "writes (cp.async)"};
  const char* verb = kVerbs[int(kind)];
  Cell& cell = region.cells.get()[(address - region.begin) / region.element_bytes];
  uint32_t floor = region.shared ? block_phase : launch_phase;
  bool written = cell.write.phase >= floor;
  if (written && cell.write.in_flight)
    fail(std::string("thread ") + describe(thread.index) + " " + verb + " " + element(region, address) + " at " +
         position(pc) + " while a cp.async to it is in flight (issued at " + position(cell.write.pc) + ")");
  if (!in_order(cell.write, thread, floor) && !(kind == Kind::atomic && cell.write.atomic))
    race(region, address, cell.write, true, verb, pc, thread);
  Stamp stamp;
  stamp.phase = phase;
  stamp.thread = uint16_t(thread.id);
  stamp.clock = clocks[thread.id].now & 0x3fff;
  stamp.atomic = kind == Kind::atomic;
  stamp.in_flight = kind == Kind::copy;
  stamp.pc = pc;
  if (kind == Kind::read) {
    if (region.shared && !written) fail("read of uninitialised " + element(region, address) + " at " + position(pc));
    if (cell.reads[0].phase >= floor && cell.reads[0].thread != stamp.thread) cell.reads[1] = cell.reads[0];
    cell.reads[0] = stamp;
    return;
  }
  for (const Stamp& read : cell.reads)
    if (!in_order(read, thread, floor)) race(region, address, read, false, verb, pc, thread);
  cell.write = stamp;
}

// The region of the access; null for what a kernel may touch without us: its stack, its constants.
Region* find(const char* p, unsigned bytes, const char* verb, uint32_t pc) {
  Region* nearest = nullptr;
  if (last_hit && last_hit->holds(p)) {
    nearest = last_hit;
  } else if (size_t(p - shared_memory) < kMaxCluster * kArenaBytes) {
    for (unsigned back = 0; back <= size_t(p - shared_memory) / 16 && !nearest; ++back)
      if (unsigned index = shared_at[(p - shared_memory) / 16 - back]) nearest = &shared[index - 1];
  } else {
    for (Region& region : arguments)
      if (region.begin <= p && (!nearest || region.begin > nearest->begin)) nearest = &region;
    if (!nearest || p >= nearest->end) {
      const char* stack = static_cast<const char*>(__builtin_frame_address(0));
      bool own = (p > stack - kStackBytes && p < stack + kStackBytes) || (p >= &__ehdr_start && p < &_end);
      if (own) return nullptr;
    }
  }
  if (!nearest || p + bytes > nearest->end) {
    std::string where =
        !nearest ? "before all arguments"
                 : std::to_string(std::max<long>(0, p - nearest->end)) + " bytes past the end of " + nearest->name;
    fail("out of bounds: " + std::string(verb) + " " + std::to_string(bytes) + " bytes at " + position(pc) + ", " +
         where);
  }
  return last_hit = nearest;
}

void access(const void* address, unsigned bytes, Kind kind, const void* return_address, const Thread& thread) {
  static const char* const kVerbs[] = {"reads", "writes", "updates", "copies"};
  char* p = static_cast<char*>(const_cast<void*>(address));
  uint32_t pc = offset(return_address);
  Region* region = find(p, bytes, kVerbs[int(kind)], pc);
  if (!region) return;
  unsigned step = region->element_bytes;
  char* first = region->begin + (p - region->begin) / step * step;
  for (char* element = first; element < p + bytes; element += step) access_cell(*region, element, kind, pc, thread);
  if (region->shared && kind != Kind::atomic && kind != Kind::copy) count_banks(p, bytes, pc, thread);
}

// Bank conflicts: the k-th access of each lane of a warp at one place in the code is one instruction. Shared memory has
// 32 banks of 4 bytes; lanes that want different words of one bank wait for each other. Accesses of 8 and 16 bytes go
// in 2 and 4 parts of consecutive lanes.
struct Instruction {
  unsigned bytes = 0, lanes = 0;
  unsigned word[32];
};
struct Place {
  unsigned count[32] = {};
  std::vector<Instruction> instructions;
};
bool counting;
std::unordered_map<uint64_t, Place> places;  // by warp and pc, since the last barrier
std::unordered_map<uint32_t, std::pair<unsigned long long, unsigned long long>> totals;  // pc: wavefronts, needed

void count_banks(const char* address, unsigned bytes, uint32_t pc, const Thread& thread) {
  if (!counting) return;
  Place& place = places[uint64_t(thread.id / 32) << 32 | pc];
  unsigned k = place.count[thread.lane]++;
  if (k >= place.instructions.size()) place.instructions.resize(k + 1);
  Instruction& i = place.instructions[k];
  i.bytes = bytes;
  i.lanes |= 1u << thread.lane;
  i.word[thread.lane] = unsigned(address - shared_memory) / 4;
}

void add_up_banks() {
  for (auto& [key, place] : places)
    for (const Instruction& i : place.instructions) {
      unsigned words = std::max(1u, i.bytes / 4), group = 32 / std::min(words, 4u);
      for (unsigned first = 0; first < 32; first += group) {
        std::vector<unsigned> banks[32];
        unsigned longest = 0;
        for (unsigned lane = first; lane < first + group; ++lane)
          for (unsigned w = 0; (i.lanes >> lane & 1) && w < words; ++w) {
            auto& bank = banks[(i.word[lane] + w) % 32];
            if (std::find(bank.begin(), bank.end(), i.word[lane] + w) == bank.end()) bank.push_back(i.word[lane] + w);
            longest = std::max(longest, unsigned(bank.size()));
          }
        auto& total = totals[uint32_t(key)];
        total.first += longest;
        total.second += longest > 0;
      }
    }
  places.clear();
}

void next_phase(unsigned block) {
  last_barrier[block] = ++phase;
  if (clocks_used[block]) std::fill_n(clocks + block * block_threads, block_threads, Clock());
  clocks_used[block] = false;
  if (counting) add_up_banks();
}

}  // namespace

void begin_launch(const std::vector<Argument>& memory) {
  arguments.clear();
  shared.clear();
  shared_at.assign(kMaxCluster * kArenaBytes / 16, 0);
  last_hit = nullptr;
  for (const Argument& a : memory) arguments.emplace_back(a.begin, a.end, std::min(a.element_bytes, 4u), false, a.name);
  blocks.clear();
  places.clear();
  totals.clear();
  launch_phase = phase + 1;
}

void new_shared(const SharedPiece& piece) {
  unsigned element_bytes = piece.element_bytes >= 4 ? 4 : piece.element_bytes;
  shared.emplace_back(piece.begin, piece.begin + piece.bytes, element_bytes, true,
                      piece.name + std::string(" (shared)"));
  last_hit = nullptr;
  for (unsigned at = 0; at < piece.bytes; at += 16)
    shared_at[(piece.begin + at - shared_memory) / 16] = uint8_t(shared.size());
}

void begin_block() {
  counting = blocks.empty();
  for (unsigned block = 0; block < kMaxCluster; ++block) next_phase(block);
  block_phase = last_cluster_barrier = phase;
  blocks.emplace_back(phase, blockIdx);
}

void end_block() {
  if (counting) add_up_banks();
}

void barrier() { next_phase(self->block); }

void cluster_barrier() {
  for (unsigned block = 0; block < block_count; ++block) next_phase(block);
  last_cluster_barrier = phase;
}

void sync_warp(Thread* lanes, unsigned who) {
  clocks_used[self->block] = true;
  Clock joined{};
  for (unsigned i = 0; i < 32; ++i) {
    if (!(who >> i & 1)) continue;
    Clock& clock = clocks[lanes[i].id];
    for (unsigned j = 0; j < 32; ++j) joined.seen[j] = std::max(joined.seen[j], clock.seen[j]);
    joined.seen[i] = std::max<uint16_t>(joined.seen[i], ++clock.now);
  }
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1) std::copy(joined.seen, joined.seen + 32, clocks[lanes[i].id].seen);
}

void read(const void* address, int bytes, const void* pc, const Thread& thread) {
  access(address, bytes, Kind::read, pc, thread);
}

void copy_begins(void* address, int bytes, const void* pc) { access(address, bytes, Kind::copy, pc, *self); }

void copy_ends(void* address, int bytes, const void* pc) {
  Region* region = find(static_cast<char*>(address), bytes, "copies", offset(pc));
  for (int at = 0; at < bytes; at += int(region->element_bytes)) {  // the wait is when it becomes visible, to us
    Stamp& write =
        region->cells.get()[(static_cast<char*>(address) + at - region->begin) / region->element_bytes].write;
    write.in_flight = 0;
    write.phase = phase;
    write.clock = clocks[self->id].now & 0x3fff;
  }
}

std::vector<Conflicts> bank_conflicts() {
  std::vector<Conflicts> result;
  for (auto& [pc, total] : totals) result.push_back({&__ehdr_start + pc, total.first, total.second});
  return result;
}

}  // namespace dl::host::check

namespace dl::host {
void note_atomic(void* address, int bytes, const void* pc) {
  check::access(address, bytes, check::Kind::atomic, pc, *self);
}
}  // namespace dl::host

// What g++ -fsanitize=thread calls. `self` is null while the module is loaded.
#define DL_HOOK __attribute__((visibility("default")))
extern "C" {
#define DL_ACCESS(name, bytes, kind)                                                                      \
  DL_HOOK void __tsan_##name(void* p) {                                                                   \
    if (dl::host::self)                                                                                   \
      dl::host::check::access(p, bytes, dl::host::check::Kind::kind, DL_RETURN_ADDRESS, *dl::host::self); \
  }
#define DL_ACCESSES(bytes) DL_ACCESS(read##bytes, bytes, read) DL_ACCESS(write##bytes, bytes, write)
DL_ACCESSES(1)
DL_ACCESSES(2)
DL_ACCESSES(4)
DL_ACCESSES(8)
DL_ACCESSES(16)
#define DL_RANGE(name, kind)                                                                                        \
  DL_HOOK void __tsan_##name##_range(void* p, size_t bytes) {                                                       \
    if (dl::host::self)                                                                                             \
      dl::host::check::access(p, unsigned(bytes), dl::host::check::Kind::kind, DL_RETURN_ADDRESS, *dl::host::self); \
  }
DL_RANGE(read, read)
DL_RANGE(write, write)
DL_HOOK void __tsan_init() {}
}

#else

void dl::host::note_atomic(void*, int, const void*) {}

#endif
