// schedule.hpp - which tiles of keys a tile of queries visits, and what its rows see of each.
#pragma once

#include "../mask.hpp"

namespace harken {
namespace {

// A tile of keys that is visited. whole: every query of the tile sees every key of it.
struct Visit {
  int64_t k0;
  bool any, whole;
};

// The walk of queries i0 .. i1 - 1 over the keys, tile by tile, where some query sees some key. Tiles begin at
// multiples of their size whatever the queries are, so that the bits of a row do not depend on its neighbours.
struct Walk {
  int64_t i0, i1, k0, end;
  int64_t whole_from, whole_until;  // keys that all queries see, as far as their intervals say
  Outlook ahead;
};

HARKEN_ANYWHERE Walk walk_of(const Sight& sight, int64_t i0, int64_t i1, int keys) {
  if (i0 >= i1) return {};
  const Interval first = seen(sight, i0), last = seen(sight, i1 - 1);
  return {i0, i1, first.first / keys * keys, last.end, last.first, first.end, {}};
}

HARKEN_ANYWHERE Visit next_visit(const Sight& sight, Walk& walk, int keys) {
  for (; walk.k0 < walk.end; walk.k0 += keys) {
    const int64_t k0 = walk.k0, k1 = k0 + keys;
    const Shown of = shown(sight.lists, walk.i0, walk.i1, k0, least(k1, walk.end), walk.ahead);
    if (of == Shown::none) continue;
    walk.k0 = k1;
    return {k0, true, of == Shown::all && k0 >= walk.whole_from && k1 <= walk.whole_until};
  }
  return {0, false, false};
}

// Bits first .. end - 1 of 64, less what lies outside of 0 .. 63.
HARKEN_ANYWHERE uint64_t bits_between(int64_t first, int64_t end) {
  first = most(first, 0);
  end = least(end, 64);
  if (first >= end) return 0;
  return ~uint64_t(0) >> (64 - (end - first)) << first;
}

// The lists of another head, whose numbers lie so many bytes further.
HARKEN_ANYWHERE ListsOfHead lists_beyond(const Sight& sight, int64_t bytes) {
  return {sight.lists.number + bytes, sight.lists.row, sight.lists.begin, sight.lists.intervals};
}

// Bit k: query i sees key k0 + k, as far as its interval and its list say.
HARKEN_ANYWHERE uint64_t seen_bits(const Sight& sight, int64_t i, int64_t k0, int64_t lists = 0) {
  const Interval of = seen(sight, i);
  uint64_t bits = bits_between(of.first - k0, of.end - k0);
  if (!sight.lists.number || bits == 0) return bits;
  uint64_t in_list = 0;
  for (Behind on = behind(lists_beyond(sight, lists), i, k0); on.at < on.end && on.at->first < k0 + 64; ++on.at)
    in_list |= bits_between(on.at->first - k0, on.at->end - k0);
  return bits & in_list;
}

// The first keys from k on that query i sees without a gap; {unbounded, unbounded} if there are none.
HARKEN_ANYWHERE Interval next_seen(const Sight& sight, int64_t i, int64_t k, int64_t lists = 0) {
  Interval of = seen(sight, i);
  of.first = most(of.first, k);
  if (sight.lists.number && of.first < of.end) {
    const Behind on = behind(lists_beyond(sight, lists), i, of.first);
    if (on.at == on.end) return {unbounded, unbounded};
    of = {most(of.first, on.at->first), least(of.end, on.at->end)};
  }
  return of.first < of.end ? of : Interval{unbounded, unbounded};
}

}  // namespace
}  // namespace harken
