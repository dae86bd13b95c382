// module.cpp - harken._harken_core: what the extension gives to Python.
#define HARKEN_IMPORTS_NUMPY
#include "../parallel.hpp"
#include "backends.hpp"
#include "card.hpp"
#include "dlpack.hpp"
#include "layers.hpp"
#include "ragged.hpp"
#include "request.hpp"

namespace {

using namespace harken;

// None and 0 mean different things to a reader: the default again, and a mistake.
void choose_threads(const py::object& count) {
  if (count.is_none()) return set_threads(0);
  const py::object index =
      py::reinterpret_steal<py::object>(PyBool_Check(count.ptr()) ? nullptr : PyNumber_Index(count.ptr()));
  if (!index) {
    PyErr_Clear();
    refuse(PyExc_TypeError, "count is %R: wanted an integer, 1 or more, or None for the default", count.ptr());
  }
  const long threads = PyLong_AsLong(index.ptr());
  PyErr_Clear();
  if (threads < 1 || threads > INT32_MAX) {
    refuse(PyExc_ValueError, "count is %R: wanted 1 or more, or None for the default", count.ptr());
  }
  set_threads(int(threads));
}

}  // namespace

PYBIND11_MODULE(_harken_core, module) {
  module.attr("__version__") = HARKEN_VERSION;
  module.doc() = "The compiled part of harken: arguments to a problem, a problem to a kernel.";
  if (PyArray_ImportNumPyAPI() != 0) throw py::error_already_set();
  choose_backend_by_environment();
  set_interrupt(signalled);

  module.def("native", native, py::arg("function"), "The function with its body in C++, found by its name.");
  module.def("attend_packed", attend_packed, "What harken.attention_varlen calls.");
  module.def("attend_stored", attend_stored, "What harken.KVCache.attend calls.");
  module.def("attend_on_card", attend_on_card, "What harken.attention calls where the arrays lie on a card.");
  module.def("backends", backend_names, "What this machine runs, best first.");
  module.def("set_backend", choose_backend, py::arg("name"), "Compute with this backend; None: with the best.");
  module.def("get_backend", [] { return chosen().name; }, "The name of the backend that computes.");
  module.def("set_num_threads", choose_threads, py::arg("count"), "Use this many threads; None: the default.");
  module.def("get_num_threads", get_threads, "How many threads a call uses that names no number.");
  module.def("_view", view_capsule, py::arg("capsule"), py::arg("name"), py::arg("card") = -1,
             "The memory of a DLPack capsule as an array.");
  module.def("_capsule", make_capsule, py::arg("array"), py::arg("card") = -1,
             "The memory of an array as a DLPack capsule.");
  module.def("_set_form", choose_form, py::arg("name"), "Compute in this form wherever it is able; None: the fastest.");
  module.def("_info", build_facts, "What was built, found and chosen.");
  bind_layers(module);
  bind_recurrence(module);
  bind_rotation(module);
}
