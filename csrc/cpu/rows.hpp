// rows.hpp - rows of any storage type and stride, read into the compute type and written back.
//
// Here storage types end. What is read is the same number whatever the strides were, so a layout never changes a bit.
#pragma once

#include "../head.hpp"
#include "lanes.hpp"

namespace harken {
namespace {

template <class T, class S>
inline void read_row(const char* from, int64_t step, int64_t n, T* to) {
  int64_t i = 0;
  if constexpr (__is_same(__typeof__(take((const S*)0)), Lanes<T>)) {
    if (step == sizeof(S))
      for (; i + lanes<T> <= n; i += lanes<T>) put(to + i, take((const S*)from + i));
  }
  if constexpr (__is_same(S, T))
    if (step == sizeof(S)) return put_some(to + i, take_some((const T*)from + i, n - i), n - i);
  for (; i < n; ++i) {
    S x;
    __builtin_memcpy(&x, from + i * step, sizeof(S));
    to[i] = T(take_one(x));
  }
}

template <class T>
inline void read_row(const Matrix& M, int64_t i, int64_t j, int64_t n, T* to) {
  const char* from = M.at(i, j);
  switch (M.type) {
#define HARKEN_READ(name, cpp, numpy, compute) \
  case Type::name: return read_row<T, cpp>(from, M.col, n, to);
    HARKEN_KEY_TYPES(HARKEN_READ)
#undef HARKEN_READ
    case Type::boolean:
      for (int64_t k = 0; k < n; ++k) to[k] = T(from[k * M.col] != 0);
      return;
    case Type::i64: return;
  }
}

// Numbers times a factor.
template <class T, class S>
inline void write_row(char* to, int64_t step, int64_t n, const T* from, Lanes<T> factor) {
  int64_t i = 0;
  if (step == sizeof(S))
    for (; i + lanes<T> <= n; i += lanes<T>) put((S*)to + i, take(from + i) * factor);
  if constexpr (__is_same(S, T))
    if (step == sizeof(S)) return put_some((T*)to + i, take_some(from + i, n - i) * factor, n - i);
  for (; i < n; i += lanes<T>) {  // the last few, or every one where they lie apart
    alignas(vector_bytes) T some[lanes<T>] = {};
    S narrowed[lanes<T>];
    int64_t count = least(lanes<T>, n - i);
    __builtin_memcpy(some, from + i, count * sizeof(T));
    put(narrowed, take(some) * factor);
    for (int64_t k = 0; k < count; ++k) __builtin_memcpy(to + (i + k) * step, &narrowed[k], sizeof(S));
  }
}

// The output types of T: those that are computed in it.
template <class T>
inline void write_row(const Matrix& M, int64_t i, int64_t j, int64_t n, const T* from, T factor = 1) {
  char* to = M.at(i, j);
  switch (M.type) {
#define HARKEN_WRITE(name, cpp, numpy, compute) \
  case Type::name:                              \
    if constexpr (__is_same(T, compute)) write_row<T, cpp>(to, M.col, n, from, fill(factor)); \
    return;
    HARKEN_STORAGE_TYPES(HARKEN_WRITE)
#undef HARKEN_WRITE
    default: return;
  }
}

inline void write_lse(const Matrix& M, int64_t i, double lse) {
  if (!M.data) return;
  if (M.type == Type::f64) {
    __builtin_memcpy(M.at(i, 0), &lse, 8);
  } else {
    float rounded = float(lse);
    __builtin_memcpy(M.at(i, 0), &rounded, 4);
  }
}

// Does the matrix lie as an array of S, each row without gaps?
template <class S>
inline bool plain(const Matrix& M, Type type) {
  return M.type == type && M.col == sizeof(S) && M.row % int64_t(sizeof(S)) == 0 &&
         (int64_t)M.data % int64_t(sizeof(S)) == 0;
}

template <class T>
constexpr Type type_of = sizeof(T) == 4 ? Type::f32 : Type::f64;

// May the products read it where it lies? Rows 4096 bytes apart fall into the same few sets of the L1 cache: reading
// them in place costs 10 to 25 % of a call, a compact copy shared by 256 queries nearly nothing.
template <class T>
inline bool in_place(const Matrix& M) {
  return plain<T>(M, type_of<T>) && !M.scale.data && (M.row % 4096 != 0 || M.row == 0);
}

template <class T>
struct Rows {
  const T* at;
  int64_t step;  // numbers from one row to the next
};

// Row i of a scaled matrix.
template <class T>
inline void scale_row(const Scale& by, int64_t i, int64_t n, T* row) {
  int64_t d = 0;
  if (by.by_row() || by.col == 0) {
    const T factor = by.at<T>(i, 0);
    for (; d + lanes<T> <= n; d += lanes<T>) put(row + d, take(row + d) * factor);
    for (; d < n; ++d) row[d] *= factor;
    return;
  }
  if (by.col == sizeof(T))
    for (; d + lanes<T> <= n; d += lanes<T>) put(row + d, take(row + d) * take((const T*)by.data + d));
  for (; d < n; ++d) row[d] *= by.at<T>(0, d);
}

// The factors of rows i .. i + n - 1, then 0 up to `whole`.
template <class T>
inline void read_factors(const Stored& M, int64_t i, int64_t n, int64_t whole, T* to) {
  for (int64_t r = n; r < whole; ++r) to[r] = 0;
  M.for_pages(i, i + n, [&](const Matrix& page, int64_t from, int64_t end) {
    const Scale& by = page.scale;
    if (by.row == sizeof(T)) {
      __builtin_memcpy(to + from - i, by.data + from * by.row, (end - from) * sizeof(T));
    } else {
      for (; from < end; ++from) to[from - i] = by.at<T>(from, 0);
    }
  });
}

// Rows i .. i + n - 1 in the compute type, `step` numbers a row and 0 beyond `count`; unit: divided by their norms.
// Scales end here, as types do. Decode, which reads without a copy, has its own place for them.
template <class T>
inline Rows<T> compact(const Matrix& M, int64_t i, int64_t n, int64_t count, int64_t step, bool unit, T* copy) {
  if (!unit && !M.scale.data && step == count && M.col == size_of(M.type) &&
      M.row == count * M.col) {  // rows without gaps are one row
    if (n > 0) read_row(M, i, 0, n * count, copy);
    return {copy, step};
  }
  for (int64_t r = 0; r < n; ++r) {
    T* row = copy + r * step;
    read_row(M, i + r, 0, count, row);
    if (M.scale.data) scale_row(M.scale, i + r, count, row);
    for (int64_t d = count; d < step; ++d) row[d] = 0;
    if (!unit) continue;
    T norm = T(inverse_norm(row, count));
    for (int64_t d = 0; d < count; ++d) row[d] *= norm;
  }
  return {copy, step};
}

// Rows i .. i1 - 1 as the products read them: in place, or a compact copy.
template <class T>
inline Rows<T> near(const Matrix& M, int64_t i, int64_t i1, int64_t count, int64_t step, bool unit, T* copy) {
  if (!unit && in_place<T>(M)) return {(const T*)M.at(i, 0), M.row / int64_t(sizeof(T))};
  return compact(M, i, i1 - i, count, step, unit, copy);
}

// Of keys or values: where pages meet, a copy of them in a row.
template <class T>
inline Rows<T> compact(const Stored& M, int64_t i, int64_t n, int64_t count, int64_t step, bool unit, T* copy) {
  M.for_pages(i, i + n, [&](const Matrix& page, int64_t from, int64_t to) {
    compact(page, from, to - from, count, step, unit, copy + (from - i) * step);
  });
  return {copy, step};
}

template <class T>
inline Rows<T> near(const Stored& M, int64_t i, int64_t i1, int64_t count, int64_t step, bool unit, T* copy) {
  if (!M.even(i, i1)) return compact(M, i, i1 - i, count, step, unit, copy);
  return near(M.page(i), i, i1, count, step, unit, copy);
}

// The same as they are stored, E.
template <class E>
inline const E* as_stored(const Stored& M, int64_t i, int64_t i1, int64_t count, E* copy) {
  M.for_pages(i, i1, [&](const Matrix& page, int64_t from, int64_t to) {
    for (E* row = copy + (from - i) * count; from < to; ++from, row += count)
      if (M.col == sizeof(E)) {
        __builtin_memcpy(row, page.at(from, 0), count * sizeof(E));
      } else {
        for (int64_t d = 0; d < count; ++d) __builtin_memcpy(row + d, page.at(from, d), sizeof(E));
      }
  });
  return copy;
}

// 1 <= n <= lanes rows of `count` numbers, times one factor each, into lanes: to[d * width + i] = factor[i] *
// row[i][d].
template <class T>
inline void read_transposed(const Rows<T>& from, int64_t n, int64_t count, Lanes<T> factor, T* to, int64_t width) {
  constexpr int N = lanes<T>;
  int64_t d = 0;
  for (; d + N <= count; d += N) {
    Lanes<T> x[N];
    take_transposed(from.at + d, from.step, int(n), x);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) put(to + (d + i) * width, x[i] * factor);
  }
  for (; d < count; ++d) {
    Lanes<T> x = {};
    for (int64_t i = 0; i < n; ++i) x[i] = from.at[i * from.step + d];
    put(to + d * width, x * factor);
  }
}

// The other way: row i, i < n, gets from[d * width + i] * factor[i].
template <class T>
inline void write_transposed(const T* from, int64_t width, int64_t count, Lanes<T> factor, int64_t n, T* to,
                             int64_t step) {
  constexpr int N = lanes<T>;
  int64_t d = 0;
  for (; d + N <= count; d += N) {
    Lanes<T> x[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = take(from + (d + i) * width) * factor;
    put_transposed(x, int(n), to + d, step);
  }
  for (; d < count; ++d) {
    Lanes<T> x = take(from + d * width) * factor;
    for (int64_t i = 0; i < n; ++i) to[i * step + d] = x[i];
  }
}

}  // namespace
}  // namespace harken
