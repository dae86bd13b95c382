// ragged.cpp - the plans of all sequences laid end to end, and runs over waves of them that bound the partials.
#include "ragged.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "kept.hpp"
#include "parallel.hpp"

namespace harken {
namespace {

constexpr size_t most_partial_bytes = 16 << 20;
constexpr double worth_a_thread = 15;  // microseconds, as of one problem
constexpr size_t problem_bytes = (sizeof(Problem) + 4095) / 4096 * 4096;

// What of `all` is not sequence s: sizes, and where packed arrays begin. Everything else is found by batch row s.
void narrow(const Problem& all, const Ragged& ragged, int64_t s, Problem& one) {
  if (ragged.keys) one.Lk = ragged.keys[s];
  if (ragged.q_ends) {
    const int64_t first = ragged.q_ends[s];
    one.Lq = ragged.q_ends[s + 1] - first;
    one.q.data = all.q.data + first * all.q.row;
    one.out.data = all.out.data + first * all.out.row;
    if (all.lse.data) one.lse.data = all.lse.data + first * all.lse.row;
  }
  if (ragged.k_ends) {
    const int64_t first = ragged.k_ends[s];
    one.Lk = ragged.k_ends[s + 1] - first;
    one.k.data = all.k.data + first * all.k.row;
    one.v.data = all.v.data + first * all.v.row;
    if (all.k_scale.data) one.k_scale.data = all.k_scale.data + first * all.k_scale.row;
    if (all.v_scale.data) one.v_scale.data = all.v_scale.data + first * all.v_scale.row;
  }
}

// Tiles of one sequence, with all their ranges.
struct Stretch {
  int64_t sequence, tile, tiles;
  size_t partials;  // where they begin
  int64_t task;     // which of the wave its first is
  int64_t sum;      // which of the wave's sums: only tiles with ranges are added up
};

struct Wave {
  size_t first, end;  // stretches
  int64_t tasks, sums;
};

struct Layout {
  std::vector<Plan> plans;  // of each sequence
  std::vector<Stretch> stretches;
  std::vector<Wave> waves;
  size_t scratch_bytes, partial_bytes;
  int threads;
};

int64_t tiles_of(const Plan& plan) { return plan.tasks / plan.ranges; }

// A wave takes tiles until their partials fill it, but enough to keep all threads at work.
void lay_ranges(const std::vector<int64_t>& order, Layout& to) {
  size_t used = 0;
  int64_t tasks = 0;
  for (const int64_t s : order) {
    const Plan& plan = to.plans[s];
    if (plan.ranges == 1) continue;
    const size_t of_tile = size_t(plan.ranges) * size_t(plan.partial_bytes);
    for (int64_t tile = 0; tile < tiles_of(plan);) {
      const int64_t fit = used < most_partial_bytes ? int64_t((most_partial_bytes - used) / of_tile) : 0;
      const int64_t wanted = (std::max<int64_t>(0, 4 * to.threads - tasks) + plan.ranges - 1) / plan.ranges;
      if (fit == 0 && wanted == 0) {
        to.waves.push_back({to.waves.back().end, to.stretches.size(), 0, 0});
        used = tasks = 0;
        continue;
      }
      const int64_t count = std::min(std::max(fit, wanted), tiles_of(plan) - tile);
      to.stretches.push_back({s, tile, count, used, 0, 0});
      to.waves.back().end = to.stretches.size();
      used += size_t(count) * of_tile;
      tasks += count * plan.ranges;
      tile += count;
      to.partial_bytes = std::max(to.partial_bytes, used);
    }
  }
}

void lay(const Backend& backend, const Problem& all, const Ragged& ragged, int asked, Layout& to) {
  to.plans.resize(ragged.count);
  to.scratch_bytes = to.partial_bytes = 0;
  to.threads = usable_threads(asked);
  std::vector<double> task_cost(ragged.count);
  std::vector<int64_t> order;
  Problem one = all;
  one.batches = 1;
  double cost = 0;
  int64_t tasks = 0;
  for (int64_t s = 0; s < ragged.count; ++s) {
    narrow(all, ragged, s, one);
    const Plan plan = to.plans[s] = cut(one, backend, asked);
    if (plan.tasks == 0) continue;
    order.push_back(s);
    task_cost[s] = plan.microseconds / double(plan.tasks);
    cost += plan.microseconds;
    tasks += plan.tasks;
    to.scratch_bytes = std::max(to.scratch_bytes, size_t(plan.scratch_bytes));
  }
  if (cost < worth_a_thread) to.threads = 1;
  to.threads = int(std::min<int64_t>(to.threads, std::max<int64_t>(tasks, 1)));

  const auto longer = [&](int64_t a, int64_t b) { return task_cost[a] > task_cost[b]; };
  std::stable_sort(order.begin(), order.end(), longer);
  to.waves.push_back({0, 0, 0, 0});
  lay_ranges(order, to);
  for (const int64_t s : order)
    if (to.plans[s].ranges == 1) to.stretches.push_back({s, 0, tiles_of(to.plans[s]), 0, 0, 0});
  to.waves.back().end = to.stretches.size();
  for (Wave& wave : to.waves) {
    std::stable_sort(&to.stretches[0] + wave.first, &to.stretches[0] + wave.end,
                     [&](const Stretch& a, const Stretch& b) { return longer(a.sequence, b.sequence); });
    for (size_t n = wave.first; n < wave.end; ++n) {
      Stretch& stretch = to.stretches[n];
      const Plan& plan = to.plans[stretch.sequence];
      stretch.task = wave.tasks;
      stretch.sum = wave.sums;
      wave.tasks += stretch.tiles * plan.ranges;
      if (plan.ranges > 1) wave.sums += stretch.tiles;
    }
  }
}

struct Context {
  const Backend& backend;
  const Problem& all;
  const Ragged& ragged;
  const Layout& layout;
  const Wave& wave;
  char* scratch;

  // The stretch whose `number` is the last that is not above `index`: one that has no sums is never it.
  const Stretch& at(int64_t Stretch::* number, int64_t index) const {
    const Stretch* stretches = layout.stretches.data();
    const auto above = [&](int64_t value, const Stretch& stretch) { return value < stretch.*number; };
    return *(std::upper_bound(stretches + wave.first, stretches + wave.end, index, above) - 1);
  }

  Problem& problem(int64_t sequence, int thread) const {
    Problem& one = *reinterpret_cast<Problem*>(of(thread));
    narrow(all, ragged, sequence, one);
    return one;
  }

  char* of(int thread) const { return scratch + thread * (problem_bytes + layout.scratch_bytes); }
};

void attend_task(const void* context, int64_t index, int thread) {
  const Context& c = *static_cast<const Context*>(context);
  const Stretch& at = c.at(&Stretch::task, index);
  const Plan& plan = c.layout.plans[at.sequence];
  const int64_t task = (at.sequence * tiles_of(plan) + at.tile) * plan.ranges + index - at.task;
  c.backend.attend(c.problem(at.sequence, thread), plan, task, c.of(thread) + problem_bytes);
}

void merge_task(const void* context, int64_t index, int thread) {
  const Context& c = *static_cast<const Context*>(context);
  const Stretch& at = c.at(&Stretch::sum, index);
  const Plan& plan = c.layout.plans[at.sequence];
  const int64_t tile = at.sequence * tiles_of(plan) + at.tile + index - at.sum;
  c.backend.merge(c.problem(at.sequence, thread), plan, tile, c.of(thread) + problem_bytes);
}

}  // namespace

Outcome answer(const Backend& backend, const Problem& all, const Ragged& ragged, int threads) {
  Layout layout;
  lay(backend, all, ragged, threads, layout);
  if (layout.stretches.empty()) return Outcome::done;
  size_t scratch, wanted;
  if (__builtin_mul_overflow(size_t(layout.threads), problem_bytes + layout.scratch_bytes, &scratch) ||
      __builtin_add_overflow(scratch, layout.partial_bytes, &wanted))
    return Outcome::out_of_memory;
  const Kept space(wanted);
  if (!space.at()) return Outcome::out_of_memory;
  const int error_before = errno;
  for (int thread = 0; thread < layout.threads; ++thread)
    std::memcpy(space.at() + thread * (problem_bytes + layout.scratch_bytes), &all, sizeof all);

  bool whole = true;
  for (const Wave& wave : layout.waves) {
    for (size_t n = wave.first; n < wave.end; ++n) {
      const Stretch& stretch = layout.stretches[n];
      Plan& plan = layout.plans[stretch.sequence];
      plan.partials = space.at() + scratch + stretch.partials;
      plan.first_task = (stretch.sequence * tiles_of(plan) + stretch.tile) * plan.ranges;
    }
    Context context{backend, all, ragged, layout, wave, space.at()};
    whole = run({attend_task, &context}, wave.tasks, layout.threads) &&
            (wave.sums == 0 || run({merge_task, &context}, wave.sums, layout.threads));
    if (!whole) break;
  }
  errno = error_before;
  return whole ? Outcome::done : Outcome::interrupted;
}

}  // namespace harken
