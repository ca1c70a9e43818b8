// hopper.cuh on a CPU, after the PTX ISA: mbarriers, TMA, wgmma. The copy engine lands a load at once, when no thread can
// run any more, or at a moment of chance (`configure(copies=...)`); products run when they are issued, or as late as they
// may; in any case accumulators and the destinations of loads are NaN until somebody has waited.
//
// What a kernel must not leave to luck is checked by name, whatever the order: a load's destination may be read only by
// warpgroups that waited for the load's phase, and loaded again only when the load before was read, by a thread that has
// waited for an arrival of each warp that read it, made after the product's end; a stored tile needs its writers' fence;
// products need a wgmma.fence. What one block sends to another of its cluster needs a barrier of the cluster before it,
// since the other one's mbarrier.init, and after it, before either ends.
#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "block.h"
#include "check.h"

namespace dl::host {
namespace {

struct Phases {  // an mbarrier: 8 bytes of shared memory
  unsigned short count, pending;
  int bytes : 31;  // expected and not landed
  unsigned parity : 1;
};
static_assert(sizeof(Phases) == 8);

struct Map {  // as dlgpu/backends/launchers/host.py packs it
  unsigned magic;
  unsigned char rank, im2col, element_bytes, swizzle;  // swizzle: 1 for 128 bytes, 0 for none
  char* address;
  unsigned size[4];
  unsigned long long stride[3];  // in bytes, of the axes after the first
  unsigned short box[4];         // im2col: channels, pixels
  signed char lower[2], upper[2];
  unsigned char step[4];
};
constexpr unsigned kMapMagic = 0x4d414d54;

// For each warp, how many of its products are known to be over: as vector clocks, carried by arrivals and waits.
struct Known {
  unsigned products[kMaxThreads / 32] = {};
  void learn(const Known& other) {
    for (unsigned i = 0; i < std::size(products); ++i) products[i] = std::max(products[i], other.products[i]);
  }
};

struct Landing {  // of a TMA load
  char* to;
  unsigned bytes;
  const void* barrier;
  unsigned phase;  // number of the barrier's phase that it belongs to
  Known readers;   // the last product of each warp that read it
};

struct Load {
  Map map;  // a copy: the thread that asked may have ended, and its stack have another owner
  char* to;
  void* barrier;
  int at[4];
  unsigned short moves[2];
};

struct Product {
  Input type;
  int n;
  unsigned long long a, b;
  char* memory;  // shared memory of its block
  bool deep_a, deep_b, done;
  unsigned group;
};

struct Warpgroup {
  unsigned arrived = 0, group = 0, issued = 0;  // issued: products
  const char* name = nullptr;
  const void* pc = nullptr;
  bool fenced = false, busy = false;  // busy: the accumulators are being computed
  float* registers[128];
  float sums[64][256];
  int n = 0;
  std::vector<Product> products;  // not waited for
} groups[kMaxThreads / 128];

struct Ended {  // of an mbarrier: its phases, and what they and the one at hand tell who waits
  unsigned phases = 0;
  Known known, arriving;
};
std::map<const void*, Ended> ended;
std::map<unsigned, Known> known;                                   // by thread
std::map<std::pair<unsigned, const void*>, unsigned> phases_seen;  // by (thread, barrier): how many it waited for
std::map<const char*, Landing> landings;                           // by their destination
std::vector<Load> loads;                                           // not landed
struct Store {
  Map map;
  char* from;
  int at[3];
  unsigned group;
  bool done;
};
struct Stores {
  unsigned group = 0;
  std::vector<Store> open;  // not waited for
};
std::map<unsigned, Stores> stores;      // by thread
std::map<const void*, unsigned> named;  // barrier -> threads that arrived
std::map<unsigned, unsigned> fences;    // thread -> async fences
struct Cluster {
  unsigned arrived = 0, meetings = 0;           // at its barrier; how often they have met
  std::map<const void*, unsigned> initialised;  // barrier -> meetings before its mbarrier.init
  const char* sent = nullptr;                   // what a block sent to another since they met, and where in the code
  const void* sent_pc = nullptr;
} cluster;

Warpgroup& own_group() { return groups[self->id / 128]; }

char* in_shared(const void* p, unsigned alignment, const char* what, const void* pc) {
  const size_t offset = static_cast<const char*>(p) - own_shared();
  if (offset >= kArenaBytes || offset % alignment)
    fail(std::string(what) + " (" + code_position(pc) + ") needs shared memory at a multiple of " +
         std::to_string(alignment));
  return own_shared() + offset;
}

// Chunks of 16 bytes trade places within 128: bits 4-6 of the address XOR bits 7-9.
size_t swizzled(size_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// An mbarrier of this block, or the one at the same place of block `rank` of the cluster.
Phases& at_barrier(void* p, const char* what, const void* pc, int rank = -1) {
  auto wrong = [&](const std::string& rule) { fail(std::string(what) + " (" + code_position(pc) + ")" + rule); };
  void* const there = rank < 0 ? in_shared(p, 8, what, pc) : in_block(in_shared(p, 8, what, pc), rank);
  if (!there) wrong(" to block " + std::to_string(rank) + " of a cluster of " + std::to_string(block_count));
  if (!ended.count(there)) wrong(": the mbarrier was not initialised");
  if (there != p) {
    if (cluster.initialised[there] == cluster.meetings) wrong(" to a block that has not met us since its mbarrier.init");
    cluster.sent = what;
    cluster.sent_pc = pc;
  }
  return *static_cast<Phases*>(there);
}

void end_phase_if_complete(void* p) {
  Phases& b = *static_cast<Phases*>(p);
  if (b.pending || b.bytes) return;
  b.parity ^= 1;
  b.pending = b.count;
  Ended& e = ended[p];
  ++e.phases;
  e.known.learn(e.arriving);
  wake(p);
}

void arrive(void* p, unsigned bytes, const void* pc, int rank = -1) {
  Phases& b = at_barrier(p, "mbarrier.arrive", pc, rank);
  if (!b.pending) fail("mbarrier.arrive (" + code_position(pc) + "): more arrivals than the phase takes");
  b.bytes += bytes;
  --b.pending;
  Known& mine = known[self->id];
  const Warpgroup& g = own_group();
  mine.products[self->id / 32] = g.issued - g.products.size();
  ended[&b].arriving.learn(mine);
  end_phase_if_complete(&b);
}

unsigned box_bytes(const Map& m) {
  unsigned elements = m.im2col ? m.box[0] * m.box[1] : m.box[0] * m.box[1] * m.box[2];
  return elements * m.element_bytes;
}

const Map& checked(const void* p, bool im2col, const void* pc) {
  const Map& m = *static_cast<const Map*>(p);
  if (m.magic != kMapMagic) fail("TMA (" + code_position(pc) + "): not a tensor map of the host launcher");
  if (m.im2col != im2col) fail("TMA (" + code_position(pc) + "): a map of the other mode");
  if (reinterpret_cast<size_t>(p) % 64) fail("TMA (" + code_position(pc) + "): a tensor map is a multiple of 64");
  return m;
}

// Calls line(row number, global address of its first element or null, first and last + 1 element inside the array).
template <typename Line>
void for_each_line(const Map& m, const int* at, const unsigned short* moves, Line line) {
  const int width = m.box[0], from = std::max(0, -at[0]), to = std::min<long long>(width, (long long)m.size[0] - at[0]);
  auto inside = [&](int axis, long long i) { return i >= 0 && i < (long long)m.size[axis]; };
  if (!m.im2col) {
    for (int z = 0, row = 0; z < m.box[2]; ++z)
      for (int y = 0; y < m.box[1]; ++y, ++row) {
        const long long j = (long long)at[1] + y, k = (long long)at[2] + z;
        char* p = inside(1, j) && inside(2, k) && from < to ? m.address + j * m.stride[0] + k * m.stride[1] : nullptr;
        line(row, p ? p + (long long)at[0] * m.element_bytes : nullptr, from, to);
      }
    return;
  }
  // Corners: of the box that the walk stays in, relative to the image's first and last pixel.
  const int low_w = m.lower[0], low_h = m.lower[1];
  const int high_w = int(m.size[1]) - 1 + m.upper[0], high_h = int(m.size[2]) - 1 + m.upper[1];
  int w = at[1], h = at[2], n = at[3];
  for (int row = 0; row < m.box[1]; ++row) {
    const int x = w + moves[0], y = h + moves[1];
    char* p = inside(1, x) && inside(2, y) && inside(3, n) && from < to
                  ? m.address + x * m.stride[0] + y * m.stride[1] + n * m.stride[2]
                  : nullptr;
    line(row, p ? p + (long long)at[0] * m.element_bytes : nullptr, from, to);
    if ((w += m.step[1]) > high_w) {
      w = low_w;
      if ((h += m.step[2]) > high_h) {
        h = low_h;
        ++n;
      }
    }
  }
}

// Copies `bytes` between a line of global memory and its place in shared memory.
void move(const Map& m, char* shared, int row, int column, char* global, int bytes, bool to_shared) {
  const size_t base = shared - shared_memory + size_t(row) * m.box[0] * m.element_bytes + column;
  for (int done = 0; done < bytes;) {
    const int some = std::min<int>(bytes - done, 16 - (base + done) % 16);
    char* const place = shared_memory + (m.swizzle ? swizzled(base + done) : base + done);
    if (to_shared)
      memcpy(place, global + done, some);
    else
      memcpy(global + done, place, some);
    done += some;
  }
}

void land(const Load& load) {
  const Map& m = load.map;
  memset(load.to, 0, box_bytes(m));
  for_each_line(m, load.at, load.moves, [&](int row, char* p, int from, int to) {
    const int e = m.element_bytes;
    if (p) move(m, load.to, row, from * e, p + from * e, (to - from) * e, true);
  });
  static_cast<Phases*>(load.barrier)->bytes -= box_bytes(m);
  end_phase_if_complete(load.barrier);
}

void put(const Store& store) {
  const Map& m = store.map;
  for_each_line(m, store.at, nullptr, [&](int row, char* p, int first, int last) {
    const int e = m.element_bytes;
    if (p) move(m, store.from, row, first * e, p + first * e, (last - first) * e, false);
  });
}

bool chance() { return options.copies == Copies::early || (options.copies == Copies::random && dice() & 1); }

// ---- warpgroups ----

// All 128 threads meet; the last one runs `then` for all.
template <typename Then>
void meet(const char* name, const void* pc, Then then) {
  Warpgroup& g = own_group();
  if (self->id / 128 * 128 + 128 > thread_count) fail(std::string(name) + " needs all 128 threads of a warpgroup");
  if (g.arrived && (g.name != name || g.pc != pc))
    fail("divergent warpgroup: this thread is at " + std::string(name) + " (" + code_position(pc) +
         ") while others wait at " + g.name + " (" + code_position(g.pc) + ")");
  g.name = name;
  g.pc = pc;
  if (++g.arrived < 128) return sleep_on(&g, name, pc);
  g.arrived = 0;
  then(g);
  wake(&g);
}

float value(Input type, const char* p) {
  unsigned short bits;
  memcpy(&bits, p, 2);
  return from_16_bits(type, bits);
}

// Where row i at place k of the depth lies, from the fields of its descriptor (hopper.cuh has the sources).
size_t place(unsigned long long descriptor, bool deep, int i, int k) {
  const size_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
               stride = (descriptor >> 32 & 0x3fff) << 4;
  return swizzled(deep ? start + i / 8 * stride + i % 8 * 128 + 2 * k
                       : start + i / 64 * leading + k / 8 * stride + k % 8 * 128 + i % 64 * 2);
}

__attribute__((optimize("O3"))) void multiply(float (&sums)[64][256], const float (&a)[64][16], const float (&b)[16][256],
                                              int n) {
  for (int i = 0; i < 64; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < n; ++j) sums[i][j] += a[i][k] * b[k][j];
}

void run(Warpgroup& g, Product& p) {
  if (p.done) return;
  p.done = true;
  static float a[64][16], b[16][256];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 64; ++i) a[i][k] = value(p.type, p.memory + place(p.a, p.deep_a, i, k));
    for (int j = 0; j < p.n; ++j) b[k][j] = value(p.type, p.memory + place(p.b, p.deep_b, j, k));
  }
  multiply(g.sums, a, b, p.n);
}

Landing* landing_at(size_t offset) {
  auto after = landings.upper_bound(own_shared() + offset);
  if (after == landings.begin()) return nullptr;
  Landing& l = std::prev(after)->second;
  return own_shared() + offset < l.to + l.bytes ? &l : nullptr;
}

// The loads that filled an operand: every lane must have waited for them.
void check_operand(unsigned long long descriptor, bool deep, int rows, const void* pc) {
  if (descriptor >> 62 != 1 || descriptor >> 49 & 7 || descriptor & 0x3ull << 14 || descriptor & 0x3ull << 30)
    fail("wgmma (" + code_position(pc) + "): a descriptor with 128-byte swizzle and base offset 0 is what exists here");
  const size_t start = (descriptor & 0x3fff) << 4;
  if (deep ? start % 1024 >= 128 : start % 1024)
    fail("wgmma (" + code_position(pc) + "): the operand does not begin with an atom of 1024 bytes");
  for (int i = 0; i < rows; i += 8) {
    if (place(descriptor, deep, i + 7, 15) >= kArenaBytes) fail("wgmma (" + code_position(pc) + "): beyond shared memory");
    Landing* l = landing_at(place(descriptor, deep, i, 0));
    if (!l) continue;
    for (unsigned warp = 0; warp < 4; ++warp) l->readers.products[self->id / 128 * 4 + warp] = own_group().issued;
    for (unsigned t = self->id / 128 * 128, end = t + 128; t < end; ++t)
      if (phases_seen[{t, l->barrier}] <= l->phase)
        fail("wgmma (" + code_position(pc) + ") reads what TMA loads, but thread " + describe(threads[t].index) +
             " did not wait for it");
  }
}

// One block's part of a load.
void deliver(const Map& m, char* to, void* barrier, const int* at, const unsigned short* moves, const void* pc) {
  const Known& mine = known[self->id];
  for (auto before = landings.begin(); before != landings.end();) {
    const Landing& l = before->second;
    if (l.to >= to + box_bytes(m) || to >= l.to + l.bytes) {
      ++before;
      continue;
    }
    const Known& readers = l.readers;
    if (std::all_of(std::begin(readers.products), std::end(readers.products), [](unsigned n) { return !n; }))
      fail("a TMA load (" + code_position(pc) + ") over one that nobody has read");
    for (unsigned warp = 0; warp < std::size(readers.products); ++warp)
      if (readers.products[warp] > mine.products[warp])
        fail("a TMA load (" + code_position(pc) + ") into what a wgmma may still read: no wait for its warp, thread " +
             describe(threads[32 * warp].index) + " of block " + describe(block_index[threads[32 * warp].block]));
    before = landings.erase(before);
  }
  landings[to] = {to, box_bytes(m), barrier, ended[barrier].phases, {}};
  memset(to, 0xFF, box_bytes(m));
  Load load{m, to, barrier, {at[0], at[1], at[2], moves ? at[3] : 0}, {}};
  if (moves) std::copy(moves, moves + 2, load.moves);
  if (chance())
    land(load);
  else
    loads.push_back(load);
}

}  // namespace

unsigned shared_offset(const void* shared) { return unsigned(static_cast<const char*>(shared) - own_shared()); }

void begin_block_async() {
  ended.clear();
  known.clear();
  phases_seen.clear();
  landings.clear();
  loads.clear();
  stores.clear();
  named.clear();
  fences.clear();
  cluster = {};
  for (Warpgroup& g : groups) {
    g.arrived = g.group = g.issued = 0;
    g.fenced = g.busy = false;
    g.products.clear();
  }
}

bool advance_async() {
  if (loads.empty()) return false;
  const size_t i = options.copies == Copies::random ? dice() % loads.size() : 0;
  const Load load = loads[i];
  loads.erase(loads.begin() + i);
  land(load);
  return true;
}

void end_thread_async() {
  if (!own_group().products.empty()) fail("the thread ends with a wgmma in flight");
  auto mine = stores.find(self->id);
  if (mine != stores.end() && !mine->second.open.empty()) fail("the thread ends while TMA may still read what it stores");
}

std::string end_block_async() {
  if (cluster.sent)
    return cluster.sent + (" (" + code_position(cluster.sent_pc)) +
           ") to a block that may have ended: no barrier.cluster after it";
  return loads.empty() ? "" : "block " + describe(blockIdx) + ": it ends with a TMA load in flight";
}

void barrier_init(void* p, unsigned count) {
  Phases& b = *reinterpret_cast<Phases*>(in_shared(p, 8, "mbarrier.init", DL_RETURN_ADDRESS));
  b = {(unsigned short)count, (unsigned short)count, 0, 0};
  ended[p] = {};
  cluster.initialised[p] = cluster.meetings;
}

void barrier_arrive(void* p, unsigned bytes) { arrive(p, bytes, DL_RETURN_ADDRESS); }
void barrier_arrive_at(void* p, unsigned rank) { arrive(p, 0, DL_RETURN_ADDRESS, rank); }

void cluster_barrier() {
  if (++cluster.arrived < thread_count) return sleep_on(&cluster, "barrier.cluster", DL_RETURN_ADDRESS);
  cluster.arrived = 0;
  ++cluster.meetings;
  cluster.sent = nullptr;
  check::cluster_barrier();
  wake(&cluster);
}

void barrier_wait(void* p, unsigned parity) {
  const void* pc = DL_RETURN_ADDRESS;
  Phases& b = at_barrier(p, "mbarrier.try_wait", pc);
  while (b.parity == (parity & 1)) sleep_on(p, "mbarrier.try_wait", pc);
  phases_seen[{self->id, p}] = ended[p].phases;
  known[self->id].learn(ended[p].known);
}

void named_barrier(unsigned number, unsigned count) {
  static const char keys[kMaxCluster][16] = {};
  const char* const key = &keys[self->block][number];
  if (++named[key] < count) return sleep_on(key, "bar.sync", DL_RETURN_ADDRESS);
  named[key] = 0;
  check::barrier();  // as if it were the block's
  wake(key);
}

void tma_load(void* shared, const void* map, void* barrier, const int* at, const unsigned short* moves, unsigned mask) {
  const void* pc = DL_RETURN_ADDRESS;
  const Map& m = checked(map, moves != nullptr, pc);
  const unsigned own = blockIdx.x % block_count;
  in_shared(shared, m.swizzle ? 1024 : 128, "a TMA load", pc);
  for (unsigned rank = 0; rank < 16; ++rank)
    if ((mask ? mask : 1u << own) >> rank & 1) {
      Phases& b = at_barrier(barrier, "a TMA load", pc, rank);
      long long left = b.bytes;  // of what the phase expects
      for (const Load& load : loads) left -= load.barrier == &b ? box_bytes(load.map) : 0;
      if (rank == own && left < box_bytes(m))  // another block may have its expectation still before it
        fail("a TMA load (" + code_position(pc) + ") of more bytes than its phase expects");
      deliver(m, in_block(shared, rank), &b, at, moves, pc);
    }
}

void async_fence() { ++fences[self->id]; }

// Reads at once, or when it is waited for: shared memory must not have been written meanwhile.
void tma_store(const void* map, const void* shared, const int* at) {
  const void* pc = DL_RETURN_ADDRESS;
  const Map& m = checked(map, false, pc);
  char* from = in_shared(shared, m.swizzle ? 1024 : 128, "a TMA store", pc);
  if (!fences[self->id]) fail("a TMA store (" + code_position(pc) + ") without fence.proxy.async");
  fences[self->id] = 0;
  Stores& mine = stores[self->id];
  mine.open.push_back({m, from, {at[0], at[1], at[2]}, mine.group, chance()});
  if (mine.open.back().done) put(mine.open.back());
}

void commit_stores() { ++stores[self->id].group; }

void wait_stores(int left) {
  Stores& mine = stores[self->id];
  auto over = [&](const Store& store) {
    if (int(mine.group - store.group) <= left) return false;
    if (!store.done) put(store);
    return true;
  };
  mine.open.erase(std::remove_if(mine.open.begin(), mine.open.end(), over), mine.open.end());
}

void wgmma_fence() {
  meet("wgmma.fence", DL_RETURN_ADDRESS, [](Warpgroup& g) { g.fenced = true; });
}

void wgmma(Input type, int n, float* d, unsigned long long a, unsigned long long b, bool add, bool deep_a, bool deep_b) {
  const void* pc = DL_RETURN_ADDRESS;
  own_group().registers[self->id % 128] = d;
  meet("wgmma", pc, [=](Warpgroup& g) {
    if (!g.fenced) fail("wgmma (" + code_position(pc) + ") without wgmma.fence since the accumulators were touched");
    ++g.issued;
    check_operand(a, deep_a, 64, pc);
    check_operand(b, deep_b, n, pc);
    for (Product& before : g.products)
      if (!add) run(g, before);
    for (int t = 0; t < 128; ++t)
      for (int i = 0; i < n / 2; ++i) {
        const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
        if (!g.busy || !add) g.sums[row][column] = add ? g.registers[t][i] : 0.0f;
        memset(&g.registers[t][i], 0xFF, 4);
      }
    g.busy = true;
    g.n = n;
    g.products.push_back({type, n, a, b, own_shared(), deep_a, deep_b, false, g.group});
    if (chance()) {  // in order
      for (Product& p : g.products) run(g, p);
    }
  });
}

void wgmma_commit() {
  meet("wgmma.commit_group", DL_RETURN_ADDRESS, [](Warpgroup& g) { ++g.group; });
}

void wgmma_wait(int left) {
  meet("wgmma.wait_group", DL_RETURN_ADDRESS, [left](Warpgroup& g) {
    size_t kept = 0;
    for (Product& p : g.products) {
      if (int(g.group - p.group) <= left)
        g.products[kept++] = p;
      else
        run(g, p);
    }
    g.products.resize(kept);
    if (kept || !g.busy) return;
    g.busy = g.fenced = false;
    for (int t = 0; t < 128; ++t)
      for (int i = 0; i < g.n / 2; ++i)
        g.registers[t][i] = g.sums[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + t % 4 * 2 + i % 2];
  });
}

}  // namespace dl::host
