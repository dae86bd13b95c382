// decode.hpp - few queries against many keys: channels along the lanes, every key and value read once, as it is stored.
//
// The rows of a task are the queries of all heads that share its keys, taken four, two or one at a time. The products
// of R rows with lanes / R keys are summed across lanes together, so that one register holds the scores [R][lanes / R]:
// the same tile, the same passes, the same page as attend.hpp; only the products differ.
#pragma once

#include "few_rows.hpp"

namespace harken {
namespace {

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

// One chunk of keys joins the state of R rows: the page. With an engine S is there already, and P is left to it.
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
  for (int r = 0; r < R; ++r) {
    const int64_t of_task = least(rows.r0 + r, rows.last), i = of_task % p.Lq;
    const Head<T>& head = heads[of_task / p.Lq];
    const Interval of = seen(head.sight, i, at.k0, at.k0 + at.n, masked);
    edge |= of.first > at.k0 || of.end < at.k0 + at.n;
    for (int k = 0; k < keys; ++k) {
      const int lane = r * keys + k;
      key[lane] = T(k);
      position[lane] = T(i + head.sight.q_start - at.k0);
      first[lane] = T(of.first - at.k0);
      end[lane] = T(of.end - at.k0);
      slope[lane] = head.modifiers.slope;
      top[lane] = -infinity;
    }
  }
  hidden |= edge || masked;
  Tile<T> tile = {rows.S, lanes<T>, take(key), T(keys), position, first, end, slope, nullptr, nullptr};

  if (heads[0].additive) {
    const T* w[R];
    Lanes<T> power;
    for (int lane = 0; lane < lanes<T>; ++lane) {
      const ChannelWeights<T>& of_head = work.w[least(rows.r0 + lane / keys, rows.last) / p.Lq];
      w[lane / keys] = of_head.w;
      power[lane] = of_head.power;
    }
    additive_scores_of_rows<T, R>(*work.additive, w, rows.Q, *rows.additive, power, at.D, rows.S, rows.seen);
  } else if (!work.in_parts) {
    scores_of_rows<T, E, R>(at.K, at.K_step, at.n, rows.Q, at.D, rows.S, next_V);
  }
  if (work.of_K.scale.by_row()) scale_keys<T, R>(rows.S, registers, work.factor_K);
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
  const Lanes<T> largest = largest_of_rows<Lanes<T>, keys>(take(top));

  Move<Lanes<T>> to = move(take(rows.m), take(rows.limit), largest, Lanes<T>{});
  if (to.any) {
    put(rows.m, to.m);
    put(rows.limit, to.limit);
    for (int r = 0; r < R; ++r) put(rows.l + r * lanes<T>, take(rows.l + r * lanes<T>) * to.factor);
    for (int r = 0; r < R; ++r)
      for (int64_t d = 0; d < at.Dv; d += lanes<T>)
        put(rows.O + r * at.Dv + d, take(rows.O + r * at.Dv + d) * fill(T(to.factor[r * keys])));
  }
  exponentials_of_rows<T, R>(rows.S, registers, to.subtract, rows.l);
  if (work.of_V.scale.by_row()) scale_keys<T, R>(rows.S, registers, work.factor_V);

  if (careful) {
    for (int i = 0; i < registers * lanes<T>; ++i) rows.seen[i] = 0;
    tile.S = rows.seen;
    hide(tile, all, true);
  }
  if (work.in_parts) return;
  if (!careful) {
    constexpr int X = sums_held / R < 8 ? sums_held / R : 8;
    values_in_slices<T, E, R, X>(at.V, at.V_step, at.n, rows.S, rows.O, at.Dv, 0, next_K);
    return;
  }
  selected_values_of_rows<T, E, R>(at.V, at.V_step, at.n, rows.S, rows.seen, rows.O, at.Dv);
}

// The chunks of a task that some row sees, one after the other.
template <class T, class E, int64_t keys>
struct Chunks {
  const Problem& p;
  const Task& task;
  const DecodeSpace<T>& space;
  bool copy;  // no chunk lies as the products read it
  int64_t k, end;
  bool more_than_L2;
  Outlook outlook = {};
  int asked = 0, copies = 0;
  bool stopped = false;

  Chunks(const Problem& p, const Task& task, const DecodeSpace<T>& space, bool copy)
      : p(p), task(task), space(space), copy(copy) {
    const Interval seen_keys = seen(space.heads[0].sight, 0, p.Lq);
    end = least(seen_keys.end, task.k1);
    k = most(seen_keys.first, task.k0) / keys * keys;
    more_than_L2 = !copy && p.batches * p.Hkv * p.Lk * (p.D + p.Dv) * int64_t(sizeof(E)) > (4 << 20);
  }

  // False: there is none, or the call is interrupted. The engine is made ready again where a signal handler may have
  // run, which leaves it as it was for others.
  bool next(Chunk<E>& at) {
    const Head<T>* const heads = space.heads;
    for (; k < end; k += keys) {
      if (asked++ % 4 == 0) {
        if ((stopped = interrupted())) return false;
        if (space.work.in_parts) make_ready();  // 50 ns
      }
      if (shown(heads, p.Hq / p.Hkv, 0, p.Lq, k, least(k + keys, end), outlook) != Shown::none) break;
      if (outlook.until >= end) return false;
      k = (outlook.until / keys - 1) * keys;
    }
    if (k >= end) return false;
    bring(at);
    k += keys;
    return true;
  }

 private:
  void bring(Chunk<E>& at) {
    const Head<T>& head = space.heads[0];
    const DecodeWorkspace<T>& work = space.work;
    const int64_t D = up(p.D, lanes<T>), Dv = up(p.Dv, lanes<T>), n = least(keys, end - k);
    at = {(const E*)head.K.page(k).at(k, 0),
          (const E*)head.V.page(k).at(k, 0),
          head.K.row / int64_t(sizeof(E)),
          head.V.row / int64_t(sizeof(E)),
          D,
          Dv,
          k,
          int(n),
          {},
          {}};
    const bool even = !copy && head.K.even(k, k + n);
    if (!even) {
      if (!copy || sizeof(E) == 1 || work.in_parts) {
        at.K = as_stored(head.K, k, k + n, D, (E*)work.K);
        at.V = as_stored(head.V, k, k + n, Dv, (E*)(work.in_parts && copies++ % 2 ? work.other_V : work.V));
      } else {
        at.K = (const E*)compact(head.K, k, n, p.D, D, head.cosine, work.K).at;
        at.V = (const E*)compact(head.V, k, n, p.Dv, Dv, false, work.V).at;
        if (parted(head)) part(work.K, n, D);
        if (head.V.type == Type::bf16) part(work.V, n, Dv);
      }
      at.K_step = D;
      at.V_step = Dv;
      if (head.additive) bring_additive(n);
    }
    const int64_t K_bytes = p.D * int64_t(sizeof(E)), V_bytes = p.Dv * int64_t(sizeof(E)), next = k + keys;
    // Tiles read two streams at once; those of rows which lie apart the processor does not foresee.
    const bool prefetch = more_than_L2 && !(work.in_parts && head.K.row == K_bytes), more = next + keys <= end;
    auto ahead = [&](const Stored& M, int64_t bytes, int64_t i, bool wanted) -> Ahead {
      return {prefetch && wanted ? M.page(i).at(i, 0) : nullptr, M.row, bytes};
    };
    at.next_K = ahead(head.K, K_bytes, next, more);
    at.soon_V = work.in_parts ? ahead(head.V, V_bytes, next, more) : ahead(head.V, V_bytes, k, even);
  }
  void bring_additive(int64_t n) {
    const int64_t D = up(p.D, lanes<T>);
    harken::bring(Rows<T>{space.work.K, D}, n, D, *space.work.additive);
  }
};

// The groups of rows take turns at a chunk while it is near; between() is called after each.
template <class T, class E, class Between>
inline void absorb_chunk(const Problem& p, const DecodeSpace<T>& space, const Chunk<E>& at, bool careful, bool& hidden,
                         Between between) {
  const Head<T>* const heads = space.heads;
  const DecodeWorkspace<T>& work = space.work;
  const int n = at.n;
  if (work.of_K.scale.by_row()) read_factors(work.of_K, at.k0, n, up(n, lanes<T>), work.factor_K);
  if (work.of_V.scale.by_row()) read_factors(work.of_V, at.k0, n, up(n, lanes<T>), work.factor_V);
  for (int g = 0; g < space.count; ++g, between()) {
    const DecodeRows<T>& rows = space.groups[g];
    const Ahead none = {}, of_V = g == 0 ? at.soon_V : none, of_K = g == 0 ? at.next_K : none;
    switch (rows.count) {
      case 4:
        if constexpr (lanes<T> >= 4) absorb_rows<T, E, 4>(p, heads, work, rows, at, careful, hidden, of_V, of_K);
        break;
      case 2: absorb_rows<T, E, 2>(p, heads, work, rows, at, careful, hidden, of_V, of_K); break;
      default: absorb_rows<T, E, 1>(p, heads, work, rows, at, careful, hidden, of_V, of_K);
    }
  }
}

// All rows of a task against its keys. False: interrupted.
template <class T, class E>
inline bool absorb_keys(const Problem& p, const Task& task, const DecodeSpace<T>& space, bool copy, bool careful,
                        bool& hidden) {
  Chunks<T, E, chunk> chunks = {p, task, space, copy};
  for (Chunk<E> at; chunks.next(at);) absorb_chunk(p, space, at, careful, hidden, [] {});
  return !chunks.stopped;
}

// O += P V of a chunk by tiles, 64 channels at a time: 8 KB of the L1 cache, through which keys and values pass, too.
// Brought beside keys for a whole chunk, values took 32 KB: 20 % slower in the L2 cache.
template <class M, class E, class Reading>
inline void absorb_values(const PartSpace& space, Chunk<E> at, bool careful, Reading& reading) {
  for (int g = 0; g < space.count; ++g) {
    leave_out_hidden(space.groups[g], at.n, careful);
    pack_weights(E{}, space, g, at.n);
  }
  const Chunk<E> as_is = at;
  if (careful) make_finite(at, space.finite);
  int g1 = 0;
  int64_t d1 = -1;  // what waits to be joined until its sums are in memory
  for (int64_t d = 0; d < at.Dv; d += 64) {
    reading.tick();
    bring_values<M>(at, d, d == 0 ? at.soon_V : Ahead{}, space);
    for (int g = 0; g < space.count; g += space.groups_of(space.P_parts)) {
      if (d1 >= 0) join_values(as_is, careful, space, g1, d1);
      sum_values<M>(at, space, g, d);
      g1 = g, d1 = d;
    }
  }
  reading.rest();
  join_values(as_is, careful, space, g1, d1);
}

// The same by tiles, where the keys of the next chunk are read between the steps of this one, so that something is
// always being read: 27 % less time for one row and 4096 keys of 128 int8, 38 % for those of 64. Prefetch, all at once
// or dealt out among the steps, was 10 to 25 % slower, because it waits in the same 16 buffers; keys copied into whole
// cache lines first, 20 %.
template <class M, class E>
inline bool absorb_keys_in_parts(const Problem& p, const Task& task, const DecodeSpace<float>& space, bool copy,
                                 bool careful, bool& hidden) {
  const PartSpace& part = space.work.part;
  const int ticks = space.count + int(up(p.Dv, 64) / 64);
  const Engaged<M> at_the_end;
  Chunks<float, E, chunk_of<E>> chunks = {p, task, space, copy};
  Chunk<E> at, next;
  auto join = [&](const Chunk<E>& keys) {
    for (int g = 0; g < space.count; g += part.groups_of(part.q_parts)) join_scores(keys, part, g);
  };
  bool more = chunks.next(at);
  if (more) {
    Reading<M, E>{part, at, ticks}.rest();
    join(at);
  }
  while (more) {
    more = chunks.next(next);
    if (chunks.stopped) return false;
    if (!more) next = {};
    Reading<M, E> reading = {part, next, ticks};
    absorb_chunk(p, space, at, careful, hidden, [&]() __attribute__((always_inline)) { reading.tick(); });
    absorb_values<M>(part, at, careful, reading);
    if (more) join(next);
    at = next;
  }
  return !chunks.stopped;
}

// Keys and values are read where they lie if they are whole registers of one type; else chunk by chunk from a copy.
template <class T>
inline bool absorb_stored(const Problem& p, const Task& task, const DecodeSpace<T>& space, bool careful, bool& hidden) {
  const Head<T>& head = space.heads[0];
  if constexpr (Engine::exists && sizeof(T) == sizeof(float))
    if (space.work.in_parts) {
      if (head.K.type == Type::i8) {
        const bool copy = !plain<int8_t>(head.K, Type::i8) || !plain<int8_t>(head.V, Type::i8);
        return absorb_keys_in_parts<Engine, int8_t>(p, task, space, copy, careful, hidden);
      }
      const bool copy = !plain<bf16>(head.K, Type::bf16) || !plain<bf16>(head.V, Type::bf16);
      return absorb_keys_in_parts<Engine, bf16>(p, task, space, copy, careful, hidden);
    }
  const bool whole = p.D % lanes<T> == 0 && p.Dv % lanes<T> == 0 && !head.cosine && !head.additive;
#define HARKEN_ABSORB(name, cpp, numpy, compute)                                               \
  if constexpr (__is_same(T, compute))                                                         \
    if (whole && plain<cpp>(head.K, Type::name) && plain<cpp>(head.V, Type::name))             \
      return absorb_keys<T, cpp>(p, task, space, false, careful, hidden);
  HARKEN_KEY_TYPES(HARKEN_ABSORB)
#undef HARKEN_ABSORB
  return absorb_keys<T, T>(p, task, space, true, careful, hidden);
}

// Q of all groups as tiles of its parts.
inline void bring_queries(const Problem& p, const DecodeSpace<float>& space) {
  const PartSpace& part = space.work.part;
  for (int r = 0; r < part.count * part_rows; ++r) {
    const DecodeRows<float>& rows = space.groups[r / part_rows];
    part.scale[r] = float(space.heads[least(rows.r0 + r % part_rows, rows.last) / p.Lq].scale);
  }
  for (int g = 0; g < part.count; g += part.groups_of(part.q_parts))
    p.k.type == Type::i8 ? pack_queries(int8_t(), part, g, p.D) : pack_queries(bf16{}, part, g, p.D);
}

template <class T>
inline void attend_decode(const Problem& p, const Plan& plan, int64_t index, char* scratch) {
  Task task = task_at(p, plan, index);
  DecodeSpace<T> space;
  set_up(p, scratch, space);
  int64_t group = p.Hq / p.Hkv;
  for (int64_t g = 0; g < group; ++g) space.heads[g] = head_at<T>(p, task.b, task.h * group + g);
  Stored &K = space.heads[0].K, &V = space.heads[0].V;  // all heads of the task read these
  space.work.of_V = V;
  V.scale = {};
  space.work.of_K = {};
  if (!space.heads[0].cosine) {
    space.work.of_K = K;
    K.scale = {};
  }

  for (int64_t g = 0; g < group && space.heads[0].additive; ++g)
    read_weights(space.heads[g], p.D, padded<T>(up(p.D, lanes<T>)), space.work.w[g]);

  bool careful = false, hidden = false;
  for (bool again = true; again;) {
    for (int g = 0; g < space.count; ++g) start(p, space.heads, space.work, space.groups[g]);
    if constexpr (Engine::exists && sizeof(T) == sizeof(float))
      if (space.work.in_parts) bring_queries(p, space);
    if (!absorb_stored(p, task, space, careful, hidden)) return;
    again = false;
    if (hidden && !careful)  // 0 times NaN, as in attend_tiled
      for (int g = 0; g < space.count; ++g)
        again |= !finite(space.groups[g].O, space.groups[g].count * up(p.Dv, lanes<T>));
    careful = again;
  }
  for (int g = 0; g < space.count; ++g) finish(p, plan, task, space.heads, space.work, space.groups[g]);
}

}  // namespace
}  // namespace harken
