// foreign.hpp - arrays of other libraries go in as NumPy's, and results come back as theirs.
#pragma once

#include "numpy.hpp"

namespace harken {

// Is it an array of another library?
bool is_foreign(PyObject* object);

// A NumPy array over the memory of an array of another library, which it keeps alive. `name` is the argument's.
py::object view_foreign(PyObject* object, const char* name);

// The array as one of the library that `like` is of.
py::object give_foreign(PyObject* like, PyArrayObject* array);

}  // namespace harken
