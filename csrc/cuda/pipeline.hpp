// pipeline.hpp - what a block of the Hopper kernel shares, and the thread that fills it: jobs, queries, keys, values.
//
// Of each thing there are some, one after the other in use. One barrier says that it is full, one that it is empty: the
// thread that brings waits for the second and makes the first come true, groups that multiply the other way around.
#pragma once

#include "fragments.hpp"
#include "order.hpp"
#include "tensors.hpp"

namespace harken {
namespace {

constexpr int rows_of_group = 64, looked = 64;  // keys that are looked at together: bits of a word

template <class S_, int width_, int keys_, int groups_, int stages_, int jobs_of_queries_, int few_, int many_>
struct Plan {
  using S = S_;
  using Part = Form<S, width_, looked, 1>;
  static constexpr int width = width_, keys = keys_, groups = groups_;
  static constexpr int stages = stages_, jobs_of_queries = jobs_of_queries_;  // in shared memory at once
  static constexpr int few = few_, many = many_;                              // registers
  static constexpr int parts = keys / looked, slabs = width / slab_numbers, steps = keys / 16;
  static constexpr int rows = groups * rows_of_group;
  static constexpr int multiplying = groups * threads_of_group, threads = multiplying + threads_of_group;
  static constexpr int warps = multiplying / lanes_of_warp;
  static constexpr int query_slab = rows * slab_row_bytes, key_slab = keys * slab_row_bytes;
  static constexpr int query_bytes = slabs * query_slab, key_bytes = slabs * key_slab;
  static_assert((few + groups * many) * threads_of_group <= 65536 && rows <= 256 && keys % looked == 0);
};
template <class S>
using Plan64 = Plan<S, 64, 128, 2, 4, 2, 56, 224>;
template <class S>
using Plan128 = Plan<S, 128, 128, 2, 2, 2, 56, 224>;
template <class S>
using Plan256 = Plan<S, 256, 64, 2, 2, 1, 56, 224>;

struct Call {
  Tensor Q, K, V;
  BatchAxes batch;
  Order order;
  int tasks, group;  // query heads of a head of keys
  int* taken;        // tasks, besides the first of each block; null: each has one
  Problem p;
};

// A tile of queries.
struct Job {
  bool there, any;  // false: there are no more; it sees no key
  int64_t i0;
  Head<float> head;
};

// A tile of keys.
struct Bite {
  int k0;
  bool whole, last;
};

constexpr int jobs_ahead = 2;

// What a block shares besides tiles.
template <class Plan>
struct Common {
  BatchRow row;  // of the job that is being made, with its walk: in registers they would be most of those of who walks
  Walk walk;
  Job jobs[jobs_ahead];
  Bite bites[Plan::stages];
  Barrier job_full[jobs_ahead], job_empty[jobs_ahead];
  Barrier q_full[Plan::jobs_of_queries], q_empty[Plan::jobs_of_queries];
  Barrier k_full[Plan::stages], k_empty[Plan::stages], v_full[Plan::stages], v_empty[Plan::stages];
};

template <class Plan>
constexpr int keys_at = Plan::jobs_of_queries * Plan::query_bytes;
template <class Plan>
constexpr int common_at = keys_at<Plan> + 2 * Plan::stages * Plan::key_bytes;
template <class Plan>
constexpr int shared_bytes = common_at<Plan> + int(sizeof(Common<Plan>));

template <class Plan>
HARKEN_WORD char* queries_of(int n) {
  return shared_memory() + n * Plan::query_bytes;
}
template <class Plan>
HARKEN_WORD char* keys_of(int stage) {
  return shared_memory() + keys_at<Plan> + 2 * stage * Plan::key_bytes;
}
template <class Plan>
HARKEN_WORD char* values_of(int stage) {
  return keys_of<Plan>(stage) + Plan::key_bytes;
}

// Which of `count` things is next, and the parity of the phase that makes it full. It was emptied in the one before.
template <int count>
struct Ring {
  static_assert((count & (count - 1)) == 0);
  uint32_t number = 0;

  HARKEN_WORD int at() const { return int(number % count); }
  HARKEN_WORD uint32_t parity() const { return number / count & 1; }
  HARKEN_WORD void next() { ++number; }
};

template <class Plan>
HARKEN_WORD void bring(char* to, const Tensor& tensor, const int (&of)[map_axes - 2], int64_t row, int slab_bytes,
                       Barrier& full) {
  arrive_expecting(full, Plan::slabs * slab_bytes);
#pragma unroll 1
  for (int slab = 0; slab < Plan::slabs; ++slab) {
    const int at[map_axes] = {slab * slab_numbers, int(row), of[0] * tensor.along[0], of[1] * tensor.along[1],
                              of[2] * tensor.along[2]};
    copy_box(to + slab * slab_bytes, tensor.map, at, full);
  }
}

template <class Plan>
HARKEN_WORD void bring_all(const Call& call, Common<Plan>& common) {
  Ring<jobs_ahead> jobs;
  Ring<Plan::jobs_of_queries> queries;
  Ring<Plan::stages> stages;
  for (int n = int(block());;) {
    wait_for(common.job_empty[jobs.at()], jobs.parity() ^ 1);
    Job& job = common.jobs[jobs.at()];
    job.there = n < call.tasks;
    if (!job.there) return arrive(common.job_full[jobs.at()]);
    const int next = call.taken ? int(blocks()) + take_number(call.taken) : call.tasks;
    const Turn turn = turn_at(call.order, n);
    const int h = turn.head % int(call.p.Hq);
    BatchRow& row = common.row;
    locate(call.p, turn.head / int(call.p.Hq), row);
    place(job.head, call.p, row, h);
    job.i0 = int64_t(turn.tile) * Plan::rows;
    int of[map_axes - 2] = {h, 0, 0};
#pragma unroll
    for (int axis = 0; axis < mapped_batch_axes; ++axis)
      if (call.batch.axis[axis] >= 0) of[1 + axis] = int(row.index[call.batch.axis[axis]]);
    const Sight& sight = job.head.sight;
    Walk& walk = common.walk;
    walk = walk_of(sight, job.i0, least(job.i0 + Plan::rows, job.head.queries), Plan::keys);
    Visit visit = next_visit(sight, walk, Plan::keys);
    job.any = visit.any;
    arrive(common.job_full[jobs.at()]);
    jobs.next();
    n = next;
    if (!visit.any) continue;

    wait_for(common.q_empty[queries.at()], queries.parity() ^ 1);
    bring<Plan>(queries_of<Plan>(queries.at()), call.Q, of, job.i0, Plan::query_slab, common.q_full[queries.at()]);
    queries.next();
    of[0] = h / call.group;
    while (visit.any) {
      const Visit after = next_visit(sight, walk, Plan::keys);
      wait_for(common.k_empty[stages.at()], stages.parity() ^ 1);
      common.bites[stages.at()] = {int(visit.k0), visit.whole, !after.any};
      bring<Plan>(keys_of<Plan>(stages.at()), call.K, of, visit.k0, Plan::key_slab, common.k_full[stages.at()]);
      wait_for(common.v_empty[stages.at()], stages.parity() ^ 1);
      bring<Plan>(values_of<Plan>(stages.at()), call.V, of, visit.k0, Plan::key_slab, common.v_full[stages.at()]);
      stages.next();
      visit = after;
    }
  }
}

}  // namespace
}  // namespace harken
