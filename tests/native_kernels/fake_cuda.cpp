// The CUDA runtime as far as bindings/ calls it, without a GPU: every call is written down. A launch of `everything`,
// a plain function here, calls it; of other kernels it writes down the arguments' bytes. The tests read the record and set
// errors through ctypes; what is to be timed is not recorded.
#include <cuda_runtime_api.h>

#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "everything.cuh"

namespace {

std::string events;
std::mutex writing;  // launches come from several threads
cudaError_t next_error = cudaSuccess;  // of a launch,
int before_it = 0;                     // which is the next one after so many
bool recording = true;

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

// "name 0010000000000000 05000000 ...": each argument's bytes, in hexadecimal
bool write_down(const void* function, void** values) {
  const dl::Entry* entry = dl::Entry::first;
  while (entry && entry->function != function) entry = entry->next;
  if (!entry) return false;
  std::string line = entry->name;
  for (int i = 0; i < entry->count; ++i) {
    line += " ";
    const unsigned bytes = entry->parameters[i].pointer ? sizeof(void*) : entry->parameters[i].bytes;
    for (unsigned byte = 0; byte < bytes; ++byte) {
      const unsigned char value = static_cast<const unsigned char*>(values[i])[byte];
      for (int digit : {value / 16, value % 16}) line += "0123456789abcdef"[digit];
    }
  }
  return record(line), true;
}

std::string text(const void* handle) { return std::to_string(reinterpret_cast<size_t>(handle)); }

}  // namespace

void record(const std::string& event) {
  const std::lock_guard lock(writing);
  if (recording) events += event + "\n";
}

extern "C" {

__attribute__((visibility("default"))) const char* fake_events() {
  const std::lock_guard lock(writing);
  static std::string result;
  result.swap(events);
  events.clear();
  return result.c_str();
}
__attribute__((visibility("default"))) void fake_recording(int wanted) { recording = wanted; }
__attribute__((visibility("default"))) void fake_error(int error, int launches) {
  next_error = cudaError_t(error);
  before_it = launches;
}

cudaError_t cudaSetDevice(int device) {
  if (!recording) return cudaSuccess;
  record("device " + std::to_string(device));
  std::this_thread::sleep_for(std::chrono::microseconds(20));  // so that another thread has its turn
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  record("attribute " + std::to_string(attribute) + " " + std::to_string(value));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** values, size_t shared_bytes,
                             cudaStream_t stream) {
  if (next_error != cudaSuccess && before_it-- == 0) return next_error;
  if (!recording) return cudaSuccess;
  std::string sizes;
  for (unsigned n : {grid.x, grid.y, grid.z, block.x, block.y, block.z}) sizes += std::to_string(n) + " ";
  record("launch " + sizes + std::to_string(shared_bytes) + " " + text(stream));
  const bool called = call_if<float>(function, values) || call_if<__half>(function, values) ||
                      call_if<__nv_bfloat16>(function, values) || write_down(function, values);
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
