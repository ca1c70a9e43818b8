#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#ifdef DL_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace dl::host {
namespace {

constexpr size_t kPage = 4096;
void (*start)();

void entry() {
#ifdef DL_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  start();
}

#ifdef DL_ASAN
// The stack that Python called us on: AddressSanitizer wants its bounds when we go back there. To find them, the C
// library reads a file, so each OS thread asks once.
void find_own_stack(Fiber& fiber) {
  static thread_local void* bottom = nullptr;
  static thread_local size_t bytes;
  if (!bottom) {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &bytes);
    pthread_attr_destroy(&attributes);
  }
  fiber.bottom = static_cast<char*>(bottom);
  fiber.bytes = bytes;
}
#endif

}  // namespace

char* map_stacks(int count) {
  size_t bytes = count * kStackBytes;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  for (int i = 0; i < count; ++i) mprotect(static_cast<char*>(memory) + i * kStackBytes, kPage, PROT_NONE);
  return static_cast<char*>(memory);
}

#if defined(__x86_64__)

// Saves what the System V ABI says a callee keeps. It ends in a jump, not `ret`: the processor predicts a return from
// the calls it has seen, and here it would be wrong every time (measured: 2 to 4 times slower).
extern "C" __attribute__((visibility("hidden"))) void dl_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl dl_switch_stack
.hidden dl_switch_stack
.type dl_switch_stack, @function
dl_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  pop %rcx
  jmp *%rcx
.size dl_switch_stack, . - dl_switch_stack
)");

void prepare(Fiber& fiber, void (*main)()) {
  start = main;
#ifdef DL_ASAN
  __asan_unpoison_memory_region(fiber.bottom + kPage, fiber.bytes - kPage);  // an abandoned fibre's red zones
#endif
  // Stack tops a multiple of 64 KiB apart would all compete for the same few cache lines: stagger them.
  size_t stagger = reinterpret_cast<size_t>(fiber.bottom) / fiber.bytes % 64 * 320;
  void** top = reinterpret_cast<void**>(fiber.bottom + fiber.bytes - stagger);
  memset(top - 8, 0, 8 * sizeof(void*));      // six saved registers, entry, and no return address: 8 modulo 16,
  top[-2] = reinterpret_cast<void*>(&entry);  // as the ABI wants the stack pointer on entry to a function
  fiber.stack_pointer = top - 8;
}

static void swap(Fiber& from, Fiber& to) { dl_switch_stack(&from.stack_pointer, to.stack_pointer); }

#else  // portable, and 20 times slower: a system call in each switch

void prepare(Fiber& fiber, void (*main)()) {
  start = main;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.bottom;
  fiber.context.uc_stack.ss_size = fiber.bytes;
  makecontext(&fiber.context, &entry, 0);
}

static void swap(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef DL_ASAN
  if (!to.bottom) find_own_stack(to);
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
  swap(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
  swap(from, to);
#endif
}

}  // namespace dl::host
