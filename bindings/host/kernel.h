// DL_KERNEL(name<float, 8>) under g++: keeps the kernel's name, its parameter types and a way to call it. No standard
// library here: what it instantiates in an instrumented kernel file, the linker could pick for the runtime as well.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>
#include <utility>

namespace dl::host {

struct Parameter {
  const char* pretty_function;  // contains "T = const float*"
  const char* dtype;            // NumPy's name of the scalar, or of what the pointer points to; "" for a struct
  unsigned bytes;               // of the parameter; of what it points to, if it is a pointer
  bool pointer, writes;
};

template <typename T>
constexpr const char* numpy_name() {
  constexpr bool is_signed = std::is_signed_v<T>;
  if (std::is_void_v<T>) return "void";
  if (std::is_same_v<T, bool>) return "bool";
  if (std::is_same_v<T, __half>) return "float16";
  if (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
  if (std::is_same_v<T, float>) return "float32";
  if (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_integral_v<T>) {
    if (sizeof(T) == 1) return is_signed ? "int8" : "uint8";
    if (sizeof(T) == 2) return is_signed ? "int16" : "uint16";
    if (sizeof(T) == 4) return is_signed ? "int32" : "uint32";
    return is_signed ? "int64" : "uint64";
  }
  return "";
}

template <typename T>
constexpr Parameter describe() {
  using Element = std::remove_pointer_t<T>;
  using Value = std::remove_cv_t<Element>;
  static_assert(std::is_pointer_v<T> || std::is_trivially_copyable_v<T>, "a kernel parameter is passed as plain bytes");
  unsigned bytes = 1;
  if constexpr (!std::is_void_v<Value>) bytes = sizeof(Value);
  return {__PRETTY_FUNCTION__, numpy_name<Value>(), bytes, std::is_pointer_v<T>, !std::is_const_v<Element>};
}

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
