// group.hpp - 64 queries of a group of warps against tiles of keys, beside the engine that multiplies: turns, P, O / l.
#pragma once

#include "pipeline.hpp"

namespace harken {
namespace {

HARKEN_WORD int group() { return warp() / 4; }

// A warp is done with what others wait for.
HARKEN_WORD void leave_to(Barrier& empty) {
  warp_together();
  if (lane() == 0) arrive(empty);
}

constexpr int all_meet = 1, first_turn = 2;  // barriers by number; those of groups among themselves come last

template <class Plan>
HARKEN_WORD void take_turn() {
  meet(first_turn + group(), 2 * threads_of_group);
}
template <class Plan>
HARKEN_WORD void give_turn() {
  come(first_turn + (group() + 1) % Plan::groups, 2 * threads_of_group);
}

template <class Plan>
struct State {
  using Part = typename Plan::Part;
  Softmax<Part> softmax;
  float S[Plan::keys / 8][4], factor[rows_of_lane];  // of O, since m moved
  uint32_t P[Plan::steps][4];
};

// body(scores of 64 keys, which) with S among them, and back.
template <class Plan, class Body>
HARKEN_WORD void for_parts(float (&S)[Plan::keys / 8][4], Body body) {
#pragma unroll
  for (int part = 0; part < Plan::parts; ++part) {
    Scores<typename Plan::Part> scores;
#pragma unroll
    for (int n = 0; n < looked / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) scores.s[0][n][c] = S[part * looked / 8 + n][c];
    body(scores, part);
#pragma unroll
    for (int n = 0; n < looked / 8; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) S[part * looked / 8 + n][c] = scores.s[0][n][c];
  }
}

// S = Q K^T and O += P V are begun.
template <class Plan>
HARKEN_WORD void multiply_keys(State<Plan>& state, uint32_t rows, char* keys) {
  const uint64_t Q = descriptor(rows, 0);
  const uint64_t K = descriptor(shared_address(keys), 0);
#pragma unroll
  for (int step = 0; step < Plan::width / 16; ++step)
    product(typename Plan::S{}, state.S, Q + channels_on(step, Plan::query_slab), K + channels_on(step, Plan::key_slab),
            step > 0);
  commit_products();
}
template <class Plan>
HARKEN_WORD void multiply_values(State<Plan>& state, char* values) {
  const uint64_t V = descriptor(shared_address(values), Plan::key_slab);
#pragma unroll
  for (int step = 0; step < Plan::steps; ++step)
    product(typename Plan::S{}, state.softmax.O[0], state.P[step], V + rows_on(step));
  commit_products();
}

// S becomes powers, and m and l those of the union. Two chains of maxima and of sums for each row: a scheduler has one
// warp of each group, and no other to turn to while it waits for a sum.
template <class Plan>
HARKEN_WORD void weigh(State<Plan>& state, float factor) {
  constexpr int chains = 2;
  auto& softmax = state.softmax;
  Move<float> by[rows_of_lane];
  float sum[rows_of_lane][chains] = {};
#pragma unroll
  for (int r = 0; r < rows_of_lane; ++r) {
    float top[chains];
#pragma unroll
    for (int c = 0; c < chains; ++c) {
      top[c] = state.S[0][2 * r + c];
#pragma unroll
      for (int n = 1; n < Plan::keys / 8; ++n) top[c] = max(top[c], state.S[n][2 * r + c]);
    }
    float all = max(top[0], top[1]);
    all = max(all, from_neighbour(all, 1));
    all = max(all, from_neighbour(all, 2));
    by[r] = move(softmax.m[0][r], softmax.m[0][r] + slack, all * factor, 0.0f);
    softmax.m[0][r] = by[r].m;
    state.factor[r] = by[r].factor;
  }
#pragma unroll
  for (int n = 0; n < Plan::keys / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float& s = state.S[n][c];
      s = quick_exp2(fmaf(s, factor, -by[c / 2].subtract));
      sum[c / 2][c % 2] += s;
    }
#pragma unroll
  for (int r = 0; r < rows_of_lane; ++r) softmax.l[0][r] = softmax.l[0][r] * by[r].factor + (sum[r][0] + sum[r][1]);
}

// P for the next product.
template <class Plan>
HARKEN_WORD void make_weights(State<Plan>& state) {
#pragma unroll
  for (int n = 0; n < Plan::keys / 8; ++n)
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r)
      state.P[n / 2][n % 2 * 2 + r] = packed(typename Plan::S{}, state.S[n][2 * r], state.S[n][2 * r + 1]);
}

// O as m moved; by 1, too, where a branch would keep what follows waiting.
template <class Plan>
HARKEN_WORD void rescale(State<Plan>& state) {
#pragma unroll
  for (int n = 0; n < Plan::width / 8; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c) state.softmax.O[0][n][c] *= state.factor[c / 2];
}

// Is there NaN or Inf among these 2 numbers? An exponent of ones and one more is a carry into the sign.
template <class S>
HARKEN_WORD uint32_t carries(uint32_t x) {
  constexpr uint32_t exponent = __is_same(S, f16) ? 0x7c00 : 0x7f80, one = __is_same(S, f16) ? 0x0400 : 0x0080;
  return (x & (exponent << 16 | exponent)) + (one << 16 | one);
}

struct alignas(chunk_bytes) Chunk {
  uint32_t words[4];
};

template <class Plan>
HARKEN_WORD bool has_special(const char* V) {
  uint32_t found = 0;
#pragma unroll 4
  for (int n = thread() % threads_of_group; n < Plan::key_bytes / chunk_bytes; n += threads_of_group) {
    const Chunk chunk = ((const Chunk*)V)[n];
#pragma unroll
    for (int w = 0; w < 4; ++w) found |= carries<typename Plan::S>(chunk.words[w]);
  }
  return (found & 0x80008000u) != 0;
}

template <class Plan>
HARKEN_WORD void clear_tile(char* V) {
  using S = typename Plan::S;
#pragma unroll 1
  for (int n = thread(); n < Plan::key_bytes / 4; n += Plan::multiplying) {
    uint32_t& words = ((uint32_t*)V)[n];
    const uint32_t x = words;
    words = x & ((special<S>(x) ? 0 : 0xffffu) | (special<S>(x >> 16) ? 0 : 0xffff0000u));
  }
}

// What the rows see of the keys, and what becomes of S. Gives the factor of S.
template <class Plan>
HARKEN_WORD float modify_all(State<Plan>& state, const Job& job, int64_t k0, bool all) {
  const Head<float>& head = job.head;
  const RowsOfHead<typename Plan::Part> rows = {head, job.i0};
  float factor = 1;
  for_parts<Plan>(state.S, [&](auto& scores, int part) {
    const int64_t first = k0 + part * looked;
    if (!all || head.modifiers.bias) look(scores, head, rows, first);
    factor = modify(scores, head, rows, first);
    if (all) return;
    for_scores(scores, 0, [&](float& s, int r, int key) {
      if ((scores.sees[0][r] & uint64_t(1) << key) == 0) s = -__builtin_inff();
    });
  });
  return factor;
}

// NaN and Inf among values that not all rows see become 0. All groups say the same.
template <class Plan>
HARKEN_WORD bool cleared(char* V) {
  if (!any_of(first_turn + Plan::groups + group(), threads_of_group, has_special<Plan>(V))) return false;
  meet(all_meet, Plan::multiplying);  // all have read V
  clear_tile<Plan>(V);
  show_engines();
  meet(all_meet, Plan::multiplying);
  return true;
}

// They reach the rows that see them, whose weights for them are taken as 1. The numbers of a row lie side by side.
template <class Plan>
HARKEN_WORD void add_cleared(const Call& call, const Job& job, int64_t k0, State<Plan>& state) {
  using S = typename Plan::S;
  const Stored& V = job.head.V;
  const RowsOfHead<typename Plan::Part> rows = {job.head, job.i0};
#pragma unroll
  for (int part = 0; part < Plan::parts; ++part) {
    const int64_t first = k0 + part * looked;
    Scores<typename Plan::Part> scores;
    look(scores, job.head, rows, first);
#pragma unroll 1
    for (int key = 0; key < looked && first + key < job.head.sight.keys; ++key) {
      const char* const row = V.data + (first + key) * V.row + 2 * first_key();
      bool sees[rows_of_lane];
#pragma unroll
      for (int r = 0; r < rows_of_lane; ++r)
        sees[r] = (from_lane(scores.sees[0][r], holder_of(lane(), key)) >> (key / 8 * 8 + key % 2) & 1) != 0;
#pragma unroll
      for (int n = 0; n < Plan::width / 8; ++n) {
        const uint32_t pair = 8 * n < call.p.Dv ? *(const uint32_t*)(row + n * chunk_bytes) : 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const uint32_t bits = c % 2 == 0 ? pair & 0xffff : pair >> 16;
          if (special<S>(bits) && sees[c / 2]) state.softmax.O[0][n][c] += widen<float, uint32_t>(S{}, bits);
        }
      }
    }
  }
}

// O / l and m + log l. The words of 4 lanes side by side change hands, so that a lane has 16 bytes of a row.
template <class Plan>
HARKEN_WORD void leave(const Call& call, const Job& job, State<Plan>& state) {
  using Part = typename Plan::Part;
  const Head<float>& head = job.head;
  Softmax<Part>& softmax = state.softmax;
#pragma unroll
  for (int r = 0; r < rows_of_lane; ++r) {
    const int64_t i = job.i0 + row_of<Part>(0, r);
    float sum = softmax.l[0][r];
    sum += from_neighbour(sum, 1);
    sum += from_neighbour(sum, 2);
    double m = softmax.m[0][r], l = sum, a = 1;
    if (i >= head.queries) {
      m = -__builtin_inf();
      l = 0;
    } else if (head.has_sink) {
      a = add_sink(m, l, head.sink);
    }
    const float factor = l == 0 ? 0.0f : float(a / l);
    if (head.lse.data && i < call.p.Lq && lane() % 4 == 0) put_element(head.lse, i, 0, float(log_sum(m, l)));
    char* const row = head.out.data + i * head.out.row;
#pragma unroll
    for (int four = 0; four < Plan::width / 32; ++four) {
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float (&of)[4] = softmax.O[0][4 * four + n];
        words[n] = l == 0 ? 0 : packed(typename Plan::S{}, of[2 * r] * factor, of[2 * r + 1] * factor);
      }
#pragma unroll
      for (int by = 1; by <= 2; by *= 2) {
        const bool upper = (lane() & by) != 0;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          if ((n & by) != 0) continue;
          const uint32_t other = from_neighbour(upper ? words[n] : words[n + by], by);
          (upper ? words[n] : words[n + by]) = other;
        }
      }
      const int chunk = 4 * four + lane() % 4;
      if (i < call.p.Lq && chunk * chunk_numbers < call.p.Dv)
        *(Chunk*)(row + chunk * chunk_bytes) = {words[0], words[1], words[2], words[3]};
    }
  }
}

}  // namespace
}  // namespace harken
