// few_rows.hpp - the rows of a decode task, in groups of four, two or one, with their state: how they begin and leave.
#pragma once

#include "additive_product.hpp"
#include "attend.hpp"
#include "part_product.hpp"
#include "row_product.hpp"

namespace harken {
namespace {

// What a thread works in while a chunk is near.
template <class T>
struct DecodeWorkspace {
  T *K, *V;                   // [chunk][D], [chunk][Dv]: a copy, where one is needed
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
  char* parts;       // Q as tiles of its parts,
  float* counts;     // [16] and what each of these counts, and [4] the sums over the parts of P
  T *m, *l, *limit;  // [lanes], alike in all lanes of a row; l: [count][lanes], one sum for each residue of the key
  AdditiveQueries<T>* additive;
};

// Do the keys lie as take_two gives them, where vectors multiply them? Additive scores read theirs from the copy,
// channel by channel.
template <class T>
inline bool parted(const Head<T>& head) {
  return head.K.type == Type::bf16 && !head.additive;
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
  work.in_parts = Engine::exists && decoded_in_parts(p);
  const int64_t wide = work.in_parts ? (p.k.type == Type::i8 ? 1 : 2) : 0;  // bytes of a number
  work.part = {bytes(16 * wide * p.D), bytes(work.in_parts ? up(rows, part_rows) / 2 * tile_bytes : 0),
               bytes(8 * tile_bytes), bytes(4 * tile_bytes)};
  space.heads = (Head<T>*)bytes(heads * sizeof(Head<T>));
  space.groups = (DecodeRows<T>*)bytes(rows * sizeof(DecodeRows<T>));
  space.count = 0;
  for (int64_t r = 0; r < rows;) {
    DecodeRows<T> group;
    group.r0 = int(r);
    group.count = work.in_parts ? part_rows : rows_of_group(rows - r, lanes<T> >= 4 ? 4 : 2);
    group.last = int(least(rows, r + group.count) - 1);
    group.Q = array(group.count * D);
    group.S = array(chunk * 4);
    group.seen = array(chunk * 4);
    group.O = array(group.count * Dv);
    group.parts = bytes(16 * wide * p.D);
    group.counts = (float*)bytes(work.in_parts ? 80 : 0);
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
    if (work.of_K.scale.data && !work.of_K.scale.by_row()) scale_row(work.of_K.scale, 0, p.D, q);
    for (int64_t d = 0; d < D; d += lanes<T>) put(q + d, take(q + d) * fill(T(head.scale)));
    if (parted(head) && !work.in_parts) part(q, 1, D);
  }
  if (heads[0].additive) {
    bool finite[4];
    for (int r = 0; r < rows.count; ++r) finite[r] = work.w[least(rows.r0 + r, rows.last) / p.Lq].finite;
    measure_rows(finite, rows.Q, D, rows.count, *rows.additive);
  }
  if constexpr (Engine::exists && sizeof(T) == sizeof(float))
    if (work.in_parts) {
      if (heads[0].K.type == Type::i8) {
        pack_queries<int8_t>(rows.Q, D, rows.parts, rows.counts);
      } else {
        pack_queries<bf16>(rows.Q, D, rows.parts, rows.counts);
      }
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
