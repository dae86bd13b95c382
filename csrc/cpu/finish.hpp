// finish.hpp - how a row leaves: its state becomes an output row and its logarithm, or a partial for its other ranges.
#pragma once

#include "../plan.hpp"
#include "../softmax.hpp"
#include "rows.hpp"

namespace harken {
namespace {

// (m, l, O) of the rows of one task, as ranges leave them: m[rows], l[rows], O[rows][Dv]. lse comes from `whole`, which
// is l where that is not the sum of rounded weights.
template <class T>
struct Partial {
  T *m, *l, *whole, *O;
};

template <class T>
inline Partial<T> partial_at(const Problem& p, const Plan& plan, int64_t task) {
  int64_t rows = (plan.partial_bytes / sizeof(T)) / (p.Dv + 3);
  T* m = (T*)(plan.partials + (task - plan.first_task) * plan.partial_bytes);
  return {m, m + rows, m + 2 * rows, m + 3 * rows};
}

template <class T>
inline void blank_partial(const Problem& p, const Partial<T>& to, int64_t row, int64_t n) {
  for (int64_t r = row; r < row + n; ++r) {
    to.m[r] = -infinity;
    to.l[r] = to.whole[r] = 0;
    for (int64_t d = 0; d < p.Dv; ++d) to.O[r * p.Dv + d] = 0;
  }
}

// Rows at or past q_length: 0, with lse -inf.
template <class T>
inline void blank_rows(const Problem& p, const Head<T>& head, int64_t i, int64_t end, T* row) {
  for (int64_t d = 0; d < p.Dv; ++d) row[d] = 0;
  for (; i < end; ++i) {
    write_row(head.out, i, 0, p.Dv, row);
    write_lse(head.lse, i, -infinity);
  }
}

// One row: O becomes the output.
template <class T>
inline void finish_row(const Problem& p, const Head<T>& head, int64_t i, double m, double l, const T* O) {
  double a = head.has_sink ? add_sink(m, l, head.sink) : 1;
  T factor = l == 0 ? T(0) : T(a / l);
  write_row(head.out, i, 0, p.Dv, O, factor);
  if (head.lse.data) write_lse(head.lse, i, log_sum(m, l));
}

// Its logarithm alone.
template <class T>
inline void finish_lse(const Head<T>& head, int64_t i, double m, double l) {
  if (head.has_sink) add_sink(m, l, head.sink);
  write_lse(head.lse, i, log_sum(m, l));
}

// The ranges of one tile of queries, added in their order: (m, l, O) + (m', l', O') + ...
template <class T>
inline void merge_ranges(const Problem& p, const Plan& plan, int64_t tile, char* scratch) {
  Task task = task_at(p, plan, tile * plan.ranges);
  T* O = (T*)scratch;
  int64_t group = p.Hq / plan.heads;
  for (int64_t g = 0, row = 0; g < group; ++g) {
    Head<T> head = head_at<T>(p, task.b, task.h * group + g);
    int64_t end = least(task.q1, head.queries);
    for (int64_t i = task.q0; i < task.q1; ++i, ++row) {
      if (i >= end) {
        blank_rows(p, head, i, i + 1, O);
        continue;
      }
      T M = -infinity;
      for (int64_t r = 0; r < plan.ranges; ++r) {
        T m = partial_at<T>(p, plan, task.index + r).m[row];
        M = m > M ? m : M;
      }
      double l = 0, whole = 0;
      for (int64_t d = 0; d < p.Dv; ++d) O[d] = 0;
      for (int64_t r = 0; r < plan.ranges; ++r) {
        Partial<T> part = partial_at<T>(p, plan, task.index + r);
        T m = part.m[row];
        if (m == -infinity && part.l[row] == 0) continue;  // no key of this range is seen
        T a = m == M ? T(1) : T(__builtin_exp2(double(m) - double(M)));
        l += double(a) * double(part.l[row]);
        whole += double(a) * double(part.whole[row]);
        for (int64_t d = 0; d < p.Dv; ++d) O[d] += a * part.O[row * p.Dv + d];
      }
      finish_row(p, head, i, M, l, O);
      if (head.lse.data && whole != l) finish_lse(head, i, M, whole);
    }
  }
}

}  // namespace
}  // namespace harken
