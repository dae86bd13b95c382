// layers.cpp - the layers around attention, as harken.layers calls them: contiguous arrays of one type, sizes agreed.
#include "layers.hpp"

#include <string.h>

#include "../backend.hpp"
#include "../layers/layers.hpp"
#include "../parallel.hpp"
#include "errors.hpp"
#include "request.hpp"

namespace harken {
namespace {

PyArrayObject* contiguous(const py::object& array, const char* name) {
  auto* x = reinterpret_cast<PyArrayObject*>(array.ptr());
  if (!PyArray_Check(array.ptr()) || !PyArray_IS_C_CONTIGUOUS(x) || !PyArray_ISBEHAVED_RO(x) ||
      (PyArray_TYPE(x) != NPY_FLOAT && PyArray_TYPE(x) != NPY_DOUBLE)) {
    refuse(PyExc_TypeError, "%s is no contiguous array of float32 or float64", name);
  }
  return x;
}

}  // namespace

void compute(void (*task)(const void*, int64_t, int), const void* context, int64_t count, int threads, double flops) {
  bool done;
  {
    const Unlocked unlocked(flops);
    done = run({task, context}, count, count < threads ? int(count) : threads);
  }
  if (!done) {
    if (PyErr_CheckSignals() == 0) PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
}

namespace {

Activation activation(const char* name) {
  constexpr struct {
    const char* name;
    Activation activation;
  } list[] = {{"relu", Activation::relu},
              {"silu", Activation::silu},
              {"sigmoid", Activation::sigmoid},
              {"tanh", Activation::tanh}};
  for (const auto& entry : list)
    if (strcmp(entry.name, name) == 0) return entry.activation;
  refuse(PyExc_ValueError, "activation is '%s': wanted relu, silu, sigmoid or tanh", name);
}

struct Call {
  const Layers& layers;
  const Pointwise& pointwise;
};

// y = f(x), both contiguous and of one type and size; y may be x.
void activate(const char* name, const py::object& x, const py::object& y) {
  auto *from = contiguous(x, "x"), *to = contiguous(y, "y");
  if (PyArray_TYPE(from) != PyArray_TYPE(to) || PyArray_SIZE(from) != PyArray_SIZE(to) || !PyArray_ISWRITEABLE(to)) {
    refuse(PyExc_ValueError, "y is no writeable array of the type and size of x");
  }
  const Pointwise p = {activation(name), PyArray_TYPE(from) == NPY_DOUBLE, PyArray_DATA(from), PyArray_DATA(to),
                       PyArray_SIZE(from)};
  const Call call = {*chosen().layers, p};
  compute(
      [](const void* context, int64_t piece, int) {
        const auto& c = *static_cast<const Call*>(context);
        c.layers.activate(c.pointwise, piece);
      },
      &call, p.pieces(), usable_threads(0), 20.0 * double(p.n));
}

}  // namespace

void bind_layers(py::module_& module) {
  module.def("_activate", activate, py::arg("name"), py::arg("x"), py::arg("y"), "y = f(x), number by number.");
  module.def("_convolve", convolve, "What harken.layers.Conv1D calls.");
}

}  // namespace harken
