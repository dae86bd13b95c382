// hopper.cu - softmax(Q K^T) V by the engines of compute capability 9.0: one warp brings tiles, groups multiply.
//
// A block stays on its processor and takes tile after tile of queries (order.hpp). Its last group of 4 warps gives its
// registers away; one thread of it walks over the keys, has the copy engine bring them, and is up to a tile of queries
// and `stages` tiles of keys ahead. Each other group has 64 rows of the tile. At tile j of the keys, with S of the next
// tile in registers apart from P:
//
//     take turns: begin S = Q K^T of tile j + 1, begin O = O + P V of tile j
//     when S is there: M = max(m, max S), a = 2^(m - M), S = 2^(score(S) - M)
//     when O is there: O = a O, P = S
//
// So powers are taken while the matrix engine has O of the same group to work on, and after it what another group gave
// it. Turns keep groups apart: without them all would multiply, and then all take powers. A turn is a barrier by number
// for each group, where it meets those who had their turn before.
//
//     channels   queries, keys of a tile   groups   stages   Q     shared memory   registers of a thread
//     <= 64      128, 128                  2        4        2     162 KiB         56 and 224
//     <= 128     128, 128                  2        2        2     194 KiB         56 and 224
//     <= 256     128,  64                  2        2        1     194 KiB         56 and 224
//
// For a tile of 128 x 128 and 128 channels the matrix engine takes 2048 cycles, powers take 1024.
//
// Keys that a row does not see have weight 0, but 0 times NaN or Inf is NaN. Where some row does not see all of a tile,
// each group reads V once, 32 KiB in about 300 cycles, beside the multiplying of the others. If there is NaN or Inf,
// which is rare, all groups meet, set it to 0, and add it apart for the rows that see it, as portable.cu does.
//
// It has never run on a card: what is said of it comes from the emulator, the assembler and such arithmetic.
#include "group.hpp"
#include "kernels.hpp"
#include "takes.hpp"

namespace harken {
namespace {

// What a group knows of the tile of queries that it is at.
template <class Plan>
struct Work {
  const Call& call;
  const Job& job;
  uint32_t rows;       // of Q, their address
  bool masked, plain;  // an array hides keys; scores are no more than q k^T times a number > 0

  HARKEN_WORD bool all(const Bite& bite) const { return bite.whole && !masked; }

  // S, which is there, becomes powers.
  HARKEN_WORD void weigh_bite(State<Plan>& state, const Bite& bite) const {
    const float factor = all(bite) && plain ? float(job.head.scale) : modify_all<Plan>(state, job, bite.k0, all(bite));
    weigh(state, factor);
  }
};

// The keys of a tile of queries.
template <class Plan>
HARKEN_WORD void absorb_all(const Work<Plan>& work, Common<Plan>& common, Ring<Plan::stages>& stages, Barrier& q_empty,
                            State<Plan>& state) {
  auto& O = state.softmax.O[0];
  wait_for(common.k_full[stages.at()], stages.parity());
  Bite bite = common.bites[stages.at()];
  begin_products(state.S);
  multiply_keys(state, work.rows, keys_of<Plan>(stages.at()));
  wait_products<0>(state.S);
  leave_to(common.k_empty[stages.at()]);
  if (bite.last) leave_to(q_empty);
  work.weigh_bite(state, bite);
  make_weights(state);
  while (!bite.last) {
    Ring<Plan::stages> next = stages;
    next.next();
    wait_for(common.k_full[next.at()], next.parity());
    const Bite after = common.bites[next.at()];
    char* const values = values_of<Plan>(stages.at());
    wait_for(common.v_full[stages.at()], stages.parity());
    const bool some_apart = !work.all(bite) && cleared<Plan>(values);
    begin_products(state.S, O, state.P);
    take_turn<Plan>();
    multiply_keys(state, work.rows, keys_of<Plan>(next.at()));
    multiply_values(state, values);
    give_turn<Plan>();
    wait_products<1>(state.S);
    leave_to(common.k_empty[next.at()]);
    work.weigh_bite(state, after);
    if (after.last) leave_to(q_empty);  // after a branch: an assembler puts a wait as early as its block lets it
    wait_products<0>(O);
    leave_to(common.v_empty[stages.at()]);
    make_weights(state);
    if (some_apart) add_cleared(work.call, work.job, bite.k0, state);
    rescale(state);
    stages = next;
    bite = after;
  }
  char* const values = values_of<Plan>(stages.at());
  wait_for(common.v_full[stages.at()], stages.parity());
  const bool some_apart = !work.all(bite) && cleared<Plan>(values);
  begin_products(O, state.P);
  multiply_values(state, values);
  wait_products<0>(O);
  leave_to(common.v_empty[stages.at()]);
  if (some_apart) add_cleared(work.call, work.job, bite.k0, state);
  stages.next();
}

template <class Plan>
HARKEN_WORD void multiply_all(const Call& call, Common<Plan>& common) {
  Ring<jobs_ahead> jobs;
  Ring<Plan::jobs_of_queries> queries;
  Ring<Plan::stages> stages;
  if (group() == Plan::groups - 1) give_turn<Plan>();  // the first group begins
  for (;; jobs.next()) {
    wait_for(common.job_full[jobs.at()], jobs.parity());
    const Job& job = common.jobs[jobs.at()];
    if (!job.there) break;
    const Head<float>& head = job.head;
    State<Plan> state;
    begin(state.softmax);
    if (job.any) {
      const uint32_t rows = shared_address(queries_of<Plan>(queries.at())) + group() * rows_of_group * slab_row_bytes;
      const Work<Plan> work = {call, job, rows, head.mask.data != nullptr,
                               !head.modifiers.any() && float(head.scale) > 0};
      wait_for(common.q_full[queries.at()], queries.parity());
      absorb_all(work, common, stages, common.q_empty[queries.at()], state);
      queries.next();
    }
    leave<Plan>(call, job, state);
    leave_to(common.job_empty[jobs.at()]);
  }
  if (group() == 0) take_turn<Plan>();  // which the last group gave to nobody else
}

template <class Plan>
HARKEN_LONE_KERNEL(Plan::threads)
attend_hopper(HARKEN_CONSTANT Call call) {
  Common<Plan>& common = *(Common<Plan>*)(shared_memory() + common_at<Plan>);
  if (thread() == 0) {
    for (int n = 0; n < jobs_ahead; ++n) prepare(common.job_full[n], 1), prepare(common.job_empty[n], Plan::warps);
    for (int n = 0; n < Plan::jobs_of_queries; ++n)
      prepare(common.q_full[n], 1), prepare(common.q_empty[n], Plan::warps);
    for (int n = 0; n < Plan::stages; ++n) {
      prepare(common.k_full[n], 1), prepare(common.k_empty[n], Plan::warps);
      prepare(common.v_full[n], 1), prepare(common.v_empty[n], Plan::warps);
    }
    prepared();
  }
  barrier();
  if (group() == Plan::groups) {
    give_registers<Plan::few>();
    if (thread() == Plan::multiplying) bring_all<Plan>(call, common);
  } else {
    take_registers<Plan::many>();
    multiply_all<Plan>(call, common);
  }
}

// --- the host's side ---

// body(Plan) for what the problem takes.
template <class Body>
auto planned(const Problem& p, Body body) {
  return formed_of_halves<Plan64, Plan128, Plan256>(p, body);
}

template <class Plan>
int64_t tasks_of(const Problem& p) {
  return p.batches * p.Hq * ((p.Lq + Plan::rows - 1) / Plan::rows);
}

constexpr int64_t most_tasks = int64_t(1) << 30;

const char* lacks(const Problem& p) {
  if (paged(p)) return "takes no keys in pages";
  if (const char* what = lacks_of_halves(p)) return what;
  if (p.Dv == 0) return "takes channels in multiples of 8";
  if (batch_axes_of(p).count > mapped_batch_axes) return "takes two axes of batch rows at most";
  if (!mappable(p, p.q, p.Hq, p.Lq, p.D) || !mappable(p, p.k, p.Hkv, p.Lk, p.D) || !mappable(p, p.v, p.Hkv, p.Lk, p.Dv))
    return "takes q, k, v of rows that go on by multiples of 16 bytes";
  if (planned(p, [&](auto plan) { return tasks_of<decltype(plan)>(p); }) > most_tasks)
    return "takes 2^30 tiles at most";
  return nullptr;
}

Grid grid(const Problem& p) {
  return planned(p, [&](auto plan) {
    using Plan = decltype(plan);
    const int64_t tasks = tasks_of<Plan>(p);
    return Grid{tasks == 0 ? 0 : least(tasks, processors()), Plan::threads, shared_bytes<Plan>};
  });
}

// The number of the next task, where blocks have more than one.
int64_t workspace(const Problem& p) {
  const int64_t tasks = planned(p, [&](auto plan) { return tasks_of<decltype(plan)>(p); });
  return tasks > processors() ? sizeof(int) : 0;
}

void attend(const Problem& p, char* workspace, void* stream) {
  planned(p, [&](auto plan) {
    using Plan = decltype(plan);
    const int64_t tasks = tasks_of<Plan>(p);
    if (tasks == 0) return;
    const int64_t group = p.Hq / p.Hkv, heads = p.batches * p.Hq;
    const Call call = {
        tensor_of(p, p.q, p.Hq, p.Lq, p.D, Plan::rows),
        tensor_of(p, p.k, p.Hkv, p.Lk, p.D, Plan::keys),
        tensor_of(p, p.v, p.Hkv, p.Lk, p.Dv, Plan::keys),
        batch_axes_of(p),
        order_of(tasks / heads, heads, group, p.Lk * (p.D + p.Dv) * size_of(p.type)),
        int(tasks),
        int(group),
        reinterpret_cast<int*>(workspace),
        p,
    };
    if (workspace) clear(workspace, sizeof(int), stream);
    launch(attend_hopper<Plan>, grid(p), stream, call);
  });
}

}  // namespace

extern const Kernel hopper_kernel;
const Kernel hopper_kernel = {"hopper",      "engines that copy and multiply by themselves, float16 and bfloat16",
                              HARKEN_SOURCE, 90,
                              false,         lacks,
                              grid,          workspace,
                              attend};

}  // namespace harken
