// recurrence.cpp - harken.layers' LSTM and GRU: one layer's arrays, which Python has checked, become a Recurrence.
#include "../layers/recurrence.hpp"

#include <string.h>

#include "../backend.hpp"
#include "../layers/layers.hpp"
#include "../parallel.hpp"
#include "errors.hpp"
#include "layers.hpp"
#include "request.hpp"

namespace harken {
namespace {

// The data of an array of this type and these many numbers, in C order; null for None.
void* data(const py::object& array, const char* name, int type, int64_t numbers, bool written = false) {
  if (array.is_none()) return nullptr;
  auto* a = reinterpret_cast<PyArrayObject*>(array.ptr());
  if (!PyArray_Check(array.ptr()) || PyArray_TYPE(a) != type || !PyArray_IS_C_CONTIGUOUS(a) ||
      !PyArray_ISBEHAVED_RO(a) || PyArray_SIZE(a) != numbers || (written && !PyArray_ISWRITEABLE(a))) {
    refuse(PyExc_ValueError, "%s is no contiguous array of the type and size that are wanted", name);
  }
  return PyArray_DATA(a);
}

Cell cell(const char* name) {
  if (strcmp(name, "lstm") == 0) return Cell::lstm;
  if (strcmp(name, "gru") == 0) return Cell::gru;
  if (strcmp(name, "gru_reset_before") == 0) return Cell::gru_reset_before;
  refuse(PyExc_ValueError, "cell is '%s': wanted lstm, gru or gru_reset_before", name);
}

// x (B, L, C), y (B, L, directions H), states (directions, B, H); weights: for each direction W_ih, W_hh, b_ih, b_hh.
void go_through(const char* name, const py::object& x, const py::object& y, const py::object& h0, const py::object& h,
                const py::object& c, const py::tuple& weights, const py::object& lengths, const py::object& order) {
  auto* input = reinterpret_cast<PyArrayObject*>(x.ptr());
  auto* states = reinterpret_cast<PyArrayObject*>(h0.ptr());
  if (!PyArray_Check(x.ptr()) || PyArray_NDIM(input) != 3 || !PyArray_Check(h0.ptr()) || PyArray_NDIM(states) != 3) {
    refuse(PyExc_ValueError, "x and h0 are no arrays of three axes");
  }
  const int type = PyArray_TYPE(input);
  if (type != NPY_FLOAT && type != NPY_DOUBLE) refuse(PyExc_TypeError, "x is neither float32 nor float64");
  Recurrence p = {};
  p.cell = cell(name);
  p.in_double = type == NPY_DOUBLE;
  p.B = PyArray_DIM(input, 0);
  p.L = PyArray_DIM(input, 1);
  p.C = PyArray_DIM(input, 2);
  p.H = PyArray_DIM(states, 2);
  p.directions = int(weights.size()) / 4;
  if (weights.size() != 4 && weights.size() != 8) refuse(PyExc_ValueError, "weights are not 4 or 8 arrays");
  const int64_t state = p.directions * p.B * p.H, rows = p.gates() * p.H;
  p.x = data(x, "x", type, p.B * p.L * p.C);
  p.y = data(y, "y", type, p.L * state, true);
  p.h0 = data(h0, "h0", type, state);
  p.h = data(h, "h", type, state, true);
  p.c = data(c, "c", type, state, true);
  for (int direction = 0; direction < p.directions; ++direction) {
    const int first = 4 * direction;
    p.W_ih[direction] = data(weights[first], "weight_ih", type, rows * p.C);
    p.W_hh[direction] = data(weights[first + 1], "weight_hh", type, rows * p.H);
    p.b_ih[direction] = data(weights[first + 2], "bias_ih", type, rows);
    p.b_hh[direction] = data(weights[first + 3], "bias_hh", type, rows);
  }
  p.lengths = static_cast<const int64_t*>(data(lengths, "lengths", NPY_INT64, p.B));
  const auto* longest_first = static_cast<const int64_t*>(data(order, "order", NPY_INT64, p.B));

  Recurred outcome;
  {
    const Unlocked unlocked(2.0 * double(p.directions * p.B * p.L) * double(p.C + p.H) * double(rows));
    outcome = recur(chosen().layers->recurrent, p, longest_first, usable_threads(0));
  }
  if (outcome == Recurred::out_of_memory) {
    PyErr_NoMemory();
    throw py::error_already_set();
  }
  if (outcome == Recurred::interrupted) throw py::error_already_set();  // the signal handler has raised
}

}  // namespace

void bind_recurrence(py::module_& module) {
  module.def("_recur", go_through, py::arg("cell"), py::arg("x"), py::arg("y"), py::arg("h0"), py::arg("h"),
             py::arg("c"), py::arg("weights"), py::arg("lengths"), py::arg("order"),
             "One layer of LSTM or GRU, in place.");
}

}  // namespace harken
