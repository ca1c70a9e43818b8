// The native build's meaning of DL_KERNEL(name<float, 8>): the kernel joins a list, with what its type says it takes.
// nvcc includes this file before each kernels/*.cu (see CMakeLists.txt), so those lines stay the only list of kernels.
#pragma once
#include "signature.h"

namespace dl {

constexpr int kMostParameters = 64;
constexpr unsigned kMostBytes = 4096;  // of all parameters together: CUDA's limit on every architecture

// The scalars that the module converts; pointers and structs may be of any kind.
constexpr bool convertible(const Parameter& p) {
  return p.pointer || !p.dtype[0] || (p.dtype[0] == 'f' ? p.bytes == 4 : p.bytes >= 4);
}

struct Entry {
  const char* name;
  const void* function;
  const Parameter* parameters;
  int count;
  const Entry* next;

  template <typename... P>
  Entry(const char* name, void (*kernel)(P...))
      : name(name), function(reinterpret_cast<const void*>(kernel)), count(sizeof...(P)), next(first) {
    static_assert(sizeof...(P) <= kMostParameters && (sizeof(P) + ... + 0) <= kMostBytes,
                  "a launch keeps its arguments in a buffer of fixed size");
    static constexpr Parameter kParameters[] = {describe<P>()...};
    static_assert((convertible(describe<P>()) && ...), "a scalar is an int, a long long (or unsigned) or a float");
    parameters = kParameters;
    first = this;
  }

  static inline const Entry* first = nullptr;  // the list's head, filled before main() or the module's init runs
};

}  // namespace dl

#define DL_JOIN_(a, b) a##b
#define DL_JOIN(a, b) DL_JOIN_(a, b)
#define DL_KERNEL(...) static const dl::Entry DL_JOIN(dl_entry_, __COUNTER__)(#__VA_ARGS__, &__VA_ARGS__);
