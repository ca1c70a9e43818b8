// cp.async. The hardware may land a copy any time between its issue and its wait, so `configure(copies=...)` can do
// either: at once, or at the wait with NaN in the destination until then.
#include <cstring>

#include "block.h"
#include "check.h"

namespace dl::host {
namespace {

void land(Copy& copy) {
  if (copy.valid)
    memcpy(copy.to, copy.from, copy.bytes);
  else
    memset(copy.to, 0, copy.bytes);
  copy.landed = true;
}

bool early() { return options.copies == Copies::early || (options.copies == Copies::random && dice() & 1); }

}  // namespace

void copy_async(void* shared, const void* global, int bytes, bool valid) {
  const void* pc = DL_RETURN_ADDRESS;
  size_t offset = static_cast<char*>(shared) - own_shared();
  if (offset >= kArenaBytes) fail("cp.async (" + code_position(pc) + ") to an address outside shared memory");
  if ((reinterpret_cast<size_t>(shared) | reinterpret_cast<size_t>(global)) % bytes)
    fail("misaligned cp.async (" + code_position(pc) + "): addresses must be multiples of " + std::to_string(bytes));
  if (valid) check::read(global, bytes, pc, *self);
  check::copy_begins(shared, bytes, pc);
  self->copies.push_back({shared, global, bytes, valid, false, self->copy_group, pc});
  if (early())
    land(self->copies.back());
  else
    memset(shared, 0xFF, bytes);
}

void commit_copies() { ++self->copy_group; }

void wait_copies(int groups_left) {
  auto& copies = self->copies;
  size_t kept = 0;
  for (Copy& copy : copies) {
    if (int(self->copy_group - copy.group) <= groups_left) {
      copies[kept++] = copy;
      continue;
    }
    if (!copy.landed) land(copy);
    check::copy_ends(copy.to, copy.bytes, copy.pc);
  }
  copies.resize(kept);
}

void finish_copies() {
  if (!self->copies.empty())
    fail("the thread ends with a cp.async in flight (issued at " + code_position(self->copies[0].pc) + ")");
}

}  // namespace dl::host
