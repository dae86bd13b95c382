// axes.hpp - an array of any strides and the same numbers without gaps: how many bytes, and copies of any part of them.
#pragma once

#include <string.h>

#include "../problem.hpp"

namespace harken {

constexpr int most_axes = max_batch_axes + 3;

// The axes of an array from the outermost on. A stride of 0 is an axis of size 1 as far as memory goes.
struct Axes {
  int count = 0;
  int64_t sizes[most_axes], strides[most_axes];
  int64_t element;

  void add(int64_t size, int64_t stride) {
    sizes[count] = stride == 0 && size > 0 ? 1 : size;
    strides[count++] = stride;
  }
  int64_t bytes() const {
    int64_t product = element;
    for (int axis = 0; axis < count; ++axis) product *= sizes[axis];
    return product;
  }

  // The innermost axes that have no gaps are one run of bytes; returns its length, and how many axes are outside of it.
  int64_t run(int& outside) const {
    int64_t length = element;
    for (outside = count; outside > 0; --outside) {
      const int64_t size = sizes[outside - 1];
      if (size != 1 && strides[outside - 1] != length) break;
      length *= size;
    }
    return length;
  }
};

// Which axes an array has beside the leading ones: their sizes, or none.
struct Tail {
  static constexpr int64_t none = -1;
  int64_t head, row, col;
};

inline Axes axes_of(const Problem& p, const View& view, const Tail& tail) {
  Axes axes;
  axes.element = size_of(view.type);
  for (int axis = 0; axis < p.batch_axes; ++axis) axes.add(p.batch_shape[axis], view.batch[axis]);
  if (tail.head >= 0) axes.add(tail.head, view.head);
  if (tail.row >= 0) axes.add(tail.row, view.row);
  if (tail.col >= 0) axes.add(tail.col, view.col);
  return axes;
}

// Bytes first .. end - 1 of the numbers without gaps, between `packed`, where byte `first` lies, and the array.
inline void pack(const Axes& axes, char* apart, char* packed, int64_t first, int64_t end, bool to_packed) {
  int outside;
  const int64_t length = axes.run(outside);
  for (int64_t at = first; at < end;) {
    const int64_t within = at % length, rest = length - within, bytes = rest < end - at ? rest : end - at;
    char* place = apart + within;
    int64_t n = at / length;
    for (int axis = outside - 1; axis >= 0; --axis) {
      place += n % axes.sizes[axis] * axes.strides[axis];
      n /= axes.sizes[axis];
    }
    to_packed ? memcpy(packed, place, bytes) : memcpy(place, packed, bytes);
    packed += bytes;
    at += bytes;
  }
}

// The strides of the numbers without gaps, for every axis that has one.
inline void lay_packed(const Problem& p, const Axes& axes, View& view, const Tail& tail) {
  int64_t step = axes.element;
  int axis = axes.count;
  auto next = [&](int64_t& stride) {
    --axis;
    stride = axes.strides[axis] == 0 ? 0 : step;
    step *= axes.sizes[axis];
  };
  if (tail.col >= 0) next(view.col);
  if (tail.row >= 0) next(view.row);
  if (tail.head >= 0) next(view.head);
  for (int b = p.batch_axes - 1; b >= 0; --b) next(view.batch[b]);
}

// body(view, its tail, is it a result) for every array of a problem but the lists.
template <class Body>
void for_arrays(Problem& p, Body body) {
  constexpr int64_t none = Tail::none;
  for (View* view : {&p.q_starts, &p.q_lengths, &p.kv_lengths}) body(*view, Tail{none, none, none}, false);
  for (View* view : {&p.scales, &p.slopes, &p.sinks}) body(*view, Tail{p.Hq, none, none}, false);
  body(p.w, Tail{p.Hq, none, p.D}, false);
  body(p.q, Tail{p.Hq, p.Lq, p.D}, false);
  body(p.k, Tail{p.Hkv, p.Lk, p.D}, false);
  body(p.k_scale, Tail{p.Hkv, p.Lk, p.D}, false);
  body(p.v, Tail{p.Hkv, p.Lk, p.Dv}, false);
  body(p.v_scale, Tail{p.Hkv, p.Lk, p.Dv}, false);
  body(p.mask, Tail{p.Hq, p.Lq, p.Lk}, false);
  body(p.bias, Tail{p.Hq, p.Lq, p.Lk}, false);
  body(p.out, Tail{p.Hq, p.Lq, p.Dv}, true);
  body(p.lse, Tail{p.Hq, p.Lq, none}, true);
  body(p.weights, Tail{p.Hq, p.Lq, p.Lk}, true);
}

}  // namespace harken
