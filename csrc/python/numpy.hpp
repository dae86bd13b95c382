// numpy.hpp - Python, pybind11 and NumPy's C API, included the same way everywhere.
#pragma once

#include <pybind11/pybind11.h>

// Built with NumPy 2's headers, runs on NumPy 1.26 and all that follow: 1.25 was the last to extend the API of 1.
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#define NPY_NO_DEPRECATED_API NPY_1_25_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL harken_numpy
#ifndef HARKEN_IMPORTS_NUMPY  // module.cpp alone
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

namespace py = pybind11;
