// brief.hpp - softmax(Q K^T) V where the keys are few: all of them at once, no running maximum, no state.
//
//     P = 2^(score(Q K^T))          for a block of queries, and l = sum P
//     O = P V / l
//
// A softmax does not change when its logits are shifted; without the shift it is exact as long as nothing overflows or
// vanishes. Rows where that happens, known by their l and by what comes out, are computed once more by the tiled form.
// Each row by itself: its neighbours keep their bits.
#pragma once

#include "attend.hpp"
#include "brief_product.hpp"
#include "coming.hpp"

namespace harken {
namespace {

// l of a row that may stay. Above, P could overflow before O shows it; below, P V loses what is smaller than the least
// normal number over l: from 2^-70 on (float) values keep all of their digits.
template <class T>
constexpr T least_sum = sizeof(T) == 4 ? T(0x1p-32) : T(0x1p-256);
template <class T>
constexpr T most_sum = sizeof(T) == 4 ? T(0x1p64) : T(0x1p512);

// What a thread works in.
template <class T>
struct BriefSpace {
  T *K, *V;                // [keys][D], [keys][Dv in whole registers]: a compact copy, where one is needed
  T *Q, *P, *bias, *mask;  // panels of a block of queries
  T* rows;                 // [lanes][row_step]
  T* O;                    // [width][Dv in whole registers], where the output is not in place
  T *l, *factor, *p, *first, *end, *slope;  // [width]
  int64_t row_step;
  char* tiled;  // the tiled form's own
};

template <class T>
inline int64_t set_up(const Problem& p, const Plan& plan, char* from, BriefSpace<T>& space) {
  constexpr int64_t width = columns * lanes<T>;
  const int64_t Dv = up(p.Dv, lanes<T>);
  int64_t used = 0;
  auto array = [&](int64_t count) {
    T* at = (T*)(from + used);
    used += up(count * sizeof(T), 64);
    return at;
  };
  T** of_a_row[] = {&space.l, &space.factor, &space.p, &space.first, &space.end, &space.slope};
  for (T** a : of_a_row) *a = array(width);
  space.Q = array(width * p.D);
  space.P = array(width * p.Lk);
  space.O = array(width * Dv);
  space.row_step = up(most(most(p.D, p.Dv), p.Lk), lanes<T>);
  space.rows = array(lanes<T> * space.row_step);
  space.bias = array(width * p.Lk);
  space.mask = array(width * p.Lk);
  space.K = array(p.Lk * p.D);
  space.V = array(p.Lk * Dv);
  space.tiled = from + used;
  if (from) return used;
  Workspace<T> work;
  return used + set_up(p, tiled_plan<columns * lanes<T>>(plan), nullptr, work);
}

// The keys and values that a task sees.
template <class T>
struct Few {
  Rows<T> K, V;
  int64_t first, end;  // the key of row 0
};

// The next task of this thread, where a call does not lie in the L2 cache: with tasks that take equally long, the one
// as many further as there are threads.
template <class T>
inline void bring_next(const Problem& p, const Plan& plan, int64_t index, Coming& coming) {
  const int64_t size = size_of(p.type), heads = p.batches * p.Hq;
  if (heads * size * (p.Lq + p.Lk) * (p.D + p.Dv) < near_bytes || index + plan.threads >= plan.tasks) return;
  const Task task = task_at(p, plan, index + plan.threads);
  const Head<T> head = head_at<T>(p, task.b, task.h);
  const int64_t i1 = least(task.q1, head.queries), n = i1 - task.q0;
  const Interval keys = seen(head.sight, task.q0, i1);
  coming.add(head.K, keys.first, keys.end - keys.first, p.D);
  coming.add(head.Q, task.q0, n, p.D);
  coming.add(head.V, keys.first, keys.end - keys.first, p.Dv);
  coming.add(head.out, task.q0, n, p.Dv);
  const int64_t blocks = (n + columns * lanes<T> - 1) / (columns * lanes<T>), height = rows_for(columns);
  coming.spread(blocks * ((keys.end - keys.first) / height + 1) +
                (n / height + 1) * (up(p.Dv, lanes<T>) / lanes<T> + columns - 1) / columns);
}

// What bias, alibi, softcap and masks make of the scores of a block, and its exponentials.
template <class T>
inline void weigh_modified(const Head<T>& head, BriefSpace<T>& space, const Queries<T>& q, const Panels<T>& P,
                           int64_t k0, int64_t k1) {
  const int step = panels_apart ? 1 : q.columns;
  for (int c = 0; c < q.columns; c += step) {
    const int64_t lane = c * lanes<T>, i = q.i0 + lane, n = least(step * lanes<T>, q.n - lane);
    bool masked = head.mask.data != nullptr;
    const Interval keys = seen(head.sight, i, i + n, k0, k1, masked);
    if (keys.first >= keys.end) continue;
    const Piece piece = {int(keys.first - k0), int(keys.end - k0), 0, step};
    const int64_t at = piece.k0 * P.width, count = keys.end - keys.first;
    Tile<T> tile = {
        P(0, c), P.width, {}, T(1), space.p + lane, space.first + lane, space.end + lane, space.slope + lane,
        nullptr, nullptr};
    if (head.modifiers.bias) {
      read_sheet(head.bias, i, n, keys.first, count, space.bias + at, P.width, space.rows, space.row_step);
      tile.bias = space.bias;
    }
    if (masked) {
      read_mask(head, i, n, keys.first, count, space.mask + at, P.width, space.rows, space.row_step);
      tile.mask = space.mask;
    }
    if (head.modifiers.any()) modify(tile, piece, head.modifiers);
    hide(tile, piece, true);
    for (int x = 0; x < step; ++x) {
      Lanes<T> sum = {};
      for (int k = piece.k0; k < piece.k1; ++k) {
        Lanes<T> weight = exp2_of_any(take(P(k, c + x)));
        put(P(k, c + x), weight);
        sum += weight;
      }
      put(space.l + lane + x * lanes<T>, sum);
    }
  }
}

// P and l of a block of queries against all keys that one of them sees, k0 the first.
template <class T>
inline void weigh_block(const Problem& p, const Head<T>& head, BriefSpace<T>& space, Queries<T>& q, const Few<T>& few,
                        const Panels<T>& Q, const Panels<T>& P, int64_t k0, int64_t k1, Coming& coming) {
  for (int64_t c = 0; c < q.columns * lanes<T>; c += lanes<T>) put(space.l + c, Lanes<T>{});
  if (k0 >= k1) return;
  Piece pieces[most_pieces];
  bool edge, gaps;
  const bool listed = shown(head.sight.lists, q.i0, q.i0 + q.n, k0, k1, q.ahead) == Shown::some;
  const int count = visible(head.sight, q, k0, k1, listed, pieces, edge, gaps);
  const bool fused = !head.modifiers.any() && !head.mask.data && !gaps;
  if (edge || !fused)
    for (int64_t c = 0; c < q.columns * lanes<T>; ++c) {  // lanes past n repeat the last row
      const int64_t i = q.i0 + least(c, q.n - 1);
      const Interval of = seen(head.sight, i, k0, k1, gaps);
      space.p[c] = T(i + head.sight.q_start - k0);
      space.first[c] = T(of.first - k0);
      space.end[c] = T(of.end - k0);
      space.slope[c] = head.modifiers.slope;
    }
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    const int64_t lane = at.c0 * lanes<T>, i = q.i0 + lane, last = q.i0 + least(at.c1 * lanes<T>, q.n) - 1;
    const bool cut = listed || seen(head.sight, last).first > k0 + at.k0 || seen(head.sight, i).end < k0 + at.k1;
    const Bounds<T> bounds = {cut && fused ? space.first + lane : nullptr, space.end + lane};
    weights(few.K.at + (k0 - few.first + at.k0) * few.K.step, few.K.step, at.k1 - at.k0,
            {Q(0, at.c0), Q.width, Q.apart}, at.c1 - at.c0, p.D, {P(at.k0, at.c0), P.width, P.apart},
            fused ? space.l + lane : nullptr, bounds, at.k0, [&] { coming.step(); });
  }
  if (!fused) {
    weigh_modified(head, space, q, P, k0, k1);
  } else if (edge && !panels_apart) {  // a tile of output rows reaches over two columns, which see different keys
    for (int c = 0; c < q.columns; ++c) {
      const int64_t i = q.i0 + c * lanes<T>;
      const Interval of = seen(head.sight, i, least(i + lanes<T>, q.i0 + q.n), k0, k1, gaps);
      for (int64_t k = k0; k < of.first; ++k) put(P(k - k0, c), Lanes<T>{});
      for (int64_t k = of.end; k < k1; ++k) put(P(k - k0, c), Lanes<T>{});
    }
  }
}

template <class T>
inline bool sees(const Head<T>& head, int64_t i, int64_t j) {
  return (!head.mask.data || *head.mask.at(i, j)) && listed(head.sight.lists, i, j);
}

template <class T>
inline bool sees_any(const Head<T>& head, int64_t i) {
  const Interval keys = seen(head.sight, i);
  for (int64_t j = keys.first; j < keys.end; ++j)
    if (sees(head, i, j)) return true;
  return false;
}

// Factors 1 / l, and lse. Marks the rows in `again` whose l may not stay.
template <class T>
inline bool divide(const Head<T>& head, BriefSpace<T>& space, const Queries<T>& q, bool* again) {
  bool some = false;
  for (int64_t c = 0; c < q.n; c += lanes<T>) {
    Lanes<T> l = take(space.l + c);
    put(space.factor + c, l == Lanes<T>{} ? Lanes<T>{} : T(1) / l);
    const auto fine = (l >= least_sum<T>)&(l <= most_sum<T>);
    if (!any(~fine)) continue;
    for (int64_t r = c; r < least(c + lanes<T>, q.n); ++r)
      if (!(space.l[r] >= least_sum<T> && space.l[r] <= most_sum<T>))
        some |= again[r] = space.l[r] != 0 || sees_any(head, q.i0 + r);
  }
  if (head.has_sink || head.lse.data)
    for (int64_t r = 0; r < q.n; ++r) {
      double l = space.l[r], m = l == 0 ? -infinity : 0, a = 1;
      if (head.has_sink) {
        a = add_sink(m, l, head.sink);
        space.factor[r] = l == 0 ? T(0) : T(a / l);
      }
      write_lse(head.lse, q.i0 + r, log_sum(m, l));
    }
  return some;
}

// One output row by the same sums in the same order, without ever multiplying a value that it may not see: 0 times NaN
// is NaN. False: it has overflowed, where every value is finite.
template <class T>
inline bool select_row(const Problem& p, const Head<T>& head, BriefSpace<T>& space, const Queries<T>& q,
                       const Few<T>& few, const Panels<T>& P, int64_t k0, int64_t k1, int64_t r) {
  bool gaps = false, fine = true;
  const Interval keys = seen(head.sight, q.i0 + r, k0, k1, gaps);
  for (int64_t d = 0; d < p.Dv; d += lanes<T>) {
    Lanes<T> sum = {}, zero = {};
    for (int64_t k = keys.first; k < keys.end; ++k) {
      if (!sees(head, q.i0 + r, k)) continue;
      Lanes<T> v = take(few.V.at + (k - few.first) * few.V.step + d);
      sum += fill(P(k - k0, r / lanes<T>)[r % lanes<T>]) * v;
      zero += v * T(0);
    }
    put(space.rows + d, sum * space.factor[r]);
    sum *= T(0);
    fine &= !any((sum != sum) & (zero == zero));
  }
  return fine;
}

// A block of queries.
template <class T>
inline void attend_block(const Problem& p, const Plan& plan, const Task& task, const Head<T>& head,
                         BriefSpace<T>& space, Queries<T>& q, const Few<T>& few, Coming& coming) {
  bool gaps = false;
  const Interval keys = seen(head.sight, q.i0, q.i0 + q.n, few.first, few.end, gaps);
  const Panels<T> Q = panels(space.Q, p.D, q.columns), P = panels(space.P, keys.end - keys.first, q.columns);
  for (int c = 0; c < q.columns; ++c) {
    int64_t i = q.i0 + c * lanes<T>, n = least(lanes<T>, q.i0 + q.n - i);
    Rows<T> rows = near(head.Q, i, i + n, p.D, space.row_step, head.cosine, space.rows);
    read_transposed(rows, n, p.D, fill(T(head.scale)), Q(0, c), Q.width);
  }
  weigh_block(p, head, space, q, few, Q, P, keys.first, keys.end, coming);
  bool again[columns * lanes<T>] = {};
  bool some = divide(head, space, q, again);

  const bool in_place = p.Dv % lanes<T> == 0 && plain<T>(head.out, type_of<T>);
  T* O = in_place ? (T*)head.out.at(q.i0, 0) : space.O;
  const int64_t O_step = in_place ? head.out.row / int64_t(sizeof(T)) : up(p.Dv, lanes<T>);
  bool odd[columns * lanes<T>] = {}, some_odd = false;
  in_slices<T>(q.n, up(p.Dv, lanes<T>) / lanes<T>, P.width,
               [&](int64_t r, auto R, int64_t d, auto C) __attribute__((always_inline)) {
                 coming.step();
                 const Interval of = seen(head.sight, q.i0 + r, q.i0 + r + R.value, keys.first, keys.end, gaps);
                 const bool fine = output_tile<T, R.value, C.value>(
                     P(of.first - keys.first, 0) + r / P.width * P.apart + r % P.width, P.width,
                     few.V.at + (of.first - few.first) * few.V.step + d, few.V.step, of.end - of.first,
                     space.factor + r, O + r * O_step + d, O_step);
                 if (fine) return;
                 some_odd = true;
                 for (int i = 0; i < R.value; ++i) odd[r + i] = true;
               });
  if (!in_place)
    for (int64_t r = 0; r < q.n; ++r) write_row(head.out, q.i0 + r, 0, p.Dv, O + r * O_step);

  if (some_odd)
    for (int64_t r = 0; r < q.n; ++r) {
      if (!odd[r] || again[r]) continue;
      if (select_row(p, head, space, q, few, P, keys.first, keys.end, r)) {
        write_row(head.out, q.i0 + r, 0, p.Dv, space.rows);
      } else {
        some = again[r] = true;
      }
    }
  if (!some) return;
  Task part = task;
  part.q0 = q.i0;
  part.q1 = q.i0 + q.n;
  attend_rows(p, tiled_plan<columns * lanes<T>>(plan), part, head, 0, space.tiled, again);
}

// Are the rows from i on whole registers? Those that begin 16 bytes into a cache line, as NumPy's large arrays do, cost
// 3 to 9 % of a call where many queries read them: a copy gives 2 % at 64 channels and 9 at 128, but takes 6 at 32.
template <class T>
inline bool in_registers(const Matrix& V, int64_t i, int64_t Dv, int64_t queries) {
  const bool aligned = ((int64_t)V.at(i, 0) | V.row) % vector_bytes == 0;
  return Dv % lanes<T> == 0 && (aligned || queries < 32 || Dv < columns * lanes<T>);
}

template <class T>
inline void attend_brief(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  Task task = task_at(p, plan, index);
  Head<T> head = head_at<T>(p, task.b, task.h);
  BriefSpace<T> space;
  set_up(p, plan, scratch, space);
  const int64_t i1 = most(task.q0, least(task.q1, head.queries)), Dv = up(p.Dv, lanes<T>);
  bool gaps = false;
  const Interval keys = seen(head.sight, task.q0, i1, 0, p.Lk, gaps);
  Few<T> few = {{}, {}, keys.first, keys.end};
  few.K = near(head.K, keys.first, keys.end, p.D, p.D, head.cosine, space.K);
  few.V = head.V.even(keys.first, keys.end) && in_registers<T>(head.V.page(keys.first), keys.first, p.Dv, i1 - task.q0)
              ? near(head.V, keys.first, keys.end, Dv, Dv, false, space.V)
              : compact(head.V, keys.first, keys.end - keys.first, p.Dv, Dv, false, space.V);
  Coming coming;
  bring_next<T>(p, plan, index, coming);
  // Blocks of nearly one width: 5 registers of queries are 3 + 2.
  int64_t left = (i1 - task.q0 + lanes<T> - 1) / lanes<T>, blocks = (left + columns - 1) / columns;
  for (int64_t i = task.q0; i < i1; --blocks) {
    if (i > task.q0 && interrupted()) return;
    Queries<T> q = {};
    q.i0 = i;
    q.columns = int((left + blocks - 1) / blocks);
    q.n = int(least(q.columns * lanes<T>, i1 - i));
    attend_block(p, plan, task, head, space, q, few, coming);
    left -= q.columns;
    i += q.n;
  }
  if (i1 < task.q1) blank_rows(p, head, i1, task.q1, space.rows);
}

}  // namespace
}  // namespace harken
