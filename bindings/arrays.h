// Where an array of another library lies, and what it holds: CuPy's own attributes, __cuda_array_interface__, DLPack.
#pragma once
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace dl {

namespace py = pybind11;

// What an array holds, in NumPy's letters: 'f' float, 'i' and 'u' integer, 'b' bool, 'V' raw bytes (bfloat16, structs).
struct Element {
  char kind;
  int bytes;
};

// What a launch on `stream` has to do for the arrays that it is given.
struct Borrowed {
  cudaStream_t stream;
  std::vector<py::object> owners;       // to be kept until the kernel is in its stream
  std::vector<cudaStream_t> producers;  // streams with work on the arrays, which the kernel must wait for
};

struct Array {
  void* address = nullptr;
  Element element{};
  bool writeable = true;
};

inline std::intptr_t address_of(cudaStream_t stream) { return reinterpret_cast<std::intptr_t>(stream); }

// __cuda_array_interface__, version 2 or 3: Numba, PyTorch, JAX and others.
inline bool from_interface(py::handle value, Array& array, Borrowed& borrowed) {
  py::object found = py::getattr(value, "__cuda_array_interface__", py::none());
  if (found.is_none()) return false;
  auto interface = found.cast<py::dict>();
  auto type = interface["typestr"].cast<std::string>();  // "<f4": byte order, kind, bytes
  auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  if (type.size() < 3 || type[0] == '>') return false;
  array = {reinterpret_cast<void*>(address), {type[1], std::stoi(type.substr(2))}, !read_only};
  py::object stream = interface.attr("get")("stream");
  if (!stream.is_none()) borrowed.producers.push_back(reinterpret_cast<cudaStream_t>(stream.cast<std::uintptr_t>()));
  return true;
}

// The head of DLPack's DLManagedTensor (https://dmlc.github.io/dlpack/latest/c_api.html), which is all that is read.
struct DLTensor {
  void* data;
  std::int32_t device_type, device_id, dimensions;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};

inline bool from_dlpack(py::handle value, Array& array, Borrowed& borrowed) {
  constexpr int kCuda = 2, kCudaManaged = 13;
  if (!py::hasattr(value, "__dlpack__")) return false;
  auto device = value.attr("__dlpack_device__")().cast<std::pair<int, int>>().first;
  if (device != kCuda && device != kCudaManaged) return false;
  // The producer makes our stream wait for its work. DLPack calls the default stream 1, not 0.
  auto stream = borrowed.stream ? address_of(borrowed.stream) : 1;
  auto capsule = value.attr("__dlpack__")(py::arg("stream") = stream).cast<py::capsule>();
  const auto* tensor = static_cast<const DLTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!tensor) throw py::error_already_set();
  constexpr char kKinds[] = {'i', 'u', 'f', '?', 'V', 'c', 'b'};  // V: bfloat16
  if (tensor->code >= sizeof kKinds || tensor->lanes != 1) return false;
  array.address = static_cast<char*>(tensor->data) + tensor->byte_offset;
  array.element = {kKinds[tensor->code], tensor->bits / 8};
  borrowed.owners.push_back(std::move(capsule));
  return true;
}

}  // namespace dl
