// mask.hpp - which keys a query sees: one interval per row, ANDed with a list of intervals and with a boolean array.
//
//     visible(i, j) = max(0, p - left) <= j < min(kv_length, p + right + 1)     p = i + q_start
//                     and  j in list[i]  and  mask[i, j]
//
// Causal is right = 0. Both ends grow with i, so a tile of queries sees the union of its first and last row's
// intervals; tiles outside of it are not visited, and only tiles that an end passes through look at single scores.
// Lists follow no such rule. What the rows of a tile see of the keys ahead is found out once, and holds up to the next
// end of an interval: until then blocks are skipped, or computed as if there were no list. In the others, rows that see
// one interval of the block see it like any other; what lies between two is hidden like what an array hides.
#pragma once

#include "problem.hpp"

namespace harken {
namespace {

// The lists of one head.
struct ListsOfHead {
  const char* number;  // null: there are none
  int64_t row;
  const int64_t* begin;
  const Interval* intervals;
};

// The sight of the queries of one head.
struct Sight {
  int64_t q_start, keys;  // keys: kv_length
  int64_t left, right;
  ListsOfHead lists;
};

HARKEN_ANYWHERE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HARKEN_ANYWHERE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

HARKEN_ANYWHERE Interval seen(const Sight& sight, int64_t i) {
  int64_t p = i + sight.q_start;
  return {most(0, p - sight.left), least(sight.keys, p + sight.right + 1)};
}

HARKEN_ANYWHERE Interval seen(const Sight& sight, int64_t i0, int64_t i1) {  // by any of the queries i0 .. i1 - 1
  return {seen(sight, i0).first, seen(sight, i1 - 1).end};
}

// --- lists ---

HARKEN_ANYWHERE int64_t list_of(const ListsOfHead& lists, int64_t i) {
  return *(const int64_t*)(lists.number + i * lists.row);
}

// The intervals of query i that end behind key k.
struct Behind {
  const Interval *at, *end;
};
HARKEN_ANYWHERE Behind behind(const ListsOfHead& lists, int64_t i, int64_t k) {
  const int64_t* begin = lists.begin + list_of(lists, i);
  const Interval *at = lists.intervals + begin[0], *const end = lists.intervals + begin[1];
  for (int64_t n = end - at; n > 0;) {
    const int64_t half = n / 2;
    const bool before = at[half].end <= k;
    at = before ? at + half + 1 : at;
    n = before ? n - half - 1 : half;
  }
  return {at, end};
}

// What a boolean array or lists leave of a block: nothing, all, or some of it.
enum class Shown { none, some, all };

// What lists show to some queries of the keys from .. until - 1.
struct Outlook {
  Shown shown;
  int64_t from, until;
};

// Queries i0 .. i1 - 1, from key k on.
HARKEN_ANYWHERE Outlook look(const ListsOfHead& lists, int64_t i0, int64_t i1, int64_t k) {
  Outlook ahead = {Shown::none, k, unbounded};
  int64_t last = -1;
  for (int64_t i = i0; i < i1; ++i) {
    const int64_t list = list_of(lists, i);
    if (list == last) continue;
    const Behind on = behind(lists, i, k);
    const bool sees = on.at < on.end && on.at->first <= k;
    if (last >= 0 && sees != (ahead.shown == Shown::all)) return {Shown::some, k, k + 1};
    last = list;
    ahead.shown = sees ? Shown::all : Shown::none;
    ahead.until = least(ahead.until, on.at == on.end ? unbounded : sees ? on.at->end : on.at->first);
  }
  return ahead;
}

// What lists show to queries i0 .. i1 - 1 of the keys k0 .. k1 - 1. `ahead` is for these queries alone, and remembers.
HARKEN_ANYWHERE Shown shown(const ListsOfHead& lists, int64_t i0, int64_t i1, int64_t k0, int64_t k1, Outlook& ahead) {
  if (!lists.number) return Shown::all;
  if (k0 < ahead.from || k0 >= ahead.until) ahead = look(lists, i0, i1, k0);
  return k1 <= ahead.until ? ahead.shown : Shown::some;
}

// What the list of query i shows of the keys k0 .. k1 - 1, from the first to the last; {k0, k0} if there is nothing.
// Sets `gaps` if some between are hidden.
HARKEN_ANYWHERE Interval shown(const ListsOfHead& lists, int64_t i, int64_t k0, int64_t k1, bool& gaps) {
  const Behind on = behind(lists, i, k0);
  if (on.at == on.end || on.at->first >= k1) return {k0, k0};
  if (on.at->end >= k1) return {most(k0, on.at->first), k1};
  if (on.at + 1 == on.end || on.at[1].first >= k1) return {most(k0, on.at->first), on.at->end};
  gaps = true;
  const Behind beyond = behind(lists, i, k1 - 1);
  const bool inside = beyond.at < beyond.end && beyond.at->first < k1;
  return {most(k0, on.at->first), inside ? k1 : beyond.at[-1].end};
}

// What query i sees of the keys k0 .. k1 - 1.
HARKEN_ANYWHERE Interval seen(const Sight& sight, int64_t i, int64_t k0, int64_t k1, bool& gaps) {
  const Interval of = seen(sight, i);
  k0 = most(k0, of.first);
  k1 = least(k1, of.end);
  if (k0 >= k1) return {k0, k0};
  return sight.lists.number ? shown(sight.lists, i, k0, k1, gaps) : Interval{k0, k1};
}

// No less than any of the queries i0 .. i1 - 1 sees; {k0, k0} if that is nothing.
HARKEN_ANYWHERE Interval seen(const Sight& sight, int64_t i0, int64_t i1, int64_t k0, int64_t k1, bool& gaps) {
  const Interval of = seen(sight, i0, i1), all = {most(k0, of.first), least(k1, of.end)};
  if (all.first >= all.end) return {k0, k0};
  if (!sight.lists.number) return all;
  Interval any = {all.end, all.first};
  for (int64_t i = i0; i < i1; ++i) {
    if (i > i0 && list_of(sight.lists, i) == list_of(sight.lists, i - 1)) continue;
    const Interval one = shown(sight.lists, i, all.first, all.end, gaps);
    if (one.first >= one.end) continue;
    any = {least(any.first, one.first), most(any.end, one.end)};
  }
  return any.first < any.end ? any : Interval{k0, k0};
}

HARKEN_ANYWHERE bool listed(const ListsOfHead& lists, int64_t i, int64_t j) {
  if (!lists.number) return true;
  const Behind on = behind(lists, i, j);
  return on.at < on.end && on.at->first <= j;
}

// row[k] = 0 where query i does not see key k0 + k, 0 <= k < n.
template <class T>
HARKEN_ANYWHERE void hide_gaps(const ListsOfHead& lists, int64_t i, int64_t k0, int64_t n, T* row) {
  if (!lists.number) return;
  int64_t k = k0;
  for (Behind on = behind(lists, i, k0); k < k0 + n; ++on.at) {
    const bool more = on.at < on.end;
    for (const int64_t gap = more ? least(on.at->first, k0 + n) : k0 + n; k < gap; ++k) row[k - k0] = 0;
    if (more) k = most(k, on.at->end);
  }
}

// A score stays when its key lies in [first, end) of its query.
template <class F>
HARKEN_ANYWHERE F hidden_outside(F s, F j, F first, F end) {
  constexpr Number<F> never = -__builtin_inff();
  return ((j >= first) & (j < end)) ? s : F{} + never;
}

template <class F>
HARKEN_ANYWHERE F hidden_where_zero(F s, F mask) {
  constexpr Number<F> never = -__builtin_inff();
  return mask != F{} ? s : F{} + never;
}

}  // namespace
}  // namespace harken
