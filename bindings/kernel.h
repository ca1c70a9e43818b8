// A kernel that Python can launch. Arguments are checked against the kernel's own parameter types, because CUDA would
// not; the words of an error are Python's (dlgpu/backends/launchers/gpu.py), which knows the parameters' names.
#pragma once
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "launch.h"

namespace dl {

// Attribute names, made once: a launch looks several up.
inline PyObject* const kData = PyUnicode_InternFromString("data");
inline PyObject* const kPtr = PyUnicode_InternFromString("ptr");
inline PyObject* const kDtype = PyUnicode_InternFromString("dtype");

constexpr const char* kWords = "dlgpu.backends.launchers.gpu";  // where the texts of errors are
constexpr unsigned kDefaultShared = 48 << 10;  // bytes of dynamic shared memory that a kernel gets without asking

inline const Entry& find(const std::string& name) {
  for (const Entry* entry = Entry::first; entry; entry = entry->next)
    if (name == entry->name) return *entry;
  throw py::key_error(name);
}

inline py::object steal(PyObject* object) {  // null: an error is set
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

inline py::object attribute(PyObject* object, PyObject* name) {  // null if there is none
  PyObject* found = PyObject_GetAttr(object, name);
  if (!found) PyErr_Clear();
  return py::reinterpret_steal<py::object>(found);
}

inline py::object python(const char* module, const char* name) { return py::module_::import(module).attr(name); }

// ---- scalars and structs: true if the value fits, and is then in `to` ----

template <typename T>
bool put_integer(long long number, void* to) {
  if (number < static_cast<long long>(std::numeric_limits<T>::min())) return false;
  if (number > 0 && static_cast<unsigned long long>(number) > std::numeric_limits<T>::max()) return false;
  const T converted = static_cast<T>(number);
  std::memcpy(to, &converted, sizeof converted);
  return true;
}

inline bool is_integer(PyObject* value) {
  if (PyLong_Check(value)) return true;
  static PyObject* numpy_integer = python("numpy", "integer").release().ptr();  // lives as long as the process
  return PyObject_IsInstance(value, numpy_integer) == 1;
}

inline bool integer(const Parameter& parameter, PyObject* value, void* to) {
  if (!is_integer(value)) return false;
  py::object index = steal(PyNumber_Index(value));
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow) {  // the upper half of uint64, or out of every range
    if (overflow < 0 || parameter.bytes != 8 || parameter.dtype[0] != 'u') return false;
    const unsigned long long large = PyLong_AsUnsignedLongLong(index.ptr());
    if (PyErr_Occurred()) return PyErr_Clear(), false;
    std::memcpy(to, &large, sizeof large);
    return true;
  }
  switch (parameter.dtype[0] == 'u' ? -int(parameter.bytes) : int(parameter.bytes)) {
    case 4: return put_integer<std::int32_t>(number, to);
    case 8: return put_integer<std::int64_t>(number, to);
    case -4: return put_integer<std::uint32_t>(number, to);
    default: return put_integer<std::uint64_t>(number, to);
  }
}

inline bool real(PyObject* value, void* to) {
  if (!PyFloat_Check(value) && !is_integer(value)) {
    static PyObject* numpy_floating = python("numpy", "floating").release().ptr();
    if (PyObject_IsInstance(value, numpy_floating) != 1) return false;
  }
  const double number = PyFloat_AsDouble(value);
  if (PyErr_Occurred()) return PyErr_Clear(), false;  // an integer beyond every float
  const float converted = static_cast<float>(number);
  if (std::isfinite(number) && !std::isfinite(converted)) return false;
  std::memcpy(to, &converted, sizeof converted);
  return true;
}

inline bool same(PyObject* a, PyObject* b) { return a == b || PyObject_RichCompareBool(a, b, Py_EQ) == 1; }

inline bool record(const Parameter& parameter, const py::object& dtype, PyObject* value, void* to) {
  py::object given = attribute(value, kDtype);
  Py_buffer buffer;
  if (!given || !same(given.ptr(), dtype.ptr()) || PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE))
    return PyErr_Clear(), false;
  const bool fits = buffer.len == Py_ssize_t(parameter.bytes);
  if (fits) std::memcpy(to, buffer.buf, parameter.bytes);
  PyBuffer_Release(&buffer);
  return fits;
}

// ---- arrays ----

inline bool fits(const Parameter& parameter, Element element) {
  if (!std::strcmp(parameter.dtype, "void")) return true;
  if (element.bytes != int(parameter.bytes)) return false;
  const bool raw = !parameter.dtype[0] || !std::strcmp(parameter.dtype, "bfloat16");
  return element.kind == (raw ? 'V' : parameter.dtype[0]);
}

// Address of CuPy's array, recognised by `array.data.ptr`; false for what is none.
inline bool locate(PyObject* value, void*& address) {
  const py::object data = attribute(value, kData);
  const py::object pointer = data ? attribute(data.ptr(), kPtr) : py::object();
  if (!pointer || !PyLong_Check(pointer.ptr())) return false;
  address = PyLong_AsVoidPtr(pointer.ptr());
  return true;
}

// `accepted` remembers a dtype that fits, since there is one object of each.
inline bool fits(const Parameter& parameter, const py::object& dtype, py::object& accepted) {
  if (!dtype || dtype.is(accepted)) return bool(dtype);
  const Element element{dtype.attr("kind").cast<char>(), dtype.attr("itemsize").cast<int>()};
  if (!fits(parameter, element)) return false;
  accepted = dtype;
  return true;
}

inline bool array(const Parameter& parameter, PyObject* value, py::object& accepted, Borrowed& borrowed, void* to) {
  Array array;
  if (value != Py_None && !(locate(value, array.address) && fits(parameter, attribute(value, kDtype), accepted))) {
    if (!from_interface(value, array, borrowed) && !from_dlpack(value, array, borrowed)) return false;
    if (!fits(parameter, array.element) || (parameter.writes && !array.writeable)) return false;
  }
  std::memcpy(to, &array.address, sizeof array.address);
  return true;
}

// ---- launching ----

inline dim3 dimensions(const char* what, PyObject* value) {
  unsigned sizes[3];
  bool good = PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 3;
  for (int i = 0; good && i < 3; ++i) {
    PyObject* size = PyTuple_GET_ITEM(value, i);
    good = PyLong_Check(size) && integer({"", "uint32", 4, false, false}, size, &sizes[i]) && sizes[i] > 0;
  }
  if (!good) throw py::value_error(std::string(what) + " must be three positive integers; got " +
                                   std::string(py::repr(value)));
  return dim3(sizes[0], sizes[1], sizes[2]);
}

inline cudaError_t wait_for(cudaStream_t producer, cudaStream_t stream) {
  cudaEvent_t event;
  cudaError_t status = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (status != cudaSuccess) return status;
  status = cudaEventRecord(event, producer);
  if (status == cudaSuccess) status = cudaStreamWaitEvent(stream, event, 0);
  cudaEventDestroy(event);  // CUDA frees it once it is no longer needed
  return status;
}

struct Size {
  dim3 grid, block;
  unsigned shared_bytes;

  Size(py::handle grid, py::handle block, unsigned shared_bytes)
      : grid(dimensions("grid", grid.ptr())), block(dimensions("block", block.ptr())), shared_bytes(shared_bytes) {}
};

// Room for the arguments of any launch, which begin at multiples of what a CUtensorMap, the strictest, wants.
constexpr unsigned kAlignment = 64;
struct alignas(kAlignment) Arguments {
  char bytes[kMostBytes + kAlignment * kMostParameters];
};

class Kernel {
 public:
  // `declaration`: as `sources.parameters(name)` reads it; it gives the layout of structs.
  Kernel(const std::string& name, const py::sequence& declaration) : entry_(find(name)) {
    if (int(declaration.size()) != entry_.count)
      throw py::value_error("[" + name + "] must be declared with " + std::to_string(entry_.count) + " parameters; got " +
                            std::to_string(declaration.size()));
    for (py::handle parameter : declaration) dtypes_.push_back(parameter.attr("type"));
    offsets_.push_back(0);
    for (int i = 0; i < entry_.count; ++i) {
      const unsigned end = offsets_.back() + bytes(entry_.parameters[i]);
      offsets_.push_back((end + kAlignment - 1) / kAlignment * kAlignment);
    }
  }

  int count() const { return entry_.count; }
  const char* name() const { return entry_.name; }
  unsigned size() const { return offsets_.back(); }  // bytes of all arguments
  unsigned offset(int i) const { return offsets_[i]; }
  bool points(int i) const { return entry_.parameters[i].pointer; }

  // Argument number i; raises if it does not fit.
  void put(int i, PyObject* value, Borrowed& borrowed, char* arguments) {
    if (!convert(i, value, borrowed, arguments + offsets_[i])) refuse(i, value);
  }

  // Hands a launch over to CUDA; needs no lock of Python's.
  cudaError_t start(const Size& size, char* arguments, cudaStream_t stream, int device) {
    void* values[kMostParameters];
    for (int i = 0; i < entry_.count; ++i) values[i] = arguments + offsets_[i];
    const cudaError_t status = size.shared_bytes > kDefaultShared ? allow(size.shared_bytes, device) : cudaSuccess;
    if (status != cudaSuccess) return status;
    return cudaLaunchKernel(entry_.function, size.grid, size.block, values, size.shared_bytes, stream);
  }

  // Raises what CUDA said of a launch.
  [[noreturn]] void fail(cudaError_t status, const Size& size) const {
    cudaGetLastError();  // else the next call would report it again
    const std::string got = std::string("; got ") + cudaGetErrorName(status) + ": " + cudaGetErrorString(status);
    switch (status) {
      case cudaErrorNoDevice:
      case cudaErrorInsufficientDriver:
      case cudaErrorStubLibrary:
      case cudaErrorInitializationError:
      case cudaErrorDevicesUnavailable:
      case cudaErrorSystemNotReady:
      case cudaErrorSystemDriverMismatch:
      case cudaErrorCompatNotSupportedOnDevice:
        unavailable("[cuda:native] there must be an NVIDIA GPU and its driver" + got);
      case cudaErrorNoKernelImageForDevice:
      case cudaErrorInvalidDeviceFunction:
      case cudaErrorInvalidKernelImage:
      case cudaErrorUnsupportedPtxVersion:  // of the PTX that stands in for GPUs to come
      case cudaErrorJitCompilerNotFound:
      case cudaErrorJitCompilationDisabled:
        unavailable("[cuda:native] must be built for this GPU" + got + ": name it in DLGPU_CUDA_ARCHITECTURES");
      case cudaErrorIllegalAddress:
      case cudaErrorMisalignedAddress:
      case cudaErrorInvalidAddressSpace:
      case cudaErrorIllegalInstruction:
      case cudaErrorInvalidPc:
      case cudaErrorHardwareStackError:
      case cudaErrorLaunchFailure:
      case cudaErrorLaunchTimeout:
      case cudaErrorAssert:
      case cudaErrorECCUncorrectable:
        throw std::runtime_error(std::string("[") + entry_.name + "] it and all kernels before it must run to their end" +
                                 got + ": start a new process, with CUDA_LAUNCH_BLOCKING=1 to learn which kernel failed");
      default: break;
    }
    const auto text = [](dim3 n) { return std::string(py::repr(py::make_tuple(n.x, n.y, n.z))); };
    throw std::runtime_error(std::string("[") + entry_.name + "] CUDA must accept the launch" + got + " (grid " +
                             text(size.grid) + ", block " + text(size.block) + ", " +
                             std::to_string(size.shared_bytes) + " bytes of shared memory)");
  }

  // ("const float32*", "uint32", "16 bytes", ...)
  std::vector<std::string> signature() const {
    std::vector<std::string> types;
    for (int i = 0; i < entry_.count; ++i) {
      const Parameter& parameter = entry_.parameters[i];
      std::string type = parameter.dtype[0] ? parameter.dtype : std::to_string(parameter.bytes) + " bytes";
      types.push_back(parameter.pointer ? (parameter.writes ? "" : "const ") + type + "*" : type);
    }
    return types;
  }

 private:
  static unsigned bytes(const Parameter& parameter) { return parameter.pointer ? sizeof(void*) : parameter.bytes; }

  bool convert(int i, PyObject* value, Borrowed& borrowed, void* to) {
    const Parameter& parameter = entry_.parameters[i];
    if (parameter.pointer) return array(parameter, value, dtypes_[i], borrowed, to);
    if (!parameter.dtype[0]) return record(parameter, dtypes_[i], value, to);
    return parameter.dtype[0] == 'f' ? real(value, to) : integer(parameter, value, to);
  }

  [[noreturn]] void refuse(int i, PyObject* value) const {
    const Parameter& parameter = entry_.parameters[i];
    python(kWords, "refuse")(entry_.name, i, py::handle(value), parameter.pointer ? parameter.dtype : "",
                             parameter.writes);
    throw py::value_error(entry_.name);  // not reached: it raises
  }

  [[noreturn]] static void unavailable(const std::string& text) {
    PyErr_SetObject(python("dlgpu.errors", "BackendUnavailable").ptr(), py::str(text).ptr());
    throw py::error_already_set();
  }

  // More dynamic shared memory than the default must be asked for, once on each device.
  cudaError_t allow(unsigned bytes, int device) const {
    const std::lock_guard asking(asking_);
    unsigned& allowed = allowed_[{&entry_, device}];
    if (bytes <= allowed) return cudaSuccess;
    const auto status = cudaFuncSetAttribute(entry_.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
    if (status == cudaSuccess) allowed = bytes;
    return status;
  }

  const Entry& entry_;
  std::vector<py::object> dtypes_;  // of structs: the declared one; of arrays: one that was found to fit
  std::vector<unsigned> offsets_;   // where each argument begins; last, where they end

  static inline std::mutex asking_;
  static inline std::map<std::pair<const Entry*, int>, unsigned> allowed_;  // on a device, by whichever `Kernel`
};

struct Launch {
  Kernel* kernel;
  Size size;
  unsigned begin;  // of its arguments, among those of the launches that are started with it
};

// Starts launches in order, all on the same stream. Python's lock is left once for all of them.
inline void start(const Launch* launch, const Launch* end, char* arguments, const Borrowed& borrowed, int device) {
  cudaError_t status;
  {
    py::gil_scoped_release released;  // CUDA waits when a stream's queue is full, and loads kernels at their first use
    status = cudaSetDevice(device);
    for (cudaStream_t producer : borrowed.producers)
      if (status == cudaSuccess && producer != borrowed.stream) status = wait_for(producer, borrowed.stream);
    while (status == cudaSuccess && launch != end) {
      status = launch->kernel->start(launch->size, arguments + launch->begin, borrowed.stream, device);
      if (status == cudaSuccess) ++launch;
    }
  }
  if (status != cudaSuccess) launch->kernel->fail(status, launch->size);
}

inline void launch(Kernel& kernel, py::handle grid, py::handle block, const py::tuple& args, unsigned shared_bytes,
                   int device, std::uintptr_t stream) {
  const Launch one{&kernel, Size(grid, block, shared_bytes), 0};
  if (int(args.size()) != kernel.count()) python(kWords, "refuse_count")(kernel.name(), args.size());
  Borrowed borrowed{reinterpret_cast<cudaStream_t>(stream), {}, {}};
  Arguments arguments;
  for (int i = 0; i < kernel.count(); ++i) kernel.put(i, PyTuple_GET_ITEM(args.ptr(), i), borrowed, arguments.bytes);
  start(&one, &one + 1, arguments.bytes, borrowed, device);
}

}  // namespace dl
