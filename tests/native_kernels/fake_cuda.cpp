// The CUDA runtime as far as bindings/module.cpp calls it, without a GPU: every call is written down, and a launch calls
// the kernel, which is a plain function here. The tests read the record and set errors through ctypes.
#include <cuda_runtime_api.h>

#include <utility>

#include "everything.cuh"

namespace {

std::string events;
cudaError_t next_error = cudaSuccess;  // of the next launch

template <typename... P, size_t... I>
void call(void (*kernel)(P...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(values[I])...);
}

template <typename T>
bool call_if(const void* function, void** values) {
  if (function != reinterpret_cast<const void*>(&everything<T>)) return false;
  call(&everything<T>, values, std::make_index_sequence<10>());
  return true;
}

std::string text(const void* handle) { return std::to_string(reinterpret_cast<size_t>(handle)); }

}  // namespace

void record(const std::string& event) { events += event + "\n"; }

extern "C" {

__attribute__((visibility("default"))) const char* fake_events() {
  static std::string result;
  result.swap(events);
  events.clear();
  return result.c_str();
}
__attribute__((visibility("default"))) void fake_error(int error) { next_error = cudaError_t(error); }

cudaError_t cudaSetDevice(int device) { return record("device " + std::to_string(device)), cudaSuccess; }

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  record("attribute " + std::to_string(attribute) + " " + std::to_string(value));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** values, size_t shared_bytes,
                             cudaStream_t stream) {
  if (next_error != cudaSuccess) return next_error;
  std::string sizes;
  for (unsigned n : {grid.x, grid.y, grid.z, block.x, block.y, block.z}) sizes += std::to_string(n) + " ";
  record("launch " + sizes + std::to_string(shared_bytes) + " " + text(stream));
  const bool called = call_if<float>(function, values) || call_if<__half>(function, values) ||
                      call_if<__nv_bfloat16>(function, values);
  return called ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(0xe);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) {
  return record("record " + text(stream)), cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return record("wait " + text(stream)), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  record("cleared");
  const cudaError_t error = next_error;
  next_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorFake"; }
const char* cudaGetErrorString(cudaError_t) { return "as the test wants"; }
}
