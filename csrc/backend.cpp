// backend.cpp - what this machine has, which backend that allows, and the run of a problem on one.
#include "backend.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "kept.hpp"
#include "parallel.hpp"

namespace harken {

// HARKEN_BACKENDS comes from the build: X(amx) X(avx512) X(avx2) X(baseline), best first.
#define X(name) extern const Backend name##_backend;
HARKEN_BACKENDS
#undef X

namespace {

const Backend* const compiled[] = {
#define X(name) &name##_backend,
    HARKEN_BACKENDS
#undef X
};
constexpr int compiled_count = sizeof compiled / sizeof *compiled;

// Linux saves the 8 KiB of tiles only for processes that ask to use them.
bool may_use_tiles() {
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// __builtin_cpu_supports asks the operating system too whether it saves the wider registers.
const uint32_t features = [] {
  __builtin_cpu_init();
  uint32_t has = 0;
  if (__builtin_cpu_supports("avx2")) has |= has_avx2;
  if (__builtin_cpu_supports("fma")) has |= has_fma;
  if (__builtin_cpu_supports("f16c")) has |= has_f16c;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    has |= has_avx512;
  if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
      __builtin_cpu_supports("avx512bf16") && may_use_tiles())
    has |= has_amx;
  return has;
}();

struct Table {
  const Backend* runs[compiled_count];
  int count = 0;
  Table() {
    for (const Backend* backend : compiled)
      if ((backend->needs & ~features) == 0) runs[count++] = backend;
  }
};
const Table here;
std::atomic<const Backend*> forced{nullptr};

// A run over tasks, or over tiles, counted from `first`.
struct Context {
  const Backend& backend;
  const Problem& problem;
  const Plan& plan;
  char* scratch;
  int64_t first;
};

void attend_task(const void* context, int64_t index, int thread) {
  const Context& c = *static_cast<const Context*>(context);
  c.backend.attend(c.problem, c.plan, c.first + index, c.scratch + thread * c.plan.scratch_bytes);
}

void merge_task(const void* context, int64_t index, int thread) {
  const Context& c = *static_cast<const Context*>(context);
  c.backend.merge(c.problem, c.plan, c.first + index, c.scratch + thread * c.plan.scratch_bytes);
}

bool attend_whole(const Backend& backend, const Problem& problem, const Plan& plan, char* scratch) {
  Context tasks{backend, problem, plan, scratch, 0};
  return run({attend_task, &tasks}, plan.tasks, plan.threads);
}

// Tiles whose keys are cut: a wave of them at a time, all their ranges, then the sums.
bool attend_ranges(const Backend& backend, const Problem& problem, Plan& plan, char* scratch) {
  const int64_t tiles = plan.tasks / plan.ranges;
  for (int64_t tile = 0; tile < tiles; tile += plan.wave) {
    const int64_t count = tiles - tile < plan.wave ? tiles - tile : plan.wave;
    plan.first_task = tile * plan.ranges;
    Context ranges{backend, problem, plan, scratch, plan.first_task}, sums{backend, problem, plan, scratch, tile};
    if (!run({attend_task, &ranges}, count * plan.ranges, plan.threads)) return false;
    if (!run({merge_task, &sums}, count, plan.threads)) return false;
  }
  return true;
}

}  // namespace

const Backend* const* backends(int* count) {
  *count = here.count;
  return here.runs;
}

const Backend* const* compiled_backends(int* count) {
  *count = compiled_count;
  return compiled;
}

uint32_t machine_features() { return features; }

const Backend& chosen() {
  const Backend* backend = forced.load(std::memory_order_relaxed);
  return backend ? *backend : *here.runs[0];
}

bool force(const char* name) {
  if (!name) {
    forced = nullptr;
    return true;
  }
  for (int i = 0; i < here.count; ++i)
    if (std::strcmp(here.runs[i]->name, name) == 0) {
      forced = here.runs[i];
      return true;
    }
  return false;
}

Outcome answer(const Backend& backend, const Problem& problem, Plan& plan) {
  if (plan.tasks == 0) return Outcome::done;
  plan.threads = worth_waking(plan.threads, plan.microseconds);
  size_t scratch, partials, wanted;
  if (__builtin_mul_overflow(size_t(plan.threads), size_t(plan.scratch_bytes), &scratch) ||
      __builtin_mul_overflow(size_t(plan.wave) * size_t(plan.ranges), size_t(plan.partial_bytes), &partials) ||
      __builtin_add_overflow(scratch, partials, &wanted))
    return Outcome::out_of_memory;

  const Kept space(wanted);
  if (!space.at()) return Outcome::out_of_memory;
  const int error_before = errno;
  plan.partials = space.at() + scratch;
  const bool done = plan.ranges > 1 ? attend_ranges(backend, problem, plan, space.at())
                                    : attend_whole(backend, problem, plan, space.at());
  errno = error_before;
  return done ? Outcome::done : Outcome::interrupted;
}

}  // namespace harken
