// A whole call as its launches, made once and replayed: `Program` of dlgpu/backends/kernels/programs.py in C++. The
// arguments of its launches are a block of bytes, in which only addresses and changing numbers are missing.
#pragma once
#include "kernel.h"

namespace dl {

// An array or a number of a running program; where an array lies is asked once.
struct Slot {
  py::object value;
  void* address = nullptr;
  bool found = false;

  bool located() { return found || (found = locate(value.ptr(), address)); }
};
using Memory = std::vector<Slot>;

// One more array or number: function(*args), or function(what is in the slot, *args).
class Make {
 public:
  Make(const py::object& function, const py::tuple& args, int slot) : function_(function), args_(args), slot_(slot) {
    if (args.size() >= kMost) throw py::value_error("[program] a function takes fewer arguments");
  }

  py::object operator()(const Memory& memory) const {
    if (!slot_) return steal(PyObject_Call(function_.ptr(), args_.ptr(), nullptr));
    PyObject* args[kMost] = {memory[slot_].value.ptr()};
    for (std::size_t i = 0; i < args_.size(); ++i) args[i + 1] = PyTuple_GET_ITEM(args_.ptr(), i);
    return steal(PyObject_Vectorcall(function_.ptr(), args, args_.size() + 1, nullptr));
  }

 private:
  static constexpr std::size_t kMost = 66;  // NumPy's arrays have at most 64 axes

  py::object function_;
  py::tuple args_;
  int slot_;  // 0: none
};

// An argument that is another in each call.
struct Missing {
  Kernel* kernel;
  int parameter, slot;
  unsigned begin;  // of the kernel's arguments
};

// Launches that are started together, because no memory is allocated between them after some was freed.
struct Batch {
  std::vector<Make> makes;
  std::vector<Launch> launches;
  std::vector<char> arguments;
  std::vector<Missing> missing;
  std::vector<int> done;  // slots that nothing needs after it
};

class Program {
 public:
  // Of each step: what it makes, a Kernel, grid, block, shared bytes, parameter -> what is always the same,
  // parameter -> slot of the others, slots that nothing needs after it.
  Program(const py::iterable& steps, const py::iterable& last, const py::object& results)
      : several_(py::isinstance<py::tuple>(results)) {
    if (several_) results_ = results.cast<std::vector<int>>();
    else results_ = {results.cast<int>()};
    add(last, last_);
    for (py::handle step : steps) {
      const auto t = step.cast<py::tuple>();
      kernels_.push_back(t[1]);
      Kernel& kernel = t[1].cast<Kernel&>();
      Batch& batch = batch_for(kernel, !t[0].cast<py::sequence>().empty());
      add(t[0], batch.makes);
      const unsigned begin = unsigned(batch.arguments.size());
      batch.arguments.resize(begin + kernel.size());
      batch.launches.push_back({&kernel, Size(t[2], t[3], t[4].cast<unsigned>()), begin});
      Borrowed nothing{};
      for (auto [parameter, value] : t[5].cast<py::dict>())
        kernel.put(parameter.cast<int>(), value.ptr(), nothing, batch.arguments.data() + begin);
      for (auto [parameter, slot] : t[6].cast<py::dict>())
        batch.missing.push_back({&kernel, parameter.cast<int>(), slot.cast<int>(), begin});
      for (py::handle slot : t[7]) batch.done.push_back(slot.cast<int>());
    }
  }

  // Results for the arguments in `memory`, which begin at slot 1. `fits`: a call of the same kind was run before, so that
  // arrays have the types that the kernels want.
  py::object run(Memory& memory, bool fits, int device, cudaStream_t stream) const {
    Borrowed borrowed{stream, {}, {}};
    Arguments arguments;  // of its own: another thread may replay the same program while CUDA reads them
    for (const Batch& batch : batches_) {
      for (const Make& make : batch.makes) memory.push_back({make(memory)});
      std::memcpy(arguments.bytes, batch.arguments.data(), batch.arguments.size());
      for (const Missing& one : batch.missing) {
        Slot& slot = memory[one.slot];
        char* const to = arguments.bytes + one.begin;
        if (fits && one.kernel->points(one.parameter) && slot.located())
          std::memcpy(to + one.kernel->offset(one.parameter), &slot.address, sizeof slot.address);
        else
          one.kernel->put(one.parameter, slot.value.ptr(), borrowed, to);
      }
      start(batch.launches.data(), batch.launches.data() + batch.launches.size(), arguments.bytes, borrowed, device);
      for (int slot : batch.done) memory[slot] = {};
    }
    for (const Make& make : last_) memory.push_back({make(memory)});
    if (!several_) return memory[results_[0]].value;
    py::tuple results(results_.size());
    for (std::size_t i = 0; i < results_.size(); ++i) results[i] = memory[results_[i]].value;
    return std::move(results);
  }

 private:
  static void add(const py::iterable& makes, std::vector<Make>& to) {
    for (py::handle one : makes) {
      const auto [function, args, slot] = one.cast<std::tuple<py::object, py::tuple, py::object>>();
      to.emplace_back(function, args, slot.is_none() ? 0 : slot.cast<int>());
    }
  }

  // The one in which a launch of the kernel is started, after something was allocated for it or not.
  Batch& batch_for(const Kernel& kernel, bool allocates) {
    const bool joins = !batches_.empty() && (!allocates || batches_.back().done.empty()) &&
                       batches_.back().arguments.size() + kernel.size() <= sizeof(Arguments);
    if (!joins) batches_.emplace_back();
    return batches_.back();
  }

  std::vector<Batch> batches_;
  std::vector<Make> last_;
  std::vector<py::object> kernels_;  // that the launches point to
  std::vector<int> results_;
  bool several_;
};

}  // namespace dl
