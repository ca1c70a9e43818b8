// An op that finds its program and runs it: `Replayed` of dlgpu/backends/kernels/programs.py in C++. What it does not
// know yet it asks Python for.
#pragma once
#include <structmember.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "program.h"

namespace dl {

// A call as words; equal calls have equal words. An array: kArray, axes, place in 16 bytes, shape, strides, dtype. A
// number that changes: kNumber. Any other object: the address of one that is equal to it.
using Word = std::intptr_t;
using Words = std::vector<Word>;
constexpr Word kArray = 1, kNumber = 2;
constexpr int kPlaces = 16;  // of an array's beginning, for copies in vectors of 16 bytes
constexpr std::size_t kMostPrograms = 2048, kMostObjects = 4 * kMostPrograms;  // then an op forgets all of them

struct Hash {  // a sum, so that the processor mixes several words at a time; constants: SplitMix64 (Steele et al., 2014)
  std::size_t operator()(const Words& words) const {
    std::uint64_t hash = 0, place = 0;
    for (Word word : words) {
      const std::uint64_t mixed = (std::uint64_t(word) + (place += 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;
      hash += mixed ^ (mixed >> 27);
    }
    return hash;
  }
};

// The programs of an op, and the objects whose addresses are in their words.
class Programs {
 public:
  std::unordered_map<Words, std::shared_ptr<const Program>, Hash> found;

  // The word of an object; 0 if it cannot be a key. Most are the very objects of an earlier call.
  Word word(PyObject* object) {
    auto& recent = recent_[(reinterpret_cast<std::uintptr_t>(object) >> 4) % recent_.size()];
    if (recent.first.ptr() == object) return recent.second;
    PyObject* known = PyDict_GetItemWithError(objects_.ptr(), object);
    if (!known) {
      if (PyErr_Occurred() || PyDict_SetItem(objects_.ptr(), object, object)) return PyErr_Clear(), 0;
      known = object;
    }
    const Word word = reinterpret_cast<Word>(known);
    const auto replaced = std::exchange(recent, {py::reinterpret_borrow<py::object>(object), word});
    return word;
  }

  bool full() const { return found.size() >= kMostPrograms || objects_.size() >= kMostObjects; }

 private:
  py::dict objects_;                                     // to themselves
  std::array<std::pair<py::object, Word>, 64> recent_;  // held, so that no other object gets the address of one
};

class Replay {
 public:
  // plain: the op as Python replays it. find: the call's Program; None if it has none. launcher: an attribute of
  // `backend`, whose launches these are as long as it is that. settings: context variables on which programs depend.
  Replay(py::object plain, py::object find, py::object backend, py::object launcher, py::object arrays,
         std::vector<py::object> changing, std::vector<py::object> settings, py::object device, py::object stream)
      : plain(plain), find(find), backend(backend), launcher_(launcher), arrays_(arrays), device_(device),
        stream_(stream), changing_(changing), settings_(settings) {}

  // As Python calls: positional arguments, then options, which `names` names.
  py::object call(PyObject* const* args, std::size_t positional, PyObject* names) {
    if (programs_->full()) programs_ = std::make_shared<Programs>();
    const std::shared_ptr<Programs> programs = programs_;  // those of this call, also if another thread begins anew
    const int device = steal(PyObject_CallNoArgs(device_.ptr())).cast<int>();
    Words words{device};
    Memory memory(1);  // slot 0 is not there
    if (read(args, positional, names, *programs, words, memory)) {
      const auto at = programs->found.find(words);
      if (at != programs->found.end()) return at->second->run(memory, true, device, stream());
      const py::object found = steal(PyObject_Vectorcall(find.ptr(), args, positional, names));
      if (const auto program = found.cast<std::shared_ptr<const Program>>()) {
        py::object results = program->run(memory, false, device, stream());
        programs->found.emplace(std::move(words), program);  // once it is known to fit
        return results;
      }
    }
    return steal(PyObject_Vectorcall(plain.ptr(), args, positional, names));
  }

  py::object plain, find, backend;  // from which Python's garbage collector may come back to the op

 private:
  cudaStream_t stream() const {
    const auto pointer = steal(PyObject_GetAttr(steal(PyObject_CallNoArgs(stream_.ptr())).ptr(), kPtr));
    return reinterpret_cast<cudaStream_t>(pointer.cast<std::uintptr_t>());
  }

  static inline PyObject* const kLauncher = PyUnicode_InternFromString("launcher");
  static inline PyObject* const kShape = PyUnicode_InternFromString("shape");
  static inline PyObject* const kStrides = PyUnicode_InternFromString("strides");

  // Words and arguments of a call; false if it cannot be looked up.
  bool read(PyObject* const* args, std::size_t positional, PyObject* names, Programs& programs, Words& words,
            Memory& memory) const {
    words.reserve(128);
    memory.reserve(32);
    const auto add = [&](PyObject* object) {
      words.push_back(programs.word(object));
      return words.back() != 0;
    };
    if (!attribute(backend.ptr(), kLauncher).is(launcher_)) return false;
    for (const py::object& setting : settings_) {
      PyObject* value = nullptr;
      if (PyContextVar_Get(setting.ptr(), nullptr, &value)) throw py::error_already_set();
      if (!add(steal(value).ptr())) return false;
    }
    words.push_back(Word(positional));
    if (!add(names ? names : Py_None)) return false;
    const std::size_t count = positional + (names ? PyTuple_GET_SIZE(names) : 0);
    for (std::size_t i = 0; i < count; ++i) {
      const bool array = PyObject_TypeCheck(args[i], reinterpret_cast<PyTypeObject*>(arrays_.ptr()));
      const bool number = !array && i >= positional && changes(PyTuple_GET_ITEM(names, i - positional));
      if (array || number) memory.push_back({py::reinterpret_borrow<py::object>(args[i])});
      if (number)
        words.push_back(kNumber);
      else if (!(array ? describe(memory.back(), programs, words) : add(args[i])))
        return false;
    }
    return true;
  }

  static bool describe(Slot& array, Programs& programs, Words& words) {
    PyObject* const value = array.value.ptr();
    const py::object shape = attribute(value, kShape), strides = attribute(value, kStrides);
    const py::object dtype = attribute(value, kDtype);
    if (!array.located() || !dtype || !shape || !strides || !PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr()))
      return false;
    words.insert(words.end(), {kArray, Word(PyTuple_GET_SIZE(shape.ptr())), Word(array.address) % kPlaces});
    for (PyObject* sizes : {shape.ptr(), strides.ptr()})
      for (Py_ssize_t axis = 0; axis < PyTuple_GET_SIZE(sizes); ++axis)
        words.push_back(PyLong_AsSsize_t(PyTuple_GET_ITEM(sizes, axis)));
    words.push_back(programs.word(dtype.ptr()));
    return words.back() != 0;
  }

  bool changes(PyObject* name) const {
    for (const py::object& one : changing_)
      if (same(one.ptr(), name)) return true;
    return false;
  }

  py::object launcher_, arrays_, device_, stream_;
  std::vector<py::object> changing_, settings_;
  std::shared_ptr<Programs> programs_ = std::make_shared<Programs>();
};

// ---- the Python type: by hand, because a call through pybind11 costs a tuple and a dict of the arguments ----

struct Op {
  PyObject_HEAD
  vectorcallfunc call;
  PyObject* signature;
  Replay* replay;
};

inline Op* op(PyObject* self) { return reinterpret_cast<Op*>(self); }

inline PyObject* call_op(PyObject* self, PyObject* const* args, std::size_t count, PyObject* names) {
  try {
    if (!op(self)->replay) throw py::value_error("[op] its backend is being taken down");
    return op(self)->replay->call(args, PyVectorcall_NARGS(count), names).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline int traverse_op(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (Replay* replay = op(self)->replay)
    for (PyObject* object : {replay->plain.ptr(), replay->find.ptr(), replay->backend.ptr()}) Py_VISIT(object);
  return 0;
}

inline int clear_op(PyObject* self) {
  delete std::exchange(op(self)->replay, nullptr);
  return 0;
}

inline void free_op(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear_op(self);
  Py_CLEAR(op(self)->signature);
  type->tp_free(self);
  Py_DECREF(type);
}

inline py::object op_type() {
  static PyMemberDef members[] = {
      {"__vectorcalloffset__", T_PYSSIZET, offsetof(Op, call), READONLY, nullptr},
      {"__signature__", T_OBJECT, offsetof(Op, signature), READONLY, nullptr},
      {nullptr, 0, 0, 0, nullptr},
  };
  static PyType_Slot slots[] = {
      {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
      {Py_tp_traverse, reinterpret_cast<void*>(traverse_op)},
      {Py_tp_clear, reinterpret_cast<void*>(clear_op)},
      {Py_tp_dealloc, reinterpret_cast<void*>(free_op)},
      {Py_tp_members, members},
      {0, nullptr},
  };
  constexpr unsigned flags =
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  static PyType_Spec spec = {"dlgpu.Op", sizeof(Op), 0, flags, slots};
  return steal(PyType_FromSpec(&spec));
}

inline py::object make_op(const py::object& signature, std::unique_ptr<Replay> replay) {
  static PyObject* type = op_type().release().ptr();  // lives as long as the process
  py::object made = steal(PyType_GenericAlloc(reinterpret_cast<PyTypeObject*>(type), 0));
  op(made.ptr())->call = call_op;
  op(made.ptr())->signature = py::object(signature).release().ptr();
  op(made.ptr())->replay = replay.release();
  return made;
}

}  // namespace dl
