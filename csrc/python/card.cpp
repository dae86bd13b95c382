// card.cpp - calls whose arrays lie on a card: the binding reads what they are, and never what they hold.
#include "card.hpp"

#include "request.hpp"

namespace harken {
namespace {

py::object on_card() { return py::module_::import("harken.foreign").attr("OnCard"); }

}  // namespace

void refuse_on_card(const char* name, int card) {
  refuse(on_card().ptr(),
         "%s lies on cuda:%d: this function computes on the CPU only; give a copy that lies on the CPU", name, card);
}

PyObject* where_it_lies(PyObject* (*body)(PyObject* const*), const char* name, PyObject* const* values) {
  try {
    return body(values);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError) || !error.matches(on_card())) throw;
  }
  py::tuple given(arguments);
  for (int n = 0; n < arguments; ++n) given[n] = py::reinterpret_borrow<py::object>(values[n]);
  return py::module_::import("harken.cuda.arrays").attr(name)(given).release().ptr();
}

py::object attend_on_card(const py::object& attention, const py::object& q, const py::object& k, const py::object& v,
                          const py::object& make, const py::object& stream, const py::dict& options) {
  PyObject* values[arguments];
  values_of(attention, q, k, v, options, values);
  Request request(values, Purpose::run);
  request.make = make.ptr();
  request.stream = stream.cast<uintptr_t>();
  read_operands(request);
  read_options(request);
  make_results(request);
  merge_axes(request.problem);
  PyObject* results = hand_out(request, compute(request));
  if (results == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(results);
}

}  // namespace harken
