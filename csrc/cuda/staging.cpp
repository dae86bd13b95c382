// staging.cpp - each array of the host is packed without gaps, copied over, and described as it is packed.
#include "staging.hpp"

#include <string.h>

#include "card.hpp"
#include "fault.hpp"

namespace harken {
namespace {

Axes axes_of(const Problem& p, const View& view, int64_t head, int64_t row, int64_t col) {
  Axes axes;
  axes.element = size_of(view.type);
  for (int axis = 0; axis < p.batch_axes; ++axis) axes.add(p.batch_shape[axis], view.batch[axis]);
  if (head >= 0) axes.add(head, view.head);
  if (row >= 0) axes.add(row, view.row);
  if (col >= 0) axes.add(col, view.col);
  return axes;
}

// Between the array as it lies, at `apart`, and without gaps, at `packed`; moves `packed` on. to_packed says which way.
void pack(const Axes& axes, int axis, char* apart, char*& packed, bool to_packed) {
  if (axis == axes.count) {
    to_packed ? memcpy(packed, apart, axes.element) : memcpy(apart, packed, axes.element);
    packed += axes.element;
    return;
  }
  const int64_t size = axes.sizes[axis], stride = axes.strides[axis];
  if (axis == axes.count - 1 && (stride == axes.element || size == 1)) {
    const int64_t bytes = size * axes.element;
    to_packed ? memcpy(packed, apart, bytes) : memcpy(apart, packed, bytes);
    packed += bytes;
    return;
  }
  for (int64_t n = 0; n < size; ++n) pack(axes, axis + 1, apart + n * stride, packed, to_packed);
}

// The strides of the packing, for every axis that has one.
void lay(const Problem& p, const Axes& axes, View& view, int64_t head, int64_t row, int64_t col) {
  int64_t step = axes.element;
  int axis = axes.count;
  auto next = [&](int64_t& stride) {
    --axis;
    stride = axes.strides[axis] == 0 ? 0 : step;
    step *= axes.sizes[axis];
  };
  if (col >= 0) next(view.col);
  if (row >= 0) next(view.row);
  if (head >= 0) next(view.head);
  for (int b = p.batch_axes - 1; b >= 0; --b) next(view.batch[b]);
}

}  // namespace

Staged::Staged(const Problem& given, int card, void* stream) : problem(given), card_(card), stream_(stream) {
  constexpr int64_t none = -1;
  Problem& p = problem;
  if (p.pages.table.data && card::where(p.pages.table.data) < 0)
    throw Fault{HARKEN_MISUSED, "keys in pages are staged by nobody: their cache is to lie on the card"};
  try {
    stage(p.q, p.Hq, p.Lq, p.D, false);
    stage(p.k, p.Hkv, p.Lk, p.D, false);
    stage(p.v, p.Hkv, p.Lk, p.Dv, false);
    stage(p.k_scale, p.Hkv, p.Lk, p.D, false);
    stage(p.v_scale, p.Hkv, p.Lk, p.Dv, false);
    stage(p.w, p.Hq, none, p.D, false);
    stage(p.mask, p.Hq, p.Lq, p.Lk, false);
    stage(p.bias, p.Hq, p.Lq, p.Lk, false);
    for (View* view : {&p.scales, &p.slopes, &p.sinks}) stage(*view, p.Hq, none, none, false);
    for (View* view : {&p.q_starts, &p.q_lengths, &p.kv_lengths}) stage(*view, none, none, none, false);
    stage_lists();
    stage(p.out, p.Hq, p.Lq, p.Dv, true);
    stage(p.lse, p.Hq, p.Lq, none, true);
    stage(p.weights, p.Hq, p.Lq, p.Lk, true);
  } catch (...) {
    for (char* at : held_) card::release(at, stream_);
    throw;
  }
}

Staged::~Staged() {
  for (char* at : held_) card::release(at, stream_);
}

char* Staged::reserve(size_t bytes) {
  char* const at = static_cast<char*>(card::allocate(bytes, stream_));
  held_.push_back(at);
  return at;
}

void Staged::stage(View& view, int64_t head, int64_t row, int64_t col, bool result) {
  if (!view.data) return;
  const Axes axes = axes_of(problem, view, head, row, col);
  if (const int where = card::where(view.data); where >= 0) return check_there(axes, view, where);
  const size_t bytes = size_t(axes.bytes());
  if (bytes == 0) {
    view.data = nullptr;
    return;
  }
  Array array = {&view, view, head, row, col, result, reserve(bytes), bytes};
  std::string& packed = packed_.emplace_back(bytes, '\0');
  if (!result) {
    char* at = packed.data();
    pack(axes, 0, view.data, at, true);
  }
  if (!result) card::copy(array.at, packed.data(), bytes, stream_);
  if (&view == &problem.weights) card::clear(array.at, bytes, stream_);
  lay(problem, axes, view, head, row, col);
  view.data = array.at;
  arrays_.push_back(array);
}

// A card answers an address that is not a multiple of the size with an error that nothing after it survives.
void Staged::check_there(const Axes& axes, const View& view, int where) const {
  if (where != card_)
    throw Fault{HARKEN_MISUSED, "an array lies on card " + std::to_string(where) + ", another or the call on card " +
                                    std::to_string(card_)};
  int64_t bits = reinterpret_cast<intptr_t>(view.data);
  for (int axis = 0; axis < axes.count; ++axis) bits |= axes.sizes[axis] > 1 ? axes.strides[axis] : 0;
  if (bits % axes.element != 0)
    throw Fault{HARKEN_MISUSED, "an array on the card has addresses that are no multiples of its element's " +
                                    std::to_string(axes.element) + " bytes: give a copy of it"};
}

// How many lists there are is known by those that are used.
void Staged::stage_lists() {
  Lists& lists = problem.lists;
  if (!lists.number.data || card::where(lists.number.data) >= 0) return;
  stage(lists.number, problem.Hq, problem.Lq, -1, false);
  if (!lists.number.data) return;
  const std::string& numbers = packed_.back();
  int64_t count = 0;
  for (size_t n = 0; n < numbers.size(); n += sizeof(int64_t)) {
    int64_t number;
    memcpy(&number, numbers.data() + n, sizeof number);
    count = number + 1 > count ? number + 1 : count;
  }
  const size_t of_begin = size_t(count + 1) * sizeof(int64_t), of_all = size_t(lists.begin[count]) * sizeof(Interval);
  char* const begin = reserve(of_begin);
  card::copy(begin, lists.begin, of_begin, stream_);
  char* const intervals = reserve(of_all + sizeof(Interval));
  card::copy(intervals, lists.intervals, of_all, stream_);
  lists.begin = reinterpret_cast<const int64_t*>(begin);
  lists.intervals = reinterpret_cast<const Interval*>(intervals);
}

bool Staged::bring_back() {
  bool any = false;
  for (const Array& array : arrays_) {
    if (!array.result) continue;
    std::string& packed = packed_.emplace_back(array.bytes, '\0');
    card::copy(packed.data(), array.at, array.bytes, stream_);
    card::wait(stream_);
    char* at = packed.data();
    pack(axes_of(problem, array.host, array.head, array.row, array.col), 0, array.host.data, at, false);
    any = true;
  }
  return any;
}

}  // namespace harken
