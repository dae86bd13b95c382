// dlpack.hpp - arrays of other libraries, read where they lie and answered in kind, by way of DLPack.
#pragma once

#include <string>

#include "numpy.hpp"

namespace harken {

// Is it an array of another library?
bool is_foreign(PyObject* object);

// A NumPy array over the memory of an array of another library, which it keeps alive. `name` is the argument's.
py::object view_foreign(PyObject* object, const char* name);

// The array as one of the library that `like` is of.
py::object give_foreign(PyObject* like, PyArrayObject* array);

// The two ends of harken.foreign, which knows the objects: a capsule as a NumPy array, and a NumPy array as a capsule.
py::object view_capsule(const py::object& capsule, const std::string& name);
py::object make_capsule(const py::object& array);

}  // namespace harken
