// fragments.hpp - one tile of keys against the queries of a warp, in the fragments of a matrix engine.
//
//     S = Q K^T                       C of mma: rows are queries, columns keys
//     P = 2^(score(S) - M)            where they are; rounded to the type of V they are A of the second product
//     m, l, O = M,  a l + sum P,  a O + P V
//
// A lane holds two rows of each strip of 16 queries, lane / 4 and 8 more, in columns that three neighbours complete:
// maxima are taken over 4 lanes for each tile, and sums once, at the end.
#pragma once

#include "element.hpp"
#include "layout.hpp"
#include "schedule.hpp"

namespace harken {
namespace {

constexpr int strip_rows = 16, rows_of_lane = 2;

// What a kernel is made for: S, f16, bf16 or float; width, of a row in shared memory; keys, of a tile; strips, of a
// warp.
template <class S_, int width_, int keys_, int strips_>
struct Form {
  using S = S_;
  static constexpr int width = width_, keys = keys_, strips = strips_;
  static constexpr int row_bytes = width * int(sizeof(S)), tile_bytes = keys * row_bytes;
  static constexpr int halves = row_bytes / 2;  // what the layout counts a row in
  static constexpr int steps = row_bytes / 32;  // of channels, in a product
  static_assert(keys <= 64, "what a row sees of a tile is a word");
};

// Channels of Q in A fragments.
template <class Form>
struct Queries {
  uint32_t A[Form::strips][Form::steps][4];
};

template <class Form>
struct Softmax {
  float m[Form::strips][rows_of_lane];  // its limit is m + slack, and costs a register
  float l[Form::strips][rows_of_lane];  // of this lane's keys
  float O[Form::strips][Form::width / 8][4];
};

template <class Form>
struct Scores {
  float s[Form::strips][Form::keys / 8][4];
  uint64_t sees[Form::strips][rows_of_lane];  // bit n: key n + first_key() of the tile
};

HARKEN_WORD int first_key() { return cell_of(lane(), 0).col; }  // of a tile, in this lane

template <class Form>
HARKEN_WORD void begin(Softmax<Form>& state) {
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip) {
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r) {
      state.m[strip][r] = -__builtin_inff();
      state.l[strip][r] = 0;
    }
#pragma unroll
    for (int n = 0; n < Form::width / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) state.O[strip][n][c] = 0;
  }
}

// The row of the tile that is row r of this lane in a strip.
template <class Form>
HARKEN_WORD int row_of(int strip, int r) {
  return (warp() * Form::strips + strip) * strip_rows + cell_of(lane(), 2 * r).row;
}

template <class Form>
HARKEN_WORD void load_queries(uint32_t (&A)[4], const char* Q, int strip, int step) {
  const Spot spot = of_rows(lane());
  const int row = (warp() * Form::strips + strip) * strip_rows + spot.row;
  load_matrix(A, Q + along(offset_of(Form::halves, row, spot.chunk), 2 * step));
}

// S = Q K^T. query(A, strip, step) gives a fragment of Q.
template <class Form, class Query>
HARKEN_WORD void multiply_keys(Scores<Form>& scores, const char* K, Query query) {
  constexpr int strips = Form::strips;
  const Spot spot = of_columns(lane());
  const int offset = offset_of(Form::width, spot.row, spot.chunk);
#pragma unroll
  for (int strip = 0; strip < strips; ++strip)
#pragma unroll
    for (int n = 0; n < Form::keys / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) scores.s[strip][n][c] = 0;
#pragma unroll
  for (int step = 0; step < Form::steps; ++step) {
    uint32_t A[strips][4];
#pragma unroll
    for (int strip = 0; strip < strips; ++strip) query(A[strip], strip, step);
#pragma unroll
    for (int pair = 0; pair < Form::keys / 16; ++pair) {
      uint32_t B[4];
      load_matrix(B, K + pair * 16 * Form::row_bytes + along(offset, 2 * step));
#pragma unroll
      for (int strip = 0; strip < strips; ++strip) {
        mma(typename Form::S{}, scores.s[strip][2 * pair], A[strip], B[0], B[1]);
        mma(typename Form::S{}, scores.s[strip][2 * pair + 1], A[strip], B[2], B[3]);
      }
    }
  }
}

// O += P V, with P as multiply_keys left S.
template <class Form>
HARKEN_WORD void multiply_values(Softmax<Form>& state, const Scores<Form>& scores, const char* V) {
  using S = typename Form::S;
  constexpr int strips = Form::strips;
  const Spot spot = of_rows(lane());
  const int offset = offset_of(Form::width, spot.row, spot.chunk);
#pragma unroll
  for (int step = 0; step < Form::keys / 16; ++step) {
    uint32_t A[strips][4];
#pragma unroll
    for (int strip = 0; strip < strips; ++strip) {
      const float (&left)[4] = scores.s[strip][2 * step], (&right)[4] = scores.s[strip][2 * step + 1];
      A[strip][0] = packed(S{}, left[0], left[1]);
      A[strip][1] = packed(S{}, left[2], left[3]);
      A[strip][2] = packed(S{}, right[0], right[1]);
      A[strip][3] = packed(S{}, right[2], right[3]);
    }
#pragma unroll
    for (int pair = 0; pair < Form::width / 16; ++pair) {
      uint32_t B[4];
      load_turned(B, V + step * 16 * Form::row_bytes + along(offset, 2 * pair));
#pragma unroll
      for (int strip = 0; strip < strips; ++strip) {
        mma(S{}, state.O[strip][2 * pair], A[strip], B[0], B[1]);
        mma(S{}, state.O[strip][2 * pair + 1], A[strip], B[2], B[3]);
      }
    }
  }
}

// body(s, row of the lane, key of the tile less first_key()) for every score of the lane.
template <class Form, class Body>
HARKEN_WORD void for_scores(Scores<Form>& scores, int strip, Body body) {
#pragma unroll
  for (int n = 0; n < Form::keys / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) body(scores.s[strip][n][c], c / 2, 8 * n + c % 2);
}

// Whose the rows of a tile are, for what is said of each. Here queries i0, i0 + 1, ... of one head; where a tile holds
// queries of many heads, `mask`, `bias` and `lists` are the bytes from the arrays of `head` to those of the row's.
template <class Form>
struct RowsOfHead {
  const Head<float>& head;
  int64_t i0;

  HARKEN_WORD int64_t query(int strip, int r) const { return i0 + row_of<Form>(strip, r); }
  HARKEN_WORD int64_t behind(int, int r) const {
    return 8 * r;
  }  // by how much query(strip, r) is behind query(strip, 0)
  HARKEN_WORD int64_t mask(int, int) const { return 0; }
  HARKEN_WORD int64_t bias(int, int) const { return 0; }
  HARKEN_WORD int64_t lists(int, int) const { return 0; }
  HARKEN_WORD float factor() const { return float(head.scale); }  // that all have; 0: each has its own
  HARKEN_WORD float scale(int, int, float common) const { return common; }
  HARKEN_WORD float slope(int, int) const { return head.modifiers.slope; }
};

// What the rows of this lane see of keys k0 .. k0 + keys - 1. Rows that do not exist see nothing.
template <class Form, class Rows>
HARKEN_WORD void look(Scores<Form>& scores, const Head<float>& head, const Rows& rows, int64_t k0) {
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r) {
      const int64_t i = rows.query(strip, r);
      uint64_t bits = i < head.queries ? seen_bits(head.sight, i, k0, rows.lists(strip, r)) : 0;
      if (head.mask.data && bits != 0) {
#pragma unroll 1
        for (int n = 0; n < Form::keys / 4; ++n) {
          const int key = n / 2 * 8 + n % 2 + first_key();
          if ((bits >> key & 1) != 0 && *(head.mask.at(i, k0 + key) + rows.mask(strip, r)) == 0)
            bits &= ~(uint64_t(1) << key);
        }
      }
      scores.sees[strip][r] = bits >> first_key();
    }
}

// s = score(q . k) in units of log2 e, divided by the factor that is returned and > 0. What rows have in common is
// asked for once, and rows by their distance from the first: asked for each anew, float32 of 128 channels spills.
template <class Form, class Rows>
HARKEN_WORD float modify(Scores<Form>& scores, const Head<float>& head, const Rows& rows, int64_t k0) {
  using S = typename Form::S;
  const Modifiers<float>& by = head.modifiers;
  const float common = rows.factor();
  if (!by.any() && common > 0) return common;
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip) {
    const int64_t first = rows.query(strip, 0);
    for_scores(scores, strip, [&](float& s, int r, int) { s *= rows.scale(strip, r, common); });
    if (by.cap != 0) for_scores(scores, strip, [&](float& s, int, int) { s = softcapped(s, by.cap); });
    if (by.bias) {
      for_scores(scores, strip, [&](float& s, int r, int key) {
        if ((scores.sees[strip][r] >> key & 1) == 0) return;
        const char* at = head.bias.at(first + rows.behind(strip, r), k0 + first_key() + key) + rows.bias(strip, r);
        s = biased(s, head.bias.type == Type::f32 ? *(const float*)at : widened<float, S>(at));
      });
    }
    if (by.alibi) {
      const float position = float(first + head.sight.q_start - k0 - first_key());
      for_scores(scores, strip, [&](float& s, int r, int key) {
        s = distanced(s, rows.slope(strip, r), position + float(rows.behind(strip, r)), float(key));
      });
    }
  }
  return 1;
}

// Scores of keys that a row does not see have no weight.
template <class Form>
HARKEN_WORD void hide(Scores<Form>& scores) {
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
    for_scores(scores, strip,
               [&](float& s, int r, int key) { s = hidden_where_zero(s, float(scores.sees[strip][r] >> key & 1)); });
}

// S becomes P, and the state that of the union but for P V.
template <class Form>
HARKEN_WORD void exponentiate(Softmax<Form>& state, Scores<Form>& scores, float factor) {
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip) {
    float top[rows_of_lane] = {-__builtin_inff(), -__builtin_inff()};
    for_scores(scores, strip, [&](float& s, int r, int) { top[r] = max(top[r], s); });
    Move<float> by[rows_of_lane];
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r) {
      top[r] = max(top[r], from_neighbour(top[r], 1));
      top[r] = max(top[r], from_neighbour(top[r], 2));
      by[r] = move(state.m[strip][r], state.m[strip][r] + slack, top[r] * factor, 0.0f);
      state.m[strip][r] = by[r].m;
    }
    if (ballot(by[0].any || by[1].any) != 0) {
#pragma unroll
      for (int r = 0; r < rows_of_lane; ++r) state.l[strip][r] *= by[r].factor;
#pragma unroll
      for (int n = 0; n < Form::width / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) state.O[strip][n][c] *= by[c / 2].factor;
    }
    for_scores(scores, strip, [&](float& s, int r, int) {
      s = quick_exp2(fmaf(s, factor, -by[r].subtract));
      state.l[strip][r] += s;
    });
  }
}

// NaN or Inf, by the bits of a number.
template <class S>
HARKEN_WORD bool special(uint32_t bits) {
  constexpr uint32_t exponent = __is_same(S, float) ? 0x7f800000 : __is_same(S, f16) ? 0x7c00 : 0x7f80;
  return (bits & exponent) == exponent;
}
template <class S>
HARKEN_WORD uint32_t bits_at(const char* at) {
  if constexpr (sizeof(S) == 4) return *(const uint32_t*)at;
  return *(const uint16_t*)at;
}

// The channel of O[..][n / 2][n % 2 + 2 r] of this lane.
template <class Form>
HARKEN_WORD int channel_of(int n) {
  if constexpr (sizeof(typename Form::S) == 4) return channel_of_pair(lane(), n / 2, n % 2);
  return n / 2 * 8 + cell_of(lane(), n % 2).col;
}

// NaN and Inf become 0 among the values that this thread copied, of `keys` rows. True: there were some.
template <class S, int width, int keys, int threads>
HARKEN_WORD bool clear_special(char* V) {
  bool any = false;
#pragma unroll 1
  for (int n = thread(); n < keys * width / chunk_numbers; n += threads) {
    const Spot spot = copied(width, n);
    uint32_t* words = (uint32_t*)(V + offset_of(width, spot.row, spot.chunk));
#pragma unroll
    for (int w = 0; w < chunk_bytes / 4; ++w) {
      const uint32_t x = words[w];
      const uint32_t keep = (special<S>(x) ? 0 : 0xffffu) | (special<S>(x >> 16) ? 0 : 0xffff0000u);
      if (keep == ~0u) continue;
      words[w] = x & keep;
      any = true;
    }
  }
  return any;
}

// NaN and Inf among V reach the rows that see them, whose weights for them are taken as 1; in shared memory they are 0.
// value(key)(channel) is where a number of V lies.
template <class Form, class Value>
HARKEN_WORD void add_special(Softmax<Form>& state, const Scores<Form>& scores, int64_t k0, int64_t keys_end,
                             int64_t channels, Value value) {
  using S = typename Form::S;
#pragma unroll 1
  for (int key = 0; key < Form::keys && k0 + key < keys_end; ++key) {
    const int holder = holder_of(lane(), key);
    bool sees[Form::strips][rows_of_lane];
#pragma unroll
    for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
      for (int r = 0; r < rows_of_lane; ++r)
        sees[strip][r] = (from_lane(scores.sees[strip][r], holder) >> (key / 8 * 8 + key % 2) & 1) != 0;
    const auto of_key = value(k0 + key);
#pragma unroll
    for (int n = 0; n < Form::width / 4; ++n) {
      const int channel = channel_of<Form>(n);
      if (channel >= channels) continue;
      const char* at = of_key(channel);
      if (!special<S>(bits_at<S>(at))) continue;
      const float x = widened<float, S>(at);
#pragma unroll
      for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
        for (int r = 0; r < rows_of_lane; ++r)
          if (sees[strip][r]) state.O[strip][n / 2][n % 2 + 2 * r] += x;
    }
  }
}

// value of add_special, of rows side by side.
HARKEN_WORD auto values_in(const Matrix& V) {
  return [&V](int64_t key) { return [&V, key](int64_t channel) { return V.data + key * V.row + channel * V.col; }; };
}

// Keys k0 .. k0 + keys - 1 join the state: the page. whole: all rows see all of them, as far as intervals say.
// query(A, strip, step) gives a fragment of Q; value is that of add_special.
template <class Form, class Rows, class Query, class Value>
HARKEN_WORD void absorb(Softmax<Form>& state, const Head<float>& head, const Rows& rows, int64_t k0, bool whole,
                        const char* K, const char* V, bool has_special, int64_t channels, Query query, Value value) {
  Scores<Form> scores;
  multiply_keys(scores, K, query);
  const bool all = whole && !head.mask.data;
  if (!all || head.modifiers.bias) look(scores, head, rows, k0);
  const float factor = modify(scores, head, rows, k0);
  if (!all) hide(scores);
  exponentiate(state, scores, factor);
  multiply_values(state, scores, V);
  if (has_special) add_special(state, scores, k0, head.sight.keys, channels, value);
}

}  // namespace
}  // namespace harken
