// Shuffles, votes and __syncwarp. None but __syncwarp orders memory: that is all CUDA promises.
#include <cstring>

#include "block.h"
#include "check.h"

namespace dl::host {
namespace {

struct Exchange {
  char* value;
  int bytes, source;  // source: the lane to read
};

void exchange(Thread* lanes, unsigned who) {
  char before[32][16];
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1) {
      auto* e = static_cast<Exchange*>(lanes[i].operands);
      memcpy(before[i], e->value, e->bytes);
    }
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1) {
      auto* e = static_cast<Exchange*>(lanes[i].operands);
      if (!(who >> e->source & 1))
        fail(std::string(lanes[i].waits_for) + " (" + code_position(lanes[i].pc) + "): lane " + std::to_string(i) +
             " reads lane " + std::to_string(e->source) + ", which does not take part");
      memcpy(e->value, before[e->source], e->bytes);
    }
}

int source_lane(Shuffle kind, int operand, int width) {
  int lane = int(self->lane), first = lane & ~(width - 1), source = lane;
  switch (kind) {
    case Shuffle::index: return first + (operand & (width - 1));
    case Shuffle::up: source = lane - operand; return source < first ? lane : source;
    case Shuffle::down: source = lane + operand; return source >= first + width ? lane : source;
    case Shuffle::exclusive_or: source = lane ^ operand; return source >= first + width ? lane : source;
  }
  return source;
}

struct Vote {
  bool predicate;
  unsigned result;
};

void count_votes(Thread* lanes, unsigned who) {
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1 && static_cast<Vote*>(lanes[i].operands)->predicate) votes |= 1u << i;
  for (unsigned i = 0; i < 32; ++i)
    if (who >> i & 1) static_cast<Vote*>(lanes[i].operands)->result = votes;
}

}  // namespace

void shuffle(Shuffle kind, unsigned mask, void* value, int bytes, int operand, int width) {
  static const char* const kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  if (width < 1 || width > 32 || width & (width - 1)) fail("the width of a shuffle is a power of two up to 32");
  Exchange e{static_cast<char*>(value), bytes, source_lane(kind, operand, width)};
  warp_operation(kNames[int(kind)], mask, &e, &exchange, DL_RETURN_ADDRESS);
}

unsigned ballot(const char* name, unsigned mask, bool predicate) {
  Vote vote{predicate, 0};
  warp_operation(name, mask, &vote, &count_votes, DL_RETURN_ADDRESS);
  return vote.result;
}

void sync_warp(unsigned mask) { warp_operation("__syncwarp", mask, nullptr, &check::sync_warp, DL_RETURN_ADDRESS); }

}  // namespace dl::host
