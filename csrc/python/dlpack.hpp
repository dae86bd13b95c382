// dlpack.hpp - memory as DLPack describes it and as NumPy does: where it is, of what type, sizes and strides, whose.
#pragma once

#include <string>

#include "numpy.hpp"

namespace harken {
namespace dlpack {

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

}  // namespace dlpack

// A NumPy array over the memory of a tensor, which `owner` keeps alive. `name` is the argument's. If it lies on a card
// that must be this one.
py::object view_tensor(const dlpack::Tensor& tensor, bool writeable, py::object owner, const char* name, int card = -1);

// The same of a capsule, which is its own owner; and a capsule over the memory of an array.
py::object view_capsule(const py::object& capsule, const std::string& name, int card);
py::object make_capsule(const py::object& array, int card);

// A tensor over the memory of an array, which it keeps alive until it is released. nullptr: no memory for it.
dlpack::Versioned* lend(PyArrayObject* array);

}  // namespace harken
