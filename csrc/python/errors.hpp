// errors.hpp - a wrong call ends in a Python exception, from any depth.
#pragma once

#include "numpy.hpp"

namespace harken {

// Raises with a text in the format of PyErr_Format: %R, %S and %U take objects.
[[noreturn]] void refuse(PyObject* type, const char* format, ...);

// What Python or NumPy gave back; nullptr says that it has raised.
template <class T>
T* must(T* object) {
  if (object == nullptr) throw py::error_already_set();
  return object;
}

py::object shape_text(const npy_intp* sizes, int count);  // the tuple that NumPy would print
py::object shape_text(PyArrayObject* array);

}  // namespace harken
