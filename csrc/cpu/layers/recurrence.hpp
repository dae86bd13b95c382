// recurrence.hpp - LSTM and GRU: one product in chains for x and for h, units along the lanes, then the gates.
//
// A number of a is a bias and the chains of x, then those of h, 128 terms each, added in this order. It is the same for
// every height of tile, panels side by side, length of chunk and number of threads: these may follow the speed. Of long
// sequences a matrix engine takes x W_ih^T (matrix_recurrence.hpp).
#pragma once

#include "../../layers/recurrence.hpp"
#include "../product.hpp"
#include "../subnormals.hpp"
#include "matrix_recurrence.hpp"
#include "moment.hpp"

namespace harken {
namespace {
namespace recurrence {

constexpr int most_sums = columns * rows_for(columns);                                 // registers of a tile
constexpr int side_by_side(int gates) { return gates == 4 ? 2 : gates == 3 ? 3 : 4; }  // panels of a single row
constexpr int tile_rows(int gates) { return most_sums / gates < 8 ? most_sums / gates : 8; }

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// a[r][slot] += sum_k in[r][k] W[k][gate], k < n <= chain: R rows, the gates of P panels. Of R and C the fewer wait in
// registers, the others come one by one: 6 x 4 take 24 + 6 + 1 of 32.
template <class T, int R, int P, int gates>
__attribute__((noinline)) void add_chain(const T* const* in, const T* W, int64_t apart, int64_t n, T* const* a,
                                         int64_t a_apart, int64_t last) {
  constexpr int C = P * gates;
  const T *row[R], *panel[P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    row[r] = in[r];
    in_register(row[r]);
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    panel[p] = W + p * apart;
    in_register(panel[p]);
  }
  Lanes<T> sum[R][C] = {};
#pragma GCC unroll 2
  for (int64_t k = 0; k < n; ++k) {
    if constexpr (R < C) {
      Lanes<T> y[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) y[r] = fill(row[r][k]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        const Lanes<T> w = take(panel[c / gates] + c % gates * lanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][c] += y[r] * w;
      }
    } else {
      Lanes<T> w[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) w[c] = take(panel[c / gates] + c % gates * lanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Lanes<T> y = fill(row[r][k]);
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] += y * w[c];
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) panel[p] += gates * lanes<T>;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      T* at = a[r] + c / gates * a_apart + (c % gates == gates - 1 ? last : c % gates) * lanes<T>;
      put(at, take(at) + sum[r][c]);
    }
}

// The same for n rows, which `name` is asked for in order, tile by tile; of equal height, so that none is low and slow.
template <class T, int gates, class Name>
HARKEN_INLINE void add_rows(int64_t n, const T* W, int64_t terms, int64_t last, Name name) {
  constexpr int most = tile_rows(gates);
  const int64_t tiles = (n + most - 1) / most;
  for (int64_t tile = 0, i = 0; tile < tiles; ++tile) {
    const int64_t end = n * (tile + 1) / tiles;
    const T* rows[most];
    T* to[most];
    for (int64_t r = 0; i + r < end; ++r) name(i + r, rows[r], to[r]);
    with_count<most>(end - i, [&](auto R) { add_chain<T, R.value, 1, gates>(rows, W, 0, terms, to, 0, last); });
    i = end;
  }
}

// --- a = x W_ih^T + b, for some steps ---

template <class T, int gates>
void project_in(const Recurrence& p, const Strand& strand, const T* W, int64_t panel, int64_t step, int64_t steps) {
  const Moment<T> at{p, strand};
  const T* bias = W + (p.in_panels + p.H) * gates * lanes<T>;
  const int64_t last = gates - 1, n = Walk<T>(at, strand.on_engine, strand.rows, step).count(steps);
  Walk<T> rows(at, strand.on_engine, strand.rows, step);
  for (int64_t i = 0; i < n; ++i) {
    rows.next();
    T* a = at.a(panel, rows.i, rows.s);
    for (int64_t j = 0; j < slots * lanes<T>; j += lanes<T>) put(a + j, take(bias + j));
  }
  // A chain of W, 32 KiB, stays in the L1 cache for all rows.
  for (int64_t k = 0; k < p.C; k += chain) {
    Walk<T> rows(at, strand.on_engine, strand.rows, step);
    add_rows<T, gates>(n, W + k * gates * lanes<T>, lesser(chain, p.C - k), last, [&](int64_t, const T*& x, T*& a) {
      rows.next();
      x = at.x(rows.i, rows.s) + k;
      a = at.a(panel, rows.i, rows.s);
    });
  }
}

// --- gates ---

// 1 / (1 + e^-x); 2^-121 (2^-1000) where it is less.
template <class F>
HARKEN_INLINE F logistic(F x) {
  using T = Number<F>;
  constexpr T most = sizeof(T) == 4 ? 121 : 1000;
  const F e = x * T(-0x1.71547652b82fep0);
  return ratio(fill(T(1)), T(1) + exp2(most < e ? fill(most) : e));
}

// tanh as in lanes.hpp, with the faster quotient.
template <class F>
HARKEN_INLINE F bend(F x) {
  using T = Number<F>;
  const F y = x > T(20) ? fill(T(20)) : x < T(-20) ? fill(T(-20)) : x;
  const F e = exp2_less_one(y * T(2 * 0x1.71547652b82fep0));
  return ratio(e, e + T(2));
}

// Not inlined: which of two products becomes part of a sum is then decided once.
template <class T>
__attribute__((noinline)) void finish(const Moment<T>& at, int64_t panel, int64_t i, int64_t step, int phase) {
  const Recurrence& p = at.p;
  const int64_t j = panel * lanes<T>, n = p.H - j;
  T* a = at.a(panel, i, step);
  auto slot = [&](int k) { return take(a + k * lanes<T>); };
  Lanes<T> h;
  if (p.cell == Cell::lstm) {
    T* c = (T*)p.c + at.state(i) + j;
    const Lanes<T> in = rounded(logistic(slot(0)) * bend(slot(2)));
    const Lanes<T> C = logistic(slot(1)) * take_some(c, n) + in;
    put_some(c, C, n);
    h = logistic(slot(3)) * bend(C);
  } else {
    h = take_some(at.before(i, step) + j, n);
    if (p.phases() == 2 && phase == 0) {
      put_some(at.reset(i) + j, logistic(slot(0)) * h, n);
      put(a + lanes<T>, logistic(slot(1)));
      return;
    }
    const Lanes<T> z = p.phases() == 2 ? slot(1) : logistic(slot(1));
    const Lanes<T> N = bend(p.phases() == 2 ? slot(2) : slot(2) + logistic(slot(0)) * slot(3));
    h = N + z * (h - N);
  }
  put_some(at.y(i, step) + j, h, n);
  if (step + 1 == at.length(i)) return put_some((T*)p.h + at.state(i) + j, h, n);
  __builtin_prefetch(at.y(i, step + 1) + j, 1);  // memory is not waited for before the next meeting
}

// --- a += h W_hh^T, and the gates ---

template <class T, int gates>
void advance_in(const Recurrence& p, const Strand& strand, const T* panels, int64_t from, int64_t to, int64_t step,
                int phase) {
  constexpr int beside = side_by_side(gates);
  const Moment<T> at{p, strand};
  const bool apart = p.cell == Cell::gru_reset_before;
  const int64_t live = at.live(step), last = p.cell == Cell::gru ? 3 : apart ? 1 + phase : 3;
  const int64_t skip = (p.in_panels * p.gates() + phase * p.H * 2) * lanes<T>;
  auto in = [&](int64_t i) { return phase ? (const T*)at.reset(i) : at.before(i, step); };

  if (live == 0) return;
  if (live == 1)  // what others have just written comes all at once
    for (int64_t k = 0; k < p.H; k += 64 / sizeof(T)) __builtin_prefetch(in(0) + k);

  const int64_t width = live == 1 ? beside : 1, groups = (to - from + width - 1) / width;
  for (int64_t group = 0; group < groups; ++group) {
    // There and back: of weights that a cache just does not hold, those read last are read first.
    const int64_t panel = from + (step % 2 ? groups - 1 - group : group) * width, count = lesser(width, to - panel);
    const T* W = panels + (panel - from) * p.panel() + skip;
    for (int64_t k = 0; k < p.H; k += chain) {
      const int64_t terms = lesser(chain, p.H - k);
      const T* part = W + k * gates * lanes<T>;
      if (live == 1) {
        const T* row = in(0) + k;
        T* a = at.a(panel, 0, step);
        with_count<beside>(count, [&](auto P) {
          add_chain<T, 1, P.value, gates>(&row, part, p.panel(), terms, &a, at.a_apart(), last);
        });
      } else {
        add_rows<T, gates>(live, part, terms, last, [&](int64_t i, const T*& row, T*& a) {
          row = in(i) + k;
          a = at.a(panel, i, step);
        });
      }
    }
    for (int64_t beyond = 0; beyond < count; ++beyond)
      for (int64_t i = 0; i < live; ++i) finish<T>(at, panel + beyond, i, step, phase);
  }
}

// --- weights into panels ---

// Not inlined: in a loop the addresses of 16 rows are kept, and spilled: 0.115 ns a number instead of 0.1.
template <class T>
__attribute__((noinline)) void pack_square(const T* rows, int64_t step, int n, T* to, int64_t width) {
  Lanes<T> x[lanes<T>];
  if (n == lanes<T>) {
    take_transposed(rows, step, lanes<T>, x);
  } else {
    take_transposed(rows, step, n, x);
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes<T>; ++i) put(to + i * width, x[i]);
}

// to[k][gate][unit] = W[gate H + unit][k] for n units and `gates` gates from `gate` on.
template <class T>
void pack_panel(const T* W, int64_t H, int64_t K, int64_t j, int gate, int gates, T* to) {
  const int64_t left = H - j;
  const int n = int(lesser(lanes<T>, left)), width = gates * lanes<T>;
  for (int g = 0; g < gates; ++g) {
    const T* rows = W + ((gate + g) * H + j) * K;
    T* at = to + g * lanes<T>;
    int64_t k = 0;
    for (; k + lanes<T> <= K; k += lanes<T>) pack_square(rows + k, K, n, at + k * width, width);
    for (; k < K; ++k)
      for (int u = 0; u < lanes<T>; ++u) at[k * width + u] = u < n ? rows[u * K + k] : T(0);
  }
}

template <class T>
void pack_in(const Recurrence& p, int direction, int64_t panel, T* to) {
  const int gates = int(p.gates());
  const int64_t j = panel * lanes<T>, n = lesser(lanes<T>, p.H - j);
  const T *W = (const T*)p.W_hh[direction], *x = (const T*)p.b_ih[direction], *h = (const T*)p.b_hh[direction];
  if (p.in_panels) pack_panel<T>((const T*)p.W_ih[direction], p.H, p.C, j, 0, gates, to);
  to += p.in_panels * gates * lanes<T>;
  if (p.cell == Cell::gru_reset_before) {
    pack_panel<T>(W, p.H, p.H, j, 0, 2, to);
    pack_panel<T>(W, p.H, p.H, j, 2, 1, to + p.H * 2 * lanes<T>);
  } else {
    pack_panel<T>(W, p.H, p.H, j, 0, gates, to);
  }
  to += p.H * gates * lanes<T>;
  for (int64_t i = 0; i < slots * lanes<T>; ++i) to[i] = T(0);
  if (!x) return;
  for (int g = 0; g < gates; ++g)
    for (int64_t u = 0; u < n; ++u) {
      const int64_t unit = g * p.H + j + u;
      const bool alone = p.cell == Cell::gru && g == 2;
      to[g * lanes<T> + u] = alone ? x[unit] : x[unit] + h[unit];
      if (alone) to[3 * lanes<T> + u] = h[unit];
    }
}

// --- in either type ---

void pack(const Recurrence& p, int direction, int64_t panel, void* to) {
  p.in_double ? pack_in<double>(p, direction, panel, (double*)to) : pack_in<float>(p, direction, panel, (float*)to);
}

template <class T>
void project_as(const Recurrence& p, const Strand& strand, const void* panels, int64_t panel, int64_t step,
                int64_t steps) {
  if (p.gates() == 4) return project_in<T, 4>(p, strand, (const T*)panels, panel, step, steps);
  project_in<T, 3>(p, strand, (const T*)panels, panel, step, steps);
}

void project(const Recurrence& p, const Strand& strand, const void* panels, int64_t panel, int64_t step,
             int64_t steps) {
  const FlushedSubnormals mode;
  p.in_double ? project_as<double>(p, strand, panels, panel, step, steps)
              : project_as<float>(p, strand, panels, panel, step, steps);
}

template <class T>
void advance_as(const Recurrence& p, const Strand& strand, const void* panels, int64_t from, int64_t to, int64_t step,
                int phase) {
  const T* W = (const T*)panels;
  if (p.cell == Cell::lstm) return advance_in<T, 4>(p, strand, W, from, to, step, phase);
  if (p.cell == Cell::gru) return advance_in<T, 3>(p, strand, W, from, to, step, phase);
  if (phase == 0) return advance_in<T, 2>(p, strand, W, from, to, step, phase);
  advance_in<T, 1>(p, strand, W, from, to, step, phase);
}

void advance(const Recurrence& p, const Strand& strand, const void* panels, int64_t from, int64_t to, int64_t step,
             int phase) {
  const FlushedSubnormals mode;
  p.in_double ? advance_as<double>(p, strand, panels, from, to, step, phase)
              : advance_as<float>(p, strand, panels, from, to, step, phase);
}

}  // namespace recurrence

constexpr Recurrent recurrent = {{lanes<float>, lanes<double>}, decltype(engine(0))::exists, recurrence::pack,
                                 recurrence::project,           recurrence::advance,         recurrence::pack_tiles,
                                 recurrence::pack_steps,        recurrence::project_tiles};

}  // namespace
}  // namespace harken
