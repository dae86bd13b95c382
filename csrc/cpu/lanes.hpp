// lanes.hpp - F, a register of floats or doubles, and the verbs that the algorithms are written in.
//
// Compiler vectors give + - * / < and ?: on every instruction set. The verbs below are written once for every width; an
// instruction set says a verb better by an overload in its own file, with the measurement beside it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../dtype.hpp"

#define HARKEN_INLINE inline __attribute__((always_inline))

namespace harken {
namespace {

template <class T>
struct WordOf {
  using type = int64_t;
};
template <>
struct WordOf<float> {
  using type = int32_t;
};

template <class T>
struct Vector {
  static constexpr int lanes = vector_bytes / int(sizeof(T));
  typedef T F __attribute__((vector_size(vector_bytes)));
  typedef T Anywhere __attribute__((vector_size(vector_bytes), aligned(1), may_alias));
  typedef typename WordOf<T>::type Words __attribute__((vector_size(vector_bytes)));
};

template <class T>
using Lanes = typename Vector<T>::F;
template <class T>
constexpr int lanes = Vector<T>::lanes;

using F32 = Lanes<float>;
using F64 = Lanes<double>;
using Words32 = Vector<float>::Words;
using Words64 = Vector<double>::Words;
typedef uint32_t Bits32 __attribute__((vector_size(vector_bytes)));
typedef uint16_t Bits16 __attribute__((vector_size(vector_bytes / 2)));
typedef uint16_t Bits16Anywhere __attribute__((vector_size(vector_bytes / 2), aligned(1), may_alias));

typedef int8_t Bytes __attribute__((vector_size(vector_bytes / 4)));
typedef int16_t Shorts __attribute__((vector_size(vector_bytes / 2)));
typedef int8_t BytesAnywhere __attribute__((vector_size(vector_bytes / 4), aligned(1), may_alias));

constexpr float infinity = __builtin_inff();

template <int n>
struct Count {
  static constexpr int value = n;
};

// Most instruction sets have no matrix engine; one that has declares engine(int), which is the better match.
struct None {
  static constexpr bool exists = false;
  static constexpr uint32_t needs = 0;
};
inline None engine(long) { return {}; }

// A tile of an engine by its number, which is part of the instruction.
template <int n>
struct Register {};

// --- memory: take widens from any storage type, put narrows to it ---

HARKEN_INLINE F32 take(const float* at) { return *(const Vector<float>::Anywhere*)at; }
HARKEN_INLINE F64 take(const double* at) { return *(const Vector<double>::Anywhere*)at; }
HARKEN_INLINE void put(float* at, F32 x) { *(Vector<float>::Anywhere*)at = x; }
HARKEN_INLINE void put(double* at, F64 x) { *(Vector<double>::Anywhere*)at = x; }

template <class S>  // the 16-bit types, and int8
HARKEN_INLINE F32 take(const S* at) {
  if constexpr (sizeof(S) == 1) {  // by way of 16 bits: four times as wide is no one instruction of SSE2
    const Bytes x = *(const BytesAnywhere*)at;
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(x, Shorts), Words32), F32);
  } else {
    return widen<F32>(S{}, __builtin_convertvector((Bits16)*(const Bits16Anywhere*)at, Bits32));
  }
}
template <class S>
HARKEN_INLINE void put(S* at, F32 x) {
  *(Bits16Anywhere*)at = __builtin_convertvector(narrow<F32, Bits32>(S{}, x), Bits16);
}

// The first n numbers of a register, or all if there are so many; after what is taken come zeros.
template <class T>
HARKEN_INLINE Lanes<T> take_some(const T* at, int64_t n) {
  if (n >= lanes<T>) return take(at);
  alignas(vector_bytes) T some[lanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) __builtin_memcpy(some + i, (const char*)at + i * sizeof(T), sizeof(T));
  return take(some);
}
template <class T>
HARKEN_INLINE void put_some(T* at, Lanes<T> x, int64_t n) {
  if (n >= lanes<T>) return put(at, x);
  alignas(vector_bytes) T some[lanes<T>];
  put(some, x);
  for (int64_t i = 0; i < n; ++i) __builtin_memcpy((char*)at + i * sizeof(T), some + i, sizeof(T));
}

HARKEN_INLINE float take_one(int8_t x) { return x; }
HARKEN_INLINE float take_one(float x) { return x; }
HARKEN_INLINE double take_one(double x) { return x; }
template <class S>
HARKEN_INLINE float take_one(S x) {
  return widen<float, uint32_t>(S{}, x.bits);
}

// --- arithmetic ---

// An address that is to stay in a register of its own: GCC keeps several in one vector register, which is by way of
// memory to each.
template <class T>
HARKEN_INLINE void in_register(const T*& address) {
  __asm__("" : "+r"(address));
}

template <class T>
HARKEN_INLINE Lanes<T> fill(T x) {
  return x - Lanes<T>{};
}

// The two verbs that every instruction set must say itself. An unordered pair gives b.
HARKEN_INLINE F32 max(F32 a, F32 b);
HARKEN_INLINE F64 max(F64 a, F64 b);
HARKEN_INLINE bool any(Words32 truth);
HARKEN_INLINE bool any(Words64 truth);

template <class F>
HARKEN_INLINE F absolute(F x) {
  return max(x, -x);
}

// a / b, for 1 <= b <= 2^122 (2^1000).
template <class F>
HARKEN_INLINE F ratio(F a, F b) {
  return a / b;
}

// x is rounded before it goes on into a sum.
template <class F>
HARKEN_INLINE F rounded(F x) {
  __asm__("" : "+v"(x));
  return x;
}

// 2^f on [-1/2, 1/2], less the constant 1: a minimax fit in float (1.5 units of 2^-24), below rounding in double.
constexpr double exp2_coefficients[2][11] = {
    {6.931470037e-01, 2.402224243e-01, 5.550733581e-02, 9.671512991e-03, 1.326472731e-03},
    {0x1.62e42fefa39efp-1, 0x1.ebfbdff82c598p-3, 0x1.c6b08d704a0c2p-5, 0x1.3b2ab6fba1ddap-7, 0x1.5d87fe78a5276p-10,
     0x1.430913096fd9fp-13, 0x1.ffcbfc670dcd4p-17, 0x1.62bfd47773353p-20, 0x1.b524fae627834p-24, 0x1.e6063f7217bc6p-28,
     0x1.e9d3fe3952179p-32}};

// 2^x = 2^n 2^f, n the nearest integer, which goes into the exponent by an integer addition. At -127 (-1023) the sum is
// exactly the bits of 0, so exp2(-inf) == 0 without a test; NaN stays NaN.
template <class F>
HARKEN_INLINE F exp2(F x) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr bool single = sizeof(T) == 4;
  constexpr int degree = single ? 5 : 11, mantissa = single ? 23 : 52;
  constexpr T round = single ? T(0x1.8p23) : T(0x1.8p52), least = single ? T(-127) : T(-1023);
  x = max(fill(least), x);
  F t = x + round, f = x - (t - round);
  F p = fill(T(exp2_coefficients[!single][degree - 1]));
#pragma GCC unroll 10
  for (int i = degree - 2; i >= 0; --i) p = p * f + T(exp2_coefficients[!single][i]);
  p = p * f + T(1);
  return (F)((Words)p + ((Words)t << mantissa));
}

// The same for x of any size: infinity where 2^x is. The sum of exponents above would come round to a small number.
template <class F>
HARKEN_INLINE F exp2_of_any(F x) {
  constexpr Number<F> most = sizeof(Number<F>) == 4 ? 128 : 1024;
  return exp2(most < x ? fill(most) : x);
}

// p 2^n, n a whole number, in two steps, so that what is too large becomes infinite and what is too small 0.
template <class F>
HARKEN_INLINE F scaled(F p, F n) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  const Words whole = __builtin_convertvector(n, Words), half = whole >> 1, one = (Words)fill(T(1));
  return p * (F)(one + (half << mantissa)) * (F)(one + ((whole - half) << mantissa));
}

// 2^x - 1 without cancellation near 0, |x| <= 100: 2^n (2^f - 1) + (2^n - 1), with 2^f - 1 as its Taylor series.
template <class F>
HARKEN_INLINE F exp2_less_one(F x) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr bool single = sizeof(T) == 4;
  constexpr int terms = single ? 8 : 14, mantissa = single ? 23 : 52;
  constexpr T round = single ? T(0x1.8p23) : T(0x1.8p52), ln2 = T(0x1.62e42fefa39efp-1);
  F t = x + round, f = (x - (t - round)) * ln2;
  F p = fill(T(1));
#pragma GCC unroll 14
  for (int i = terms; i > 1; --i) p = p * f * T(1.0 / i) + T(1);
  F power = (F)((Words)fill(T(1)) + ((Words)t << mantissa));
  return power * (p * f) + (power - T(1));
}

// tanh x = (e^2x - 1) / (e^2x + 1); beyond 20 it is 1 in either type. NaN stays NaN.
template <class F>
HARKEN_INLINE F tanh(F x) {
  using T = Number<F>;
  F y = x > T(20) ? fill(T(20)) : x < T(-20) ? fill(T(-20)) : x;
  F e = exp2_less_one(y * T(2 * 0x1.71547652b82fep0));
  return e / (e + T(2));
}

// --- across lanes ---

// What transposing and summing are made of. Within 128 bits and across them are different instructions;
// these index patterns are the ones that every instruction set has as one.
template <class F, int group>
HARKEN_INLINE void interleave(F a, F b, F& low, F& high) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr int n = lanes<T>, block = 16 / int(sizeof(T));
  Words l, h;
  if constexpr (group < block) {  // inside each 128 bits: chunks of `group`, a's and b's in turn
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      int in = i % block, chunk = in / group, from = (i - in) + (chunk / 2) * group + in % group;
      l[i] = from + (chunk % 2) * n;
      h[i] = from + (chunk % 2) * n + block / 2;
    }
  } else {  // across: the even 128-bit blocks of a, then of b; and the odd ones
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      int half = i / (n / 2), in = i % (n / 2), from = (in / block) * 2 * block + in % block;
      l[i] = from + half * n;
      h[i] = from + half * n + block;
    }
  }
  low = __builtin_shuffle(a, b, l);
  high = __builtin_shuffle(a, b, h);
}

// Lane i of the result is the sum of x[i]: n registers become one by n - 1 additions. Destroys x.
template <class F, int count = lanes<Number<F>>, int group = 1>
HARKEN_INLINE F sums(F* x) {
  if constexpr (count == 1) {
    return x[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) {
      F low, high;
      interleave<F, group>(x[2 * i], x[2 * i + 1], low, high);
      x[i] = low + high;
    }
    return sums<F, count / 2, group * 2>(x);
  }
}

// The 128-bit pieces of a register, each from or to a row of its own: what every instruction set does in its own way.
HARKEN_INLINE F32 take_pieces(const float* const* rows);
HARKEN_INLINE F64 take_pieces(const double* const* rows);
HARKEN_INLINE void put_pieces(F32 x, float* const* rows, int n);  // the first n
HARKEN_INLINE void put_pieces(F64 x, double* const* rows, int n);

// x[r][c] <-> x[c][r] within each 128 bits.
template <class F>
HARKEN_INLINE void transpose_pieces(F* x) {
  F a, b, c, d;
  interleave<F, 1>(x[0], x[1], a, b);
  if constexpr (sizeof(Number<F>) == 8) {
    x[0] = a;
    x[1] = b;
  } else {
    interleave<F, 1>(x[2], x[3], c, d);
    interleave<F, 2>(a, c, x[0], x[1]);
    interleave<F, 2>(b, d, x[2], x[3]);
  }
}

// n <= lanes rows of `lanes` numbers, `step` apart, into x[channel][row]; lanes past n repeat the last row. Rows come
// in as 128-bit pieces, which needs no shuffle, so that the rest stays within 128 bits: 0.9 thousand cycles for 64 x 64
// floats in AVX-512 where whole registers and four stages of full shuffles take 3.1.
template <class T>
HARKEN_INLINE void take_transposed(const T* from, int64_t step, int n, Lanes<T>* x) {
  constexpr int block = 16 / int(sizeof(T)), pieces = lanes<T> / block;
#pragma GCC unroll 4
  for (int r = 0; r < block; ++r) {
    const T* row[pieces];
#pragma GCC unroll 4
    for (int i = 0; i < pieces; ++i) {
      row[i] = from + (i * block + r < n ? i * block + r : n - 1) * step;
      in_register(row[i]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < lanes<T>; c += block) {
      const T* at[pieces];
#pragma GCC unroll 4
      for (int i = 0; i < pieces; ++i) at[i] = row[i] + c;
      x[c + r] = take_pieces(at);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < lanes<T>; c += block) transpose_pieces(x + c);
}

// The way back: destroys x.
template <class T>
HARKEN_INLINE void put_transposed(Lanes<T>* x, int n, T* to, int64_t step) {
  constexpr int block = 16 / int(sizeof(T)), pieces = lanes<T> / block;
#pragma GCC unroll 4
  for (int c = 0; c < lanes<T>; c += block) {
    transpose_pieces(x + c);
#pragma GCC unroll 4
    for (int r = 0; r < block; ++r) {
      T* at[pieces];
#pragma GCC unroll 4
      for (int i = 0; i < pieces; ++i) at[i] = to + (i * block + r) * step + c;
      put_pieces(x[c + r], at, n == lanes<T> ? pieces : (n - r + block - 1) / block);
    }
  }
}

}  // namespace
}  // namespace harken
