// dlpack.cpp - memory as DLPack describes it and as NumPy does: where it is, of what type, sizes and strides, whose.
#include "dlpack.hpp"

#include <stdlib.h>
#include <string.h>

#include "card.hpp"
#include "errors.hpp"

namespace harken {
namespace {

using namespace dlpack;

constexpr int most_axes = 64;  // as in NumPy

constexpr struct {
  uint8_t code, bits;
  int type;
} types[] = {
    {2, 32, NPY_FLOAT},  {2, 16, NPY_HALF},   {2, 64, NPY_DOUBLE}, {6, 8, NPY_BOOL},      {0, 64, NPY_INT64},
    {0, 32, NPY_INT32},  {0, 16, NPY_INT16},  {0, 8, NPY_INT8},    {1, 8, NPY_UINT8},     {1, 16, NPY_UINT16},
    {1, 32, NPY_UINT32}, {1, 64, NPY_UINT64}, {5, 64, NPY_CFLOAT}, {5, 128, NPY_CDOUBLE},
};

struct {
  uint8_t code, bits;
  const char* name;      // in ml_dtypes
  PyArray_Descr* descr;  // as soon as one was seen
} extensions[] = {{4, 16, "bfloat16", nullptr}, {10, 8, "float8_e4m3fn", nullptr}, {12, 8, "float8_e5m2", nullptr}};

PyArray_Descr* of_ml_dtypes(const char* type, const char* name) {
  PyObject* module = PyImport_ImportModule("ml_dtypes");
  if (module == nullptr) {
    PyErr_Clear();
    refuse(PyExc_ImportError, "%s is %s, which NumPy knows through ml_dtypes only: pip install ml_dtypes", name, type);
  }
  const py::object scalar = py::reinterpret_steal<py::object>(module).attr(type);
  PyArray_Descr* descr = nullptr;
  if (PyArray_DescrConverter(scalar.ptr(), &descr) == NPY_FAIL) throw py::error_already_set();
  return descr;
}

PyArray_Descr* descr_of(const Element& element, const char* name) {
  for (const auto& type : types) {
    if (type.code != element.code || type.bits != element.bits || element.lanes != 1) continue;
    return PyArray_DescrFromType(type.type);
  }
  for (auto& type : extensions) {
    if (type.code != element.code || type.bits != element.bits || element.lanes != 1) continue;
    if (type.descr == nullptr) type.descr = of_ml_dtypes(type.name, name);
    Py_INCREF(type.descr);
    return type.descr;
  }
  refuse(PyExc_TypeError, "%s has elements of DLPack's type %d with %d bits in %d lanes, which NumPy has not", name,
         element.code, element.bits, element.lanes);
}

// The type of a result, which is one of the storage types.
Element element_of(PyArrayObject* array) {
  const uint8_t bits = uint8_t(8 * PyArray_ITEMSIZE(array));
  for (const auto& type : types) {
    if (type.type == PyArray_TYPE(array)) return {type.code, bits, 1};
  }
  return {extensions[0].code, bits, 1};
}

void check_device(const Tensor& tensor, const char* name, int card) {
  switch (tensor.device) {
    case 1:  // the CPU's own memory
    case 3:
    case 11:  // and such as CUDA or ROCm have pinned
      return;
    case 2:   // CUDA's
    case 13:  // and what it manages
      if (tensor.device_number == card) return;
      refuse_on_card(name, tensor.device_number);
  }
  const char* const known = tensor.device == 8 ? "metal" : tensor.device == 10 ? "rocm" : nullptr;
  const py::object device = known != nullptr ? py::str(known) : py::str("DLPack's device {}").format(tensor.device);
  refuse(PyExc_RuntimeError,
         "%s lies on %U:%d: harken computes on the CPU and on NVIDIA cards; give a copy that lies on the CPU", name,
         device.ptr(), tensor.device_number);
}

template <class T>
T* inside(const py::object& capsule, const char* name) {
  return static_cast<T*>(must(PyCapsule_GetPointer(capsule.ptr(), name)));
}

struct Lent : Versioned {
  PyArrayObject* array;
  int64_t sizes_and_strides[];
};

void release(Versioned* tensor) {  // on any thread, at any time
  if (Py_IsInitialized()) {
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(static_cast<Lent*>(tensor)->array);
    PyGILState_Release(state);
  }
  free(tensor);
}

}  // namespace

py::object view_tensor(const Tensor& tensor, bool writeable, py::object owner, const char* name, int card) {
  check_device(tensor, name, card);
  if (tensor.axes < 0 || tensor.axes > most_axes) {
    refuse(PyExc_ValueError, "%s has %d axes: wanted at most %d", name, tensor.axes, most_axes);
  }
  PyArray_Descr* descr = descr_of(tensor.element, name);
  npy_intp sizes[most_axes], strides[most_axes], step = PyDataType_ELSIZE(descr);
  bool empty = false;
  for (int axis = tensor.axes - 1; axis >= 0; --axis) {
    sizes[axis] = tensor.sizes[axis];
    strides[axis] = tensor.strides == nullptr ? step : tensor.strides[axis] * PyDataType_ELSIZE(descr);
    step *= sizes[axis];
    empty |= sizes[axis] == 0;
  }
  if (tensor.data == nullptr && !empty) refuse(PyExc_TypeError, "%s has sizes and no memory", name);
  static char nothing;  // an empty tensor has no memory, and NumPy would find some for it
  char* data = empty ? &nothing : tensor.data + tensor.byte_offset;
  const int flags = writeable ? NPY_ARRAY_WRITEABLE : 0;
  PyObject* array = must(PyArray_NewFromDescr(&PyArray_Type, descr, tensor.axes, sizes, strides, data, flags, nullptr));
  auto result = py::reinterpret_steal<py::object>(array);
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), owner.release().ptr()) != 0) {
    throw py::error_already_set();
  }
  return result;
}

// The capsule stays as it was made, so that its own destructor gives the memory back when the array is gone.
py::object view_capsule(const py::object& capsule, const std::string& name, int card) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* versioned = inside<Versioned>(capsule, "dltensor_versioned");
    if (versioned->major != 1) {
      refuse(PyExc_BufferError, "%s comes by version %u.%u of DLPack: wanted 1.x", name.c_str(), versioned->major,
             versioned->minor);
    }
    return view_tensor(versioned->tensor, (versioned->flags & 1) == 0, capsule, name.c_str(), card);
  }
  // Before version 1 nothing said what may be written to, and nothing said that it came from an immutable array.
  return view_tensor(inside<Managed>(capsule, "dltensor")->tensor, false, capsule, name.c_str(), card);
}

// NumPy writes capsules for its own types only: of others it sees the bits, and what they mean is entered afterwards.
py::object make_capsule(const py::object& array, int card) {
  if (card >= 0) {
    const py::object capsule = make_capsule(array, -1);
    Tensor& tensor = inside<Managed>(capsule, "dltensor")->tensor;
    tensor.device = 2;
    tensor.device_number = card;
    return capsule;
  }
  const std::string name = array.attr("dtype").attr("name").cast<std::string>();
  for (const auto& type : extensions) {
    if (name != type.name) continue;
    const py::object capsule = array.attr("view")(type.bits == 16 ? "u2" : "u1").attr("__dlpack__")();
    inside<Managed>(capsule, "dltensor")->tensor.element.code = type.code;
    return capsule;
  }
  return array.attr("__dlpack__")();
}

Versioned* lend(PyArrayObject* array) {
  const int axes = PyArray_NDIM(array);
  auto* lent = static_cast<Lent*>(malloc(sizeof(Lent) + 2 * axes * sizeof(int64_t)));
  if (lent == nullptr) return nullptr;
  int64_t *sizes = lent->sizes_and_strides, *strides = sizes + axes;
  for (int axis = 0; axis < axes; ++axis) {
    sizes[axis] = PyArray_DIM(array, axis);
    strides[axis] = PyArray_STRIDE(array, axis) / PyArray_ITEMSIZE(array);
  }
  Py_INCREF(array);
  lent->major = 1;
  lent->minor = 0;
  lent->context = nullptr;
  lent->release = release;
  lent->flags = 0;
  lent->tensor = {PyArray_BYTES(array), 1, 0, axes, element_of(array), sizes, strides, 0};
  lent->array = array;
  return lent;
}

}  // namespace harken
