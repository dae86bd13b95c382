// pieces.cpp - positions move with the cut: query i of a piece is query i + i0, key j is key j + j0, distances stay.
#include "pieces.hpp"

#include "fault.hpp"

namespace harken {
namespace {

int64_t within(int64_t x, int64_t end) { return x < 0 ? 0 : x > end ? end : x; }

void step(View& view, int64_t bytes) {
  if (view.data) view.data += bytes;
}

struct Cutter {
  const int64_t good, most;
  Made& made;
  std::vector<Piece> pieces;
  int64_t groups = 0;

  // Indices first .. first + count - 1 of the outermost axis, which is gone if that is one.
  Problem rows_of_batch(const Problem& whole, int64_t first, int64_t count) const {
    Problem p = whole;
    auto narrow = [&](View& view) {
      step(view, first * view.batch[0]);
      if (count > 1) return;
      for (int axis = 1; axis < p.batch_axes; ++axis) view.batch[axis - 1] = view.batch[axis];
    };
    for_arrays(p, [&](View& view, const Tail&, bool) { narrow(view); });
    narrow(p.lists.number);
    p.batches = whole.batches / whole.batch_shape[0] * count;
    p.batch_shape[0] = count;
    if (count > 1) return p;
    for (int axis = 1; axis < p.batch_axes; ++axis) p.batch_shape[axis - 1] = p.batch_shape[axis];
    --p.batch_axes;
    return p;
  }

  Problem heads(const Problem& whole, int64_t first, int64_t count) const {
    Problem p = whole;
    const int64_t group = whole.Hq / whole.Hkv;
    for (View* view : {&p.k, &p.v, &p.k_scale, &p.v_scale}) step(*view, first * view->head);
    for (View* view :
         {&p.q, &p.out, &p.lse, &p.weights, &p.w, &p.mask, &p.bias, &p.scales, &p.slopes, &p.sinks, &p.lists.number})
      step(*view, first * group * view->head);
    p.Hq = count * group;
    p.Hkv = count;
    return p;
  }

  int64_t integer(const View& view, int64_t otherwise) const {
    return view.data ? *reinterpret_cast<const int64_t*>(view.data) : otherwise;
  }

  void set(View& view, int64_t x) const {
    made.integers.push_back(x);
    view.data = reinterpret_cast<char*>(&made.integers.back());
    view.type = Type::i64;
  }

  Problem queries(const Problem& whole, int64_t first, int64_t count) const {
    Problem p = whole;
    for (View* view : {&p.q, &p.out, &p.lse, &p.weights, &p.mask, &p.bias, &p.lists.number})
      step(*view, first * view->row);
    const int64_t length = integer(p.q_lengths, p.Lq);
    set(p.q_starts, integer(p.q_starts, integer(p.kv_lengths, p.Lk) - length) + first);
    set(p.q_lengths, within(length - first, count));
    p.Lq = count;
    return p;
  }

  Problem keys(const Problem& whole, int64_t first, int64_t count) const {
    Problem p = whole;
    for (View* view : {&p.k, &p.v, &p.k_scale, &p.v_scale}) step(*view, first * view->row);
    for (View* view : {&p.mask, &p.bias}) step(*view, first * view->col);
    const int64_t length = integer(p.kv_lengths, p.Lk);
    set(p.q_starts, integer(p.q_starts, length - integer(p.q_lengths, p.Lq)) - first);
    set(p.kv_lengths, within(length - first, count));
    if (first > 0) p.sinks.data = nullptr;  // it belongs to the row: one part takes it
    p.Lk = count;
    return p;
  }

  // Lists of the keys first .. end - 1, counted from `first`.
  void narrow_lists(Problem& p, int64_t first, int64_t end) const {
    if (!p.lists.number.data) return;
    int64_t lists = 0;
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.Lq; ++i) {
        const View& number = p.lists.number;
        const int64_t n = *reinterpret_cast<const int64_t*>(number.data + h * number.head + i * number.row);
        lists = n + 1 > lists ? n + 1 : lists;
      }
    std::vector<int64_t>& begin = made.begins.emplace_back(1, 0);
    std::vector<Interval>& intervals = made.intervals.emplace_back();
    for (int64_t n = 0; n < lists; ++n) {
      for (int64_t at = p.lists.begin[n]; at < p.lists.begin[n + 1]; ++at) {
        const Interval of = p.lists.intervals[at];
        const Interval its = {within(of.first - first, end - first), within(of.end - first, end - first)};
        if (its.first < its.end) intervals.push_back(its);
      }
      begin.push_back(int64_t(intervals.size()));
    }
    p.lists.begin = begin.data();
    p.lists.intervals = intervals.data();
  }

  // Keys in ranges of equal size, the last may be shorter.
  void cut_keys(const Problem& p) {
    if (bytes_of(p) <= most) return pieces.push_back({p, -1, true});
    if (p.weights.data)
      throw Fault{HARKEN_OUT_OF_MEMORY,
                  "keys exceed the memory of the card, and with return_weights=True they cannot "
                  "be taken in parts: ask for fewer queries' weights, or compute on the CPU"};
    int64_t range = p.Lk;
    while (range > 1 && bytes_of(keys(p, 0, range)) > most) range = (range + 1) / 2;
    if (bytes_of(keys(p, 0, range)) > most) throw Fault{HARKEN_OUT_OF_MEMORY, "one key exceeds the memory of the card"};
    const int64_t group = groups++;
    for (int64_t first = 0; first < p.Lk; first += range) {
      const int64_t count = range < p.Lk - first ? range : p.Lk - first;
      Piece piece = {keys(p, first, count), group, first + count == p.Lk};
      narrow_lists(piece.problem, first, first + count);
      pieces.push_back(piece);
    }
  }

  void cut_queries(const Problem& p) {
    int64_t range = p.Lq;
    // What comes with the queries may take half; the other half is for keys, which every range of queries meets anew.
    auto with_keys_of = [&](int64_t rows, int64_t count) { return bytes_of(keys(queries(p, 0, rows), 0, count)); };
    const int64_t few = p.weights.data ? p.Lk : p.Lk < 64 ? p.Lk : 64;
    while (range > 1 && with_keys_of(range, few) > most / 2) range = (range + 1) / 2;
    if (range == p.Lq) return cut_keys(p);
    for (int64_t first = 0; first < p.Lq; first += range)
      cut_keys(queries(p, first, range < p.Lq - first ? range : p.Lq - first));
  }

  // Into parts of an axis of so many, of about `good` bytes together.
  template <class Part>
  void cut_axis(int64_t size, Part part) {
    const int64_t each = bytes_of(part(0, 1)), fit = each == 0 ? size : good / each;
    const int64_t count = within(fit < 1 ? 1 : fit, size);
    for (int64_t first = 0; first < size; first += count) cut(part(first, count < size - first ? count : size - first));
  }

  void cut(const Problem& p) {
    if (bytes_of(p) <= good) return pieces.push_back({p, -1, true});
    if (p.batch_axes > 0)
      return cut_axis(p.batch_shape[0], [&](int64_t first, int64_t count) { return rows_of_batch(p, first, count); });
    if (p.Hkv > 1) return cut_axis(p.Hkv, [&](int64_t first, int64_t count) { return heads(p, first, count); });
    if (bytes_of(p) <= most) return pieces.push_back({p, -1, true});
    cut_queries(p);
  }
};

}  // namespace

int64_t bytes_of(const Problem& problem) {
  Problem p = problem;
  int64_t sum = 0;
  for_arrays(p, [&](View& view, const Tail& tail, bool) {
    if (view.data) sum += axes_of(p, view, tail).bytes();
  });
  return sum;
}

std::vector<Piece> pieces_of(const Problem& problem, int64_t good, int64_t most, Made& made) {
  Cutter cutter = {good < most ? good : most, most, made, {}};
  cutter.cut(problem);
  return cutter.pieces;
}

}  // namespace harken
