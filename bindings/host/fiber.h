// Fibres: a GPU thread of the host build is a stack of its own, left and resumed at barriers, all in one OS thread.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dl::host {

struct Fiber {
  char* bottom = nullptr;  // lowest address of the stack
  size_t bytes = 0;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
};

constexpr size_t kStackBytes = 128 << 10;

// `count` stacks in one piece of memory, each above a page that faults: a local array too large gives SIGSEGV, not
// silent corruption. Never freed.
char* map_stacks(int count);

// The next switch to `fiber`, which owns a stack, calls main(), which must never return.
void prepare(Fiber& fiber, void (*main)());

// Leaves `from`, which must be running, and returns when somebody switches back to it.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace dl::host
