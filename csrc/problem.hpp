// problem.hpp - one attention call as plain data: arrays as (pointer, strides), sizes, options.
//
// The wall between Python and the kernels. Everything is checked before a Problem exists; nothing is checked behind it.
#pragma once

#include <stdint.h>

#include "dtype.hpp"

namespace harken {

constexpr int max_batch_axes = 62;               // NumPy's 64 axes less two
constexpr int64_t unbounded = int64_t(1) << 48;  // a window side, or a position, beyond any array

// Element (b, h, i, j) lies at data + sum_a b[a] batch[a] + h head + i row + j col.
// Strides are in bytes, of any sign, 0 where an axis is broadcast. data == nullptr: there is no such array.
struct View {
  char* data;
  Type type;
  int64_t head, row, col;
  int64_t batch[max_batch_axes];  // only the first Problem::batch_axes are set
};

// Keys and values that do not lie evenly: key j of batch row b is row (j + origin) % rows of page
// table[(j + origin) / rows]. A ring is one page that stands in its table twice, and an origin.
struct Pages {
  View table;                          // (B, pages)  i64, which page; or absent
  View origins;                        // (B)  i64; or absent: 0
  int64_t rows;                        // of a page
  int64_t k_step, v_step;              // bytes from a page to the next
  int64_t k_scale_step, v_scale_step;  // ... of their factors
};

struct Interval {
  int64_t first, end;
};

// For each query the keys that it sees as a list of intervals: sorted, not empty, neither overlapping nor touching.
// Queries that see the same share a list.
struct Lists {
  View number;                // (B, Hq, Lq)  i64: of the query's list; or absent: every key is seen
  const int64_t* begin;       // [lists + 1]  where a list begins
  const Interval* intervals;  // [begin[lists]]
};

enum class Score : int32_t { dot, cosine, additive };

enum class Precision : int32_t { highest, high, medium };  // of the products of float32 on a matrix engine

struct Problem {
  Type type;  // that q, k and v are computed as: the widest of theirs. out and weights are of q's
  Score score;
  Precision precision;

  int batch_axes;  // leading axes, merged where strides allow
  int64_t batch_shape[max_batch_axes];
  int64_t batches;                 // their product, B
  int64_t Hq, Hkv, Lq, Lk, D, Dv;  // heads of q, of k; queries, keys; channels of q and k, of v

  View q, k, v;  // (B, Hq, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv)
  View out;      // (B, Hq, Lq, Dv)
  View lse;      // (B, Hq, Lq)      f64 for f64 input, else f32; or absent
  View weights;  // (B, Hq, Lq, Lk)  all zero on entry; or absent

  View w;                 // (B, Hq, D)  col steps through D; any floating type; or absent
  View k_scale, v_scale;  // like k and v, a stride of 0 along rows or columns; f64 for type f64, else f32; or absent
  Pages pages;            // of k and v

  View mask;  // (B, Hq, Lq, Lk)  boolean; or absent
  View bias;  // (B, Hq, Lq, Lk)  any floating type; or absent
  Lists lists;

  View scales, slopes, sinks;  // (B, Hq)  f64; or absent
  double scale;                // where scales is absent
  double softcap;              // 0: none

  View q_starts, q_lengths, kv_lengths;  // (B)  i64; or absent. Lengths lie in [0, L]
  int64_t left, right;                   // key j is seen from p when p - left <= j <= p + right; causal: right = 0
};

}  // namespace harken
