// few_rows.hpp - the rows of a decode task, in groups of four, two or one, with their state: how they begin and leave.
#pragma once

#include "additive_product.hpp"
#include "attend.hpp"
#include "digit_product.hpp"
#include "row_product.hpp"
#include "term_product.hpp"

namespace harken {
namespace {

// What a thread works in while a chunk is near.
template <class T>
struct DecodeWorkspace {
  T *K, *V, *other_V;         // [chunk][D], [chunk][Dv]: a copy, where one is needed; V of this chunk and of the next
  T *bias, *mask;             // [chunk / keys][lanes]
  T* row;                     // [chunk]
  AdditiveKeys<T>* additive;  // of the chunk; and w of each head
  ChannelWeights<T>* w;
  // Off the keys and values, of which only numbers as they are stored are read:
  Stored of_K, of_V;       // by column: into q, into O; by row: into the scores, into the weights after l is summed
  T *factor_K, *factor_V;  // [chunk + lanes], the factors of its rows
  bool in_parts;           // the products are those of parts.hpp
  PartSpace part;
};

// Up to four rows of a task with their state; row r has the lanes r * keys .. (r + 1) * keys - 1.
template <class T>
struct DecodeRows {
  int r0, last;      // rows of the task
  int count;         // registers' rows: 4, 2 or 1. Three rows are four, the last one twice, and it is left once
  T *Q, *O;          // [count][D], [count][Dv], D and Dv rounded up to registers
  T *S, *seen;       // [chunk / keys][lanes]
  T *m, *l, *limit;  // [lanes], alike in all lanes of a row; l: [count][lanes], one sum for each residue of the key
  AdditiveQueries<T>* additive;
};

// Do the keys lie as take_two gives them, where vectors multiply them? Additive scores read theirs from the copy,
// channel by channel.
template <class T>
inline bool parted(const Head<T>& head) {
  return head.K.type == Type::bf16 && !head.additive;
}

// Does the scale of a row wait for sums, because q without it has fewer terms?
template <class T>
inline bool scaled_in_sums(const Head<T>& head, const DecodeWorkspace<T>& work) {
  return work.in_parts && head.K.type == Type::bf16;
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

// The same for products by parts; bytes(n) gives n bytes, which are only counted if there are no `groups` yet.
template <class Bytes>
inline void set_up(const Problem& p, DecodeSpace<float>& space, Bytes bytes, const DecodeRows<float>* groups) {
  const bool terms = p.k.type == Type::bf16;
  PartSpace& part = space.work.part;
  part.count = space.count;
  part.q_parts = terms && p.type == Type::bf16 && (!p.k_scale.data || p.k_scale.row != 0) ? 1 : 4;
  part.P_parts = terms && p.type == Type::bf16 ? 2 : 4;
  part.groups = (PartRows*)bytes(part.count * sizeof(PartRows));
  part.scale = (float*)bytes(part.count * part_rows * sizeof(float));
  part.counts = (float*)bytes(part.sets(part.q_parts) * tile_rows * sizeof(float));
  part.from = (float*)bytes(part.sets(part.P_parts) * part_rows * sizeof(float));
  part.queries = bytes(part.sets(part.q_parts) * tile_rows * p.D * size_of(p.k.type));
  part.weights = bytes(part.sets(part.P_parts) * 2 * tile_bytes);
  part.K = bytes(tile_rows * p.D * size_of(p.k.type));
  part.V = bytes(most(p.D / 8, 8) * tile_bytes);  // at first it holds 16 rows of q
  part.finite = (bf16*)bytes(terms ? chunk * p.Dv * sizeof(bf16) : 0);
  const int64_t keys = terms ? chunk_of<bf16> : chunk_of<int8_t>;
  part.S = (float*)bytes(part.sets(part.q_parts) * keys * row_bytes);
  part.O = (float*)bytes(4 * tile_bytes);
  for (int g = 0; groups && g < part.count; ++g)
    part.groups[g] = {groups[g].count, groups[g].Q, groups[g].S, groups[g].seen, groups[g].O};
}

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
  work.in_parts = Engine::exists && decoded_in_parts(p);
  const bool terms = work.in_parts && p.k.type == Type::bf16;
  const int64_t chunk = work.in_parts && !terms ? chunk_of<int8_t> : harken::chunk;
  work.K = array(chunk * D);
  work.V = array(chunk * Dv);
  work.other_V = array(work.in_parts ? chunk * Dv : 0);
  work.bias = array(chunk * 4);
  work.mask = array(chunk * 4);
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
  space.heads = (Head<T>*)bytes(heads * sizeof(Head<T>));
  space.groups = (DecodeRows<T>*)bytes(rows * sizeof(DecodeRows<T>));
  space.count = 0;
  for (int64_t r = 0; r < rows;) {
    DecodeRows<T> group;
    group.r0 = int(r);
    group.count = terms ? part_rows : rows_of_group(rows - r, lanes<T> >= 4 ? 4 : 2);
    group.last = int(least(rows, r + group.count) - 1);
    group.Q = array(group.count * D);
    group.S = array(chunk * 4);
    group.seen = array(chunk * 4);
    group.O = array(group.count * Dv);
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
  if constexpr (sizeof(T) == sizeof(float))
    if (work.in_parts) set_up(p, space, bytes, from ? space.groups : nullptr);
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
    if (work.of_K.scale.data && !work.of_K.scale.by_row()) scale_row(work.of_K.scale, 0, p.D, q);
    if (scaled_in_sums(head, work)) continue;
    for (int64_t d = 0; d < D; d += lanes<T>) put(q + d, take(q + d) * fill(T(head.scale)));
    if (parted(head) && !work.in_parts) part(q, 1, D);
  }
  if (heads[0].additive) {
    bool finite[4];
    for (int r = 0; r < rows.count; ++r) finite[r] = work.w[least(rows.r0 + r, rows.last) / p.Lq].finite;
    measure_rows(finite, rows.Q, D, rows.count, *rows.additive);
  }
  for (int64_t d = 0; d < rows.count * Dv; d += lanes<T>) put(rows.O + d, Lanes<T>{});
  put(rows.m, fill(T(-infinity)));
  put(rows.limit, fill(T(-infinity)));
  for (int r = 0; r < rows.count; ++r) put(rows.l + r * lanes<T>, Lanes<T>{});
}

template <class T>
inline void finish(const Problem& p, const Plan& plan, const Task& task, const Head<T>* heads,
                   const DecodeWorkspace<T>& work, const DecodeRows<T>& rows) {
  const int64_t Dv = up(p.Dv, lanes<T>);
  const int keys = lanes<T> / rows.count;
  for (int r = 0; r < rows.count && rows.r0 + r <= rows.last; ++r) {
    int64_t row = rows.r0 + r, i = row % p.Lq;
    const Head<T>& head = heads[row / p.Lq];
    if (head.V.type == Type::bf16 && !work.in_parts) join(rows.O + r * Dv, 1, Dv);
    T m = rows.m[r * keys], l = 0;
    if (work.of_V.scale.data && !work.of_V.scale.by_row()) scale_row(work.of_V.scale, 0, p.Dv, rows.O + r * Dv);
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

}  // namespace
}  // namespace harken
