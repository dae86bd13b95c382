// head.hpp - one (batch, head) problem out of many: where its arrays begin and what holds for all of its rows.
#pragma once

#include "../mask.hpp"
#include "../problem.hpp"
#include "../score.hpp"

namespace harken {
namespace {

// A matrix in memory as it came: any type, any strides.
struct Matrix {
  char* data;
  Type type;
  int64_t row, col;

  char* at(int64_t i, int64_t j) const { return data + i * row + j * col; }
};

// Batch row b as an index along each leading axis.
struct BatchRow {
  int axes;
  int64_t index[max_batch_axes];

  int64_t offset(const View& view) const {
    int64_t sum = 0;
    for (int a = 0; a < axes; ++a) sum += index[a] * view.batch[a];
    return sum;
  }
};

inline void locate(const Problem& p, int64_t b, BatchRow& row) {
  row.axes = p.batch_axes;
  for (int a = p.batch_axes - 1; a > 0; --a) {
    row.index[a] = b % p.batch_shape[a];
    b /= p.batch_shape[a];
  }
  if (p.batch_axes) row.index[0] = b;
}

inline Matrix matrix_at(const View& view, const BatchRow& b, int64_t h) {
  if (!view.data) return {nullptr, view.type, 0, 0};
  return {view.data + b.offset(view) + h * view.head, view.type, view.row, view.col};
}

inline ListsOfHead lists_at(const Lists& lists, const BatchRow& b, int64_t h) {
  const Matrix number = matrix_at(lists.number, b, h);
  return {number.data, number.row, lists.begin, lists.intervals};
}

inline int64_t integer_at(const View& view, const BatchRow& b, int64_t otherwise) {
  return view.data ? *(const int64_t*)(view.data + b.offset(view)) : otherwise;
}

inline double number_at(const View& view, const BatchRow& b, int64_t h, double otherwise) {
  return view.data ? *(const double*)(view.data + b.offset(view) + h * view.head) : otherwise;
}

template <class T>
struct Head {
  Matrix Q, K, V, out, lse, weights, mask, bias;
  Sight sight;
  Modifiers<T> modifiers;
  double scale;  // of q.k, times log2 e
  double sink;   // times log2 e
  bool has_sink, cosine;
  int64_t queries;  // those below q_length
};

template <class T>
inline Head<T> head_at(const Problem& p, int64_t batch_row, int64_t h) {
  Head<T> head;
  BatchRow b;
  locate(p, batch_row, b);
  int64_t kv = h / (p.Hq / p.Hkv);
  head.Q = matrix_at(p.q, b, h);
  head.K = matrix_at(p.k, b, kv);
  head.V = matrix_at(p.v, b, kv);
  head.out = matrix_at(p.out, b, h);
  head.lse = matrix_at(p.lse, b, h);
  head.weights = matrix_at(p.weights, b, h);
  head.mask = matrix_at(p.mask, b, h);
  head.bias = matrix_at(p.bias, b, h);
  head.queries = integer_at(p.q_lengths, b, p.Lq);
  int64_t keys = integer_at(p.kv_lengths, b, p.Lk);
  head.sight = {integer_at(p.q_starts, b, keys - head.queries), keys, p.left, p.right, lists_at(p.lists, b, h)};
  head.scale = number_at(p.scales, b, h, p.scale) * log2e;
  head.has_sink = p.sinks.data != nullptr;
  head.sink = number_at(p.sinks, b, h, 0) * log2e;
  head.cosine = p.score == Score::cosine;
  head.modifiers = modifiers_of<T>(p, number_at(p.slopes, b, h, 0));
  return head;
}

// What lists show to queries i0 .. i1 - 1 of any of the heads, which see the same keys otherwise.
template <class T>
inline Shown shown(const Head<T>* heads, int64_t count, int64_t i0, int64_t i1, int64_t k0, int64_t k1,
                   Outlook& ahead) {
  if (!heads[0].sight.lists.number) return Shown::all;
  if (k0 >= ahead.from && k1 <= ahead.until) return ahead.shown;
  shown(heads[0].sight.lists, i0, i1, k0, k1, ahead = {});
  for (int64_t h = 1; h < count; ++h) {
    if (heads[h].sight.lists.number == heads[h - 1].sight.lists.number) continue;
    const Outlook other = look(heads[h].sight.lists, i0, i1, k0);
    if (other.shown != ahead.shown) ahead = {Shown::some, k0, k0 + 1};
    ahead.until = least(ahead.until, other.until);
  }
  return k1 <= ahead.until ? ahead.shown : Shown::some;
}

// No less of the keys k0 .. k1 - 1 than they see.
template <class T>
inline Interval seen(const Head<T>* heads, int64_t count, int64_t i0, int64_t i1, int64_t k0, int64_t k1) {
  bool gaps = false;
  Interval any = seen(heads[0].sight, i0, i1, k0, k1, gaps);
  for (int64_t h = 1; h < count; ++h) {
    if (heads[h].sight.lists.number == heads[h - 1].sight.lists.number) continue;
    const Interval of = seen(heads[h].sight, i0, i1, k0, k1, gaps);
    if (of.first < of.end) any = any.first < any.end ? Interval{least(any.first, of.first), most(any.end, of.end)} : of;
  }
  return any;
}

}  // namespace
}  // namespace harken
