// matrix.hpp - the page once more, for a matrix engine: keys along the lanes, products and exponentials at once.
//
//     while P = 2^S of one unit of keys is made,  S = Q K^T of the next and O += P V of the one before
//
// There is no maximum: any reference is exact in floating point as long as 2^(s - m) neither overflows nor vanishes, so
// m is 0 and the row's l says at the end whether that was right. A row whose l or O is out of range, or has seen a
// number that the terms do not hold, is done again by attend.hpp, which also handles every kind of infinity.
#pragma once

#include "strip.hpp"

namespace harken {
namespace {

// A unit of keys that meets a strip.
struct Step {
  Strip* strip;
  int64_t k0;
  Extent extent;
  const char *K, *V;
  bool listed;  // lists hide some of it
};

// What the rows see of a unit, but for what lists and masks hide.
inline Edges edges_of(const Step& step, int64_t k1) {
  constexpr int64_t far = 256;  // from the unit's first key: out of it for all rows of a strip
  const Strip& strip = *step.strip;
  const Sight& sight = strip.head->sight;
  auto near = [](int64_t j) { return float(most(-far, least(j, far))); };
  const int64_t p = strip.i0 + sight.q_start - step.k0, last = least(k1 - step.k0, far), n = strip.n;
  const int64_t first = p - sight.left, end = p + sight.right + 1;
  const Extent& of = step.extent;
  // The row 16 further down is at an edge only where the first is: its tiles reach 16 keys further, or the unit ends.
  const bool any = last < of.tiles() * tile_rows || first + n > 1 || end < of.upper * tile_rows;
  return {any || !of.even(), near(first), near(end), float(last)};
}

// What else happens to the scores of a unit before they become exponentials, where anything does; false: nothing has.
template <int N>
inline bool modify_unit(const MatrixSpace& space, const Step& step, int64_t k1, float* S) {
  const int keys = tile_rows * step.extent.tiles();
  const Strip& strip = *step.strip;
  const Head<float>& head = *strip.head;
  const Modifiers<float>& by = head.modifiers;
  const int n = int(least(keys, k1 - step.k0));
  const bool masked = head.mask.data != nullptr, later = keys_scaled_later<N>(head);
  if (!step.listed && !masked && !by.any() && !later) return false;

  const float factor = scaled_later<N> ? float(head.scale) : 1.f;
  F32 count;
  for (int i = 0; i < lanes<float>; ++i) count[i] = float(i);
  for (int i = n; i < keys; ++i) space.bias[i] = space.mask[i] = 0;
  if (later) read_factors(head.K, step.k0, n, keys, space.factors);
  for (int r = 0; r < strip.n; ++r) {
    const int64_t i = strip.i0 + r;
    bool hides = masked;
    const Interval of = seen(head.sight, i, step.k0, step.k0 + n, hides);
    const F32 p = fill(float(i + head.sight.q_start - step.k0)), slope = fill(by.slope);
    const F32 first = fill(float(of.first - step.k0)), end = fill(float(of.end - step.k0));
    if (by.bias) read_row(head.bias, i, step.k0, n, space.bias);
    if (hides) read_mask_row(head, i, step.k0, n, space.mask);
    for (int k = 0; k < keys; k += lanes<float>) {
      const F32 j = count + float(k);
      float* at = S + r * unit_keys<N> + k;
      F32 s = take(at) * factor;
      if (later) s *= take(space.factors + k);
      if (by.any()) s = modified(s, by, take(space.bias + k), slope, p, j);
      s = hidden_outside(s, j, first, end);
      if (hides) s = hidden_where_zero(s, take(space.mask + k));
      put(at, s);
    }
  }
  return true;
}

// The pipeline: S of `current` is there, P of `previous` is there.
template <class M, int N>
struct Pipeline {
  const MatrixSpace& space;
  int64_t k1;  // the end of the keys
  Step current = {}, previous = {};
  int parity = 0;

  __attribute__((noinline)) void advance(const Step& next) {
    constexpr int ticks = Factors<M, N>::ticks;
    const int64_t steps = up(space.D, Terms<N>::depth) / Terms<N>::depth;
    float* S = space.S[parity];
    Row<M, N> row = {S, space.P[parity], nullptr, 1};
    Edges edges = {};
    int rows = 0;
    if (current.strip) {
      edges = edges_of(current, k1);
      if (!modify_unit<N>(space, current, k1, S) && scaled_later<N>) row.factor = float(current.strip->head->scale);
      row.l = current.strip->l;
      rows = current.extent.halves() * tile_rows;
      if (current.strip->whole) sum_exponentials<N>(S, current.extent, edges, row.factor, current.strip->whole);
    }
    const int in_all = ticks * int((next.strip ? (next.extent.upper + next.extent.lower) * steps : 0) +
                                   (previous.strip ? previous.extent.halves() * (space.Dv / tile_rows + (N == 1)) : 0));
    if (!edges.any) {
      products(next, Exponentials<WholeRow<M, N>>{{row, N == 1 ? current.extent.upper / 2 : 1}, rows, in_all});
    } else {
      products(next, Exponentials<EdgeRow<M, N>>{{row, current.extent, edges, 0}, rows, in_all});
    }
    previous = current;
    current = next;
    parity ^= 1;
  }

  template <class Beside>
  HARKEN_INLINE void products(const Step& next, Beside rows) {
    if (next.strip) matrix_scores<M, N>(next.strip->Q, next.K, space.D, next.extent, space.S[parity ^ 1], rows);
    if (previous.strip) {
      Strip& strip = *previous.strip;
      matrix_values<M, N>({space.P[parity ^ 1], 64, P_tile_bytes, tile_bytes}, previous.V, space.Dv, previous.extent,
                          strip.O, strip.l, !strip.begun, rows);
      strip.begun = true;
    }
    rows.rest();
  }
};

// l of 16 rows.
template <int N>
inline F32 sums_of(const float* l) {
  if constexpr (N == 1) {  // alike in all columns
    F32 of_row = {};
    for (int r = 0; r < lanes<float>; ++r) of_row[r] = l[r * lanes<float>];
    return of_row;
  } else {
    F32 x[lanes<float>];
    for (int r = 0; r < lanes<float>; ++r) x[r] = take(l + r * lanes<float>);
    return sums(x);
  }
}

constexpr float least_l = 0x1p-80f, most_l = 0x1p80f, least_O = 0x1p-90f;

// Does the row stand? Its sum must be where no exponential overflowed and none that counts vanished; its O finite, and
// with several terms large enough that their last ones did not vanish.
template <int N>
inline bool stands(float l, const float* O, int64_t Dv) {
  if (!(l > least_l && l < most_l)) return false;
  F32 bad = {}, top = {};
  for (int64_t d = 0; d < Dv; d += lanes<float>) {
    bad += take(O + d) * 0.f;
    top = max(top, absolute(take(O + d)));
  }
  if (any(bad != bad)) return false;
  return N == 1 || !any(top > F32{}) || any(top > fill(least_O) * l);
}

// All rows of a strip at once, where nothing is special; false: something is, and what was written does not count.
template <int N, class E>
inline bool write_strip(const Problem& p, const Plan& plan, const Task& task, const MatrixSpace& space,
                        const Strip& strip, const float* l, const float* factor) {
  const Head<float>& head = *strip.head;
  auto sees = [&](int64_t i) {
    bool gaps = false;
    const Interval of = seen(head.sight, i, task.k0, task.k1, gaps);
    return of.first < of.end;
  };
  if (plan.ranges > 1 || head.has_sink || strip.again || !strip.begun || p.Dv != space.Dv) return false;
  if (head.out.col != sizeof(E) || !sees(strip.i0) || !sees(strip.i0 + strip.n - 1)) return false;
  F32 bad = {};
  for (int r = 0; r < strip.n; ++r) {
    if (!(l[r] > least_l && l[r] < most_l)) return false;
    const float* O = strip.O + r * space.Dv;
    E* to = (E*)head.out.at(strip.i0 + r, 0);
    F32 top = {};
    for (int64_t d = 0; d < space.Dv; d += lanes<float>) {
      const F32 x = take(O + d);
      bad += x * 0.f;
      if (N > 1) top = max(top, absolute(x));
      put(to + d, x * factor[r]);
    }
    if (N > 1 && !any(top > fill(least_O) * l[r])) return false;
  }
  return !any(bad != bad);
}

template <int N, class E>
inline void finish_strip(const Problem& p, const Plan& plan, const Task& task, MatrixSpace& space, Strip& strip) {
  const Head<float>& head = *strip.head;
  const bool split = plan.ranges > 1;
  alignas(64) float l[strip_rows], factor[strip_rows], whole[strip_rows];
  for (int r = 0; r < strip_rows; r += lanes<float>) {
    const F32 sum = sums_of<N>(strip.l + r * lanes<float>);
    put(l + r, sum);
    put(factor + r, 1.f / sum);
    if (strip.whole) put(whole + r, sums_of<2>(strip.whole + r * lanes<float>));
  }
  if (write_strip<N, E>(p, plan, task, space, strip, l, factor)) {
    if (head.lse.data)
      for (int r = 0; r < strip.n; ++r) finish_lse(head, strip.i0 + r, 0, strip.whole ? whole[r] : l[r]);
    return;
  }
  for (int r = 0; r < strip.n; ++r) {
    float* O = strip.O + r * space.Dv;
    const int64_t i = strip.i0 + r;
    bool gaps = false;
    const Interval of = seen(head.sight, i, task.k0, task.k1, gaps);
    float m = 0;
    const bool none = !strip.begun || of.first >= of.end;
    if (none) {
      m = -infinity;
      l[r] = factor[r] = 0;
      for (int64_t d = 0; d < space.Dv; ++d) O[d] = 0;
    } else if ((strip.again >> r & 1) || !stands<N>(l[r], O, space.Dv)) {
      strip.again |= uint32_t(1) << r;
      continue;
    }
    if (split) {
      Partial<float> to = partial_at<float>(p, plan, task.index);
      to.m[strip.row + r] = m;
      to.l[strip.row + r] = l[r];
      to.whole[strip.row + r] = strip.whole && !none ? whole[r] : l[r];
      __builtin_memcpy(to.O + (strip.row + r) * p.Dv, O, p.Dv * sizeof(float));
      continue;
    }
    if (head.has_sink) {
      finish_row(p, head, i, m, l[r], O);
    } else {
      write_row(head.out, i, 0, p.Dv, O, factor[r]);
    }
    if (head.lse.data) finish_lse(head, i, m, strip.whole && !none ? whole[r] : l[r]);
  }
  if (strip.again == 0) return;
  bool only[strip_rows];
  for (int r = 0; r < strip_rows; ++r) only[r] = strip.again >> r & 1;
  Task again = task;
  again.q0 = strip.i0;
  again.q1 = strip.i0 + strip.n;
  attend_rows(p, tiled_plan<strip_rows>(plan), again, head, strip.row, space.redo, only);
}

template <class M>
struct Released {
  ~Released() { M::release(); }
};

template <class M, int N, class E>
inline void attend_strips(const Problem& p, const Plan& plan, const Task& task, char* scratch) {
  constexpr int keys = unit_keys<N>;
  MatrixSpace space;
  set_up<N>(p, plan, scratch, space);
  const int64_t group = p.Hq / p.Hkv;
  int strips = 0;
  for (int64_t g = 0; g < group; ++g) {
    Head<float>& head = space.heads[g] = head_at<float>(p, task.b, task.h * group + g);
    const int64_t i1 = most(task.q0, least(task.q1, head.queries));
    for (int64_t i = task.q0; i < i1; i += strip_rows) {
      Strip& strip = space.strips[strips++];
      strip.head = &head;
      strip.i0 = i;
      strip.row = g * (task.q1 - task.q0) + i - task.q0;
      strip.n = int(least(strip_rows, i1 - i));
      pack_strip<N, E>(p, space, strip);
    }
    if (plan.ranges == 1) {
      blank_rows(p, head, i1, task.q1, space.rows);
    } else {
      blank_partial(p, partial_at<float>(p, plan, task.index), g * (task.q1 - task.q0) + i1 - task.q0, task.q1 - i1);
    }
  }
  if (strips == 0) return;

  const Head<float>& head = space.heads[0];
  const int64_t i1 = most(task.q0, least(task.q1, head.queries));
  const Interval visible = seen(head.sight, task.q0, i1);
  const int64_t end = least(visible.end, task.k1), block = plan.key_block;
  const int64_t unit_of_K = keys / tile_rows * (space.D / 32 * N * tile_bytes);
  const int64_t unit_of_V = space.Dv / tile_rows * (Terms<N>::tiles * tile_bytes);
  // What else a short head could share with the next one was measured with 96 heads of 64 to 197 queries and keys:
  //   to bring the next one near meanwhile, as brief does: 6 to 10 % slower, every fourth line 2 %, every sixteenth 0;
  //   the units of many heads in one pipeline that drains once, strips packed when they begin and written when they
  //   end: float32 0.99 to 1.02 x, bfloat16 0.93 to 0.99 x;
  //   to pack the next one's Q, K and V row by row among the products, 96 to 150 KB through the L1 cache: 15 % slower.
  const Released<M> at_the_end;
  Outlook ahead = {};
  for (int64_t b = most(visible.first, task.k0) / block * block; b < end; b += block) {
    if (interrupted()) return;
    if (shown(space.heads, group, task.q0, i1, b, least(b + block, end), ahead) == Shown::none) {
      if (ahead.until >= end) break;
      b = (ahead.until / block - 1) * block;
      continue;
    }
    M::configure();  // again for each block: a signal handler may have called, and released it
    const Interval here = seen(space.heads, group, task.q0, i1, b, least(b + block, end));
    const int64_t b0 = here.first / keys * keys, b1 = here.end;
    pack_keys<N>(p, space, head, b0, b1);
    pack_values<N, E>(p, space, head, b0, b1);
    Pipeline<M, N> pipeline = {space, b1};
    for (int s = 0; s < strips; ++s) {
      Strip& strip = space.strips[s];
      const Interval of = seen(strip.head->sight, strip.i0, strip.i0 + strip.n);
      for (int64_t k = most(b0, of.first / keys * keys); k < least(b1, of.end); k += keys) {
        const Matrix& mask = strip.head->mask;
        if (mask.data && shown(mask, strip.i0, strip.n, k, least(keys, b1 - k)) == Shown::none) continue;
        const Shown lists =
            shown(strip.head->sight.lists, strip.i0, strip.i0 + strip.n, k, least(k + keys, b1), strip.ahead);
        if (lists == Shown::none) continue;
        const int64_t unit = (k - b0) / keys;
        if (const uint64_t out = space.left_out[unit]) strip.again |= seeing<N>(strip, k, out);
        auto tiles = [&](int row) {  // one at least, so that each row begins
          const int64_t end = least(b1, seen(strip.head->sight, strip.i0 + row).end) - k;
          return int(most(1, (least(keys, end) + tile_rows - 1) / tile_rows));
        };
        const Extent extent = {tiles(int(least(strip.n, tile_rows)) - 1), strip.n > tile_rows ? tiles(strip.n - 1) : 0};
        pipeline.advance(
            {&strip, k, extent, space.K + unit * unit_of_K, space.V + unit * unit_of_V, lists == Shown::some});
      }
    }
    pipeline.advance({});
    pipeline.advance({});
  }
  for (int s = 0; s < strips; ++s) finish_strip<N, E>(p, plan, task, space, space.strips[s]);
}

// A storage type comes in the terms that it needs, float also in fewer.
template <class M>
inline void attend_matrix(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  const Task task = task_at(p, plan, index);
  switch (p.type) {
    case Type::bf16: return attend_strips<M, 1, bf16>(p, plan, task, scratch);
    case Type::f16: return attend_strips<M, 2, f16>(p, plan, task, scratch);
    default: break;
  }
  switch (plan.terms) {
    case 1: return attend_strips<M, 1, float>(p, plan, task, scratch);
    case 2: return attend_strips<M, 2, float>(p, plan, task, scratch);
    default: return attend_strips<M, 3, float>(p, plan, task, scratch);
  }
}

inline int64_t matrix_scratch(const Problem& p, const Plan& plan) {
  MatrixSpace space;
  return plan.terms == 1   ? set_up<1>(p, plan, nullptr, space)
         : plan.terms == 2 ? set_up<2>(p, plan, nullptr, space)
                           : set_up<3>(p, plan, nullptr, space);
}

}  // namespace
}  // namespace harken
