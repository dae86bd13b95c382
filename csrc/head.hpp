// head.hpp - one (batch, head) problem out of many: where its arrays begin and what holds for all of its rows.
#pragma once

#include "mask.hpp"
#include "problem.hpp"
#include "score.hpp"

namespace harken {
namespace {

// What the numbers of a matrix are multiplied by: one factor for each row (col == 0) or for each column (row == 0), of
// the compute type.
struct Scale {
  const char* data;  // null: 1
  int64_t row, col;

  HARKEN_ANYWHERE bool by_row() const { return row != 0; }
  template <class T>
  HARKEN_ANYWHERE T at(int64_t i, int64_t j) const {
    return *(const T*)(data + i * row + j * col);
  }
};

// A matrix in memory as it came: any type, any strides.
struct Matrix {
  char* data;
  Type type;
  int64_t row, col;
  Scale scale = {};

  HARKEN_ANYWHERE char* at(int64_t i, int64_t j) const { return data + i * row + j * col; }
};

// Keys or values, which may lie in pages.
struct Stored : Matrix {
  const int64_t* table;  // null: they lie evenly
  int64_t origin, rows, step, scale_step;

  char* at(int64_t, int64_t) const = delete;  // a page has places

  HARKEN_ANYWHERE bool even(int64_t i, int64_t i1) const {  // are rows i .. i1 - 1 of one page?
    return !table || (i < i1 && (i + origin) / rows == (i1 - 1 + origin) / rows);
  }

  HARKEN_ANYWHERE Matrix page(int64_t i) const {  // that of row i; its rows have the numbers that they have here
    if (!table) return *this;
    const int64_t n = (i + origin) / rows, before = n * rows - origin;
    Scale by = scale;
    if (by.data) by.data += table[n] * scale_step - before * by.row;
    return {data + table[n] * step - before * row, type, row, col, by};
  }

  template <class Body>
  void for_pages(int64_t i, int64_t i1, Body body) const {  // body(page, its first row, past its last)
    while (i < i1) {
      const int64_t end = table ? least(i1, ((i + origin) / rows + 1) * rows - origin) : i1;
      body(page(i), i, end);
      i = end;
    }
  }
};

// Batch row b as an index along each leading axis.
struct BatchRow {
  int axes;
  int64_t index[max_batch_axes];

  HARKEN_ANYWHERE int64_t offset(const View& view) const {
    int64_t sum = 0;
    for (int a = 0; a < axes; ++a) sum += index[a] * view.batch[a];
    return sum;
  }
};

HARKEN_ANYWHERE void locate(const Problem& p, int64_t b, BatchRow& row) {
  row.axes = p.batch_axes;
  for (int a = p.batch_axes - 1; a > 0; --a) {
    row.index[a] = b % p.batch_shape[a];
    b /= p.batch_shape[a];
  }
  if (p.batch_axes) row.index[0] = b;
}

HARKEN_ANYWHERE Matrix matrix_at(const View& view, const BatchRow& b, int64_t h) {
  if (!view.data) return {nullptr, view.type, 0, 0};
  return {view.data + b.offset(view) + h * view.head, view.type, view.row, view.col};
}

HARKEN_ANYWHERE ListsOfHead lists_at(const Lists& lists, const BatchRow& b, int64_t h) {
  const Matrix number = matrix_at(lists.number, b, h);
  return {number.data, number.row, lists.begin, lists.intervals};
}

HARKEN_ANYWHERE int64_t integer_at(const View& view, const BatchRow& b, int64_t otherwise) {
  return view.data ? *(const int64_t*)(view.data + b.offset(view)) : otherwise;
}

// Field by field where it will stay: copied as a whole it was read before its parts had arrived, 90 ns a head.
HARKEN_ANYWHERE void place(Matrix& M, const View& view, const BatchRow& b, int64_t h) {
  const bool there = view.data != nullptr;
  M.data = there ? view.data + b.offset(view) + h * view.head : nullptr;
  M.type = view.type;
  M.row = there ? view.row : 0;
  M.col = there ? view.col : 0;
}

HARKEN_ANYWHERE void place(Stored& M, const Pages& pages, const View& view, int64_t step, const View& scale,
                           int64_t scale_step, const BatchRow& b, int64_t h) {
  const View& table = pages.table;
  place(M, view, b, h);
  M.table = table.data ? (const int64_t*)(table.data + b.offset(table)) : nullptr;
  M.origin = integer_at(pages.origins, b, 0);
  M.rows = pages.rows;
  M.step = step;
  M.scale_step = scale_step;
  if (!scale.data) return;
  M.scale.data = scale.data + b.offset(scale) + h * scale.head;
  M.scale.row = scale.row;
  M.scale.col = scale.col;
}

HARKEN_ANYWHERE double number_at(const View& view, const BatchRow& b, int64_t h, double otherwise) {
  return view.data ? *(const double*)(view.data + b.offset(view) + h * view.head) : otherwise;
}

template <class T>
struct Head {
  Matrix Q, out, lse, weights, mask, bias, w;
  Stored K, V;
  Sight sight;
  Modifiers<T> modifiers;
  double scale;    // of q.k, times log2 e
  double w_scale;  // of w, likewise; q is then as it is
  double sink;     // times log2 e
  bool has_sink, cosine, additive;
  int64_t queries;  // those below q_length
};

template <class T>
HARKEN_ANYWHERE void place(Head<T>& head, const Problem& p, const BatchRow& b, int64_t h) {
  int64_t kv = h / (p.Hq / p.Hkv);
  head.K.scale = head.V.scale = {};
  place(head.Q, p.q, b, h);
  place(head.K, p.pages, p.k, p.pages.k_step, p.k_scale, p.pages.k_scale_step, b, kv);
  place(head.V, p.pages, p.v, p.pages.v_step, p.v_scale, p.pages.v_scale_step, b, kv);
  place(head.out, p.out, b, h);
  place(head.lse, p.lse, b, h);
  place(head.weights, p.weights, b, h);
  place(head.mask, p.mask, b, h);
  place(head.bias, p.bias, b, h);
  place(head.w, p.w, b, h);
  head.queries = integer_at(p.q_lengths, b, p.Lq);
  int64_t keys = integer_at(p.kv_lengths, b, p.Lk);
  head.sight = {integer_at(p.q_starts, b, keys - head.queries), keys, p.left, p.right, lists_at(p.lists, b, h)};
  head.additive = p.score == Score::additive;
  head.w_scale = number_at(p.scales, b, h, p.scale) * log2e;
  head.scale = head.additive ? 1 : head.w_scale;
  head.has_sink = p.sinks.data != nullptr;
  head.sink = number_at(p.sinks, b, h, 0) * log2e;
  head.cosine = p.score == Score::cosine;
  const Scale& one = head.K.scale;
  if (one.data && one.row == 0 && one.col == 0 && !head.cosine && p.Lk > 0 && p.D > 0) {  // of all keys alike
    head.scale *= one.at<T>(0, 0);
    head.K.scale = {};
  }
  head.modifiers = modifiers_of<T>(p, number_at(p.slopes, b, h, 0));
}

template <class T>
HARKEN_ANYWHERE Head<T> head_at(const Problem& p, const BatchRow& b, int64_t h) {
  Head<T> head;
  place(head, p, b, h);
  return head;
}

template <class T>
HARKEN_ANYWHERE Head<T> head_at(const Problem& p, int64_t batch_row, int64_t h) {
  BatchRow b;
  locate(p, batch_row, b);
  return head_at<T>(p, b, h);
}

// What lists show to queries i0 .. i1 - 1 of any of the heads, which see the same keys otherwise.
template <class T>
HARKEN_ANYWHERE Shown shown(const Head<T>* heads, int64_t count, int64_t i0, int64_t i1, int64_t k0, int64_t k1,
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
HARKEN_ANYWHERE Interval seen(const Head<T>* heads, int64_t count, int64_t i0, int64_t i1, int64_t k0, int64_t k1) {
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
