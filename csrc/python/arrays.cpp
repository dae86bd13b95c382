// arrays.cpp - any object as a NumPy array of a type that the kernels read.
#include "arrays.hpp"

#include "../plan.hpp"
#include "foreign.hpp"

namespace harken {
namespace {

PyObject* dtype_of(PyArrayObject* array) { return reinterpret_cast<PyObject*>(PyArray_DESCR(array)); }

bool is_instance(PyObject* object, const char* module, const char* type) {
  return py::isinstance(object, py::module_::import(module).attr(type));
}

// np.asarray, with the argument's name on what goes wrong. Arrays of other libraries are read where they lie.
PyArrayObject* array_of(Request& request, Argument argument) {
  PyObject* given = request[argument];
  if (PyArray_Check(given)) refuse_subclass(argument, given);
  if (given == Py_None) refuse(PyExc_TypeError, "%s is None: wanted an array", name_of(argument));
  if (is_foreign(given)) {
    if (argument == argument::q) request.foreign = true;
    return request.array[argument] = request.keep(view_foreign(given, name_of(argument)).release().ptr());
  }
  PyObject* array = PyArray_FromAny(given, nullptr, 0, 0, NPY_ARRAY_ENSUREARRAY, nullptr);
  if (array == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError)) must(array);
    const py::error_already_set error;
    refuse(error.type().ptr(), "%s cannot be read as an array: %S", name_of(argument), error.value().ptr());
  }
  return request.array[argument] = request.keep(array);
}

PyArrayObject* cast(Request& request, Argument argument, PyArrayObject* array, PyArray_Descr* steals_descr, int flags) {
  PyArrayObject* made = request.keep(must(PyArray_FromArray(array, steals_descr, flags | NPY_ARRAY_FORCECAST)));
  if (made != array) request.converted |= 1u << argument;
  return request.array[argument] = made;
}

}  // namespace

bool is_bfloat16(PyArray_Descr* descr) {
  static int number = -1;  // ml_dtypes registers it once a process
  if (descr->type_num == number) return true;
  const char* dot = strrchr(descr->typeobj->tp_name, '.');
  if (strcmp(dot == nullptr ? descr->typeobj->tp_name : dot + 1, "bfloat16") != 0) return false;
  number = descr->type_num;
  return true;
}

void refuse_subclass(Argument argument, PyObject* array) {
  if (PyArray_CheckExact(array)) return;
  const char* name = name_of(argument);
  if (is_instance(array, "numpy", "matrix")) {
    refuse(PyExc_TypeError, "%s is a numpy.matrix, whose * and slices mean something else: give np.asarray(%s)", name,
           name);
  }
  if (is_instance(array, "numpy.ma", "MaskedArray")) {
    refuse(PyExc_TypeError,
           "%s is a masked array, whose mask would be lost: give np.asarray(%s), and mask= for what may be looked at",
           name, name);
  }
}

PyArrayObject* convert_floating(Request& request, Argument argument, Type* type) {
  PyArrayObject* array = array_of(request, argument);
  const int number = PyArray_TYPE(array);
  if (storage_type(PyArray_DESCR(array), type)) {
    if (PyArray_ISNOTSWAPPED(array)) return array;
    return cast(request, argument, array, must(PyArray_DescrNewByteorder(PyArray_DESCR(array), NPY_NATIVE)), 0);
  }
  if (number == NPY_BOOL && argument == argument::bias) {
    refuse(PyExc_TypeError, "bias is bool: numbers are added to the scores; give mask= for who may look");
  }
  if (!PyTypeNum_ISINTEGER(number) && number != NPY_BOOL) {
    const bool own = !is_foreign(request[argument]);  // and has no other way to say it
    refuse(PyExc_TypeError, "%s is %S: wanted float64, float32, float16 or bfloat16%s%s%s", name_of(argument),
           dtype_of(array), own ? ", for example " : "", own ? name_of(argument) : "",
           own ? ".astype(np.float32)" : "");
  }
  *type = Type::f64;
  return cast(request, argument, array, PyArray_DescrFromType(NPY_DOUBLE), 0);
}

PyArrayObject* stored(Request& request, Argument argument, Type beside, Type* type) {
  PyObject* given = request[argument];
  const bool int8 = PyArray_Check(given) && PyArray_TYPE(reinterpret_cast<PyArrayObject*>(given)) == NPY_BYTE;
  if (!int8 || beside == Type::f64) return floating(request, argument, type);
  *type = Type::i8;
  return array_of(request, argument);
}

PyArrayObject* booleans(Request& request, Argument argument) {
  PyObject* given = request[argument];
  const bool plain = PyArray_CheckExact(given);
  auto* array = plain ? reinterpret_cast<PyArrayObject*>(given) : array_of(request, argument);
  if (!PyArray_ISBOOL(array)) {
    refuse(PyExc_TypeError,
           "%s is %S: wanted bool, True where a query may look; give mask != 0, or bias= for numbers that are added to "
           "the scores",
           name_of(argument), dtype_of(array));
  }
  return request.array[argument] = array;
}

PyArrayObject* doubles(Request& request, Argument argument) {
  PyArrayObject* array = array_of(request, argument);
  Type type;
  if (!PyTypeNum_ISINTEGER(PyArray_TYPE(array)) && !storage_type(PyArray_DESCR(array), &type)) {
    refuse(PyExc_TypeError, "%s is %S: wanted numbers, one for all heads or one for each", name_of(argument),
           dtype_of(array));
  }
  return cast(request, argument, array, PyArray_DescrFromType(NPY_DOUBLE), NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED);
}

PyArrayObject* factors(Request& request, Argument argument) {
  PyArrayObject* array = array_of(request, argument);
  Type type;
  if (!PyTypeNum_ISINTEGER(PyArray_TYPE(array)) && !storage_type(PyArray_DESCR(array), &type)) {
    refuse(PyExc_TypeError, "%s is %S: wanted numbers, which %s is multiplied by", name_of(argument), dtype_of(array),
           argument == argument::k_scale ? "k" : "v");
  }
  const int number = request.problem.type == Type::f64 ? NPY_DOUBLE : NPY_FLOAT;
  return cast(request, argument, array, PyArray_DescrFromType(number), NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED);
}

PyArrayObject* integers(Request& request, Argument argument) {
  PyArrayObject* array = array_of(request, argument);
  if (!PyTypeNum_ISINTEGER(PyArray_TYPE(array)) && PyArray_SIZE(array) > 0) {
    refuse(PyExc_TypeError, "%s is %S: wanted integers, one for all or one for each of the leading axes",
           name_of(argument), dtype_of(array));
  }
  // What lies beyond int64 is as good as its end.
  if (PyTypeNum_ISUNSIGNED(PyArray_TYPE(array)) && PyArray_ITEMSIZE(array) == 8) {
    const py::object most = py::int_(NPY_MAX_INT64);
    PyObject* clamped = PyObject_CallMethod(reinterpret_cast<PyObject*>(array), "clip", "OO", Py_None, most.ptr());
    array = request.keep(must(clamped));
  }
  return cast(request, argument, array, PyArray_DescrFromType(NPY_INT64), NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY);
}

}  // namespace harken
