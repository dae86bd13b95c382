// decode.hpp - few queries against many keys: channels along the lanes, every key and value read once, as it is stored.
//
// The rows of a task are the queries of all heads that share its keys, taken four, two or one at a time. The products
// of R rows with lanes / R keys are summed across lanes together, so that one register holds the scores [R][lanes / R]:
// the same tile, the same passes, the same page as attend.hpp; only the products differ.
#pragma once

#include "attend.hpp"
#include "row_product.hpp"

namespace harken {
namespace {

// What a thread works in while a chunk is near.
template <class T>
struct DecodeWorkspace {
  T *K, *V;                   // [chunk][D], [chunk][Dv]: a copy, where one is needed
  T *S, *bias, *mask, *seen;  // [chunk / keys][lanes]
  T* row;                     // [chunk]
};

// Up to four rows of a task with their state; row r has the lanes r * keys .. (r + 1) * keys - 1.
template <class T>
struct DecodeRows {
  int r0, last;      // rows of the task
  int count;         // registers' rows: 4, 2 or 1. Three rows are four, the last one twice, and it is left once
  T *Q, *O;          // [count][D], [count][Dv], D and Dv rounded up to registers
  T *m, *l, *limit;  // [lanes], alike in all lanes of a row; l: [count][lanes], one sum for each residue of the key
};

// Bias or mask for the scores of a group, as they lie in S. read(head, i, row) says what query i of a head has.
template <class T, int R, class Read>
inline void gather(const Problem& p, const Head<T>* heads, const DecodeRows<T>& rows, int n, T* to, T* row, Read read) {
  constexpr int keys = keys_in<T, R>;
  for (int r = 0; r < R; ++r) {
    const int64_t of_task = least(rows.r0 + r, rows.last);
    read(heads[of_task / p.Lq], of_task % p.Lq, row);
    for (int k = 0; k < up(n, keys); ++k) to[k / keys * lanes<T> + r * keys + k % keys] = k < n ? row[k] : T(0);
  }
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
  bool masked = heads[0].mask.data != nullptr;
  const Modifiers<T>& by = heads[0].modifiers;

  bool edge = at.n % keys != 0;
  alignas(64) T key[lanes<T>], position[lanes<T>], first[lanes<T>], end[lanes<T>], slope[lanes<T>], top[lanes<T>];
  Interval of = {};
  for (int lane = 0; lane < lanes<T>; ++lane) {
    const int64_t r = least(rows.r0 + lane / keys, rows.last);
    const Head<T>& head = heads[r / p.Lq];
    if (lane % keys == 0) of = seen(head.sight, r % p.Lq, at.k0, at.k0 + at.n, masked);
    edge |= of.first > at.k0 || of.end < at.k0 + at.n;
    key[lane] = T(lane % keys);
    position[lane] = T(r % p.Lq + head.sight.q_start - at.k0);
    first[lane] = T(of.first - at.k0);
    end[lane] = T(of.end - at.k0);
    slope[lane] = head.modifiers.slope;
    top[lane] = -infinity;
  }
  hidden |= edge || masked;
  Tile<T> tile = {work.S, lanes<T>, take(key), T(keys), position, first, end, slope, nullptr, nullptr};

  scores_of_rows<T, E, R>(at.K, at.K_step, at.n, rows.Q, at.D, work.S, next_V);
  if (by.bias) {
    gather<T, R>(p, heads, rows, at.n, work.bias, work.row,
                 [&](const Head<T>& head, int64_t i, T* row) { read_row(head.bias, i, at.k0, at.n, row); });
    tile.bias = work.bias;
  }
  if (masked) {
    gather<T, R>(p, heads, rows, at.n, work.mask, work.row,
                 [&](const Head<T>& head, int64_t i, T* row) { read_mask_row(head, i, at.k0, at.n, row); });
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

  if (!careful) {
    constexpr int X = sums_held / R < 8 ? sums_held / R : 8;
    values_in_slices<T, E, R, X>(at.V, at.V_step, at.n, work.S, rows.O, at.Dv, 0, next_K);
    return;
  }
  for (int i = 0; i < registers * lanes<T>; ++i) work.seen[i] = 0;
  tile.S = work.seen;
  hide(tile, all, true);
  selected_values_of_rows<T, E, R>(at.V, at.V_step, at.n, work.S, work.seen, rows.O, at.Dv);
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
  Outlook ahead = {};
  for (; k < end; k += chunk) {
    if (interrupted()) return false;
    if (shown(heads, p.Hq / p.Hkv, 0, p.Lq, k, least(k + chunk, end), ahead) == Shown::none) {
      if (ahead.until >= end) break;
      k = (ahead.until / chunk - 1) * chunk;
      continue;
    }
    int n = int(least(chunk, end - k));
    Chunk<E> at = {(const E*)head.K.at(k, 0),
                   (const E*)head.V.at(k, 0),
                   head.K.row / int64_t(sizeof(E)),
                   head.V.row / int64_t(sizeof(E)),
                   D,
                   Dv,
                   k,
                   n};
    if (copy) {
      at.K = (const E*)compact(head.K, k, n, p.D, D, head.cosine, work.K).at;
      at.V = (const E*)compact(head.V, k, n, p.Dv, Dv, false, work.V).at;
      at.K_step = D;
      at.V_step = Dv;
    }
    for (int g = 0; g < count; ++g) {
      bool ahead = beyond_L2 && g == 0;
      Ahead V = {ahead ? (const char*)at.V : nullptr, head.V.row, p.Dv * int64_t(sizeof(E))};
      Ahead K = {ahead && k + 2 * chunk <= end ? head.K.at(k + chunk, 0) : nullptr, head.K.row,
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
  const bool whole = p.D % lanes<T> == 0 && p.Dv % lanes<T> == 0 && !head.cosine;
#define HARKEN_ABSORB(name, cpp, numpy, compute)                                               \
  if constexpr (__is_same(T, compute))                                                         \
    if (whole && plain<cpp>(head.K, Type::name) && plain<cpp>(head.V, Type::name))             \
      return absorb_keys<T, cpp>(p, task, heads, work, groups, count, false, careful, hidden);
  HARKEN_STORAGE_TYPES(HARKEN_ABSORB)
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
  space.heads = (Head<T>*)bytes(heads * sizeof(Head<T>));
  space.groups = (DecodeRows<T>*)bytes(rows * sizeof(DecodeRows<T>));
  space.count = 0;
  for (int64_t r = 0; r < rows;) {
    DecodeRows<T> group;
    group.r0 = int(r);
    group.count = rows_of_group(rows - r, lanes<T> >= 4 ? 4 : 2);
    group.last = int(least(rows, r + group.count) - 1);
    group.Q = array(group.count * D);
    group.O = array(group.count * Dv);
    T** states[] = {&group.m, &group.l, &group.limit};
    for (T** state : states) *state = array(group.count * lanes<T>);
    if (from) space.groups[space.count] = group;
    ++space.count;
    r += group.count;
  }
  return used;
}

template <class T>
inline void start(const Problem& p, const Head<T>* heads, const DecodeRows<T>& rows) {
  const int64_t D = up(p.D, lanes<T>), Dv = up(p.Dv, lanes<T>);
  for (int r = 0; r < rows.count; ++r) {
    const int64_t of_task = least(rows.r0 + r, rows.last);
    const Head<T>& head = heads[of_task / p.Lq];
    T* q = rows.Q + r * D;
    compact(head.Q, of_task % p.Lq, 1, p.D, D, head.cosine, q);
    for (int64_t d = 0; d < D; d += lanes<T>) put(q + d, take(q + d) * fill(T(head.scale)));
  }
  for (int64_t d = 0; d < rows.count * Dv; d += lanes<T>) put(rows.O + d, Lanes<T>{});
  put(rows.m, fill(T(-infinity)));
  put(rows.limit, fill(T(-infinity)));
  for (int r = 0; r < rows.count; ++r) put(rows.l + r * lanes<T>, Lanes<T>{});
}

template <class T>
inline void finish(const Problem& p, const Plan& plan, const Task& task, const Head<T>* heads,
                   const DecodeRows<T>& rows) {
  const int64_t Dv = up(p.Dv, lanes<T>);
  const int keys = lanes<T> / rows.count;
  for (int r = 0; r < rows.count && rows.r0 + r <= rows.last; ++r) {
    int64_t row = rows.r0 + r, i = row % p.Lq;
    const Head<T>& head = heads[row / p.Lq];
    T m = rows.m[r * keys], l = 0;
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

  bool careful = false, hidden = false;
  for (bool again = true; again;) {
    for (int g = 0; g < space.count; ++g) start(p, space.heads, space.groups[g]);
    if (!absorb_stored(p, task, space.heads, space.work, space.groups, space.count, careful, hidden)) return;
    again = false;
    if (hidden && !careful)  // 0 times NaN, as in attend_tiled
      for (int g = 0; g < space.count; ++g)
        again |= !finite(space.groups[g].O, space.groups[g].count * up(p.Dv, lanes<T>));
    careful = again;
  }
  for (int g = 0; g < space.count; ++g) finish(p, plan, task, space.heads, space.groups[g]);
}

}  // namespace
}  // namespace harken
