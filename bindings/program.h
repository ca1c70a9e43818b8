// A whole call as its launches, made once and replayed: `Program` of dlgpu/backends/kernels/programs.py in C++. Each
// launch is a block of arguments, in which only addresses and changing numbers are missing.
#pragma once
#include <utility>

#include "kernel.h"

namespace dl {

// An array or a number of a running program; where an array lies is asked once.
struct Slot {
  py::object value, dtype;
  void* address = nullptr;

  bool located() { return dtype || locate(value.ptr(), address, dtype); }
};
using Memory = std::vector<Slot>;

struct Make {
  py::object function;
  int slot;  // of what the function takes; 0: it takes nothing
};

struct Launch {
  std::vector<Make> makes;
  py::object owner;  // of the kernel
  Kernel& kernel;
  Size size;
  std::vector<char> arguments;
  std::vector<std::pair<int, int>> missing;  // parameter, slot
  std::vector<int> done;
};

class Program {
 public:
  // Of each step: what it makes, a Kernel, grid, block, shared bytes, parameter -> what is always the same,
  // parameter -> slot of the others, slots that nothing needs after it.
  Program(const py::iterable& steps, const py::iterable& last, const py::object& results)
      : last_(makes(last)), several_(py::isinstance<py::tuple>(results)) {
    if (several_) results_ = results.cast<std::vector<int>>();
    else results_ = {results.cast<int>()};
    Borrowed nothing{};
    for (py::handle step : steps) {
      const auto t = step.cast<py::tuple>();
      launches_.push_back({makes(t[0]), t[1], t[1].cast<Kernel&>(), Size(t[2], t[3], t[4].cast<unsigned>()), {}, {},
                           t[7].cast<std::vector<int>>()});
      Launch& launch = launches_.back();
      launch.arguments.resize(launch.kernel.size());
      for (auto [parameter, value] : t[5].cast<py::dict>())
        launch.kernel.put(parameter.cast<int>(), value.ptr(), nothing, launch.arguments.data());
      for (auto [parameter, slot] : t[6].cast<py::dict>())
        launch.missing.emplace_back(parameter.cast<int>(), slot.cast<int>());
    }
  }

  // Results for the arguments in `memory`, which begin at slot 1.
  py::object run(Memory& memory, int device, cudaStream_t stream) const {
    Borrowed borrowed{stream, {}, {}};
    Arguments arguments;  // of its own: another thread may replay the same program while CUDA reads them
    for (const Launch& launch : launches_) {
      make(launch.makes, memory);
      std::memcpy(arguments.bytes, launch.arguments.data(), launch.arguments.size());
      for (auto [parameter, slot] : launch.missing) {
        Slot& found = memory[slot];
        if (!launch.kernel.points(parameter) || !found.located() ||
            !launch.kernel.put(parameter, found.address, found.dtype, arguments.bytes))
          launch.kernel.put(parameter, found.value.ptr(), borrowed, arguments.bytes);
      }
      launch.kernel.start(launch.size, arguments.bytes, borrowed, device);
      for (int slot : launch.done) memory[slot] = {};
    }
    make(last_, memory);
    if (!several_) return memory[results_[0]].value;
    py::tuple results(results_.size());
    for (std::size_t i = 0; i < results_.size(); ++i) results[i] = memory[results_[i]].value;
    return std::move(results);
  }

 private:
  static std::vector<Make> makes(const py::iterable& all) {
    std::vector<Make> result;
    for (py::handle one : all) {
      const auto [function, slot] = one.cast<std::pair<py::object, py::object>>();
      result.push_back({function, slot.is_none() ? 0 : slot.cast<int>()});
    }
    return result;
  }

  static void make(const std::vector<Make>& makes, Memory& memory) {
    for (const Make& one : makes) {
      PyObject* function = one.function.ptr();
      py::object made = steal(one.slot ? PyObject_CallOneArg(function, memory[one.slot].value.ptr())
                                       : PyObject_CallNoArgs(function));
      memory.push_back({std::move(made), {}, nullptr});
    }
  }

  std::vector<Launch> launches_;
  std::vector<Make> last_;
  std::vector<int> results_;
  bool several_;
};

}  // namespace dl
