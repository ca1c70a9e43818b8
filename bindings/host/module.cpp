// The Python face: names(), signature(name), launch(name, grid, block, args, shared_bytes), configure(...),
// bank_conflicts(). Arguments are checked against the kernel's own parameter types, because CUDA would not.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cfloat>
#include <cstring>
#include <map>

#include "block.h"
#include "check.h"

namespace py = pybind11;

namespace dl::host {
namespace {

std::string text_of(const Parameter& parameter) {
  std::string text = parameter.pretty_function;
  text.erase(0, text.find("T = ") + 4);
  return text.substr(0, text.find_first_of(";]"));
}

const Kernel& find(const std::string& name) {
  std::string wanted = canonical(name);
  for (const Kernel& kernel : kernels())
    if (kernel.name == wanted) return kernel;
  throw py::key_error(wanted);
}

// One argument of one launch, being converted.
struct Slot {
  const Kernel& kernel;
  int index;
  const Parameter& parameter = kernel.parameters[index];

  [[noreturn]] void reject(PyObject* type, const std::string& got) const {
    std::string text =
        "[" + kernel.name + "] argument " + std::to_string(index) + " is " + text_of(parameter) + "; got " + got;
    PyErr_SetString(type, text.c_str());
    throw py::error_already_set();
  }
  [[noreturn]] void reject(const py::handle& value) const {
    reject(PyExc_TypeError, std::string(py::str(py::type::handle_of(value).attr("__name__"))) + " " +
                                std::string(py::repr(value)).substr(0, 60));
  }
};

// The bytes between the lowest and the highest element of an array with any strides.
Argument extent(const Slot& slot, const py::array& array) {
  char* begin = static_cast<char*>(const_cast<void*>(array.data()));
  Argument memory{begin, begin, slot.parameter.bytes,
                  "argument " + std::to_string(slot.index) + " (" + text_of(slot.parameter) + ")"};
  if (array.size() == 0) return memory;
  memory.end += array.itemsize();
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    py::ssize_t reach = (array.shape(i) - 1) * array.strides(i);
    (reach < 0 ? memory.begin : memory.end) += reach;
  }
  return memory;
}

void* pointer(const Slot& slot, const py::handle& value, std::vector<Argument>& memory) {
  if (value.is_none()) return nullptr;
  if (!py::isinstance<py::array>(value)) slot.reject(value);
  auto array = py::reinterpret_borrow<py::array>(value);
  std::string dtype = py::str(array.dtype().attr("name")), wanted = slot.parameter.dtype;
  bool fits = wanted == "void" || wanted == dtype ||
              (wanted.empty() && dtype.rfind("void", 0) == 0 && array.itemsize() == py::ssize_t(slot.parameter.bytes));
  if (!fits) slot.reject(PyExc_TypeError, "an array of " + dtype);
  if (slot.parameter.writes && !array.writeable()) slot.reject(PyExc_ValueError, "a read-only array");
  memory.push_back(extent(slot, array));
  return const_cast<void*>(array.data());
}

void integer(const Slot& slot, const py::handle& value, void* to) {
  PyObject* number = PyFloat_Check(value.ptr()) ? nullptr : PyNumber_Index(value.ptr());
  if (!number) {
    PyErr_Clear();
    slot.reject(value);
  }
  auto owner = py::reinterpret_steal<py::int_>(number);
  bool is_signed = slot.parameter.dtype[0] == 'i';
  unsigned bits = std::strcmp(slot.parameter.dtype, "bool") ? 8 * slot.parameter.bytes : 1;
  py::int_ low(is_signed ? -(1ll << (bits - 1)) : 0);
  py::int_ high(is_signed ? ~0ull >> (65 - bits) : ~0ull >> (64 - bits));
  if (owner < low || owner > high) slot.reject(PyExc_OverflowError, py::str(owner));
  unsigned long long bytes = PyLong_AsUnsignedLongLongMask(number);
  std::memcpy(to, &bytes, slot.parameter.bytes);
}

void real(const Slot& slot, const py::handle& value, void* to) {
  if (py::isinstance<py::array>(value)) slot.reject(value);
  double number = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    slot.reject(value);
  }
  std::string dtype = slot.parameter.dtype;
  auto put = [&](auto converted, double back) {
    if (std::isfinite(number) && !std::isfinite(back)) slot.reject(PyExc_OverflowError, py::repr(value));
    std::memcpy(to, &converted, sizeof converted);
  };
  if (dtype == "float64")
    put(number, number);
  else if (dtype == "float32")
    put(float(number), float(number));
  else if (dtype == "float16")
    put(__double2half(number), __half2float(__double2half(number)));
  else
    put(__double2bfloat16(number), __bfloat162float(__double2bfloat16(number)));
}

void record(const Slot& slot, const py::handle& value, void* to) {
  if (!PyObject_CheckBuffer(value.ptr())) slot.reject(value);
  py::bytes raw(py::isinstance<py::bytes>(value) ? py::reinterpret_borrow<py::bytes>(value)
                                                 : py::bytes(value.attr("tobytes")()));
  std::string bytes = raw;
  if (bytes.size() != slot.parameter.bytes)
    slot.reject(PyExc_ValueError,
                std::to_string(bytes.size()) + " bytes instead of " + std::to_string(slot.parameter.bytes));
  std::memcpy(to, bytes.data(), bytes.size());
}

// Arguments may be views of one array: then they are one piece of memory.
std::vector<Argument> merged(std::vector<Argument> memory) {
  std::sort(memory.begin(), memory.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  std::vector<Argument> result;
  for (Argument& a : memory) {
    if (result.empty() || a.begin >= result.back().end) {
      result.push_back(a);
      continue;
    }
    Argument& last = result.back();
    last.end = std::max(last.end, a.end);
    last.element_bytes = std::min(last.element_bytes, a.element_bytes);
    last.name += " = " + a.name;
  }
  return result;
}

dim3 dimensions(const std::array<long long, 3>& d) {
  for (long long n : d)
    if (n < 0 || n > 0xffffffffll)
      throw py::value_error("grid and block dimensions fit in 32 bits; got " + std::to_string(n));
  return dim3(unsigned(d[0]), unsigned(d[1]), unsigned(d[2]));
}

void py_launch(const std::string& name, const std::array<long long, 3>& grid, const std::array<long long, 3>& block,
               const py::sequence& args, long long shared_bytes) {
  const Kernel& kernel = find(name);
  if (int(args.size()) != kernel.count)
    throw py::type_error("[" + kernel.name + "] takes " + std::to_string(kernel.count) + " arguments; got " +
                         std::to_string(args.size()));
  size_t bytes = 0;
  for (int i = 0; i < kernel.count; ++i) bytes += (kernel.parameters[i].bytes + 16 + 63) / 64 * 64;
  std::vector<char> storage(bytes + 64);
  char* next = storage.data() + (64 - reinterpret_cast<size_t>(storage.data()) % 64);
  std::vector<void*> values;
  std::vector<Argument> memory;
  for (int i = 0; i < kernel.count; ++i) {
    Slot slot{kernel, i};
    py::object value = args[i];
    std::string dtype = slot.parameter.dtype;
    if (slot.parameter.pointer)
      *reinterpret_cast<void**>(next) = pointer(slot, value, memory);
    else if (dtype.empty())
      record(slot, value, next);
    else if (dtype.find("float") != std::string::npos)
      real(slot, value, next);
    else
      integer(slot, value, next);
    values.push_back(next);
    next += (slot.parameter.bytes + 16 + 63) / 64 * 64;
  }
  launch(kernel, dimensions(grid), dimensions(block), values.data(), merged(std::move(memory)), shared_bytes);
}

template <typename E>
E choice(const char* what, const std::map<std::string, E>& choices, const std::string& value) {
  auto found = choices.find(value);
  if (found != choices.end()) return found->second;
  std::string known;
  for (auto& [name, _] : choices) known += " " + name;
  throw py::value_error(std::string(what) + " is one of" + known + "; got '" + value + "'");
}

void configure(const std::string& order, const std::string& block_order, const std::string& copies, unsigned seed) {
  static const std::map<std::string, Order> kOrders = {
      {"forward", Order::forward}, {"reverse", Order::reverse}, {"random", Order::random}};
  static const std::map<std::string, Copies> kCopies = {
      {"late", Copies::late}, {"early", Copies::early}, {"random", Copies::random}};
  options = {choice("order", kOrders, order), choice("block_order", kOrders, block_order),
             choice("copies", kCopies, copies), seed};
}

}  // namespace

std::vector<Kernel>& kernels() {
  static std::vector<Kernel> list;
  return list;
}

void add_kernel(const char* name, const Parameter* parameters, int count, Function function,
                void (*call)(Function, void**)) {
  kernels().push_back({canonical(name), parameters, count, function, call});
}

std::string canonical(const std::string& name) {
  std::string result;
  auto separates = [](char c) { return std::strchr("<>,", c) != nullptr; };
  for (size_t i = 0; i < name.size(); ++i) {
    if (!std::isspace(static_cast<unsigned char>(name[i]))) {
      result += name[i];
      if (name[i] == ',') result += ' ';
      continue;
    }
    while (i + 1 < name.size() && std::isspace(static_cast<unsigned char>(name[i + 1]))) ++i;
    bool inside = !result.empty() && i + 1 < name.size() && !separates(name[i + 1]);
    if (inside && !separates(result.back()) && result.back() != ' ') result += ' ';  // "unsigned char" keeps its space
  }
  return result;
}

PYBIND11_MODULE(dlgpu_host, module) {
  module.def("names", [] {
    std::vector<std::string> names;
    for (const Kernel& kernel : kernels()) names.push_back(kernel.name);
    return names;
  });
  module.def("signature", [](const std::string& name) {
    const Kernel& kernel = find(name);
    std::vector<std::string> types;
    for (int i = 0; i < kernel.count; ++i) types.push_back(text_of(kernel.parameters[i]));
    return types;
  });
  module.def("launch", &py_launch, py::arg("name"), py::arg("grid"), py::arg("block"), py::arg("args"),
             py::arg("shared_bytes") = 0);
  module.def("configure", &configure, py::arg("order") = "forward", py::arg("block_order") = "forward",
             py::arg("copies") = "late", py::arg("seed") = 0);
  module.def("bank_conflicts", [] {  // (position, passes, passes needed)
    std::vector<std::tuple<std::string, unsigned long long, unsigned long long>> result;
    for (const auto& c : check::bank_conflicts()) result.emplace_back(code_position(c.pc), c.wavefronts, c.needed);
    return result;
  });
  std::vector<std::string> seen;
  for (const Kernel& kernel : kernels()) seen.push_back(kernel.name);
  std::sort(seen.begin(), seen.end());
  auto twice = std::adjacent_find(seen.begin(), seen.end());
  if (twice != seen.end()) throw py::import_error("two DL_KERNEL lines register " + *twice);
}

}  // namespace dl::host
