// additive.hpp - what a query and a key bring along to sum_d w_d tanh(q_d + k_d), so that no pair takes an exponential.
//
//     tanh(q + k) = (A B - 1) / (A B + 1)     A = e^2q, B = e^2k         usual: |q| + |k| <= reach
//                 = (a + b) / (1 + a b)       a = tanh q, b = tanh k     small: |q|, |k| <= 1/2
//
// Both are (x0 y + x1) / (x2 y + 1) with x = (w A, -w, A) or (w, w a, a) of the query, y = B or b of the key, and
// fractions share a division: u/d + u'/d' = (u d' + u' d) / (d d'). What a pair of numbers costs is two multiply-adds,
// and its share of three more and of a division. The first form has an absolute error of 2^-25 or so, which the second
// has not where all is small. Within reach neither A B nor the products of denominators overflow. What lies beyond it,
// infinities and NaN go to the tanh of lanes.hpp. |q| and |k| are the largest over the channels, so that the way that
// a score takes is a matter of its own query and key.
//
// ns for one q + k of float (double), one thread of a Xeon at 3 GHz, D 64: AVX-512 0.057 (0.110), AVX2 0.085 (0.165),
// SSE2 0.197 (0.39); by the tanh of lanes.hpp 0.40 (1.27), 0.62 (1.97), 1.70 (5.97). A division for each in AVX-512
// 0.185, in AVX2 0.169. Four floats together would be 6 to 10 % faster, with half the reach.
#pragma once

#include "rows.hpp"

namespace harken {
namespace {

enum Way { usual, small, wild };  // the order in which they are computed
constexpr int ways = 3;

template <class T>
constexpr int together = sizeof(T) == 4 ? 2 : 4;  // fractions that become one
template <class T>
constexpr T reach = sizeof(T) == 4 ? T(21) : T(85);  // (1 + e^(2 reach)) ^ together is 2^121 (2^981)
template <class T>
constexpr T small_most = T(0.5);

// w of one head times its scale, as power * w with |w| < 2.
template <class T>
struct ChannelWeights {
  T* w;  // [D], 0 beyond the last channel
  T power;
  bool finite;
};

// Of some queries: x0, x1, x2 in the two ways that have them, once they are asked for.
template <class T>
struct AdditiveQueries {
  T* x[2];
  T* bound;  // |q|: the largest of a query's channels; infinite for one that is not finite, or whose w is not
  T least, most;
  mutable bool made[2];
};

// Of the keys of a block.
template <class T>
struct AdditiveKeys {
  const T* raw;  // [n][step]
  int64_t step, n;
  T* y[2];   // [n][D], 0 beyond the last channel
  T* bound;  // |k|
  T least, most;
  bool made[2];
};

// Channels of x and y: whole registers, and whole groups of fractions.
template <class T>
constexpr int64_t padded(int64_t D) {
  constexpr int64_t to = lanes<T> > together<T> ? lanes<T> : together<T>;
  return (D + to - 1) / to * to;
}

constexpr double inverse_factorial(int n) { return n == 0 ? 1 : inverse_factorial(n - 1) / n; }

// e^x to a unit in the last place, for |x| <= 2 reach: x = n ln 2 + f, with ln 2 in two parts.
template <class F>
HARKEN_INLINE F exponential(F x) {
  using T = Number<F>;
  using Words = typename Vector<T>::Words;
  constexpr bool single = sizeof(T) == 4;
  constexpr int degree = single ? 7 : 13, mantissa = single ? 23 : 52;
  constexpr T round = single ? T(0x1.8p23) : T(0x1.8p52);
  constexpr T high = single ? T(0x1.62e3p-1) : T(0x1.62e42feep-1);
  constexpr T low = single ? T(0x1.2fefa2p-17) : T(0x1.a39ef35793c76p-33);
  F t = x * T(log2e) + round, n = t - round, f = x - n * high - n * low;
  F p = fill(T(inverse_factorial(degree)));
#pragma GCC unroll 13
  for (int i = degree - 1; i >= 0; --i) p = p * f + T(inverse_factorial(i));
  return (F)((Words)p + ((Words)t << mantissa));
}

template <class F>
struct Operand {
  F x0, x1, x2;
};

template <class F>
HARKEN_INLINE Operand<F> of_query(Way way, F w, F q) {
  if (way == small) {
    F a = tanh(q);
    return {w, w * a, a};
  }
  F A = exponential(q + q);
  return {w * A, -w, A};
}

template <class F>
HARKEN_INLINE F of_key(Way way, F k) {
  return way == small ? tanh(k) : exponential(k + k);
}

// The largest of all lanes, in each of them.
template <class F, int apart = lanes<Number<F>> / 2>
HARKEN_INLINE F top_of_lanes(F x) {
  if constexpr (apart == 0) {
    return x;
  } else {
    typename Vector<Number<F>>::Words from;
#pragma GCC unroll 16
    for (int i = 0; i < lanes<Number<F>>; ++i) from[i] = i ^ apart;
    return top_of_lanes<F, apart / 2>(max(x, __builtin_shuffle(x, from)));
  }
}

// The largest |x| of D numbers; infinite where one is not finite.
template <class T>
inline T bound_of(const T* x, int64_t D) {
  Lanes<T> top = {}, check = {};
  for (int64_t d = 0; d < D; d += lanes<T>) {
    Lanes<T> some = take_some(x + d, D - d);
    top = max(top, absolute(some));
    check += some * T(0);
  }
  return top_of_lanes(check == Lanes<T>{} ? top : fill(T(infinity)))[0];
}

// w times the head's scale; n: channels with those that fill up.
template <class T>
inline void read_weights(const Head<T>& head, int64_t D, int64_t n, ChannelWeights<T>& weights) {
  constexpr double largest = sizeof(T) == 4 ? 0x1p126 : 0x1p1000;
  T* w = weights.w;
  for (int64_t d = 0; d < n; ++d) w[d] = T(d < D);
  if (head.w.data) read_row(head.w, 0, 0, D, w);
  const double scale = head.w_scale, top = double(bound_of(w, D)) * (scale < 0 ? -scale : scale);
  weights.finite = top < largest;
  uint64_t bits;  // the power of 2 below
  double power;
  __builtin_memcpy(&bits, &top, sizeof bits);
  bits &= uint64_t(0x7ff) << 52;
  __builtin_memcpy(&power, &bits, sizeof bits);
  if (power < 1 / largest || !weights.finite) power = 1;
  weights.power = T(power);
  const double factor = scale / power;
  for (int64_t d = 0; d < n; ++d) w[d] = T(double(w[d]) * factor);
}

// --- queries in lanes ---

// What a tile of queries is known by, from Q[D][width] of which the first n lanes are queries.
template <class T>
inline void measure(const ChannelWeights<T>& weights, const T* Q, int64_t D, int64_t width, int n,
                    AdditiveQueries<T>& q) {
  q.made[usual] = q.made[small] = false;
  q.least = infinity;
  q.most = 0;
  for (int64_t c = 0; c < width; c += lanes<T>) {
    Lanes<T> top = {}, check = {};
    for (int64_t d = 0; d < D; ++d) {
      Lanes<T> x = take(Q + d * width + c);
      top = max(top, absolute(x));
      check += x * T(0);
    }
    top = (check == Lanes<T>{}) ? top : fill(T(infinity));
    put(q.bound + c, weights.finite ? top : fill(T(infinity)));
  }
  for (int i = 0; i < n; ++i) {
    q.least = q.bound[i] < q.least ? q.bound[i] : q.least;
    q.most = q.bound[i] > q.most ? q.bound[i] : q.most;
  }
}

// x[3][padded D][width].
template <class T>
inline void make(Way way, const ChannelWeights<T>& weights, const T* Q, int64_t D, int64_t width,
                 const AdditiveQueries<T>& q) {
  if (q.made[way]) return;
  q.made[way] = true;
  const int64_t plane = padded<T>(D) * width;
  T* x = q.x[way];
  for (int64_t at = 0; at < plane; at += lanes<T>) {
    const int64_t d = at / width;
    const auto [x0, x1, x2] = of_query(way, fill(weights.w[d]), d < D ? take(Q + at) : Lanes<T>{});
    put(x + at, x0);
    put(x + plane + at, x1);
    put(x + 2 * plane + at, x2);
  }
}

// --- channels in lanes ---

// What rows[count][D] are known by: the bound of a row in each of its lanes. finite: is its w?
template <class T>
inline void measure_rows(const bool* finite, const T* rows, int64_t D, int count, AdditiveQueries<T>& q) {
  q.made[usual] = q.made[small] = false;
  q.least = infinity;
  q.most = 0;
  for (int r = 0; r < count; ++r) {
    const T bound = finite[r] ? bound_of(rows + r * D, D) : T(infinity);
    q.least = bound < q.least ? bound : q.least;
    q.most = bound > q.most ? bound : q.most;
    for (int i = 0; i < lanes<T> / count; ++i) q.bound[r * (lanes<T> / count) + i] = bound;
  }
}

// x[3][padded D] of one row.
template <class T>
inline void make_row(Way way, const T* w, const T* Q, int64_t D, T* x) {
  const int64_t plane = padded<T>(D);
  for (int64_t d = 0; d < D; d += lanes<T>) {
    const auto [x0, x1, x2] = of_query(way, take(w + d), take(Q + d));
    put(x + d, x0);
    put(x + plane + d, x1);
    put(x + 2 * plane + d, x2);
  }
}

// --- keys, either way ---

// A block of keys is brought near.
template <class T>
inline void bring(const Rows<T>& K, int64_t n, int64_t D, AdditiveKeys<T>& keys) {
  keys.raw = K.at;
  keys.step = K.step;
  keys.n = n;
  keys.made[usual] = keys.made[small] = false;
  keys.least = infinity;
  keys.most = 0;
  for (int64_t k = 0; k < n; ++k) {
    const T bound = keys.bound[k] = bound_of(K.at + k * K.step, D);
    keys.least = bound < keys.least ? bound : keys.least;
    keys.most = bound > keys.most ? bound : keys.most;
  }
}

template <class T>
inline void make(Way way, int64_t D, AdditiveKeys<T>& keys) {
  if (keys.made[way]) return;
  keys.made[way] = true;
  const int64_t step = padded<T>(D), whole = (keys.n + lanes<T> - 1) / lanes<T> * lanes<T>;
  for (int64_t k = 0; k < whole; ++k)  // keys that fill up a register are 0
    for (int64_t d = 0; d < step; d += lanes<T>) {
      const bool real = k < keys.n && d < D;
      put(keys.y[way] + k * step + d, real ? of_key(way, take_some(keys.raw + k * keys.step + d, D - d)) : Lanes<T>{});
    }
}

// May a score of these queries and keys take this way?
template <class T>
inline bool present(Way way, const AdditiveQueries<T>& q, const AdditiveKeys<T>& keys) {
  if (way == small) return q.least <= small_most<T> && keys.least <= small_most<T>;
  if (way == wild) return q.most + keys.most > reach<T>;
  return q.least + keys.least <= reach<T> && (q.most > small_most<T> || keys.most > small_most<T>);
}

template <class F>
HARKEN_INLINE bool some_wild(F q_bound, F k_bound) {
  return any(q_bound + k_bound > reach<Number<F>>);
}

// Scores of the first way that is present stand; those of the others come in where they are right.
template <class F>
HARKEN_INLINE F chosen(Way way, F q_bound, F k_bound, F before, F now) {
  using T = Number<F>;
  if (way == small) return max(q_bound, k_bound) <= small_most<T> ? now : before;
  return q_bound + k_bound <= reach<T> ? before : now;
}

}  // namespace
}  // namespace harken
