// matrix_recurrence.hpp - a = x W_ih^T + b of many steps on a matrix engine: x and W_ih as three terms of bfloat16.
//
// A tile of x is 16 rows of a strand, those of one step and then of the next; one of W_ih a gate of the 16 units of a
// panel. Each number is one sum in one order, and its 16 are all that decide whether the engine made it: what the terms
// do not hold comes out as NaN (planes.hpp), and they are computed again without it.
//
// h W_hh^T stays with FMA. Who computes it may not go by the batch, as bits do not, and a single row would lose: terms
// are 6 bytes a weight, which come from the L2 or beyond it, instead of 4. Sums of bytes are exact, so the same with
// tiles and without; four bytes a side in ten products take 17 us instead of 39 for 16 rows of LSTM with H 256, but
// 17.7 instead of 14.3 for one row, and 2.6 instead of 1.8 with H 128.
#pragma once

#include "../subnormals.hpp"
#include "linear.hpp"
#include "moment.hpp"
#include "six_products.hpp"

namespace harken {
namespace {
namespace recurrence {

template <class M>
void pack_tiles_on(const Recurrence& p, int direction, int64_t panel, char* to) {
  const int64_t j = panel * 16, whole = p.C / 32 * 32;
  const int n = int(p.H - j < 16 ? p.H - j : 16);
  for (int64_t gate = 0; gate < p.gates(); ++gate, to += p.tiles()) {
    const float* W = (const float*)p.W_ih[direction] + (gate * p.H + j) * p.C;
    pack_keys<3>({W, p.C, n, nullptr}, 0, whole, to);
    if (whole == p.C) continue;
    float rest[16 * 32] = {};
    for (int r = 0; r < n; ++r)
      for (int64_t c = whole; c < p.C; ++c) rest[r * 32 + c - whole] = W[r * p.C + c];
    pack_keys<3>({rest, 32, n, nullptr}, 0, 32, to + whole / 32 * 3 * tile_bytes);
  }
}

// Rows that are not there stay what they were: their sums go nowhere. Those of a step lie far apart; of each the next
// step is asked for meanwhile, which saves 1 % of a whole call of (32, 100, 256).
template <class M>
void pack_steps_on(const Recurrence& p, const Strand& strand, int64_t step, int64_t steps, int64_t part,
                   int64_t parts) {
  const Moment<float> at{p, strand};
  Walk<float> rows(at, 0, strand.on_engine, step);
  const int64_t n = rows.count(steps), from = n * part / parts, to = n * (part + 1) / parts;
  for (int64_t r = 0; r < to; ++r) {
    rows.next();
    if (r < from) continue;
    const float *x = at.x(rows.i, rows.s), *next = x + (strand.direction ? -p.C : p.C);
    for (int64_t c = 0; c < p.C; c += 16) __builtin_prefetch(next + c);
    put_terms(x, p.C, strand.x + r / 16 * p.tiles() + r % 16 * 64, tile_bytes);
  }
}

// What the engine did not: W_ih of a gate of a panel with the x of one row.
template <class M>
__attribute__((noinline)) void project_without(const Recurrence& p, int direction, int64_t panel, int64_t gate,
                                               const float* x, const float* bias, float* a) {
  const int64_t j = panel * 16;
  const float* W = (const float*)p.W_ih[direction] + (gate * p.H + j) * p.C;
  float y[16] = {};
  const Linear linear = {Activation::identity, false, x, W, nullptr, y, 1, p.C, p.H - j < 16 ? p.H - j : 16};
  multiply_part<float>(linear, 0, 1, 0, linear.outputs);
  put(a, take(y) + take(bias));
}

// 32 rows of a chunk.
struct Rows {
  int count = 0;
  const float* x[32];
  float* a[32];  // of the first panel
};

// Their sums with a pair of tiles of W, or with one.
struct Sums {
  alignas(64) float S[32 * 32];
  Rows rows;
  int64_t tile;
  int pair = 0;
};

// S = x W over all C inputs; beside(step, steps) is done between the products of the steps.
template <class M, class Beside>
HARKEN_INLINE void all_inputs(const Recurrence& p, const char* x, const char* w, int64_t second, float* S,
                              Beside beside) {
  alignas(64) float part[32 * 32];
  const int64_t steps = (p.C + 31) / 32;
  for (int64_t k = 0; k < steps; k += chunk / 32) {
    const int64_t end = steps - k < chunk / 32 ? steps : k + chunk / 32;
    SixProducts<M>::zero();
    for (int64_t c = k; c < end; ++c) {
      const int64_t at = c * 3 * tile_bytes;
      SixProducts<M>::add({x + at, 64, tile_bytes, p.tiles()}, w + at, second);
      beside(c, steps);
    }
    SixProducts<M>::put(k == 0 ? S : part);
    if (k > 0)
      for (int i = 0; i < 32 * 32; i += 16) put(S + i, take(S + i) + take(part + i));
  }
}

template <class M>
struct Projection {
  const Recurrence& p;
  const Strand& strand;
  const char* tiles;
  const float* panels;
  int64_t from;  // the panel that tiles and panels begin with
  Moment<float> at = {p, strand};

  // a of some of the rows.
  HARKEN_INLINE void give(const Sums& sums, int row0, int row1) const {
    const int64_t gates = p.gates();
    if (row1 > sums.rows.count) row1 = sums.rows.count;
    for (int i = 0; i < sums.pair; ++i) {
      const int64_t panel = (sums.tile + i) / gates, gate = (sums.tile + i) % gates;
      const int64_t place = panel * at.a_apart() + gate * 16;
      const float* bias = panels + (panel + 1) * p.panel() - (gates + 1 - gate) * 16;
      const F32 b = take(bias), beyond = take(bias + 16);
      Words32 bad = {};
      for (int r = row0; r < row1; ++r) {
        const F32 sum = take(sums.S + r * 32 + i * 16) + b;
        bad |= sum != sum;
        put(sums.rows.a[r] + place, sum);
        if (gates == 3 && gate == 2) put(sums.rows.a[r] + place + 16, beyond);  // that of u_n
      }
      if (!any(bad)) continue;
      for (int r = row0; r < row1; ++r) {
        float* a = sums.rows.a[r] + place;
        const F32 sum = take(a);
        if (any(sum != sum)) project_without<M>(p, strand.direction, from + panel, gate, sums.rows.x[r], bias, a);
      }
    }
  }

  // The sums of a block become a beside the products of the next: 146 thousand million multiply-adds a second become
  // 170 with 256 inputs.
  void operator()(int64_t to, int64_t step, int64_t steps) const {
    const int64_t count = (to - from) * p.gates(), apart = p.tiles();
    Walk<float> walk(at, 0, strand.on_engine, step);
    const int64_t n = walk.count(steps);
    Sums both[2];
    int now = 0;
    M::configure();
    for (int64_t row = 0; row < n; row += 32) {
      Rows rows;
      for (rows.count = 0; rows.count < 32 && row + rows.count < n; ++rows.count) {
        walk.next();
        rows.x[rows.count] = at.x(walk.i, walk.s);
        rows.a[rows.count] = at.a(from, walk.i, walk.s);
      }
      for (int64_t t = 0; t < count; t += 2, now ^= 1) {
        Sums &sums = both[now], &before = both[now ^ 1];
        sums.rows = rows;
        sums.tile = t;
        sums.pair = t + 1 < count ? 2 : 1;
        all_inputs<M>(p, strand.x + row / 16 * apart, tiles + t * apart, sums.pair == 2 ? apart : 0, sums.S,
                      [&](int64_t c, int64_t of)
                          __attribute__((always_inline)) { give(before, int(c * 32 / of), int((c + 1) * 32 / of)); });
      }
    }
    give(both[now ^ 1], 0, 32);
    M::release();
  }
};

template <class M = decltype(engine(0))>
void pack_tiles(const Recurrence& p, int direction, int64_t panel, char* to) {
  const FlushedSubnormals mode;
  if constexpr (M::exists) pack_tiles_on<M>(p, direction, panel, to);
}
template <class M = decltype(engine(0))>
void pack_steps(const Recurrence& p, const Strand& strand, int64_t step, int64_t steps, int64_t part, int64_t parts) {
  const FlushedSubnormals mode;
  if constexpr (M::exists) pack_steps_on<M>(p, strand, step, steps, part, parts);
}
template <class M = decltype(engine(0))>
void project_tiles(const Recurrence& p, const Strand& strand, const char* tiles, const void* panels, int64_t from,
                   int64_t to, int64_t step, int64_t steps) {
  const FlushedSubnormals mode;
  if constexpr (M::exists) Projection<M>{p, strand, tiles, (const float*)panels, from}(to, step, steps);
}

}  // namespace recurrence
}  // namespace
}  // namespace harken
