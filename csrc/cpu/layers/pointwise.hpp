// pointwise.hpp - activations: one pass over the numbers, a register at a time, which also adds a bias.
#pragma once

#include "../../layers/pointwise.hpp"
#include "../subnormals.hpp"
#include "exponential.hpp"

namespace harken {
namespace {

// y = f(x + b) for n numbers.
template <class T, class Function>
HARKEN_INLINE void each(const T* x, const T* b, T* y, int64_t n, Function f) {
  int64_t i = 0;
  if (b) {
    for (; i + lanes<T> <= n; i += lanes<T>) put(y + i, f(take(x + i) + take(b + i)));
    if (i < n) put_some(y + i, f(take_some(x + i, n - i) + take_some(b + i, n - i)), n - i);
  } else {
    for (; i + lanes<T> <= n; i += lanes<T>) put(y + i, f(take(x + i)));
    if (i < n) put_some(y + i, f(take_some(x + i, n - i)), n - i);
  }
}

// x Phi(x) with tanh for Phi: (1 + tanh u) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class F>
HARKEN_INLINE F gelu_tanh(F x) {
  using T = Number<F>;
  constexpr T linear = T(1.5957691216057308), cubic = T(1.5957691216057308 * 0.044715);
  return x * sigmoid(x * (linear + cubic * (x * x)));
}

template <class T>
void apply(Activation activation, const T* x, const T* b, T* y, int64_t n) {
  using F = Lanes<T>;
  switch (activation) {
    case Activation::gelu: return each(x, b, y, n, [](F x) { return x * normal(x); });
    case Activation::gelu_tanh: return each(x, b, y, n, [](F x) { return gelu_tanh(x); });
    case Activation::identity: return each(x, b, y, n, [](F x) { return x; });
    case Activation::relu: return each(x, b, y, n, [](F x) { return x < F{} ? F{} : x; });  // NaN stays NaN
    case Activation::sigmoid: return each(x, b, y, n, [](F x) { return sigmoid(x); });
    case Activation::silu: return each(x, b, y, n, [](F x) { return x * sigmoid(x); });
    case Activation::tanh: return each(x, b, y, n, [](F x) { return tanh(x); });
  }
}

template <class T>
void activate_in(const Pointwise& p, int64_t piece) {
  const T *x = (const T*)p.x, *b = (const T*)p.bias;
  T* y = (T*)p.y;
  int64_t i = piece * p.piece;
  const int64_t end = p.n - i < p.piece ? p.n : i + p.piece;
  if (!b) return apply(p.activation, x + i, b, y + i, end - i);
  while (i < end) {  // to the end of a row, or of the piece
    const int64_t c = i % p.C, n = p.C - c < end - i ? p.C - c : end - i;
    apply(p.activation, x + i, b + c, y + i, n);
    i += n;
  }
}

void activate(const Pointwise& p, int64_t piece) {
  FlushedSubnormals mode;
  p.in_double ? activate_in<double>(p, piece) : activate_in<float>(p, piece);
}

}  // namespace
}  // namespace harken
