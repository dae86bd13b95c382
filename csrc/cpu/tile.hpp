// tile.hpp - the S tile in the L1 cache between the two products, and the passes over it.
//
// A tile is rows of registers. In the tiled form a row is one key and the lanes are queries; in decode the lanes are
// the keys and queries of a group. A tile knows for each lane the query's position and the key of its first row, so one
// formula of score.hpp and mask.hpp serves both.
#pragma once

#include "rows.hpp"

namespace harken {
namespace {

template <class T>
struct Tile {
  T* S;  // [rows][width]
  int64_t width;
  Lanes<T> j;            // the key of row 0, counted from the block's first
  T step;                // keys from one row to the next
  const T* p;            // [width] the query's position, counted from the block's first key
  const T *first, *end;  // [width] the interval that it sees, likewise
  const T* slope;        // [width] of alibi
  const T *bias, *mask;  // like S; or null
};

// Part of a tile: rows k0 .. k1 - 1 of the registers c0 .. c1 - 1.
struct Piece {
  int k0, k1, c0, c1;
};

template <class T, class Pass>
HARKEN_INLINE void each(const Tile<T>& tile, const Piece& piece, Pass pass) {
  for (int k = piece.k0; k < piece.k1; ++k)
    for (int c = piece.c0; c < piece.c1; ++c) {
      int64_t at = k * tile.width + c * lanes<T>;
      put(tile.S + at, pass(take(tile.S + at), at, c * lanes<T>, tile.j + tile.step * T(k)));
    }
}

template <class T>
inline void modify(const Tile<T>& tile, const Piece& piece, const Modifiers<T>& by) {
  using F = Lanes<T>;
  each(tile, piece, [&](F s, int64_t at, int64_t lane, F j) {
    F bias = tile.bias ? take(tile.bias + at) : F{};
    return modified(s, by, bias, take(tile.slope + lane), take(tile.p + lane), j);
  });
}

template <class T>
inline void hide(const Tile<T>& tile, const Piece& piece, bool edge) {
  using F = Lanes<T>;
  if (edge)
    each(tile, piece, [&](F s, int64_t, int64_t lane, F j) {
      return hidden_outside(s, j, take(tile.first + lane), take(tile.end + lane));
    });
  if (tile.mask)
    each(tile, piece, [&](F s, int64_t at, int64_t, F) { return hidden_where_zero(s, take(tile.mask + at)); });
}

// The largest score of each lane.
template <class T>
inline void tops(const Tile<T>& tile, const Piece& piece, T* top) {
  for (int c = piece.c0; c < piece.c1; ++c) {
    Lanes<T> m = take(top + c * lanes<T>);
    for (int k = piece.k0; k < piece.k1; ++k) m = max(m, take(tile.S + k * tile.width + c * lanes<T>));
    put(top + c * lanes<T>, m);
  }
}

// P = 2^(S - subtract), l += P, summed apart first as in value_tile.
template <class T, int C>
HARKEN_INLINE void exponentiate(T* S, int64_t width, int64_t rows, const T* subtract, T* l) {
  Lanes<T> sum[C], less[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    sum[c] = Lanes<T>{};
    less[c] = subtract ? take(subtract + c * lanes<T>) : Lanes<T>{};
  }
  for (int64_t k = 0; k < rows; ++k, S += width)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Lanes<T> x = take(S + c * lanes<T>);
      x = exp2(subtract ? x - less[c] : x);
      put(S + c * lanes<T>, x);
      sum[c] += x;
    }
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) put(l + c * lanes<T>, take(l + c * lanes<T>) + sum[c]);
}

// Not inlined, twice: the loop without a subtraction is the common one.
template <class T, int C>
__attribute__((noinline)) void exponentials(T* S, int64_t width, int64_t rows, const T* subtract, T* l) {
  if (subtract) {
    exponentiate<T, C>(S, width, rows, subtract, l);
  } else {
    exponentiate<T, C>(S, width, rows, nullptr, l);
  }
}

inline Shown shown(const Matrix& mask, int64_t i, int64_t rows, int64_t j, int64_t keys) {
  if (mask.row == 0) rows = 1;
  if (mask.col == 0) keys = 1;
  uint64_t every = 0x0101010101010101u, some = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const char* at = mask.at(i + r, j);
    int64_t k = 0;
    if (mask.col == 1)
      for (; k + 8 <= keys; k += 8) {
        uint64_t eight;
        __builtin_memcpy(&eight, at + k, 8);
        every &= eight;
        some |= eight;
      }
    for (; k < keys; ++k) {
      uint64_t one = uint8_t(at[k * mask.col]) != 0 ? 0x0101010101010101u : 0;
      every &= one;
      some |= one;
    }
    if (some && every != 0x0101010101010101u) return Shown::some;
  }
  return !some ? Shown::none : Shown::all;
}

// Rows i .. i + n - 1 and keys j .. j + keys - 1 of a bias or mask, with queries in lanes: to[k * width + r]. A row
// that serves all queries (stride 0) is read once.
template <class T>
inline void read_sheet(const Matrix& M, int64_t i, int64_t n, int64_t j, int64_t keys, T* to, int64_t width, T* rows,
                       int64_t row_step) {
  bool shared = M.row == 0;
  for (int64_t c = 0; c < width; c += lanes<T>) {
    int64_t count = least(lanes<T>, n - c);
    for (int64_t r = 0; r < (shared ? 1 : count); ++r) read_row(M, i + c + r, j, keys, rows + r * row_step);
    if (shared) {
      for (int64_t k = 0; k < keys; ++k) put(to + k * width + c, fill(rows[k]));
    } else {
      read_transposed<T>({rows, row_step}, count, keys, fill(T(1)), to + c, width);
    }
  }
}

// What query i sees of the keys j .. j + n - 1 by array and by list, as 1 and 0.
template <class T>
inline void read_mask_row(const Head<T>& head, int64_t i, int64_t j, int64_t n, T* to) {
  if (head.mask.data) {
    read_row(head.mask, i, j, n, to);
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = 1;
  }
  hide_gaps(head.sight.lists, i, j, n, to);
}

// The same of a tile, as read_sheet.
template <class T>
inline void read_mask(const Head<T>& head, int64_t i, int64_t n, int64_t j, int64_t keys, T* to, int64_t width, T* rows,
                      int64_t row_step) {
  if (!head.sight.lists.number) return read_sheet(head.mask, i, n, j, keys, to, width, rows, row_step);
  for (int64_t c = 0; c < width; c += lanes<T>) {
    const int64_t count = least(lanes<T>, n - c);
    for (int64_t r = 0; r < count; ++r) read_mask_row(head, i + c + r, j, keys, rows + r * row_step);
    read_transposed<T>({rows, row_step}, count, keys, fill(T(1)), to + c, width);
  }
}

}  // namespace
}  // namespace harken
