// tiles.hpp - a block of four warps on one tile of queries: what they share, what they copy, their walk over the keys.
//
// Keys and values come in tiles, two of each in shared memory: the copies of tile j + 1 are begun when j is there, and
// have all of its arithmetic to arrive.
//
//     wait for the copies of tile j, barrier, begin those of j + 1
//     absorb tile j
//
// The barrier is the only one of a tile: behind it tile j is there for all, and nobody reads j - 1 any more, which
// j + 1 replaces.
#pragma once

#include "fragments.hpp"

namespace harken {
namespace {

constexpr int warps = 4, threads = warps * lanes_of_warp, stages = 2;

template <class Form>
constexpr int tile_rows = warps * Form::strips * strip_rows;

// Registers that O takes. 128 leave none for as many of Q.
template <class Form>
constexpr bool keeps_queries = Form::strips * Form::width / 2 < 128;

// What a block shares besides tiles. The first thread writes it. The head is 500 bytes, of which few are read for each
// tile: in registers they would take the room of O.
struct Common {
  BatchRow row;
  Head<float> head;
  Walk walk;
  Visit visits[stages];
  int64_t special[stages];  // k0 of the tile in which NaN or Inf was found among the values
};

template <class Form>
constexpr int queries_at = 2 * stages * Form::tile_bytes;
template <class Form>
constexpr int common_at = queries_at<Form> + (keeps_queries<Form> ? 0 : tile_rows<Form> * Form::row_bytes);
template <class Form>
constexpr int shared_bytes = common_at<Form> + int(sizeof(Common));

template <class Form>
HARKEN_WORD char* keys_of(int stage) {
  return shared_memory() + 2 * stage * Form::tile_bytes;
}
template <class Form>
HARKEN_WORD char* values_of(int stage) {
  return keys_of<Form>(stage) + Form::tile_bytes;
}

struct Task {
  int64_t b, h, i0;
};

template <class Form>
HARKEN_ANYWHERE int64_t tiles_of(const Problem& p) {
  return (p.Lq + tile_rows<Form> - 1) / tile_rows<Form>;
}

template <class Form>
HARKEN_ANYWHERE int64_t tasks_of(const Problem& p) {
  return p.batches * p.Hq * tiles_of<Form>(p);
}

template <class Form>
Grid grid_of(const Problem& p) {
  return {tasks_of<Form>(p), threads, shared_bytes<Form>};
}

// The tiles of a head side by side, which read the same keys; its last first, which sees most of them if it is causal.
template <class Form>
HARKEN_WORD Task task_at(const Problem& p, int64_t n) {
  const int64_t tiles = tiles_of<Form>(p), head = n / tiles;
  return {head / p.Hq, head % p.Hq, (tiles - 1 - n % tiles) * tile_rows<Form>};
}

// Begins to copy rows first .. first + count - 1, zeros at or past `end` and for channels at or past D.
template <class Form, int count>
HARKEN_WORD void bring(char* to, const Matrix& M, int64_t first, int64_t end, int64_t D) {
  constexpr int chunks = count * Form::row_bytes / chunk_bytes, numbers = chunk_bytes / int(sizeof(typename Form::S));
  static_assert(chunks % threads == 0);
#pragma unroll 1  // all addresses at once would take the registers of O
  for (int n = 0; n < chunks / threads; ++n) {
    const Spot spot = copied(Form::halves, thread() + n * threads);
    const bool there = first + spot.row < end && spot.chunk * numbers < D;
    const char* from = there ? M.data + (first + spot.row) * M.row + spot.chunk * chunk_bytes : M.data;
    copy_async(to + offset_of(Form::halves, spot.row, spot.chunk), from, there ? chunk_bytes : 0);
  }
}

// The head of this block's task, once walk() has begun.
template <class Form>
HARKEN_WORD Common& common_of() {
  return *(Common*)(shared_memory() + common_at<Form>);
}

// The tiles of keys that a task's queries see, one after the other. clear(visit, V) makes values fit that this thread
// has copied, and says whether there was NaN or Inf among them; absorb(visit, stage, has_special, kept) is the rest.
template <class Form, class Clear, class Absorb>
HARKEN_WORD void walk(const Problem& p, const Task& task, Clear clear, Absorb absorb) {
  constexpr int keys = Form::keys, rows = tile_rows<Form>;
  static_assert(!keeps_queries<Form> || rows * Form::row_bytes <= 2 * Form::tile_bytes, "Q passes through a stage");
  Common& common = common_of<Form>();
  if (thread() == 0) {
    locate(p, task.b, common.row);
    common.head = head_at<float>(p, common.row, task.h);
    const Sight& sight = common.head.sight;
    common.walk = walk_of(sight, task.i0, least(task.i0 + rows, common.head.queries), keys);
    common.visits[0] = next_visit(sight, common.walk, keys);
    for (int n = 0; n < stages; ++n) common.special[n] = -1;
  }
  barrier();
  const Head<float>& head = common.head;
  Visit visit = common.visits[0];

  // In registers Q comes through the second stage, which the loop writes behind its first barrier.
  char* const Q = keeps_queries<Form> ? keys_of<Form>(1) : shared_memory() + queries_at<Form>;
  Queries<Form> kept;
  if (visit.any) {
    bring<Form, rows>(Q, head.Q, task.i0, head.queries, p.D);
    commit();
    bring<Form, keys>(keys_of<Form>(0), head.K, visit.k0, head.sight.keys, p.D);
    bring<Form, keys>(values_of<Form>(0), head.V, visit.k0, head.sight.keys, p.Dv);
    commit();
    wait<1>();
    barrier();
    if constexpr (keeps_queries<Form>) {
#pragma unroll
      for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
        for (int step = 0; step < Form::steps; ++step) load_queries<Form>(kept.A[strip][step], Q, strip, step);
    }
  }
  for (int stage = 0; visit.any; stage ^= 1) {
    wait<0>();
    if (clear(visit, values_of<Form>(stage))) common.special[stage] = visit.k0;
    if (thread() == 0) common.visits[stage ^ 1] = next_visit(head.sight, common.walk, keys);
    barrier();
    const bool has_special = common.special[stage] == visit.k0;
    const Visit next = common.visits[stage ^ 1];
    if (next.any) {
      bring<Form, keys>(keys_of<Form>(stage ^ 1), head.K, next.k0, head.sight.keys, p.D);
      bring<Form, keys>(values_of<Form>(stage ^ 1), head.V, next.k0, head.sight.keys, p.Dv);
    }
    commit();
    absorb(visit, stage, has_special, kept);
    visit = next;
  }
}

}  // namespace
}  // namespace harken
