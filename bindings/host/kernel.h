// DL_KERNEL(name<float, 8>) under g++: keeps the kernel's name, its parameter types and a way to call it. No standard
// library here: what it instantiates in an instrumented kernel file, the linker could pick for the runtime as well.
#pragma once
#include <utility>

#include "../signature.h"

namespace dl::host {

using Function = void (*)();
void add_kernel(const char* name, const Parameter* parameters, int count, Function kernel,
                void (*call)(Function kernel, void** arguments));  // arguments[i] points to the i-th one

struct Registered {
  template <typename... P>
  Registered(const char* name, void (*kernel)(P...)) {
    static constexpr Parameter kParameters[] = {describe<P>()...};
    add_kernel(name, kParameters, sizeof...(P), reinterpret_cast<Function>(kernel), &call<P...>);
  }

 private:
  // Not instrumented: where the launcher keeps the arguments is no business of the checker.
#define DL_UNCHECKED __attribute__((no_sanitize_thread))
  template <typename... P>
  DL_UNCHECKED static void call(Function kernel, void** arguments) {
    unpack(reinterpret_cast<void (*)(P...)>(kernel), arguments, std::make_index_sequence<sizeof...(P)>());
  }
  template <typename... P, unsigned long... I>
  DL_UNCHECKED static void unpack(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<P*>(arguments[I])...);
  }
};

}  // namespace dl::host
