// dlpack.cpp - memory as DLPack describes it and as NumPy does: where it is, of what type, sizes and strides, whose.
#include "dlpack.hpp"

#include <string.h>

#include "errors.hpp"

namespace harken {
namespace {

// As dlpack.h of DLPack 1 has them.
struct Element {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  char* data;
  int32_t device, device_number;
  int32_t axes;
  Element element;
  const int64_t *sizes, *strides;  // in elements; no strides: C order
  uint64_t byte_offset;
};

struct Managed {  // in a capsule named "dltensor"
  Tensor tensor;
  void* context;
  void (*release)(Managed*);
};

struct Versioned {  // in a capsule named "dltensor_versioned"
  uint32_t major, minor;
  void* context;
  void (*release)(Versioned*);
  uint64_t flags;  // bit 0: not to be written to
  Tensor tensor;
};

constexpr int most_axes = 64;  // as in NumPy

constexpr struct {
  uint8_t code, bits;
  int type;
} types[] = {
    {2, 32, NPY_FLOAT},  {2, 16, NPY_HALF},   {2, 64, NPY_DOUBLE}, {6, 8, NPY_BOOL},      {0, 64, NPY_INT64},
    {0, 32, NPY_INT32},  {0, 16, NPY_INT16},  {0, 8, NPY_INT8},    {1, 8, NPY_UINT8},     {1, 16, NPY_UINT16},
    {1, 32, NPY_UINT32}, {1, 64, NPY_UINT64}, {5, 64, NPY_CFLOAT}, {5, 128, NPY_CDOUBLE},
};

constexpr struct {
  uint8_t code, bits;
  const char* name;  // in ml_dtypes
} extensions[] = {{4, 16, "bfloat16"}, {10, 8, "float8_e4m3fn"}, {12, 8, "float8_e5m2"}};

PyArray_Descr* descr_of(const Element& element, const char* name) {
  if (element.lanes == 1) {
    for (const auto& type : types) {
      if (type.code == element.code && type.bits == element.bits) return PyArray_DescrFromType(type.type);
    }
    for (const auto& type : extensions) {
      if (type.code != element.code || type.bits != element.bits) continue;
      PyObject* module = PyImport_ImportModule("ml_dtypes");
      if (module == nullptr) {
        PyErr_Clear();
        refuse(PyExc_ImportError, "%s is %s, which NumPy knows through ml_dtypes only: pip install ml_dtypes", name,
               type.name);
      }
      const py::object scalar = py::reinterpret_steal<py::object>(module).attr(type.name);
      PyArray_Descr* descr = nullptr;
      if (PyArray_DescrConverter(scalar.ptr(), &descr) == NPY_FAIL) throw py::error_already_set();
      return descr;
    }
  }
  refuse(PyExc_TypeError, "%s has elements of DLPack's type %d with %d bits in %d lanes, which NumPy has not", name,
         element.code, element.bits, element.lanes);
}

void check_device(const Tensor& tensor, const char* name) {
  switch (tensor.device) {
    case 1:  // the CPU's own memory
    case 3:
    case 11:  // and such as CUDA or ROCm have pinned
      return;
  }
  const char* const known = tensor.device == 2    ? "cuda"
                            : tensor.device == 8  ? "metal"
                            : tensor.device == 10 ? "rocm"
                                                  : nullptr;
  const py::object device = known != nullptr ? py::str(known) : py::str("DLPack's device {}").format(tensor.device);
  refuse(PyExc_RuntimeError,
         "%s lies on %U:%d: this build of harken computes on the CPU only; give a copy that lies on the CPU", name,
         device.ptr(), tensor.device_number);
}

py::object view(const Tensor& tensor, bool writeable, py::object owner, const char* name) {
  check_device(tensor, name);
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

template <class T>
T* inside(const py::object& capsule, const char* name) {
  return static_cast<T*>(must(PyCapsule_GetPointer(capsule.ptr(), name)));
}

py::object foreign() { return py::module_::import("harken.foreign"); }

}  // namespace

bool is_foreign(PyObject* object) {
  static PyObject* const name = PyUnicode_InternFromString("__dlpack__");
  return !PyArray_Check(object) && !PyList_Check(object) && !PyTuple_Check(object) && !PyFloat_Check(object) &&
         PyObject_HasAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), name) == 1;
}

py::object view_foreign(PyObject* object, const char* name) { return foreign().attr("view")(name, py::handle(object)); }

py::object give_foreign(PyObject* like, PyArrayObject* array) {
  return foreign().attr("give")(py::handle(like), py::handle(reinterpret_cast<PyObject*>(array)));
}

// The capsule stays as it was made, so that its own destructor gives the memory back when the array is gone.
py::object view_capsule(const py::object& capsule, const std::string& name) {
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* versioned = inside<Versioned>(capsule, "dltensor_versioned");
    if (versioned->major != 1) {
      refuse(PyExc_BufferError, "%s comes by version %u.%u of DLPack: wanted 1.x", name.c_str(), versioned->major,
             versioned->minor);
    }
    return view(versioned->tensor, (versioned->flags & 1) == 0, capsule, name.c_str());
  }
  // Before version 1 nothing said what may be written to, and nothing said that it came from an immutable array.
  return view(inside<Managed>(capsule, "dltensor")->tensor, false, capsule, name.c_str());
}

// NumPy writes capsules for its own types only: of others it sees the bits, and what they mean is entered afterwards.
py::object make_capsule(const py::object& array) {
  const std::string name = array.attr("dtype").attr("name").cast<std::string>();
  for (const auto& type : extensions) {
    if (name != type.name) continue;
    const py::object capsule = array.attr("view")(type.bits == 16 ? "u2" : "u1").attr("__dlpack__")();
    inside<Managed>(capsule, "dltensor")->tensor.element.code = type.code;
    return capsule;
  }
  return array.attr("__dlpack__")();
}

}  // namespace harken
