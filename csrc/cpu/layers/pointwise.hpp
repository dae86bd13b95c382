// pointwise.hpp - activations: one pass over the numbers, a register at a time.
#pragma once

#include "../../layers/pointwise.hpp"
#include "../lanes.hpp"

namespace harken {
namespace {

// 1 / (1 + e^-x). e^-x may be infinite: 1 / inf is the 0 that is due.
template <class F>
HARKEN_INLINE F sigmoid(F x) {
  constexpr double log2_e = 0x1.71547652b82fep0;
  return F{} + Number<F>(1) / (Number<F>(1) + exp2_of_any(x * Number<F>(-log2_e)));
}

template <class T, class Function>
void each(const Pointwise& p, int64_t piece, Function f) {
  const int64_t first = piece * p.piece, left = p.n - first, n = left < p.piece ? left : p.piece;
  const T* x = (const T*)p.x + first;
  T* y = (T*)p.y + first;
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) put(y + i, f(take(x + i)));
  if (i == n) return;
  T rest[lanes<T>] = {};
  for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
  put(rest, f(take(rest)));
  for (int64_t j = i; j < n; ++j) y[j] = rest[j - i];
}

template <class T>
void activate_in(const Pointwise& p, int64_t piece) {
  using F = Lanes<T>;
  switch (p.activation) {
    case Activation::relu: return each<T>(p, piece, [](F x) { return x < F{} ? F{} : x; });  // NaN stays NaN
    case Activation::silu: return each<T>(p, piece, [](F x) { return x * sigmoid(x); });
    case Activation::sigmoid: return each<T>(p, piece, [](F x) { return sigmoid(x); });
    case Activation::tanh: return each<T>(p, piece, [](F x) { return tanh(x); });
  }
}

void activate(const Pointwise& p, int64_t piece) {
  p.in_double ? activate_in<double>(p, piece) : activate_in<float>(p, piece);
}

}  // namespace
}  // namespace harken
