// The Python face of the native build: names(); Kernel(name, parameters) with launch(...); Program and Op, which replay.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernel.h"
#include "op.h"
#include "program.h"

namespace dl {

PYBIND11_MODULE(_native, module) {
  module.attr("sources") = DL_SOURCES;  // the digest of the kernels that this was built from
  module.def("names", [] {
    std::vector<std::string> names;
    for (const Entry* entry = Entry::first; entry; entry = entry->next) names.push_back(entry->name);
    return names;
  });
  // module_local: two builds may live in one process, as in the tests
  py::class_<Kernel>(module, "Kernel", py::module_local())
      .def(py::init<const std::string&, const py::sequence&>())
      .def("launch", &launch)
      .def_property_readonly("signature", &Kernel::signature);
  py::class_<Program, std::shared_ptr<Program>>(module, "Program", py::module_local())
      .def(py::init<const py::iterable&, const py::iterable&, const py::object&>());
  module.def("replayed", [](const py::object& plain, const py::object& find, const py::object& backend,
                            const py::object& launcher, const py::object& arrays, std::vector<py::object> changing,
                            std::vector<py::object> settings, const py::object& device, const py::object& stream) {
    return make_op(plain.attr("__signature__"), std::make_unique<Replay>(plain, find, backend, launcher, arrays,
                                                                         changing, settings, device, stream));
  });
}

}  // namespace dl
