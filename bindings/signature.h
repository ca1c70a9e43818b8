// What a kernel takes, deduced from its type: for every build that calls kernels by name. No standard library here: what
// it instantiates in an instrumented kernel file of the host build, the linker could pick for the runtime as well.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

namespace dl {

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

}  // namespace dl
