// arrays.hpp - any object as a NumPy array of a type that the kernels read.
#pragma once

#include <string.h>

#include "request.hpp"

namespace harken {

// ml_dtypes' bfloat16 without ml_dtypes: NumPy numbers such types as they come, and their scalar type has the name.
bool is_bfloat16(PyArray_Descr* descr);

inline bool storage_type(PyArray_Descr* descr, Type* type) {
  switch (descr->type_num) {
    case NPY_DOUBLE: *type = Type::f64; return true;
    case NPY_FLOAT: *type = Type::f32; return true;
    case NPY_HALF: *type = Type::f16; return true;
  }
  if (descr->type_num < NPY_USERDEF || !is_bfloat16(descr)) return false;
  *type = Type::bf16;
  return true;
}

// The array, or a copy in a storage type and native byte order. Integers and bools become float64, as in NumPy's own
// functions.
PyArrayObject* convert_floating(Request& request, Argument argument, Type* type);

// The array behind an argument that holds floating numbers. An ndarray of a storage type is read where it lies.
inline PyArrayObject* floating(Request& request, Argument argument, Type* type) {
  PyObject* given = request[argument];
  if (PyArray_CheckExact(given)) {
    auto* array = reinterpret_cast<PyArrayObject*>(given);
    if (PyArray_ISNOTSWAPPED(array) && storage_type(PyArray_DESCR(array), type)) {
      return request.array[argument] = array;
    }
  }
  return convert_floating(request, argument, type);
}

// The same for keys and values, beside a q of type `beside`: int8 stays, and a scale will make numbers of it. Beside
// float64 it is like other integers.
PyArrayObject* stored(Request& request, Argument argument, Type beside, Type* type);

PyArrayObject* booleans(Request& request, Argument argument);
PyArrayObject* doubles(Request& request, Argument argument);  // one number a head
PyArrayObject* factors(Request& request,
                       Argument argument);  // of keys or values, in the type that they are computed in
PyArrayObject* integers(Request& request, Argument argument);  // int64, one number a batch row, a copy

// Is it a subclass whose meaning an array of its numbers would lose?
void refuse_subclass(Argument argument, PyObject* array);

}  // namespace harken
