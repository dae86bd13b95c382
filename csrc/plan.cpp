// plan.cpp - the cut itself: the numbers that decide it, each with the measurement behind it.
#include "plan.hpp"

#include "backend.hpp"
#include "parallel.hpp"

namespace harken {
namespace {

constexpr int64_t task_queries = 256;  // a tile of queries shares each block of keys; 64 cost 3 to 5 %
constexpr int64_t tiled_block = 128;   // keys; 64 to 192 are within 1 %
constexpr int64_t decode_block = 64;
constexpr int64_t decode_range = 512;  // keys: a range of 128 channels in float32 is 0.5 MB, 20 us of reading
constexpr int64_t tiled_range = 4096;
constexpr int64_t most_partial_bytes = 16 << 20;
constexpr int64_t additive_queries = 128;  // x takes three times the memory of Q, and a key is worth more work
constexpr double additive_work = 7;        // multiply-adds that a channel takes the time of
constexpr int64_t few_tiles = 4;           // of task_queries
constexpr int64_t strip_rows = 32;
constexpr int64_t matrix_rows[] = {1024, 512, 512};  // of a task, by terms: K and V are packed once for them
constexpr int64_t matrix_block[] = {512, 256, 256};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A guess at the microseconds on one thread, to decide whether another is worth waking (about 1 us hot, 60 us cold).
double microseconds(const Problem& p, const Backend& backend) {
  double bytes =
      double(p.batches) * double(p.Hkv) * double(p.Lk) * double(p.D * size_of(p.k.type) + p.Dv * size_of(p.v.type));
  double rate = 6e3 * backend.tiling[p.type == Type::f64].lanes;  // flops a microsecond, half of the usual
  return work(p) / rate + bytes / 40e3;
}

}  // namespace

double work(const Problem& p) {
  const double pairs = double(p.batches) * double(p.Hq) * double(p.Lq) * double(p.Lk);
  return 2 * pairs * (double(p.D) * (p.score == Score::additive ? additive_work : 1) + double(p.Dv));
}

Plan cut(const Problem& p, const Backend& backend, int asked) {
  const int threads = usable_threads(asked);
  Plan plan;
  const Choice choice = choose(p, backend);
  plan.form = choice.form;
  plan.why_form = choice.why;
  const bool decode = plan.form == Form::decode;
  const bool matrix = plan.form == Form::matrix, grouped = decode || matrix;
  const int64_t group = p.Hq / p.Hkv;
  plan.terms = matrix ? terms_of(p) : 0;
  plan.heads = grouped && group > 0 ? p.Hkv : p.Hq;  // keys without a query head are no task
  int64_t rows_a_task = task_queries;
  switch (plan.form) {
    case Form::tiled:
      plan.key_block = tiled_block;
      if (p.score == Score::additive) rows_a_task = additive_queries;
      break;
    case Form::brief: plan.key_block = p.Lk; break;
    case Form::decode:
      plan.key_block = decode_block;
      rows_a_task = p.Lq;
      break;
    case Form::matrix:
      plan.key_block = matrix_block[plan.terms - 1];
      rows_a_task = matrix_rows[plan.terms - 1] / (group ? group : 1) / strip_rows * strip_rows;
      if (rows_a_task < strip_rows) rows_a_task = strip_rows;
  }
  plan.tile_rows = p.Lq < rows_a_task ? p.Lq : rows_a_task;
  plan.tiles = plan.tile_rows == 0 ? 0 : divide_up(p.Lq, plan.tile_rows);

  int64_t range = decode ? decode_range : tiled_range;
  const bool few = decode || p.Lq <= few_tiles * task_queries;  // not of plan.tiles: these know the group, too
  bool split = few && p.Lk > range && !p.weights.data;
  plan.ranges = split ? divide_up(p.Lk, range) : 1;
  plan.range_keys = split ? range : p.Lk;
  plan.why_ranges = split            ? "few tiles of queries and many keys: ranges of keys, added up in order"
                    : p.weights.data ? "weights are asked for: one range"
                                     : "the tiles of queries are enough, or the keys few";

  plan.tasks = p.batches * plan.heads * plan.tiles * plan.ranges;
  int64_t rows = plan.tile_rows * (grouped ? group : 1);
  int64_t width = p.type == Type::f64 ? 8 : 4;
  plan.partial_bytes = split ? (rows * (p.Dv + 3) * width + 63) / 64 * 64 : 0;
  plan.partials = nullptr;
  plan.first_task = 0;

  plan.microseconds = microseconds(p, backend);
  bool small = plan.microseconds < 15;
  plan.threads = small ? 1 : threads;
  if (plan.threads > plan.tasks) plan.threads = plan.tasks > 1 ? int(plan.tasks) : 1;
  plan.why_threads = small                    ? "small: it stays on the calling thread"
                     : plan.threads < threads ? "no more tasks than that"
                                              : why_threads();
  const int64_t tiles = split ? plan.tasks / plan.ranges : 0, of_tile = plan.ranges * plan.partial_bytes;
  plan.wave = split ? most_partial_bytes / of_tile : 0;
  if (plan.wave * plan.ranges < 4 * plan.threads) plan.wave = divide_up(4 * plan.threads, plan.ranges);
  if (plan.wave < 1) plan.wave = 1;
  if (plan.wave > tiles) plan.wave = tiles;
  plan.scratch_bytes = (backend.scratch(p, plan) + 4095) / 4096 * 4096;
  return plan;
}

Task task_at(const Problem& p, const Plan& plan, int64_t index) {
  Task task;
  task.index = index;
  int64_t range = 0, tile = 0;
  task.b = task.h = 0;
  if (index > 0) {  // six divisions are 4 % of the shortest calls
    const int64_t of_head = index / plan.ranges, head = of_head / plan.tiles;
    range = index % plan.ranges;
    tile = of_head % plan.tiles;
    task.b = head / plan.heads;
    task.h = head % plan.heads;
  }
  task.q0 = tile * plan.tile_rows;
  task.q1 = task.q0 + plan.tile_rows < p.Lq ? task.q0 + plan.tile_rows : p.Lq;
  task.k0 = range * plan.range_keys;
  task.k1 = task.k0 + plan.range_keys < p.Lk ? task.k0 + plan.range_keys : p.Lk;
  return task;
}

}  // namespace harken
