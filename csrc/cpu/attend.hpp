// attend.hpp - softmax(Q K^T) V in one pass over the keys: the page.
//
//     S = score(Q K^T)                      for each block of keys that some query of the tile sees
//     M = max(m, max S),  a = 2^(m - M)
//     P = 2^(S - M)
//     m, l, O = M,  a l + sum P,  a O + P V
//
// At the end O / l, and lse = (m + log2 l) ln 2. Queries lie along the lanes, so S is held as S^T and nothing in the loop is
// horizontal. A task is up to 256 queries; each block of keys is brought near once and serves all of them, one register
// tile of queries after the other (64 queries a pass instead of 256 cost 3 to 5 %, 10 where rows are 4 KiB apart).
#pragma once

#include "finish.hpp"
#include "product.hpp"
#include "tile.hpp"

namespace harken {
bool interrupted();
namespace {

// The queries of a register tile: packed Q, and the state of their softmax. Arrays end in [width], queries in lanes.
template <class T>
struct Queries {
  int64_t i0;                  // the first
  int n, columns;
  int64_t width;               // columns x lanes, n rounded up
  T *Q, *O;                    // [D][width], [Dv][width]
  T *m, *l, *limit;
};

// What a thread works in, for one task.
template <class T>
struct Bench {
  T *K, *V;                    // [block][D], [block][Dv]: a compact copy, where one is needed
  T *S, *bias, *mask, *seen;   // [block][width]
  T *rows;                     // [lanes][row_step]
  T *top, *seed, *subtract, *p, *first, *end, *slope;   // [width]
  int64_t row_step;
  int tiles;
  Queries<T>* queries;
};

constexpr int most_tiles(int64_t width) { return int((256 + width - 1) / width); }

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Takes what a Bench needs from `from`, or with from == nullptr only counts the bytes.
template <class T>
inline int64_t set_up(const Problem& p, const Plan& plan, char* from, Bench<T>& bench) {
  constexpr int64_t width = columns * lanes<T>;
  int64_t used = 0;
  auto array = [&](int64_t count) {
    T* at = (T*)(from + used);
    used += up(count * sizeof(T), 64);
    return at;
  };
  int64_t block = plan.key_block;
  bench.row_step = up(most(most(p.D, p.Dv), block), lanes<T>);
  bench.K = array(block * p.D);
  bench.V = array(block * p.Dv);
  bench.S = array(block * width);
  bench.bias = array(block * width);
  bench.mask = array(block * width);
  bench.seen = array(block * width);
  bench.rows = array(lanes<T> * bench.row_step);
  T** of_a_row[] = {&bench.top, &bench.seed, &bench.subtract, &bench.p, &bench.first, &bench.end, &bench.slope};
  for (T** a : of_a_row) *a = array(width);
  bench.tiles = int((plan.tile_rows + width - 1) / width);
  bench.queries = (Queries<T>*)(from + used);
  used += up(bench.tiles * sizeof(Queries<T>), 64);
  for (int t = 0; t < bench.tiles; ++t) {
    Queries<T> q;
    q.Q = array(p.D * width);
    q.O = array(p.Dv * width);
    q.m = array(width);
    q.l = array(width);
    q.limit = array(width);
    if (from) bench.queries[t] = q;
  }
  return used;
}

// --- the steps of the page ---

template <class T>
inline void start(const Problem& p, const Head<T>& head, Bench<T>& bench, Queries<T>& q) {
  for (int c = 0; c < q.columns; ++c) {
    int64_t i = q.i0 + c * lanes<T>, n = least(lanes<T>, q.i0 + q.n - i);
    Rows<T> rows = near(head.Q, i, i + n, p.D, bench.row_step, head.cosine, bench.rows);
    read_transposed(rows, n, p.D, fill(T(head.scale)), q.Q + c * lanes<T>, q.width);
  }
  for (int64_t d = 0; d < p.Dv * q.width; d += lanes<T>) put(q.O + d, Lanes<T>{});
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    put(q.m + c, fill(T(-infinity)));
    put(q.l + c, Lanes<T>{});
    put(q.limit + c, fill(T(-infinity)));
  }
}

// The rectangles of a block that hold every score some query sees: between two cuts the same columns see all the keys.
// On a diagonal these are staircases one register wide. Sets `edge` if an interval ends inside of the block.
template <class T>
inline int visible(const Sight& sight, const Queries<T>& q, int64_t k0, int64_t k1, Piece* pieces, bool& edge) {
  constexpr int N = lanes<T>;
  int64_t from[columns], to[columns], cuts[2 * columns + 2];
  int count = 0;
  edge = false;
  cuts[count++] = k0;
  cuts[count++] = k1;
  for (int c = 0; c < q.columns; ++c) {
    int64_t i = q.i0 + c * N, end = least(i + N, q.i0 + q.n);
    Interval any = seen(sight, i, end);
    from[c] = any.first;
    to[c] = any.end;
    edge |= seen(sight, end - 1).first > k0 || seen(sight, i).end < k1;
    const int64_t ends[] = {any.first, any.end};
    for (int64_t cut : ends)
      if (cut > k0 && cut < k1) {
        int at = count++;
        for (; cuts[at - 1] > cut; --at) cuts[at] = cuts[at - 1];
        cuts[at] = cut;
      }
  }
  int found = 0;
  for (int s = 0; s + 1 < count; ++s) {
    int64_t a = cuts[s], b = cuts[s + 1];
    if (a == b) continue;
    int c0 = 0, c1 = q.columns;
    while (c0 < c1 && !(from[c0] <= a && to[c0] >= b)) ++c0;
    while (c1 > c0 && !(from[c1 - 1] <= a && to[c1 - 1] >= b)) --c1;
    if (c0 < c1) pieces[found++] = {int(a - k0), int(b - k0), c0, c1};
  }
  return found;
}

constexpr int most_pieces = 2 * columns + 1;

// A score that nothing modifies starts its sum at -m: the subtraction costs nothing.
template <class T>
inline void seed_scores(Bench<T>& bench, const Queries<T>& q, bool seeded) {
  for (int64_t c = 0; c < q.width; c += lanes<T>) put(bench.seed + c, seeded ? -reference(take(q.m + c)) : Lanes<T>{});
}

// Where m was far below what now comes, -m was larger than the sum that it was put into, and took its last digits. Those
// rows start at 0 again. True: there are some.
template <class T>
inline bool reseed(Bench<T>& bench, const Queries<T>& q) {
  bool some = false;
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    Lanes<T> seed = take(bench.seed + c), s = take(bench.top + c) - seed;
    auto stale = (s > take(q.limit + c)) & (absolute(seed) > absolute(s));
    if (!any(stale)) continue;
    put(bench.seed + c, stale ? Lanes<T>{} : seed);
    some = true;
  }
  return some;
}

// S = seed + score(K Q) of a block, hidden scores -inf. Returns the number of pieces; 0: nobody sees anything.
template <class T>
inline int score_block(const Problem& p, const Head<T>& head, Bench<T>& bench, const Queries<T>& q, const Rows<T>& K, int64_t k0,
                       int64_t k1, Piece* pieces, bool& hidden) {
  bool edge;
  int count = visible(head.sight, q, k0, k1, pieces, edge);
  if (count == 0) return 0;
  Shown some = head.mask.data ? shown(head.mask, q.i0, q.n, k0, k1 - k0) : Shown::all;
  if (some == Shown::none) return 0;
  hidden |= edge || some == Shown::some;

  for (int64_t c = 0; c < q.width; c += lanes<T>) put(bench.top + c, fill(T(-infinity)));
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    int64_t c = at.c0 * lanes<T>;
    scores(K.at + at.k0 * K.step, K.step, at.k1 - at.k0, q.Q + c, q.width, at.c1 - at.c0, p.D, bench.S + at.k0 * q.width + c,
           bench.seed + c, bench.top + c);
  }
  if (!head.modifiers.any() && !edge && some == Shown::all) return count;

  Tile<T> tile = {bench.S, q.width, {}, T(1), bench.p, bench.first, bench.end, nullptr, nullptr, nullptr};
  if (head.modifiers.alibi) tile.slope = bench.slope;
  if (head.modifiers.bias) {
    read_sheet(head.bias, q.i0, q.n, k0, k1 - k0, bench.bias, q.width, bench.rows, bench.row_step);
    tile.bias = bench.bias;
  }
  if (some == Shown::some) {
    read_sheet(head.mask, q.i0, q.n, k0, k1 - k0, bench.mask, q.width, bench.rows, bench.row_step);
    tile.mask = bench.mask;
  }
  for (int64_t c = 0; c < q.width; ++c) {
    int64_t i = q.i0 + c;
    Interval of = seen(head.sight, i);
    bench.p[c] = T(i + head.sight.q_start - k0);
    bench.first[c] = T(most(0, least(k1, of.first) - k0));
    bench.end[c] = T(most(0, least(k1, of.end) - k0));
    bench.slope[c] = head.modifiers.slope;
    bench.top[c] = -infinity;
  }
  for (int n = 0; n < count; ++n) {
    modify(tile, pieces[n], head.modifiers);
    hide(tile, pieces[n], edge);
    tops(tile, pieces[n], bench.top);
  }
  return count;
}

// m, l, O for the new top; what the exponentials still have to subtract goes to bench.subtract. False: nothing to subtract.
template <class T>
inline bool move_state(const Problem& p, Bench<T>& bench, Queries<T>& q, bool seeded) {
  bool moved = !seeded;
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    Move<Lanes<T>> by = move(take(q.m + c), take(q.limit + c), take(bench.top + c), -take(bench.seed + c));
    put(bench.subtract + c, by.subtract);
    if (!by.any) continue;
    moved = true;
    put(q.m + c, by.m);
    put(q.limit + c, by.limit);
    put(q.l + c, take(q.l + c) * by.factor);
    for (int64_t d = 0; d < p.Dv; ++d) put(q.O + d * q.width + c, take(q.O + d * q.width + c) * by.factor);
  }
  return moved;
}

// 0 where a query sees a key, -inf where it does not: what hide() makes of a tile of zeros.
template <class T>
inline void see(const Head<T>& head, Bench<T>& bench, const Queries<T>& q, int64_t k0, int64_t k1) {
  bool masked = head.mask.data != nullptr;
  if (masked) read_sheet(head.mask, q.i0, q.n, k0, k1 - k0, bench.mask, q.width, bench.rows, bench.row_step);
  for (int64_t c = 0; c < q.width; ++c) {
    Interval of = seen(head.sight, q.i0 + c);
    bench.first[c] = T(most(0, least(k1, of.first) - k0));
    bench.end[c] = T(most(0, least(k1, of.end) - k0));
  }
  for (int64_t at = 0; at < (k1 - k0) * q.width; ++at) bench.seen[at] = 0;
  Tile<T> tile = {bench.seen, q.width, {}, T(1), nullptr, bench.first, bench.end, nullptr, nullptr, masked ? bench.mask : nullptr};
  hide(tile, {0, int(k1 - k0), 0, q.columns}, true);
}

// One block of keys joins the state of one tile of queries.
template <class T>
inline void absorb(const Problem& p, const Head<T>& head, Bench<T>& bench, Queries<T>& q, const Rows<T>& K, const Rows<T>& V,
                   int64_t k0, int64_t k1, bool careful, bool& hidden) {
  Piece pieces[most_pieces];
  const bool seeded = !head.modifiers.any();
  seed_scores(bench, q, seeded);
  int count = score_block(p, head, bench, q, K, k0, k1, pieces, hidden);
  if (count == 0) return;
  if (seeded && reseed(bench, q)) score_block(p, head, bench, q, K, k0, k1, pieces, hidden);
  const T* subtract = move_state(p, bench, q, seeded) ? bench.subtract : nullptr;
  if (careful) see(head, bench, q, k0, k1);
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    int64_t c = at.c0 * lanes<T>, keys = at.k1 - at.k0;
    T* P = bench.S + at.k0 * q.width + c;
    const T* v = V.at + at.k0 * V.step;
    with_columns(at.c1 - at.c0, [&](auto C) {
      exponentials<T, C.value>(P, q.width, keys, subtract ? subtract + c : nullptr, q.l + c);
    });
    if (careful) {
      values_selected(v, V.step, keys, P, bench.seen + at.k0 * q.width + c, q.width, at.c1 - at.c0, p.Dv, q.O + c);
    } else {
      values(v, V.step, keys, P, q.width, at.c1 - at.c0, p.Dv, q.O + c);
    }
  }
}

template <class T>
inline bool finite(const T* O, int64_t n) {
  Lanes<T> sum = {};
  for (int64_t at = 0; at < n; at += lanes<T>) sum += take(O + at) * T(0);   // NaN if anything is not finite
  return !any(sum != sum);
}

// The blocks of keys that the queries i0 .. i1 - 1 see, in their order.
template <class T, class Body>
inline bool for_blocks(const Plan& plan, const Head<T>& head, const Task& task, int64_t i1, Body body) {
  Interval keys = seen(head.sight, task.q0, i1);
  int64_t k = most(keys.first, task.k0) / plan.key_block * plan.key_block, end = least(keys.end, task.k1);
  for (; k < end; k += plan.key_block) {
    if (interrupted()) return false;
    body(k, least(k + plan.key_block, least(task.k1, head.sight.keys)));
  }
  return true;
}

template <class T>
inline void finish_tile(const Problem& p, const Head<T>& head, Bench<T>& bench, const Queries<T>& q) {
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    int64_t i = q.i0 + c, n = least(lanes<T>, q.i0 + q.n - i);
    Lanes<T> l = take(q.l + c), factor = l == Lanes<T>{} ? Lanes<T>{} : T(1) / l;
    if (head.has_sink || head.lse.data)
      for (int64_t r = 0; r < n; ++r) {
        double m = q.m[c + r], sum = q.l[c + r], a = 1;
        if (head.has_sink) {
          a = add_sink(m, sum, head.sink);
          factor[r] = sum == 0 ? T(0) : T(a / sum);
        }
        write_lse(head.lse, i + r, log_sum(m, sum));
      }
    put(bench.subtract + c, factor);   // weigh() takes it from here
    if (plain<T>(head.out, type_of<T>)) {
      write_transposed(q.O + c, q.width, p.Dv, factor, n, (T*)head.out.at(i, 0), head.out.row / int64_t(sizeof(T)));
    } else {
      write_transposed(q.O + c, q.width, p.Dv, factor, n, bench.rows, bench.row_step);
      for (int64_t r = 0; r < n; ++r) write_row(head.out, i + r, 0, p.Dv, bench.rows + r * bench.row_step);
    }
  }
}

template <class T>
inline void leave_partial(const Problem& p, const Partial<T>& to, const Queries<T>& q, int64_t row) {
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    int64_t r = row + c, n = least(lanes<T>, q.n - c);
    write_transposed(q.O + c, q.width, p.Dv, fill(T(1)), n, to.O + r * p.Dv, p.Dv);
  }
  for (int64_t i = 0; i < q.n; ++i) {
    to.m[row + i] = q.m[i];
    to.l[row + i] = q.l[i];
  }
}

// The weights of one block: the scores again, now that m and l are known. bench.subtract holds the factors of finish_tile.
template <class T>
inline void weigh(const Problem& p, const Head<T>& head, Bench<T>& bench, const Queries<T>& q, const Rows<T>& K, int64_t k0,
                  int64_t k1) {
  Piece pieces[most_pieces];
  bool hidden = false;
  seed_scores(bench, q, false);
  int count = score_block(p, head, bench, q, K, k0, k1, pieces, hidden);
  if (count == 0) return;
  hidden &= !finite(bench.subtract, q.width);   // a hidden weight is 0 in a row that is NaN, too
  if (hidden) see(head, bench, q, k0, k1);
  Tile<T> tile = {bench.S, q.width, {}, T(1), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (int n = 0; n < count; ++n)
    each(tile, pieces[n], [&](Lanes<T> s, int64_t at, int64_t lane, Lanes<T>) {
      Lanes<T> weight = exp2(s - reference(take(q.m + lane))) * take(bench.subtract + lane);
      return hidden ? (take(bench.seen + at) == Lanes<T>{} ? weight : Lanes<T>{}) : weight;
    });
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    for (int c = at.c0; c < at.c1; ++c) {
      int64_t rows = least(lanes<T>, q.n - c * lanes<T>);
      write_transposed(bench.S + at.k0 * q.width + c * lanes<T>, q.width, at.k1 - at.k0, fill(T(1)), rows, bench.rows,
                       bench.row_step);
      for (int64_t r = 0; r < rows; ++r)
        write_row(head.weights, q.i0 + c * lanes<T> + r, k0 + at.k0, at.k1 - at.k0, bench.rows + r * bench.row_step);
    }
  }
}

// --- the page ---

template <class T>
inline void attend_tiled(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  Task task = task_at(p, plan, index);
  Head<T> head = head_at<T>(p, task.b, task.h);
  Bench<T> bench;
  set_up(p, plan, scratch, bench);
  int64_t i1 = most(task.q0, least(task.q1, head.queries));
  bool split = plan.ranges > 1, careful = false, hidden = false;

  int tiles = 0;
  for (int64_t i = task.q0; i < i1; i += columns * lanes<T>, ++tiles) {
    Queries<T>& q = bench.queries[tiles];
    q.i0 = i;
    q.n = int(least(columns * lanes<T>, i1 - i));
    q.columns = (q.n + lanes<T> - 1) / lanes<T>;
    q.width = q.columns * lanes<T>;
  }

  for (bool again = tiles > 0; again;) {
    for (int t = 0; t < tiles; ++t) start(p, head, bench, bench.queries[t]);
    bool whole = for_blocks(plan, head, task, i1, [&](int64_t k0, int64_t k1) {
      Rows<T> K = near(head.K, k0, k1, p.D, p.D, head.cosine, bench.K), V = near(head.V, k0, k1, p.Dv, p.Dv, false, bench.V);
      for (int t = 0; t < tiles; ++t) absorb(p, head, bench, bench.queries[t], K, V, k0, k1, careful, hidden);
    });
    if (!whole) return;
    // A hidden key has weight 0, but 0 times NaN is NaN: where that may have happened, once more by selection.
    again = false;
    if (hidden && !careful)
      for (int t = 0; t < tiles; ++t) again |= !finite(bench.queries[t].O, p.Dv * bench.queries[t].width);
    careful = again;
  }

  for (int t = 0; t < tiles; ++t) {
    const Queries<T>& q = bench.queries[t];
    if (split) {
      leave_partial(p, partial_at<T>(p, plan, index), q, q.i0 - task.q0);
      continue;
    }
    finish_tile(p, head, bench, q);
    if (!head.weights.data) continue;
    for_blocks(plan, head, task, i1, [&](int64_t k0, int64_t k1) {
      weigh(p, head, bench, q, near(head.K, k0, k1, p.D, p.D, head.cosine, bench.K), k0, k1);
    });
  }
  if (!split) blank_rows(p, head, i1, task.q1, bench.rows);
}

}  // namespace
}  // namespace harken
