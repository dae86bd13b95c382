// strip.hpp - what a thread works in for a task of the matrix form: strips of 32 queries, and keys and values as tiles.
#pragma once

#include "attend.hpp"
#include "matrix_product.hpp"

namespace harken {
namespace {

// 32 queries of a head with their state.
struct Strip {
  const Head<float>* head;
  int64_t i0, row;  // row: of the task's partial
  int n;
  char* packed;    // Q as tiles
  Tiles Q;         // there, or where it lies
  float *O, *l;    // [32][Dv], [32][16]
  float* whole;    // [32][16]: l of P before it is rounded, where the caller asks for its logarithm
  uint32_t again;  // rows to be done again
  bool begun;
  Outlook ahead;  // of these queries, on their lists
};

struct MatrixSpace {
  float* S[2];
  char* P[2];
  char *K, *V;
  float* rows;  // [64][channels]: a copy, where one is needed
  float *bias, *mask, *zeros;
  float* factors;      // of the keys of a unit
  uint64_t* left_out;  // of each unit of the block: keys whose values are not finite
  Head<float>* heads;
  Strip* strips;
  char* redo;
  int64_t D, Dv;  // in whole tiles
};

template <int N>
inline int64_t set_up(const Problem& p, const Plan& plan, char* from, MatrixSpace& space) {
  const int64_t group = p.Hq / p.Hkv, D = up(p.D, 32), Dv = up(p.Dv, tile_rows), block = up(plan.key_block, 64);
  const int64_t Q_bytes = 2 * (up(D, Terms<N>::depth) / Terms<N>::depth) * Terms<N>::tiles * tile_bytes;
  int64_t used = 0;
  auto bytes = [&](int64_t count) {
    char* at = from + used;
    used += up(count, 64);
    return at;
  };
  auto floats = [&](int64_t count) { return (float*)bytes(count * 4); };
  for (int i = 0; i < 2; ++i) {
    space.S[i] = floats(strip_rows * unit_keys<N>);
    space.P[i] = bytes(2 * Terms<N>::tiles * tile_bytes);
  }
  space.K = bytes(block * D * 2 * N);
  space.V = bytes(block * Dv * 2 * N);
  space.rows = floats(64 * most(D, Dv));
  space.bias = floats(unit_keys<N>);
  space.mask = floats(unit_keys<N>);
  space.factors = floats(unit_keys<N>);
  space.zeros = floats(most(D, Dv));
  if (from)
    for (int64_t d = 0; d < most(D, Dv); ++d) space.zeros[d] = 0;
  space.left_out = (uint64_t*)bytes(block / unit_keys<N> * sizeof(uint64_t));
  space.heads = (Head<float>*)bytes(group * sizeof(Head<float>));
  const int64_t strips = group * ((plan.tile_rows + strip_rows - 1) / strip_rows);
  space.strips = (Strip*)bytes(strips * sizeof(Strip));
  for (int64_t s = 0; s < strips; ++s) {
    Strip strip = {};
    strip.packed = bytes(Q_bytes);
    strip.O = floats(strip_rows * Dv);
    strip.l = floats(strip_rows * lanes<float>);
    strip.whole = N == 1 && p.lse.data ? floats(strip_rows * lanes<float>) : nullptr;
    if (from) space.strips[s] = strip;
  }
  space.D = D;
  space.Dv = Dv;
  Workspace<float> work;
  int64_t redo = set_up(p, tiled_plan<strip_rows>(plan), nullptr, work);
  space.redo = bytes(redo);
  return used;
}

// Rows i .. i + n - 1 where they lie, if they are whole tiles of E; else a copy in float.
template <class E>
inline bool readable(const Matrix& M, int64_t count, int64_t whole, bool unit) {
  return plain<E>(M, M.type) && !M.scale.data && count == whole && !unit && M.row % 4 == 0;
}

template <int N, class E>
inline void pack_strip(const Problem& p, MatrixSpace& space, Strip& strip) {
  const Head<float>& head = *strip.head;
  const float factor = scaled_later<N> ? 1.f : float(head.scale);
  const bool in_place = readable<E>(head.Q, p.D, space.D, head.cosine);
  float* sums = N == 1 ? strip.whole : strip.l;
  if (sums)
    for (int i = 0; i < strip_rows * lanes<float>; i += lanes<float>) put(sums + i, F32{});
  strip.again = 0;
  strip.begun = false;
  // As it lies only in whole cache lines (else 15 to 20 % slower), not in rows 4 KiB apart, which share a cache set.
  const bool aligned = ((int64_t)head.Q.data | head.Q.row) % 64 == 0 && head.Q.row % 4096 != 0;
  if (N == 1 && __is_same(E, bf16) && in_place && strip.n == strip_rows && aligned) {
    strip.Q = {head.Q.at(strip.i0, 0), head.Q.row, 64, tile_rows * head.Q.row};
    return;
  }
  const int64_t tiles = up(space.D, Terms<N>::depth) / Terms<N>::depth * Terms<N>::tiles;
  strip.Q = {strip.packed, 64, tile_bytes, tiles * tile_bytes};
  for (int r = 0; r < strip_rows; ++r) {
    if (in_place && r < strip.n) {
      pack_row<N>((const E*)head.Q.at(strip.i0 + r, 0), factor, r, space.D, strip.packed);
      continue;
    }
    if (r < strip.n) {
      compact(head.Q, strip.i0 + r, 1, p.D, space.D, head.cosine, space.rows);
    } else {
      for (int64_t d = 0; d < space.D; ++d) space.rows[d] = 0;
    }
    pack_row<N>(space.rows, factor, r, space.D, strip.packed);
  }
}

// Three terms hold a key times its scale; fewer hold what is stored, bfloat16 or int8, so the scale waits for S.
template <int N>
inline bool keys_scaled_later(const Head<float>& head) {
  return scaled_later<N> && head.K.scale.by_row() && !head.cosine;
}

template <int N>
struct InPlace {
  using type = float;
  static constexpr Type name = Type::f32;
};
template <>
struct InPlace<1> {
  using type = bf16;
  static constexpr Type name = Type::bf16;
};

// Keys in place are bfloat16 for one term and float for more; others come as a copy in float.
template <int N>
inline void pack_keys(const Problem& p, MatrixSpace& space, const Head<float>& head, int64_t k0, int64_t k1) {
  using E = typename InPlace<N>::type;
  const int64_t tile = space.D / 32 * N * tile_bytes;
  Stored K = head.K;
  if (keys_scaled_later<N>(head)) K.scale = {};
  const bool in_place = K.type == InPlace<N>::name && readable<E>(K, p.D, space.D, head.cosine);
  for (int64_t k = k0; k < k1; k += unit_keys<N>) {
    const int n = int(least(unit_keys<N>, k1 - k));
    const bool here = in_place && K.even(k, k + n);
    if (!here) compact(K, k, n, p.D, space.D, head.cosine, space.rows);
    for (int i = 0; i < n; i += tile_rows) {
      char* to = space.K + ((k - k0 + i) / tile_rows) * tile;
      if (here) {
        const Sheet<E> sheet = {(const E*)K.page(k).at(k, 0), K.row / int64_t(sizeof(E)), n, nullptr};
        pack_keys<N>(sheet, i, space.D, to);
      } else {
        const Sheet<float> sheet = {space.rows, space.D, n, nullptr};
        pack_keys<N>(sheet, i, space.D, to);
      }
    }
  }
}

// Also says for each unit which of its keys are left out.
template <int N, class E>
inline void pack_values(const Problem& p, MatrixSpace& space, const Head<float>& head, int64_t k0, int64_t k1) {
  constexpr int keys = unit_keys<N>;
  const int64_t unit_bytes = space.Dv / tile_rows * Terms<N>::tiles * tile_bytes;
  const bool in_place = readable<E>(head.V, p.Dv, space.Dv, false);
  auto pack = [&](auto sheet, int64_t unit) {
    char* to = space.V + unit * unit_bytes;
    uint64_t& left_out = space.left_out[unit];
    left_out = 0;
    if (pack_values<N>(sheet, 0, space.Dv, to)) return;
    left_out = not_finite<N>(sheet, space.Dv);
    pack_values<N>(sheet, left_out, space.Dv, to);
  };
  for (int64_t k = k0; k < k1; k += keys) {
    const int n = int(least(keys, k1 - k));
    if (in_place && head.V.even(k, k + n)) {
      pack(Sheet<E>{(const E*)head.V.page(k).at(k, 0), head.V.row / int64_t(sizeof(E)), n, (const E*)space.zeros},
           (k - k0) / keys);
    } else {
      compact(head.V, k, n, p.Dv, space.Dv, false, space.rows);
      pack(Sheet<float>{space.rows, space.Dv, n, space.zeros}, (k - k0) / keys);
    }
  }
}

// The rows of a strip that see a key that is left out.
template <int N>
inline uint32_t seeing(const Strip& strip, int64_t k0, uint64_t left_out) {
  const Head<float>& head = *strip.head;
  uint32_t rows = 0;
  for (int r = 0; r < strip.n; ++r) {
    const Interval of = seen(head.sight, strip.i0 + r);
    for (int k = 0; k < unit_keys<N>; ++k) {
      const bool sees = (left_out >> k & 1) && k0 + k >= of.first && k0 + k < of.end &&
                        (!head.mask.data || *head.mask.at(strip.i0 + r, k0 + k) != 0) &&
                        listed(head.sight.lists, strip.i0 + r, k0 + k);
      if (sees) rows |= uint32_t(1) << r;
    }
  }
  return rows;
}

}  // namespace
}  // namespace harken
