// workspace.hpp - what a thread works in for one task: its tiles of queries with their state, and the block under way.
#pragma once

#include "../plan.hpp"
#include "additive.hpp"
#include "tile.hpp"

namespace harken {
namespace {

// The queries of a register tile: packed Q, and the state of their softmax. Arrays end in [width], queries in lanes.
template <class T>
struct Queries {
  int64_t i0;  // the first
  int n, columns;
  int64_t width;  // columns x lanes, n rounded up
  T *Q, *O;       // [D][width], [Dv][width]
  T *m, *l, *limit;
  Outlook ahead;  // of these queries, on their lists
  AdditiveQueries<T> additive;
};

// What a thread works in, for one task.
template <class T>
struct Workspace {
  T *K, *V;                                            // [block][D], [block][Dv]: a compact copy, where one is needed
  T *S, *bias, *mask, *seen;                           // [block][width]
  T* rows;                                             // [lanes][row_step]
  T *top, *seed, *subtract, *p, *first, *end, *slope;  // [width]
  int64_t row_step;
  int tiles;
  Queries<T>* queries;
  ChannelWeights<T> w;  // these two of additive attention alone
  AdditiveKeys<T> additive;
};

constexpr int most_tiles(int64_t width) { return int((256 + width - 1) / width); }

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Takes what a Workspace needs from `from`, or with from == nullptr only counts the bytes.
template <class T>
inline int64_t set_up(const Problem& p, const Plan& plan, char* from, Workspace<T>& work) {
  constexpr int64_t width = columns * lanes<T>;
  int64_t used = 0;
  auto array = [&](int64_t count) {
    T* at = (T*)(from + used);
    used += up(count * sizeof(T), 64);
    return at;
  };
  int64_t block = plan.key_block;
  work.row_step = up(most(most(p.D, p.Dv), block), lanes<T>);
  work.K = array(block * p.D);
  work.V = array(block * p.Dv);
  work.S = array(block * width);
  work.bias = array(block * width);
  work.mask = array(block * width);
  work.seen = array(block * width);
  work.rows = array(lanes<T> * work.row_step);
  T** of_a_row[] = {&work.top, &work.seed, &work.subtract, &work.p, &work.first, &work.end, &work.slope};
  for (T** a : of_a_row) *a = array(width);
  if (p.score == Score::additive) {
    work.w.w = array(padded<T>(p.D));
    for (T*& y : work.additive.y) y = array(up(block, lanes<T>) * padded<T>(p.D));
    work.additive.bound = array(block);
  }
  work.tiles = int((plan.tile_rows + width - 1) / width);
  work.queries = (Queries<T>*)(from + used);
  used += up(work.tiles * sizeof(Queries<T>), 64);
  for (int t = 0; t < work.tiles; ++t) {
    Queries<T> q = {};
    q.Q = array(p.D * width);
    q.O = array(p.Dv * width);
    q.m = array(width);
    q.l = array(width);
    q.limit = array(width);
    if (p.score == Score::additive) {
      for (T*& x : q.additive.x) x = array(3 * padded<T>(p.D) * width);
      q.additive.bound = array(width);
    }
    if (from) work.queries[t] = q;
  }
  return used;
}

template <class T>
inline void start(const Problem& p, const Head<T>& head, Workspace<T>& work, Queries<T>& q) {
  for (int c = 0; c < q.columns; ++c) {
    int64_t i = q.i0 + c * lanes<T>, n = least(lanes<T>, q.i0 + q.n - i);
    Rows<T> rows = near(head.Q, i, i + n, p.D, work.row_step, head.cosine, work.rows);
    read_transposed(rows, n, p.D, fill(T(head.scale)), q.Q + c * lanes<T>, q.width);
  }
  if (head.additive) measure(work.w, q.Q, p.D, q.width, q.n, q.additive);
  T* O = q.O;
  for (int64_t d = 0, end = p.Dv * q.width; d < end; d += lanes<T>) put(O + d, Lanes<T>{});
  for (int64_t c = 0; c < q.width; c += lanes<T>) {
    put(q.m + c, fill(T(-infinity)));
    put(q.l + c, Lanes<T>{});
    put(q.limit + c, fill(T(-infinity)));
  }
}

}  // namespace
}  // namespace harken
