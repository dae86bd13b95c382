// mask.hpp - which keys a query sees: one interval per row, ANDed with a boolean array.
//
//     visible(i, j) = max(0, p - left) <= j < min(kv_length, p + right + 1)  and  mask[i, j],     p = i + q_start
//
// Causal is right = 0. Both ends grow with i, so a tile of queries sees the union of its first and last row's
// intervals; tiles outside of it are not visited, and only tiles that an end passes through look at single scores.
#pragma once

#include "problem.hpp"

namespace harken {
namespace {

struct Interval {
  int64_t first, end;
};

// The sight of the queries of one batch row.
struct Sight {
  int64_t q_start, keys;  // keys: kv_length
  int64_t left, right;
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

inline Interval seen(const Sight& sight, int64_t i) {
  int64_t p = i + sight.q_start;
  return {most(0, p - sight.left), least(sight.keys, p + sight.right + 1)};
}

inline Interval seen(const Sight& sight, int64_t i0, int64_t i1) {  // by any of the queries i0 .. i1 - 1
  return {seen(sight, i0).first, seen(sight, i1 - 1).end};
}

// A score stays when its key lies in [first, end) of its query.
template <class F>
inline F hidden_outside(F s, F j, F first, F end) {
  constexpr decltype(F{}[0] + F{}[0]) never = -__builtin_inff();
  return ((j >= first) & (j < end)) ? s : F{} + never;
}

template <class F>
inline F hidden_where_zero(F s, F mask) {
  constexpr decltype(F{}[0] + F{}[0]) never = -__builtin_inff();
  return mask != F{} ? s : F{} + never;
}

}  // namespace
}  // namespace harken
