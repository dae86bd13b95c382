// staging.cpp - each array of the host is packed without gaps, copied over, and described as it is packed.
#include "staging.hpp"

#include <string.h>

#include "card.hpp"
#include "fault.hpp"

namespace harken {
Staged::Staged(const Problem& given, int card, void* stream) : problem(given), card_(card), stream_(stream) {
  Problem& p = problem;
  if (p.pages.table.data && card::where(p.pages.table.data) < 0)
    throw Fault{HARKEN_MISUSED, "keys in pages are staged by nobody: their cache is to lie on the card"};
  try {
    for_arrays(p, [&](View& view, const Tail& tail, bool result) { stage(view, tail, result); });
    stage_lists();
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

void Staged::stage(View& view, const Tail& tail, bool result) {
  if (!view.data) return;
  const Axes axes = axes_of(problem, view, tail);
  if (const int where = card::where(view.data); where >= 0) return check_there(axes, view, where);
  const size_t bytes = size_t(axes.bytes());
  if (bytes == 0) {
    view.data = nullptr;
    return;
  }
  Array array = {&view, view, tail, result, reserve(bytes), bytes};
  std::string& packed = packed_.emplace_back(bytes, '\0');
  if (!result) pack(axes, view.data, packed.data(), 0, int64_t(bytes), true);
  if (!result) card::copy(array.at, packed.data(), bytes, stream_);
  if (&view == &problem.weights) card::clear(array.at, bytes, stream_);
  lay_packed(problem, axes, view, tail);
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
  stage(lists.number, {problem.Hq, problem.Lq, Tail::none}, false);
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
    const Axes axes = axes_of(problem, array.host, array.tail);
    pack(axes, array.host.data, packed.data(), 0, int64_t(array.bytes), false);
    any = true;
  }
  return any;
}

}  // namespace harken
