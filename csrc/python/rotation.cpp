// rotation.cpp - harken.rope: arrays of any strides, which Python has checked, become a Rotation.
#include "../layers/rotation.hpp"

#include "../backend.hpp"
#include "../layers/layers.hpp"
#include "arrays.hpp"
#include "errors.hpp"
#include "layers.hpp"

namespace harken {
namespace {

constexpr int64_t few_pieces = 4;  // 20 us

PyArrayObject* array_of(const py::object& given, const char* name) {
  auto* array = reinterpret_cast<PyArrayObject*>(given.ptr());
  if (!PyArray_Check(given.ptr()) || PyArray_NDIM(array) < 1 || !PyArray_ISBEHAVED_RO(array)) {
    refuse(PyExc_TypeError, "%s is no aligned array of rows", name);
  }
  return array;
}

// Its rows as they broadcast to those of x.
void describe(PyArrayObject* array, const char* name, const Rotation& p, int64_t channels, Rotation::Array& to) {
  const int missing = p.axes - (PyArray_NDIM(array) - 1);
  if (missing < 0 || PyArray_DIM(array, p.axes - missing) != channels) {
    refuse(PyExc_ValueError, "%s does not fit to x", name);
  }
  to.data = PyArray_BYTES(array);
  to.channel = PyArray_STRIDE(array, p.axes - missing);
  for (int axis = missing; axis < p.axes; ++axis) {
    const int64_t size = PyArray_DIM(array, axis - missing);
    if (size != p.sizes[axis] && size != 1) refuse(PyExc_ValueError, "the rows of %s do not fit to those of x", name);
    to.steps[axis] = size == 1 ? 0 : PyArray_STRIDE(array, axis - missing);
  }
}

// x and y (..., D), of one type; cos and sin, of the type that it is computed in, broadcast to (..., R/2). y is x or
// shares nothing with it.
void rotate(const py::object& x, const py::object& cos, const py::object& sin, const py::object& y, bool interleaved) {
  PyArrayObject *from = array_of(x, "x"), *to = array_of(y, "y"), *c = array_of(cos, "cos"), *s = array_of(sin, "sin");
  Rotation p = {};
  Type type_of_y;
  if (!storage_type(PyArray_DESCR(from), &p.type) || !storage_type(PyArray_DESCR(to), &type_of_y) ||
      p.type != type_of_y) {
    refuse(PyExc_TypeError, "x and y are no arrays of one type that is computed with");
  }
  const int table = p.type == Type::f64 ? NPY_DOUBLE : NPY_FLOAT;
  if (PyArray_TYPE(c) != table || PyArray_TYPE(s) != table) {
    refuse(PyExc_TypeError, "cos and sin are not of the type that x is computed in");
  }
  p.interleaved = interleaved;
  p.axes = PyArray_NDIM(from) - 1;
  p.channels = PyArray_DIM(from, p.axes);
  p.half = PyArray_DIM(c, PyArray_NDIM(c) - 1);
  for (int axis = 0; axis < p.axes; ++axis) p.sizes[axis] = PyArray_DIM(from, axis);
  if (2 * p.half > p.channels) refuse(PyExc_ValueError, "cos has more columns than x has pairs");
  if (!PyArray_ISWRITEABLE(to) || !PyArray_SAMESHAPE(from, to))
    refuse(PyExc_ValueError, "y is no place for the result");
  describe(from, "x", p, p.channels, p.x);
  describe(to, "y", p, p.channels, p.y);
  describe(c, "cos", p, p.half, p.cos);
  describe(s, "sin", p, p.half, p.sin);
  if (p.rows() == 0 || p.channels == 0) return;
  compute_noun(chosen().layers->rotate, p, p.pieces(), p.pieces() <= few_pieces);
}

}  // namespace

void bind_rotation(py::module_& module) {
  module.def("_rotate", rotate, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("y"), py::arg("interleaved"),
             "Turn pairs of channels, row by row.");
}

}  // namespace harken
