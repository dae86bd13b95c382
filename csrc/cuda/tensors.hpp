// tensors.hpp - arrays of a problem as the copy engine reads them, and those that it takes no map of.
//
// A map has five axes: channels, rows, heads and two of the batch. An axis along which all is the same (a stride of 0)
// has one index there. Bytes between rows, heads and so on are multiples of 16 and no less than 16.
#pragma once

#include "engines.hpp"

namespace harken {
namespace {

constexpr int mapped_batch_axes = map_axes - 3;

// Which batch axes have more than one index; more of them than fit in a map are counted, too.
struct BatchAxes {
  int count, axis[mapped_batch_axes];
};

inline BatchAxes batch_axes_of(const Problem& p) {
  BatchAxes axes = {0, {-1, -1}};
  for (int axis = 0; axis < p.batch_axes; ++axis) {
    if (p.batch_shape[axis] <= 1) continue;
    if (axes.count < mapped_batch_axes) axes.axis[axes.count] = axis;
    ++axes.count;
  }
  return axes;
}

struct Tensor {
  TensorMap map;
  int along[map_axes - 2];  // 0 where all is the same; else 1: head, batch axes
};

// Of (B, heads, rows, channels), all of which there are.
inline Boxed boxed(const Problem& p, const View& view, int64_t heads, int64_t rows, int64_t channels) {
  const int64_t any = (channels * size_of(view.type) + 15) / 16 * 16;  // along an axis with one index
  Boxed array = {view.data, view.type, {channels, rows, 1, 1, 1}, {rows > 1 ? view.row : any, any, any, any}};
  const auto add = [&](int axis, int64_t size, int64_t stride) {
    if (size <= 1 || stride == 0) return;
    array.sizes[axis] = size;
    array.strides[axis - 1] = stride;
  };
  const BatchAxes axes = batch_axes_of(p);
  add(2, heads, view.head);
  for (int n = 0; n < mapped_batch_axes && n < axes.count; ++n)
    add(3 + n, p.batch_shape[axes.axis[n]], view.batch[axes.axis[n]]);
  return array;
}

inline bool mappable(const Problem& p, const View& view, int64_t heads, int64_t rows, int64_t channels) {
  if (p.batches == 0 || heads == 0 || rows == 0) return true;
  const Boxed array = boxed(p, view, heads, rows, channels);
  bool good = reinterpret_cast<intptr_t>(view.data) % 16 == 0 && (channels == 1 || view.col == size_of(view.type));
  for (const int64_t size : array.sizes) good = good && size < int64_t(1) << 31;
  for (const int64_t stride : array.strides) good = good && stride % 16 == 0 && stride > 0 && stride < int64_t(1) << 40;
  return good;
}

// With boxes of so many rows; without rows nothing is ever copied.
inline Tensor tensor_of(const Problem& p, const View& view, int64_t heads, int64_t rows, int64_t channels, int of_box) {
  if (p.batches == 0 || heads == 0 || rows == 0) return {};
  const Boxed array = boxed(p, view, heads, rows, channels);
  Tensor tensor = {map_of(array, of_box), {}};
  for (int axis = 2; axis < map_axes; ++axis) tensor.along[axis - 2] = array.sizes[axis] > 1 ? 1 : 0;
  return tensor;
}

}  // namespace
}  // namespace harken
