// simple.cu - softmax(Q K^T) V with nothing in the way of reading it: any shape, stride, type and option.
//
//     S = score(Q K^T)                      for each 32 keys that some query of the tile sees
//     M = max(m, max S),  a = 2^(m - M)
//     P = 2^(S - M)
//     m, l, O = M,  a l + sum P,  a O + P V
//
// What the fast kernels are checked against on a card, and what takes the problems that they do not. Float for every
// type but float64, which is double. A block is 4 warps, a warp 4 queries: a lane is a key while scores are made, and a
// channel of the values while they are summed up. Channels of q and k pass through shared memory piece by piece, and
// those of v are parts with a block each, so that no size is too large.
#include "element.hpp"
#include "kernels.hpp"

namespace harken {
namespace {

constexpr int warps = 4, queries = 4;  // of a block, of a warp
constexpr int tile_rows = warps * queries, threads = warps * lanes_of_warp;
constexpr int keys = lanes_of_warp;  // of a block of keys

// What a block shares. One more channel a key: lanes that read a column fall into different banks.
template <class T>
struct Shared {
  static constexpr int channels = 256 / sizeof(T);      // of q and k, at a time
  static constexpr int columns = 16 / sizeof(T);        // of v, for each lane
  static constexpr int part = columns * lanes_of_warp;  // of v, for a block
  T K[keys][channels + 1], Q[tile_rows][channels], w[channels], V[keys][part];
  T k_norm[keys], q_norm[tile_rows];  // inverse, for cosine scores
};

struct Tile {
  int64_t b, h, i0, part;
};

HARKEN_ANYWHERE int64_t tiles_of(const Problem& p) { return (p.Lq + tile_rows - 1) / tile_rows; }

template <class T>
HARKEN_ANYWHERE int64_t parts_of(const Problem& p) {
  return most(1, (p.Dv + Shared<T>::part - 1) / Shared<T>::part);
}

template <class T>
HARKEN_ANYWHERE int64_t tasks_of(const Problem& p) {
  return p.batches * p.Hq * tiles_of(p) * parts_of<T>(p);
}

template <class T>
HARKEN_WORD Tile tile_at(const Problem& p, int64_t index) {
  const int64_t parts = parts_of<T>(p), tiles = tiles_of(p);
  const int64_t tile = index / parts, head = tile / tiles;
  return {head / p.Hq, head % p.Hq, tile % tiles * tile_rows, index % parts};
}

// 1 / |row| of as many rows as there are, each by a warp.
template <class T, class Rows>
HARKEN_WORD void inverse_norms(const Rows& M, int64_t first, int64_t end, int count, int64_t D, T* to) {
  for (int r = warp(); r < count; r += warps) {
    double square = 0;
    for (int64_t d = lane(); d < D && first + r < end; d += lanes_of_warp) {
      const double x = double(element<T>(M, first + r, d));
      square += x * x;
    }
    square = over_lanes(square, Sum{});
    if (lane() == 0) to[r] = T(inverse_root(square));
  }
}

// Rows first .. first + count - 1, 0 at or past `end`, and their channels d0 .. d0 + channels - 1, 0 at or past D.
template <class T, int pitch, class Rows>
HARKEN_WORD void bring(const Rows& M, int64_t first, int64_t end, int count, int64_t d0, int channels, int64_t D,
                       const T* norm, T factor, T (*to)[pitch]) {
  for (int n = thread(); n < count * channels; n += threads) {
    const int r = n / channels, c = n % channels;
    T x = T(0);
    if (first + r < end && d0 + c < D) x = element<T>(M, first + r, d0 + c);
    to[r][c] = (norm ? x * norm[r] : x) * factor;
  }
}

// A warp's queries, and the scores of this lane's key with them.
template <class T>
struct Scores {
  T s[queries];
  bool sees[queries];
};

// s = score(q . k) in units of log2 e for keys k0 .. k0 + 31; -inf where the query does not see the key.
template <class T>
HARKEN_WORD void make_scores(const Problem& p, const Head<T>& head, int64_t i0, int64_t k0, Shared<T>& shared,
                             Scores<T>& scores) {
  constexpr int channels = Shared<T>::channels;
  const int64_t own = i0 + warp() * queries, j = k0 + lane(), keys_end = head.sight.keys;
  if (head.cosine) inverse_norms(head.K, k0, keys_end, keys, p.D, shared.k_norm);
  for (int r = 0; r < queries; ++r) scores.s[r] = T(0);
  for (int64_t d0 = 0; d0 < p.D; d0 += channels) {
    barrier();
    bring(head.Q, i0, head.queries, tile_rows, d0, channels, p.D, head.cosine ? shared.q_norm : nullptr, T(head.scale),
          shared.Q);
    bring(head.K, k0, keys_end, keys, d0, channels, p.D, head.cosine ? shared.k_norm : nullptr, T(1), shared.K);
    if (head.additive)
      for (int c = thread(); c < channels; c += threads)
        shared.w[c] = d0 + c < p.D ? T(head.w_scale) * (head.w.data ? element<T>(head.w, 0, d0 + c) : T(1)) : T(0);
    barrier();
    for (int c = 0; c < channels; ++c) {
      const T k = shared.K[lane()][c];
      for (int r = 0; r < queries; ++r) {
        const T q = shared.Q[warp() * queries + r][c];
        scores.s[r] += head.additive ? shared.w[c] * tanh(q + k) : q * k;
      }
    }
  }
  for (int r = 0; r < queries; ++r) {
    const int64_t i = own + r;
    bool sees = i < head.queries;
    if (sees) {
      const Interval of = seen(head.sight, i);
      sees = j >= of.first && j < of.end && listed(head.sight.lists, i, j) &&
             (!head.mask.data || *head.mask.at(i, j) != 0);
    }
    const T bias = sees && head.modifiers.bias ? element<T>(head.bias, i, j) : T(0);
    const T position = T(i + head.sight.q_start - k0), key = T(lane());
    const T s = modified(scores.s[r], head.modifiers, bias, head.modifiers.slope, position, key);
    scores.s[r] = hidden_where_zero(s, T(sees));
    scores.sees[r] = sees;
  }
}

// The blocks of 32 keys that some query of the tile sees, in their order. Where they lie does not depend on the tile.
template <class T, class Body>
HARKEN_WORD void for_blocks(const Head<T>& head, int64_t i0, Body body) {
  const int64_t i1 = least(i0 + tile_rows, head.queries);
  if (i0 >= i1) return;
  const Interval all = seen(head.sight, i0, i1);
  Outlook ahead = {};
  for (int64_t k0 = all.first / keys * keys; k0 < all.end; k0 += keys) {
    if (shown(head.sight.lists, i0, i1, k0, least(k0 + keys, all.end), ahead) == Shown::none) continue;
    body(k0);
  }
}

template <class T>
struct State {
  T m[queries], limit[queries], l[queries];  // l: of this lane's keys
  T O[queries][Shared<T>::columns];          // of this lane's channels
};

// The page.
template <class T>
HARKEN_WORD void absorb(const Problem& p, const Head<T>& head, const Tile& tile, int64_t k0, Shared<T>& shared,
                        State<T>& state) {
  constexpr int columns = Shared<T>::columns, part = Shared<T>::part;
  Scores<T> scores;
  make_scores(p, head, tile.i0, k0, shared, scores);
  barrier();  // with no channel at all there was none since V was read
  bring(head.V, k0, head.sight.keys, keys, tile.part * part, part, p.Dv, (const T*)nullptr, T(1), shared.V);
  barrier();
#pragma unroll
  for (int r = 0; r < queries; ++r) {
    const T top = over_lanes(scores.s[r], Larger{});
    const Move<T> by = move(state.m[r], state.limit[r], top, T(0));
    state.m[r] = by.m;
    state.limit[r] = by.limit;
    const T P = exp2(scores.s[r] - by.subtract);
    state.l[r] = state.l[r] * by.factor + P;
#pragma unroll
    for (int c = 0; c < columns; ++c) state.O[r][c] *= by.factor;
    uint32_t seen_keys = ballot(scores.sees[r]);  // what is hidden is not multiplied by 0: it may be NaN
    for (int key = 0; key < keys; ++key) {
      const T weight = from_lane(P, key);
      if ((seen_keys >> key & 1) == 0) continue;
#pragma unroll
      for (int c = 0; c < columns; ++c) state.O[r][c] += weight * shared.V[key][c * lanes_of_warp + lane()];
    }
  }
}

// O / l and m + log l of one query; gives 1 / l.
template <class T>
HARKEN_WORD T leave(const Problem& p, const Head<T>& head, const Tile& tile, int64_t i, T m_of_keys, T l_of_keys,
                    const T* O) {
  const bool exists = i < head.queries;
  double m = m_of_keys, l = l_of_keys, a = 1;
  if (head.has_sink && exists) a = add_sink(m, l, head.sink);
  const T factor = l == 0 ? T(0) : T(a / l);
  for (int c = 0; c < Shared<T>::columns; ++c) {
    const int64_t d = tile.part * Shared<T>::part + c * lanes_of_warp + lane();
    if (d < p.Dv) put_element(head.out, i, d, O[c] * factor);
  }
  if (head.lse.data && tile.part == 0 && lane() == 0) put_element(head.lse, i, 0, T(log_sum(m, l)));
  return factor;
}

template <class T>
HARKEN_WORD void attend_tile(const Problem& p, const Tile& tile, Shared<T>& shared) {
  const Head<T> head = head_at<T>(p, tile.b, tile.h);
  State<T> state = {};
  for (int r = 0; r < queries; ++r) state.m[r] = state.limit[r] = T(-__builtin_inff());
  barrier();  // what the tile before left in shared memory has been read
  if (head.cosine) inverse_norms(head.Q, tile.i0, head.queries, tile_rows, p.D, shared.q_norm);
  for_blocks(head, tile.i0, [&](int64_t k0) { absorb(p, head, tile, k0, shared, state); });

  T factor[queries];
  for (int r = 0; r < queries; ++r) {
    const int64_t i = tile.i0 + warp() * queries + r;
    const T l = over_lanes(state.l[r], Sum{});
    factor[r] = i < p.Lq ? leave(p, head, tile, i, state.m[r], l, state.O[r]) : T(0);
  }
  if (!head.weights.data || tile.part != 0) return;
  for_blocks(head, tile.i0, [&](int64_t k0) {  // once more, now that m and l are known
    Scores<T> scores;
    make_scores(p, head, tile.i0, k0, shared, scores);
    barrier();
    for (int r = 0; r < queries; ++r)
      if (scores.sees[r])
        put_element(head.weights, tile.i0 + warp() * queries + r, k0 + lane(),
                    exp2(scores.s[r] - reference(state.m[r])) * factor[r]);
  });
}

template <class T>
HARKEN_KERNEL(threads)
attend_simple(HARKEN_CONSTANT Problem p) {
  Shared<T>& shared = *(Shared<T>*)shared_memory();
  const int64_t count = tasks_of<T>(p);
  for (int64_t n = block(); n < count; n += blocks()) attend_tile(p, tile_at<T>(p, n), shared);
}

template <class T>
Grid grid_of(const Problem& p) {
  constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;
  return {least(tasks_of<T>(p), most_blocks), threads, int(sizeof(Shared<T>))};
}

const char* lacks(const Problem&) { return nullptr; }
Grid grid(const Problem& p) { return p.type == Type::f64 ? grid_of<double>(p) : grid_of<float>(p); }
int64_t workspace(const Problem&) { return 0; }

void attend(const Problem& p, char*, void* stream) {
  if (p.type == Type::f64) {
    launch(attend_simple<double>, grid(p), stream, p);
  } else {
    launch(attend_simple<float>, grid(p), stream, p);
  }
}

}  // namespace

extern const Kernel simple_kernel;
const Kernel simple_kernel = {
    "simple", "plain arithmetic, any shape, type and option", HARKEN_SOURCE, 80, true, lacks, grid, workspace, attend};

}  // namespace harken
