// exponential.hpp - e^x to the last digits however large x is, and of it sigmoid and the normal distribution.
#pragma once

#include "../lanes.hpp"

namespace harken {
namespace {

// e^(x + d), d small: 2^n e^f with f = x - n ln 2 in two steps, the first exact. By way of 2^(x log2 e), whose exponent
// is rounded, e^-80 would be 4e-6 off; this is 2e-7 off. NaN stays NaN.
template <class F>
HARKEN_INLINE F exp(F x, F d = F{}) {
  using T = Number<F>;
  constexpr bool single = sizeof(T) == 4;
  constexpr int degree = single ? 5 : 11;
  constexpr T round = single ? T(0x1.8p23) : T(0x1.8p52), log2_e = T(0x1.71547652b82fep0);
  constexpr T high = single ? T(0x1.63p-1) : T(0x1.62e42feep-1);
  constexpr T low = single ? T(-0x1.bd0105c610ca8p-13) : T(0x1.a39ef35793c76p-33);
  constexpr T least = single ? T(-105) : T(-746), most = single ? T(89) : T(710);
  x = max(fill(least), most < x ? fill(most) : x);
  const F n = ((x + d) * log2_e + round) - round;
  const F f = (((x - n * high) - n * low) + d) * log2_e;
  F p = fill(T(exp2_coefficients[!single][degree - 1]));
#pragma GCC unroll 10
  for (int i = degree - 2; i >= 0; --i) p = p * f + T(exp2_coefficients[!single][i]);
  return scaled(p * f + T(1), n);
}

// 1 / (1 + e^-x), of e^-|x| alone, so that small values keep their digits.
template <class F>
HARKEN_INLINE F sigmoid(F x) {
  const F e = exp(-absolute(x)), one = fill(Number<F>(1));
  return ratio(x < F{} ? e : one, one + e);
}

// Phi(-a) e^(a^2/2) = G(q) / (a + 4), q = (a - 4) / (a + 4), 0 <= a: minimax in relative error, 9e-9 up to 14.5 and
// 2e-17 up to 39, where e^(-a^2/2) / a is 0 in either type.
constexpr double tail_coefficients[2][23] = {
    {7.552851354e-01, -6.078965883e-01, 3.871369011e-01, -1.865234413e-01, 6.040383055e-02, -7.525271881e-03,
     -3.512551595e-03, 1.569924851e-03, 1.793509881e-04, -1.319741616e-04},
    {0x1.82b4bb8c94dcep-1,  -0x1.373e3a893c28ap-1,  0x1.8c6dbf2cfc308p-2,   -0x1.7dff2bff6848ep-3,
     0x1.eec4cc3e4435bp-5,  -0x1.ee27610439341p-8,  -0x1.c81719c957122p-9,  0x1.ab825fb0acbeep-10,
     0x1.17a4a5f7ff1d0p-13, -0x1.e4a421b73aa01p-13, -0x1.0011051cab972p-19, 0x1.26d06370bb922p-15,
     0x1.7fd97d47e7362p-21, -0x1.8d49038d90aefp-18, -0x1.4faabdbf2df4bp-21, 0x1.124d74fc91983p-20,
     0x1.1ba23a9821713p-22, -0x1.50471e94ca337p-23, -0x1.4b9d935bd01d8p-24, 0x1.140fdd22767b7p-26,
     0x1.f64d090d35812p-27, -0x1.74aff107ce9c7p-32, -0x1.48e3af83f42abp-30}};

// Phi(x), the normal distribution function, with its relative accuracy on the left: a^2 is h^2 + (a + h)(a - h), where
// h is the upper half of a's digits and h^2 therefore exact.
template <class F>
HARKEN_INLINE F normal(F x) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr bool single = sizeof(T) == 4;
  constexpr int degree = single ? 9 : 22, lower = single ? 12 : 27;
  constexpr T most = single ? T(14.5) : T(39);
  F a = absolute(x);
  a = most < a ? fill(most) : a;
  const F h = (F)(((Words)a >> lower) << lower);
  const F e = exp(h * h * T(-0.5), (a + h) * (a - h) * T(-0.5));
  const F r = ratio(fill(T(1)), a + T(4)), q = (a - T(4)) * r;
  F g = fill(T(tail_coefficients[!single][degree]));
#pragma GCC unroll 22
  for (int i = degree - 1; i >= 0; --i) g = g * q + T(tail_coefficients[!single][i]);
  const F tail = e * (g * r);
  return x < F{} ? tail : T(1) - tail;
}

}  // namespace
}  // namespace harken
