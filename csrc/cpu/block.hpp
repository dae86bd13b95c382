// block.hpp - one block of keys against one tile of queries: which of it is seen, and the scores of that.
#pragma once

#include "../softmax.hpp"
#include "additive_product.hpp"
#include "product.hpp"
#include "workspace.hpp"

namespace harken {
namespace {

// The rectangles of a block that hold every score some query sees: between two cuts the same columns see all the keys.
// On a diagonal these are staircases one register wide. Sets `edge` if an interval ends inside of the block, and `gaps`
// if there are keys to hide between those that a query sees. listed: lists hide some of the block.
template <class T>
inline int visible(const Sight& sight, const Queries<T>& q, int64_t k0, int64_t k1, bool listed, Piece* pieces,
                   bool& edge, bool& gaps) {
  constexpr int N = lanes<T>;
  int64_t from[columns], to[columns], cuts[2 * columns + 2];
  int count = 0;
  edge = listed;
  gaps = false;
  cuts[count++] = k0;
  cuts[count++] = k1;
  for (int c = 0; c < q.columns; ++c) {
    int64_t i = q.i0 + c * N, end = least(i + N, q.i0 + q.n);
    Interval any = listed ? seen(sight, i, end, k0, k1, gaps) : seen(sight, i, end);
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
inline void seed_scores(Workspace<T>& work, const Queries<T>& q, bool seeded) {
  for (int64_t c = 0; c < q.width; c += lanes<T>) put(work.seed + c, seeded ? -reference(take(q.m + c)) : Lanes<T>{});
}

// Where m was far below what now comes, -m was larger than the sum that it was put into, and took its last digits.
// Those rows start at 0 again. True: there are some.
template <class T>
inline bool reseed(Workspace<T>& work, const Queries<T>& q) {
  bool some = false;
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    Lanes<T> seed = take(work.seed + c), s = take(work.top + c) - seed;
    auto stale = (s > take(q.limit + c)) & (absolute(seed) > absolute(s));
    if (!any(stale)) continue;
    put(work.seed + c, stale ? Lanes<T>{} : seed);
    some = true;
  }
  return some;
}

// S = seed + score(K Q) of a block, hidden scores -inf. Returns the number of pieces; 0: nobody sees anything.
template <class T>
inline int score_block(const Problem& p, const Head<T>& head, Workspace<T>& work, Queries<T>& q, const Rows<T>& K,
                       int64_t k0, int64_t k1, Piece* pieces, bool& hidden) {
  const Shown lists = shown(head.sight.lists, q.i0, q.i0 + q.n, k0, k1, q.ahead);
  if (lists == Shown::none) return 0;
  bool edge, gaps;
  int count = visible(head.sight, q, k0, k1, lists == Shown::some, pieces, edge, gaps);
  if (count == 0) return 0;
  Shown some = head.mask.data ? shown(head.mask, q.i0, q.n, k0, k1 - k0) : Shown::all;
  if (some == Shown::none) return 0;
  if (gaps) some = Shown::some;
  hidden |= edge || some == Shown::some;

  for (int64_t c = 0; c < q.width; c += lanes<T>) put(work.top + c, fill(T(-infinity)));
  for (int n = 0; n < count; ++n) {
    const Piece& at = pieces[n];
    int64_t c = at.c0 * lanes<T>;
    if (head.additive) {
      additive_scores(work.w, work.additive, q.Q, q.additive, q.width, p.D, at.k0, at.k1, at.c0, at.c1, work.seed,
                      work.S, work.seen);
      tops(Tile<T>{work.S, q.width, {}, T(1), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr}, at, work.top);
      continue;
    }
    scores(K.at + at.k0 * K.step, K.step, at.k1 - at.k0, q.Q + c, q.width, at.c1 - at.c0, p.D,
           work.S + at.k0 * q.width + c, work.seed + c, work.top + c);
  }
  if (!head.modifiers.any() && !edge && some == Shown::all) return count;

  Tile<T> tile = {work.S, q.width, {}, T(1), work.p, work.first, work.end, work.slope, nullptr, nullptr};
  if (head.modifiers.bias) {
    read_sheet(head.bias, q.i0, q.n, k0, k1 - k0, work.bias, q.width, work.rows, work.row_step);
    tile.bias = work.bias;
  }
  if (some == Shown::some) {
    read_mask(head, q.i0, q.n, k0, k1 - k0, work.mask, q.width, work.rows, work.row_step);
    tile.mask = work.mask;
  }
  for (int64_t c = 0; c < q.width; ++c) {
    const Interval of = seen(head.sight, q.i0 + least(c, q.n - 1), k0, k1, gaps);  // lanes past n repeat the last row
    work.p[c] = T(q.i0 + c + head.sight.q_start - k0);
    work.first[c] = T(of.first - k0);
    work.end[c] = T(of.end - k0);
    work.slope[c] = head.modifiers.slope;
    work.top[c] = -infinity;
  }
  for (int n = 0; n < count; ++n) {
    if (head.modifiers.any()) modify(tile, pieces[n], head.modifiers);
    hide(tile, pieces[n], edge);
    tops(tile, pieces[n], work.top);
  }
  return count;
}

// 0 where a query sees a key, -inf where it does not: what hide() makes of a tile of zeros.
template <class T>
inline void see(const Head<T>& head, Workspace<T>& work, const Queries<T>& q, int64_t k0, int64_t k1) {
  bool masked = head.mask.data != nullptr;
  for (int64_t c = 0; c < q.width; ++c) {
    const Interval of = seen(head.sight, q.i0 + least(c, q.n - 1), k0, k1, masked);
    work.first[c] = T(of.first - k0);
    work.end[c] = T(of.end - k0);
  }
  if (masked) read_mask(head, q.i0, q.n, k0, k1 - k0, work.mask, q.width, work.rows, work.row_step);
  for (int64_t at = 0; at < (k1 - k0) * q.width; ++at) work.seen[at] = 0;
  Tile<T> tile = {work.seen,  q.width,  {},      T(1),    nullptr,
                  work.first, work.end, nullptr, nullptr, masked ? work.mask : nullptr};
  hide(tile, {0, int(k1 - k0), 0, q.columns}, true);
}

}  // namespace
}  // namespace harken
