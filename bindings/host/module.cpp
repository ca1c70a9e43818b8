// The Python face: names(), parameters(name), launch(name, grid, block, values, memory, shared_bytes), configure(...),
// bank_conflicts(). Values are the bytes of each argument, as dlgpu/backends/launchers/host_arguments.py makes them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>

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
  for (const Kernel& kernel : kernels())
    if (kernel.name == name) return kernel;
  throw py::key_error(name);
}

dim3 dimensions(const std::array<long long, 3>& d) {
  for (long long n : d)
    if (n < 0 || n > 0xffffffffll)
      throw py::value_error("grid and block dimensions fit in 32 bits; got " + std::to_string(n));
  return dim3(unsigned(d[0]), unsigned(d[1]), unsigned(d[2]));
}

// Where a value of a launch lies: a multiple of 64, as a __grid_constant__ may need.
struct alignas(64) Line {
  char bytes[64];
};

void py_launch(const std::string& name, const std::array<long long, 3>& grid, const std::array<long long, 3>& block,
               const std::vector<py::bytes>& values, const std::vector<std::tuple<size_t, size_t, unsigned, std::string>>& memory,
               long long shared_bytes) {
  std::vector<std::vector<Line>> storage;
  std::vector<void*> pointers;
  for (const py::bytes& value : values) {
    std::string_view bytes = value;
    storage.emplace_back(bytes.size() / sizeof(Line) + 1);
    std::memcpy(storage.back().data(), bytes.data(), bytes.size());
    pointers.push_back(storage.back().data());
  }
  std::vector<Argument> extents;
  for (const auto& [begin, end, element_bytes, text] : memory)
    extents.push_back({reinterpret_cast<char*>(begin), reinterpret_cast<char*>(end), element_bytes, text});
  launch(find(name), dimensions(grid), dimensions(block), pointers.data(), extents, shared_bytes);
}

void configure(int order, int block_order, int copies, unsigned seed) {
  options = {Order(order), Order(block_order), Copies(copies), seed};
}

}  // namespace

std::vector<Kernel>& kernels() {
  static std::vector<Kernel> list;
  return list;
}

void add_kernel(const char* name, const Parameter* parameters, int count, Function function,
                void (*call)(Function, void**)) {
  kernels().push_back({name, parameters, count, function, call});
}

PYBIND11_MODULE(dlgpu_host, module) {
  module.def("names", [] {
    std::vector<std::string> names;
    for (const Kernel& kernel : kernels()) names.push_back(kernel.name);
    return names;
  });
  module.def("parameters", [](const std::string& name) {  // (C++ type, NumPy type, bytes, pointer, writes)
    const Kernel& kernel = find(name);
    std::vector<std::tuple<std::string, std::string, unsigned, bool, bool>> result;
    for (int i = 0; i < kernel.count; ++i) {
      const Parameter& p = kernel.parameters[i];
      result.emplace_back(text_of(p), p.dtype, p.bytes, p.pointer, p.writes);
    }
    return result;
  });
  module.def("launch", &py_launch);
  module.def("configure", &configure);
  module.def("bank_conflicts", [] {  // (position, passes, passes needed)
    std::vector<std::tuple<std::string, unsigned long long, unsigned long long>> result;
    for (const auto& c : check::bank_conflicts()) result.emplace_back(code_position(c.pc), c.wavefronts, c.needed);
    return result;
  });
}

}  // namespace dl::host
