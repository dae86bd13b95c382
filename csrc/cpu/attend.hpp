// attend.hpp - softmax(Q K^T) V in one pass over the keys: the page.
//
//     S = score(Q K^T)                      for each block of keys that some query of the tile sees
//     M = max(m, max S),  a = 2^(m - M)
//     P = 2^(S - M)
//     m, l, O = M,  a l + sum P,  a O + P V
//
// At the end O / l, and lse = (m + log2 l) ln 2. Queries lie along the lanes, so S is held as S^T and nothing in the
// loop is horizontal. A task is up to 256 queries; each block of keys is brought near once and serves all of them, one
// register tile of queries after the other (64 queries a pass instead of 256 cost 3 to 5 %, 10 where rows are 4 KiB
// apart).
#pragma once

#include "block.hpp"
#include "finish.hpp"

namespace harken {
bool interrupted();
namespace {

// m, l, O for the new top; what the exponentials still have to subtract goes to work.subtract. False: nothing to
// subtract.
template <class T>
inline bool move_state(const Problem& p, Workspace<T>& work, Queries<T>& q, bool seeded) {
  bool moved = !seeded;
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    Move<Lanes<T>> by = move(take(q.m + c), take(q.limit + c), take(work.top + c), -take(work.seed + c));
    put(work.subtract + c, by.subtract);
    if (!by.any) continue;
    moved = true;
    put(q.m + c, by.m);
    put(q.limit + c, by.limit);
    put(q.l + c, take(q.l + c) * by.factor);
    T* O = q.O + c;
    for (int64_t d = 0, end = p.Dv * q.width; d < end; d += q.width) put(O + d, take(O + d) * by.factor);
  }
  return moved;
}

template <class T>
inline Rows<T> near_keys(const Problem& p, const Head<T>& head, Workspace<T>& work, int64_t k0, int64_t k1) {
  Rows<T> K = near(head.K, k0, k1, p.D, p.D, head.cosine, work.K);
  if (head.additive) bring(K, k1 - k0, p.D, work.additive);
  return K;
}

// One block of keys joins the state of one tile of queries.
template <class T>
inline void absorb(const Problem& p, const Head<T>& head, Workspace<T>& work, Queries<T>& q, const Rows<T>& K,
                   const Rows<T>& V, int64_t k0, int64_t k1, bool careful, bool& hidden) {
  Piece pieces[most_pieces];
  const bool seeded = !head.modifiers.any();
  seed_scores(work, q, seeded);
  int count = score_block(p, head, work, q, K, k0, k1, pieces, hidden);
  if (count == 0) return;
  if (seeded && reseed(work, q)) score_block(p, head, work, q, K, k0, k1, pieces, hidden);
  const T* subtract = move_state(p, work, q, seeded) ? work.subtract : nullptr;
  if (careful) see(head, work, q, k0, k1);
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    int64_t c = at.c0 * lanes<T>, keys = at.k1 - at.k0;
    T* P = work.S + at.k0 * q.width + c;
    const T* v = V.at + at.k0 * V.step;
    with_columns(at.c1 - at.c0, [&](auto C) {
      exponentials<T, C.value>(P, q.width, keys, subtract ? subtract + c : nullptr, q.l + c);
    });
    if (careful) {
      values_selected(v, V.step, keys, P, work.seen + at.k0 * q.width + c, q.width, at.c1 - at.c0, p.Dv, q.O + c);
    } else {
      values(v, V.step, keys, P, q.width, at.c1 - at.c0, p.Dv, q.O + c);
    }
  }
}

template <class T>
inline bool finite(const T* O, int64_t n) {
  Lanes<T> sum = {};
  for (int64_t at = 0; at < n; at += lanes<T>) sum += take(O + at) * T(0);  // NaN if anything is not finite
  return !any(sum != sum);
}

// The blocks of keys that the queries i0 .. i1 - 1 see, in their order.
template <class T, class Body>
inline bool for_blocks(const Plan& plan, const Head<T>& head, const Task& task, int64_t i1, Body body) {
  Interval keys = seen(head.sight, task.q0, i1);
  int64_t k = most(keys.first, task.k0) / plan.key_block * plan.key_block, end = least(keys.end, task.k1);
  Outlook ahead = {};
  for (; k < end; k += plan.key_block) {
    if (interrupted()) return false;
    const int64_t k1 = least(k + plan.key_block, least(task.k1, head.sight.keys));
    if (shown(head.sight.lists, task.q0, i1, k, k1, ahead) == Shown::none) {
      if (ahead.until >= end) break;
      k = (ahead.until / plan.key_block - 1) * plan.key_block;
      continue;
    }
    body(k, k1);
  }
  return true;
}

// only: which rows to write; null: all.
template <class T>
inline void finish_tile(const Problem& p, const Head<T>& head, Workspace<T>& work, const Queries<T>& q,
                        const bool* only) {
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    int64_t i = q.i0 + c, n = least(lanes<T>, q.i0 + q.n - i);
    Lanes<T> l = take(q.l + c), factor = l == Lanes<T>{} ? Lanes<T>{} : T(1) / l;
    if (head.has_sink || head.lse.data)
      for (int64_t r = 0; r < n; ++r) {
        if (only && !only[c + r]) continue;
        double m = q.m[c + r], sum = q.l[c + r], a = 1;
        if (head.has_sink) {
          a = add_sink(m, sum, head.sink);
          factor[r] = sum == 0 ? T(0) : T(a / sum);
        }
        write_lse(head.lse, i + r, log_sum(m, sum));
      }
    put(work.subtract + c, factor);  // weigh() takes it from here
    if (!only && plain<T>(head.out, type_of<T>)) {
      write_transposed(q.O + c, q.width, p.Dv, factor, n, (T*)head.out.at(i, 0), head.out.row / int64_t(sizeof(T)));
    } else {
      write_transposed(q.O + c, q.width, p.Dv, factor, n, work.rows, work.row_step);
      for (int64_t r = 0; r < n; ++r)
        if (!only || only[c + r]) write_row(head.out, i + r, 0, p.Dv, work.rows + r * work.row_step);
    }
  }
}

// only: as in finish_tile.
template <class T>
inline void leave_partial(const Problem& p, const Partial<T>& to, const Queries<T>& q, int64_t row, const bool* only) {
  for (int64_t r = 0; r < q.n; ++r) {
    if (only && !only[r]) continue;
    to.m[row + r] = q.m[r];
    to.l[row + r] = to.whole[row + r] = q.l[r];
    if (only)
      for (int64_t d = 0; d < p.Dv; ++d) to.O[(row + r) * p.Dv + d] = q.O[d * q.width + r];
  }
  for (int64_t c = 0; c < q.width && !only; c += lanes<T>)
    write_transposed(q.O + c, q.width, p.Dv, fill(T(1)), least(lanes<T>, q.n - c), to.O + (row + c) * p.Dv, p.Dv);
}

// The weights of one block: the scores again, now that m and l are known. work.subtract holds the factors of
// finish_tile.
template <class T>
inline void weigh(const Problem& p, const Head<T>& head, Workspace<T>& work, Queries<T>& q, const Rows<T>& K,
                  int64_t k0, int64_t k1) {
  Piece pieces[most_pieces];
  bool hidden = false;
  seed_scores(work, q, false);
  int count = score_block(p, head, work, q, K, k0, k1, pieces, hidden);
  if (count == 0) return;
  hidden &= !finite(work.subtract, q.width);  // a hidden weight is 0 in a row that is NaN, too
  if (hidden) see(head, work, q, k0, k1);
  Tile<T> tile = {work.S, q.width, {}, T(1), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (int n = 0; n < count; ++n)
    each(tile, pieces[n], [&](Lanes<T> s, int64_t at, int64_t lane, Lanes<T>) {
      Lanes<T> weight = exp2(s - reference(take(q.m + lane))) * take(work.subtract + lane);
      return hidden ? (take(work.seen + at) == Lanes<T>{} ? weight : Lanes<T>{}) : weight;
    });
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    for (int c = at.c0; c < at.c1; ++c) {
      int64_t rows = least(lanes<T>, q.n - c * lanes<T>);
      write_transposed(work.S + at.k0 * q.width + c * lanes<T>, q.width, at.k1 - at.k0, fill(T(1)), rows, work.rows,
                       work.row_step);
      for (int64_t r = 0; r < rows; ++r)
        write_row(head.weights, q.i0 + c * lanes<T> + r, k0 + at.k0, at.k1 - at.k0, work.rows + r * work.row_step);
    }
  }
}

// The plan by which another form has some rows done again.
template <int rows>
inline Plan tiled_plan(const Plan& plan) {
  Plan tiled = plan;
  tiled.form = Form::tiled;
  tiled.tile_rows = rows;
  tiled.key_block = least(128, most(plan.key_block, 1));
  return tiled;
}

// --- the page ---

// The queries task.q0 .. task.q1 - 1 of one head; if keys are split they go to the partial, from its row `row` on.
// only: which rows of the first tile are asked for; null: all of every tile.
template <class T>
inline void attend_rows(const Problem& p, const Plan& plan, const Task& task, const Head<T>& head, int64_t row,
                        char* scratch, const bool* only) {
  Workspace<T> work;
  set_up(p, plan, scratch, work);
  int64_t i1 = most(task.q0, least(task.q1, head.queries));
  bool split = plan.ranges > 1, careful = false, hidden = false;

  int tiles = 0;
  for (int64_t i = task.q0; i < i1; i += columns * lanes<T>, ++tiles) {
    Queries<T>& q = work.queries[tiles];
    q.i0 = i;
    q.n = int(least(columns * lanes<T>, i1 - i));
    q.columns = (q.n + lanes<T> - 1) / lanes<T>;
    q.width = q.columns * lanes<T>;
    q.ahead = {};
  }

  if (head.additive) read_weights(head, p.D, padded<T>(p.D), work.w);
  for (bool again = tiles > 0; again;) {
    for (int t = 0; t < tiles; ++t) start(p, head, work, work.queries[t]);
    bool whole = for_blocks(plan, head, task, i1, [&](int64_t k0, int64_t k1) {
      Rows<T> K = near_keys(p, head, work, k0, k1), V = near(head.V, k0, k1, p.Dv, p.Dv, false, work.V);
      for (int t = 0; t < tiles; ++t) absorb(p, head, work, work.queries[t], K, V, k0, k1, careful, hidden);
    });
    if (!whole) return;
    // A hidden key has weight 0, but 0 times NaN is NaN: where that may have happened, once more by selection.
    again = false;
    if (hidden && !careful)
      for (int t = 0; t < tiles; ++t) again |= !finite(work.queries[t].O, p.Dv * work.queries[t].width);
    careful = again;
  }

  for (int t = 0; t < tiles; ++t) {
    Queries<T>& q = work.queries[t];
    if (split) {
      leave_partial(p, partial_at<T>(p, plan, task.index), q, row + q.i0 - task.q0, only);
      continue;
    }
    finish_tile(p, head, work, q, only);
    if (!head.weights.data) continue;
    for_blocks(plan, head, task, i1,
               [&](int64_t k0, int64_t k1) { weigh(p, head, work, q, near_keys(p, head, work, k0, k1), k0, k1); });
  }
  if (!split) blank_rows(p, head, i1, task.q1, work.rows);
}

template <class T>
inline void attend_tiled(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  Task task = task_at(p, plan, index);
  attend_rows(p, plan, task, head_at<T>(p, task.b, task.h), 0, scratch, nullptr);
}

}  // namespace
}  // namespace harken
