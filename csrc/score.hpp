// score.hpp - what becomes of s = q.k before the softmax sees it.
//
//     s <- scale s                       folded into Q when it is packed; cosine: rows of Q and K are divided by their
//     norms s <- cap tanh(s / cap)             softcap s <- s + bias                      any additive term s <- s -
//     slope |p - j|             alibi; p the query's position, j the key's
//
// in units of log2 e, because the softmax is taken in base 2. F is a register of numbers, or one number on a GPU.
#pragma once

#include "problem.hpp"

namespace harken {
namespace {

constexpr double log2e = 0x1.71547652b82fep0, ln2 = 0x1.62e42fefa39efp-1;

template <class F, class T>
HARKEN_ANYWHERE F softcapped(F s, T cap) {
  return cap * tanh(s * (T(1) / cap));
}

template <class F>
HARKEN_ANYWHERE F biased(F s, F bias) {
  return s + bias * Number<F>(log2e);
}

template <class F>
HARKEN_ANYWHERE F distanced(F s, F slope, F p, F j) {
  return s - slope * absolute(p - j);
}

// What modifies the scores of one head, in units of log2 e.
template <class T>
struct Modifiers {
  T cap;  // 0: none
  T slope;
  bool bias, alibi;

  HARKEN_ANYWHERE bool any() const { return cap != 0 || bias || alibi; }
};

template <class T>
HARKEN_ANYWHERE Modifiers<T> modifiers_of(const Problem& problem, double slope) {
  return {T(problem.softcap * log2e), T(slope * log2e), problem.bias.data != nullptr, problem.slopes.data != nullptr};
}

// All of them, in their order.
template <class F, class T>
HARKEN_ANYWHERE F modified(F s, const Modifiers<T>& by, F bias, F slope, F p, F j) {
  if (by.cap != 0) s = softcapped(s, by.cap);
  if (by.bias) s = biased(s, bias);
  if (by.alibi) s = distanced(s, slope, p, j);
  return s;
}

// 1 / |x| from |x|^2, in double so that no float overflows; a zero row stays zero.
HARKEN_ANYWHERE double inverse_root(double square) { return square == 0 ? 0 : 1 / __builtin_sqrt(square); }

// The same of a row of n numbers.
template <class T>
HARKEN_ANYWHERE double inverse_norm(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return inverse_root(sum);
}

}  // namespace
}  // namespace harken
