// decode.hpp - few queries against many keys: channels along the lanes, every key and value read once, as it is stored.
//
// The rows of a task are the queries of all heads that share its keys, taken four, two or one at a time. The products
// of R rows with lanes / R keys are summed across lanes together, so that one register holds the scores [R][lanes / R]:
// the same tile, the same passes, the same page as attend.hpp; only the products differ.
#pragma once

#include "additive_product.hpp"
#include "attend.hpp"
#include "digits.hpp"

namespace harken {
namespace {

// What a thread works in while a chunk is near.
template <class T>
struct DecodeWorkspace {
  T *K, *V;                   // [chunk][D], [chunk][Dv]: a copy, where one is needed
  T *S, *bias, *mask, *seen;  // [chunk / keys][lanes]
  T* row;                     // [chunk]
  AdditiveKeys<T>* additive;  // of the chunk; and w of each head
  ChannelWeights<T>* w;
  // Off the keys and values, of which only numbers as they are stored are read:
  Scale of_K, of_V;  // of each column: into q, into O. Of each row: into the scores, into the weights after l is summed
  T *factor_K, *factor_V;  // [chunk + lanes], the factors of its rows
  bool digits;             // the products are those of digits.hpp
  DigitSpace digit;
};

// Up to four rows of a task with their state; row r has the lanes r * keys .. (r + 1) * keys - 1.
template <class T>
struct DecodeRows {
  int r0, last;      // rows of the task
  int count;         // registers' rows: 4, 2 or 1. Three rows are four, the last one twice, and it is left once
  T *Q, *O;          // [count][D], [count][Dv], D and Dv rounded up to registers
  char* digits;      // Q as tiles of digits,
  float* counts;     // [16] and what each of these counts
  T *m, *l, *limit;  // [lanes], alike in all lanes of a row; l: [count][lanes], one sum for each residue of the key
  AdditiveQueries<T>* additive;
};

// Bias or mask for the scores of a group, as they lie in S.
template <class T, int R>
inline void gather(const Problem& p, const Head<T>* heads, Matrix Head<T>::* which, const DecodeRows<T>& rows,
                   int64_t k0, int n, T* to, T* row) {
  constexpr int keys = keys_in<T, R>;
  for (int r = 0; r < R; ++r) {
    const int64_t of_task = least(rows.r0 + r, rows.last);
    read_row(heads[of_task / p.Lq].*which, of_task % p.Lq, k0, n, row);
    for (int k = 0; k < up(n, keys); ++k) to[k / keys * lanes<T> + r * keys + k % keys] = k < n ? row[k] : T(0);
  }
}

// S[k][r] *= factor[k].
template <class T, int R>
inline void scale_keys(T* S, int registers, const T* factor) {
  typename Vector<T>::Words key;
#pragma GCC unroll 16
  for (int lane = 0; lane < lanes<T>; ++lane) key[lane] = lane % keys_in<T, R>;
  for (int i = 0; i < registers; ++i, S += lanes<T>, factor += keys_in<T, R>)
    put(S, take(S) * __builtin_shuffle(take(factor), key));
}

// P = 2^(S - subtract), l += P. A row's sum is kept for each residue of its keys modulo the number of lanes, so that
// its bits do not depend on how many rows share a register.
template <class T, int R>
inline void exponentials_of_rows(T* S, int registers, Lanes<T> subtract, T* l) {
  Lanes<T> sum[R] = {};
  for (int i = 0; i < registers; i += R)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (i + r >= registers) break;
      Lanes<T> x = exp2(take(S + (i + r) * lanes<T>) - subtract);
      put(S + (i + r) * lanes<T>, x);
      sum[r] += x;
    }
  for (int r = 0; r < R; ++r) put(l + r * lanes<T>, take(l + r * lanes<T>) + sum[r]);
}

// A chunk of keys as the products read it: E where it lies, or T where it had to be copied.
template <class E>
struct Chunk {
  const E *K, *V;
  int64_t K_step, V_step, D, Dv, k0;
  int n;
};

// One chunk of keys joins the state of R rows: the page.
template <class T, class E, int R>
inline void absorb_rows(const Problem& p, const Head<T>* heads, const DecodeWorkspace<T>& work,
                        const DecodeRows<T>& rows, const Chunk<E>& at, bool careful, bool& hidden, Ahead next_V,
                        Ahead next_K) {
  constexpr int keys = keys_in<T, R>;
  const int registers = (at.n + keys - 1) / keys;
  const Piece all = {0, registers, 0, 1};
  const bool masked = heads[0].mask.data != nullptr;
  const Modifiers<T>& by = heads[0].modifiers;

  bool edge = at.n % keys != 0;
  alignas(64) T key[lanes<T>], position[lanes<T>], first[lanes<T>], end[lanes<T>], slope[lanes<T>], top[lanes<T>];
  for (int lane = 0; lane < lanes<T>; ++lane) {
    const int64_t r = least(rows.r0 + lane / keys, rows.last);
    const Head<T>& head = heads[r / p.Lq];
    Interval of = seen(head.sight, r % p.Lq);
    edge |= of.first > at.k0 || of.end < at.k0 + at.n;
    key[lane] = T(lane % keys);
    position[lane] = T(r % p.Lq + head.sight.q_start - at.k0);
    first[lane] = T(most(0, least(at.n, of.first - at.k0)));
    end[lane] = T(most(0, least(at.n, of.end - at.k0)));
    slope[lane] = head.modifiers.slope;
    top[lane] = -infinity;
  }
  hidden |= edge || masked;
  Tile<T> tile = {work.S, lanes<T>, take(key), T(keys), position, first, end, slope, nullptr, nullptr};

  constexpr bool bytes = Engine::exists && __is_same(E, int8_t) && R == digit_rows;
  if (heads[0].additive) {
    const T* w[R];
    Lanes<T> power;
    for (int lane = 0; lane < lanes<T>; ++lane) {
      const ChannelWeights<T>& of_head = work.w[least(rows.r0 + lane / keys, rows.last) / p.Lq];
      w[lane / keys] = of_head.w;
      power[lane] = of_head.power;
    }
    additive_scores_of_rows<T, R>(*work.additive, w, rows.Q, *rows.additive, power, at.D, work.S, work.seen);
  } else if (bytes && work.digits) {
    if constexpr (bytes)
      scores_in_digits<Engine>(at.K, at.K_step, at.n, rows.Q, rows.digits, rows.counts, at.D, work.S, work.digit,
                               next_V);
  } else {
    scores_of_rows<T, E, R>(at.K, at.K_step, at.n, rows.Q, at.D, work.S, next_V);
  }
  if (work.of_K.by_row()) scale_keys<T, R>(work.S, registers, work.factor_K);
  if (by.bias) {
    gather<T, R>(p, heads, &Head<T>::bias, rows, at.k0, at.n, work.bias, work.row);
    tile.bias = work.bias;
  }
  if (masked) {
    gather<T, R>(p, heads, &Head<T>::mask, rows, at.k0, at.n, work.mask, work.row);
    tile.mask = work.mask;
  }
  if (by.any()) modify(tile, all, by);
  hide(tile, all, edge);
  tops(tile, all, top);
  for (int r = 0; r < R; ++r) {  // the largest of a row, in all of its lanes
    T* of_row = top + r * keys;
    T m = of_row[0];
    for (int i = 1; i < keys; ++i) m = of_row[i] > m ? of_row[i] : m;
    for (int i = 0; i < keys; ++i) of_row[i] = m;
  }

  Move<Lanes<T>> to = move(take(rows.m), take(rows.limit), take(top), Lanes<T>{});
  if (to.any) {
    put(rows.m, to.m);
    put(rows.limit, to.limit);
    for (int r = 0; r < R; ++r) put(rows.l + r * lanes<T>, take(rows.l + r * lanes<T>) * to.factor);
    for (int r = 0; r < R; ++r)
      for (int64_t d = 0; d < at.Dv; d += lanes<T>)
        put(rows.O + r * at.Dv + d, take(rows.O + r * at.Dv + d) * fill(T(to.factor[r * keys])));
  }
  exponentials_of_rows<T, R>(work.S, registers, to.subtract, rows.l);
  if (work.of_V.by_row()) scale_keys<T, R>(work.S, registers, work.factor_V);

  if (careful) {
    for (int i = 0; i < registers * lanes<T>; ++i) work.seen[i] = 0;
    tile.S = work.seen;
    hide(tile, all, true);
  }
  if constexpr (bytes) {
    if (work.digits) {
      for (int i = 0; careful && i < registers * lanes<T>; ++i)
        if (work.seen[i] != 0) work.S[i] = 0;
      return values_in_digits<Engine>(at.V, at.V_step, at.n, work.S, rows.O, at.Dv, work.digit, next_K);
    }
  }
  if (!careful) {
    constexpr int X = sums_held / R < 8 ? sums_held / R : 8;
    values_in_slices<T, E, R, X>(at.V, at.V_step, at.n, work.S, rows.O, at.Dv, 0, next_K);
    return;
  }
  selected_values_of_rows<T, E, R>(at.V, at.V_step, at.n, work.S, work.seen, rows.O, at.Dv);
}

// Do the keys lie as take_two gives them? Additive scores read theirs from the copy, channel by channel.
template <class T>
inline bool parted(const Head<T>& head) {
  return head.K.type == Type::bf16 && !head.additive;
}

// All rows of a task against its keys, in chunks; the groups of rows take turns at each chunk while it is near.
template <class T, class E>
inline bool absorb_keys(const Problem& p, const Task& task, const Head<T>* heads, const DecodeWorkspace<T>& work,
                        const DecodeRows<T>* groups, int count, bool copy, bool careful, bool& hidden) {
  const Head<T>& head = heads[0];
  const int64_t D = up(p.D, lanes<T>), Dv = up(p.Dv, lanes<T>);
  const int64_t bytes = p.batches * p.Hkv * p.Lk * (p.D + p.Dv) * int64_t(sizeof(E));
  const bool beyond_L2 = !copy && bytes > (4 << 20);
  Interval keys = seen(head.sight, 0, p.Lq);
  int64_t end = least(keys.end, task.k1), k = most(keys.first, task.k0) / chunk * chunk;
  const Engaged<Engine> engaged = {work.digits};
  for (; k < end; k += chunk) {
    if (interrupted()) return false;
    engaged.configure();
    int n = int(least(chunk, end - k));
    Chunk<E> at = {(const E*)head.K.page(k).at(k, 0),
                   (const E*)head.V.page(k).at(k, 0),
                   head.K.row / int64_t(sizeof(E)),
                   head.V.row / int64_t(sizeof(E)),
                   D,
                   Dv,
                   k,
                   n};
    const bool even = !copy && head.K.even(k, k + n);
    if (!even) {
      if (!copy || sizeof(E) == 1) {
        at.K = as_stored(head.K, k, k + n, D, (E*)work.K);
        at.V = as_stored(head.V, k, k + n, Dv, (E*)work.V);
      } else {
        at.K = (const E*)compact(head.K, k, n, p.D, D, head.cosine, work.K).at;
        at.V = (const E*)compact(head.V, k, n, p.Dv, Dv, false, work.V).at;
        if (parted(head)) part(work.K, n, D);
        if (head.V.type == Type::bf16) part(work.V, n, Dv);
      }
      at.K_step = D;
      at.V_step = Dv;
      if (head.additive) bring(Rows<T>{work.K, D}, n, D, *work.additive);
    }
    if (work.of_K.by_row()) read_factors(work.of_K, k, n, up(n, lanes<T>), work.factor_K);
    if (work.of_V.by_row()) read_factors(work.of_V, k, n, up(n, lanes<T>), work.factor_V);
    for (int g = 0; g < count; ++g) {
      bool ahead = beyond_L2 && g == 0;
      Ahead V = {ahead && even ? (const char*)at.V : nullptr, head.V.row, p.Dv * int64_t(sizeof(E))};
      Ahead K = {ahead && k + 2 * chunk <= end ? head.K.page(k + chunk).at(k + chunk, 0) : nullptr, head.K.row,
                 p.D * int64_t(sizeof(E))};
      switch (groups[g].count) {
        case 4:
          if constexpr (lanes<T> >= 4) absorb_rows<T, E, 4>(p, heads, work, groups[g], at, careful, hidden, V, K);
          break;
        case 2: absorb_rows<T, E, 2>(p, heads, work, groups[g], at, careful, hidden, V, K); break;
        default: absorb_rows<T, E, 1>(p, heads, work, groups[g], at, careful, hidden, V, K);
      }
    }
  }
  return true;
}

// Keys and values are read where they lie if they are whole registers of one type; else chunk by chunk from a copy.
template <class T>
inline bool absorb_stored(const Problem& p, const Task& task, const Head<T>* heads, const DecodeWorkspace<T>& work,
                          const DecodeRows<T>* groups, int count, bool careful, bool& hidden) {
  const Head<T>& head = heads[0];
  if constexpr (Engine::exists && sizeof(T) == sizeof(float))
    if (work.digits) {
      const bool copy = !plain<int8_t>(head.K, Type::i8) || !plain<int8_t>(head.V, Type::i8);
      return absorb_keys<T, int8_t>(p, task, heads, work, groups, count, copy, careful, hidden);
    }
  const bool whole = p.D % lanes<T> == 0 && p.Dv % lanes<T> == 0 && !head.cosine && !head.additive;
#define HARKEN_ABSORB(name, cpp, numpy, compute)                                               \
  if constexpr (__is_same(T, compute))                                                         \
    if (whole && plain<cpp>(head.K, Type::name) && plain<cpp>(head.V, Type::name))             \
      return absorb_keys<T, cpp>(p, task, heads, work, groups, count, false, careful, hidden);
  HARKEN_KEY_TYPES(HARKEN_ABSORB)
#undef HARKEN_ABSORB
  return absorb_keys<T, T>(p, task, heads, work, groups, count, true, careful, hidden);
}

inline int rows_of_group(int64_t left, int most_rows) {
  int count = left >= 3 ? 4 : left == 2 ? 2 : 1;
  return count < most_rows ? count : most_rows;
}

template <class T>
struct DecodeSpace {
  DecodeWorkspace<T> work;
  Head<T>* heads;
  DecodeRows<T>* groups;
  int count;
};

// Takes what a task needs from `from`, or with from == nullptr only counts the bytes.
template <class T>
inline int64_t set_up(const Problem& p, char* from, DecodeSpace<T>& space) {
  const int64_t D = up(p.D, lanes<T>), Dv = up(p.Dv, lanes<T>), heads = p.Hq / p.Hkv, rows = heads * p.Lq;
  int64_t used = 0;
  auto bytes = [&](int64_t count) {
    char* at = from + used;
    used += up(count, 64);
    return at;
  };
  auto array = [&](int64_t count) { return (T*)bytes(count * sizeof(T)); };
  DecodeWorkspace<T>& work = space.work;
  work.K = array(chunk * D);
  work.V = array(chunk * Dv);
  T** tiles[] = {&work.S, &work.bias, &work.mask, &work.seen};
  for (T** tile : tiles) *tile = array(chunk * 4);
  work.row = array(chunk);
  if (p.score == Score::additive) {
    work.additive = (AdditiveKeys<T>*)bytes(sizeof(AdditiveKeys<T>));
    T* of_keys[] = {array(chunk * padded<T>(D)), array(chunk * padded<T>(D)), array(chunk)};
    if (from) *work.additive = {nullptr, 0, 0, {of_keys[0], of_keys[1]}, of_keys[2], 0, 0, {}};
    work.w = (ChannelWeights<T>*)bytes(heads * sizeof(ChannelWeights<T>));
    for (int64_t h = 0; h < heads; ++h) {
      T* const w = array(padded<T>(D));
      if (from) work.w[h].w = w;
    }
  }
  work.factor_K = array(chunk + lanes<T>);
  work.factor_V = array(chunk + lanes<T>);
  work.digits = in_digits(p);
  work.digit = {bytes(work.digits ? 16 * p.D : 0), bytes(digit_tile), bytes(4 * digit_tile), bytes(4 * digit_tile)};
  space.heads = (Head<T>*)bytes(heads * sizeof(Head<T>));
  space.groups = (DecodeRows<T>*)bytes(rows * sizeof(DecodeRows<T>));
  space.count = 0;
  for (int64_t r = 0; r < rows;) {
    DecodeRows<T> group;
    group.r0 = int(r);
    group.count = work.digits ? digit_rows : rows_of_group(rows - r, lanes<T> >= 4 ? 4 : 2);
    group.last = int(least(rows, r + group.count) - 1);
    group.Q = array(group.count * D);
    group.O = array(group.count * Dv);
    group.digits = bytes(work.digits ? digit_rows * 4 * p.D : 0);
    group.counts = (float*)bytes(work.digits ? 64 : 0);
    T** states[] = {&group.m, &group.l, &group.limit};
    for (T** state : states) *state = array(group.count * lanes<T>);
    if (p.score == Score::additive) {
      const int64_t x = 3 * group.count * padded<T>(D);
      group.additive = (AdditiveQueries<T>*)bytes(sizeof(AdditiveQueries<T>));
      T* of_rows[] = {array(x), array(x), array(lanes<T>)};
      if (from) *group.additive = {{of_rows[0], of_rows[1]}, of_rows[2], 0, 0, {}};
    }
    if (from) space.groups[space.count] = group;
    ++space.count;
    r += group.count;
  }
  return used;
}

template <class T>
inline void start(const Problem& p, const Head<T>* heads, const DecodeWorkspace<T>& work, const DecodeRows<T>& rows) {
  const int64_t D = up(p.D, lanes<T>), Dv = up(p.Dv, lanes<T>);
  for (int r = 0; r < rows.count; ++r) {
    const int64_t of_task = least(rows.r0 + r, rows.last);
    const Head<T>& head = heads[of_task / p.Lq];
    T* q = rows.Q + r * D;
    compact(head.Q, of_task % p.Lq, 1, p.D, D, head.cosine, q);
    if (work.of_K.data && !work.of_K.by_row()) scale_row(work.of_K, 0, p.D, q);
    for (int64_t d = 0; d < D; d += lanes<T>) put(q + d, take(q + d) * fill(T(head.scale)));
    if (parted(head)) part(q, 1, D);
  }
  if (heads[0].additive) {
    bool finite[4];
    for (int r = 0; r < rows.count; ++r) finite[r] = work.w[least(rows.r0 + r, rows.last) / p.Lq].finite;
    measure_rows(finite, rows.Q, D, rows.count, *rows.additive);
  }
  if constexpr (Engine::exists && sizeof(T) == sizeof(float))
    if (work.digits) pack_digits<Engine>(rows.Q, D, rows.digits, rows.counts);
  for (int64_t d = 0; d < rows.count * Dv; d += lanes<T>) put(rows.O + d, Lanes<T>{});
  put(rows.m, fill(T(-infinity)));
  put(rows.limit, fill(T(-infinity)));
  for (int r = 0; r < rows.count; ++r) put(rows.l + r * lanes<T>, Lanes<T>{});
}

template <class T>
inline void finish(const Problem& p, const Plan& plan, const Task& task, const Head<T>* heads, const Scale& of_V,
                   const DecodeRows<T>& rows) {
  const int64_t Dv = up(p.Dv, lanes<T>);
  const int keys = lanes<T> / rows.count;
  for (int r = 0; r < rows.count && rows.r0 + r <= rows.last; ++r) {
    int64_t row = rows.r0 + r, i = row % p.Lq;
    const Head<T>& head = heads[row / p.Lq];
    if (head.V.type == Type::bf16) join(rows.O + r * Dv, 1, Dv);
    T m = rows.m[r * keys], l = 0;
    if (of_V.data && !of_V.by_row()) scale_row(of_V, 0, p.Dv, rows.O + r * Dv);
    for (int k = 0; k < lanes<T>; ++k) l += rows.l[k / keys * lanes<T> + r * keys + k % keys];
    if (plan.ranges > 1) {
      Partial<T> to = partial_at<T>(p, plan, task.index);
      to.m[row] = m;
      to.l[row] = to.whole[row] = l;
      __builtin_memcpy(to.O + row * p.Dv, rows.O + r * Dv, p.Dv * sizeof(T));
    } else if (i < head.queries) {
      finish_row(p, head, i, m, l, rows.O + r * Dv);
    } else {
      blank_rows(p, head, i, i + 1, rows.O + r * Dv);
    }
  }
}

template <class T>
inline void attend_decode(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  Task task = task_at(p, plan, index);
  DecodeSpace<T> space;
  set_up(p, scratch, space);
  int64_t group = p.Hq / p.Hkv;
  for (int64_t g = 0; g < group; ++g) space.heads[g] = head_at<T>(p, task.b, task.h * group + g);
  Matrix &K = space.heads[0].K, &V = space.heads[0].V;  // all heads of the task read these
  space.work.of_V = V.scale;
  V.scale = {};
  space.work.of_K = {};
  if (!space.heads[0].cosine) {
    space.work.of_K = K.scale;
    K.scale = {};
  }

  for (int64_t g = 0; g < group && space.heads[0].additive; ++g)
    read_weights(space.heads[g], p.D, padded<T>(up(p.D, lanes<T>)), space.work.w[g]);

  bool careful = false, hidden = false;
  for (bool again = true; again;) {
    for (int g = 0; g < space.count; ++g) start(p, space.heads, space.work, space.groups[g]);
    if (!absorb_stored(p, task, space.heads, space.work, space.groups, space.count, careful, hidden)) return;
    again = false;
    if (hidden && !careful)  // 0 times NaN, as in attend_tiled
      for (int g = 0; g < space.count; ++g)
        again |= !finite(space.groups[g].O, space.groups[g].count * up(p.Dv, lanes<T>));
    careful = again;
  }
  for (int g = 0; g < space.count; ++g) finish(p, plan, task, space.heads, space.work.of_V, space.groups[g]);
}

}  // namespace
}  // namespace harken
