// softmax.hpp - the state of a softmax over some keys is (m, l, O), and two states over disjoint keys add up.
//
//     (m, l, O) + (m', l', O') = (M, a l + a' l', a O + a' O')      M = max(m, m'),  a = 2^(m - M),  a' = 2^(m' - M)
//
// Associative, with identity (-inf, 0, 0), which is also what a query that sees no key ends with. Tiles, key ranges,
// threads, GPUs and the public merge() are this one operation.
//
// m need not be the maximum, only near it: 2^(s - m) is exact to rounding wherever it neither overflows nor vanishes. A
// tile moves m when a score exceeds it by more than 2^8, which spares nearly all of the rescaling of O (4 to 7 % of a
// call). Each row moves its own m, so that its bits never depend on its neighbours.
#pragma once

#include "anywhere.hpp"

namespace harken {
namespace {

constexpr float slack = 8;

// What a step does to the rows of one register: the new m, its limit, the factor of l and O, and what to take from the
// scores.
template <class F>
struct Move {
  F m, limit, factor, subtract;
  bool any;
};

// scores are s - base; top is the largest of them in each lane. A row without a key yet has m = limit = -inf.
template <class F>
HARKEN_ANYWHERE Move<F> move(F m, F limit, F top, F base) {
  using T = Number<F>;
  constexpr T none = -__builtin_inff();
  F s = top + base;
  auto grow = s > limit;
  F moved = grow ? s : m;
  F reference = moved == none ? F{} : moved;
  if (!any(grow)) return {m, limit, F{} + T(1), reference - base, false};
  return {moved, grow ? s + T(slack) : limit, grow ? exp2(m - s) : F{} + T(1), reference - base, true};
}

// m as a number to subtract: 0 for a row that has seen no key, so that -inf - -inf never occurs.
template <class F>
HARKEN_ANYWHERE F reference(F m) {
  constexpr Number<F> none = -__builtin_inff();
  return m == none ? F{} : m;
}

// A sink is one more key, of weight 1 and no value: (m, l, O) + (sink, 1, 0). Returns the factor a of O.
HARKEN_ANYWHERE double add_sink(double& m, double& l, double sink) {
  constexpr double none = -__builtin_inf();
  if (sink == none) return 1;
  double M = sink > m ? sink : m;
  double a = m == none ? 0 : __builtin_exp2(m - M);
  l = a * l + __builtin_exp2(sink - M);
  m = M;
  return a;
}

HARKEN_ANYWHERE double log_sum(double m, double l) {  // natural
  constexpr double ln2 = 0x1.62e42fefa39efp-1;
  return l == 0 ? -__builtin_inf() : (m + __builtin_log2(l)) * ln2;
}

}  // namespace
}  // namespace harken
