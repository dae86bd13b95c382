// errors.cpp - a wrong call ends in a Python exception, from any depth.
#include "errors.hpp"

#include <stdarg.h>

namespace harken {

void refuse(PyObject* type, const char* format, ...) {
  va_list values;
  va_start(values, format);
  PyErr_FormatV(type, format, values);
  va_end(values);
  throw py::error_already_set();
}

py::object shape_text(const npy_intp* sizes, int count) {
  py::tuple shape(count);
  for (int axis = 0; axis < count; ++axis) shape[axis] = py::int_(sizes[axis]);
  return shape;
}

py::object shape_text(PyArrayObject* array) { return shape_text(PyArray_DIMS(array), PyArray_NDIM(array)); }

}  // namespace harken
