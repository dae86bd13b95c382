// plan.cpp - the cut itself: the numbers that decide it, each with the measurement behind it.
#include "plan.hpp"

#include <atomic>
#include <cstring>

#include "backend.hpp"
#include "parallel.hpp"

namespace harken {
namespace {

constexpr int64_t task_queries = 256;  // a tile of queries shares each block of keys; 64 cost 3 to 5 %
constexpr int64_t tiled_block = 128;   // keys; 64 to 192 are within 1 %
constexpr int64_t decode_block = 64;
constexpr int64_t decode_queries = 12;        // up to here channels in lanes are ahead of queries in lanes, ...
constexpr int64_t decode_queries_narrow = 8;  // ... or up to here below 64 channels
constexpr int64_t decode_range = 512;         // keys: a range of 128 channels in float32 is 0.5 MB, 20 us of reading
constexpr int64_t tiled_range = 4096;
constexpr int64_t most_partial_bytes = 16 << 20;
constexpr int64_t most_brief_keys = 1024;
constexpr int64_t brief_keys_a_lane = 32, brief_channels = 32;  // see fastest()
constexpr int64_t few_tiles = 4;                                // of one head

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A guess at the microseconds on one thread, to decide whether another is worth waking (about 1 us hot, 60 us cold).
double microseconds(const Problem& p, const Backend& backend) {
  double heads = double(p.batches) * double(p.Hq), pairs = heads * double(p.Lq) * double(p.Lk);
  double flops = 2 * pairs * double(p.D + p.Dv);
  double bytes = double(p.batches) * double(p.Hkv) * double(p.Lk) * double(p.D + p.Dv) * double(size_of(p.type));
  double rate = 6e3 * backend.tiling[p.type == Type::f64].lanes;  // flops a microsecond, half of the usual
  return flops / rate + bytes / 40e3;
}

constexpr const char* form_names[] = {
#define HARKEN_FORM(name) #name,
    HARKEN_FORMS(HARKEN_FORM)
#undef HARKEN_FORM
};
constexpr int forms = sizeof form_names / sizeof *form_names;
std::atomic<int> forced_form{-1};

struct Choice {
  Form form;
  const char* why;
};

// Can it compute the problem at all?
bool able(Form form, const Problem& p) {
  switch (form) {
    case Form::tiled: return true;
    case Form::brief: return !p.weights.data && p.Lk <= most_brief_keys;
    case Form::decode: return !p.weights.data;
  }
  return false;
}

// The crossover points: which form is the fastest where.
Choice fastest(const Problem& p, const Backend& backend) {
  if (p.weights.data) return {Form::tiled, "weights are asked for, which tiles of queries give"};
  // Brief over tiled: 1.07 to 1.2 x up to 256 keys, 1.3 x when causal; AVX-512 with 512 keys 1.02 to 1.1, 768 1.00;
  // AVX2 with 384 0.98. 16 channels 0.87, 24 0.74: the last register of a row is filled with zeros.
  const int64_t lanes = backend.tiling[p.type == Type::f64].lanes, idle = divide_up(p.Dv, lanes) * lanes - p.Dv;
  const bool brief =
      p.Lk <= brief_keys_a_lane * lanes && p.D >= brief_channels && p.Dv >= brief_channels && idle * 8 <= p.Dv;
  // Brief over decode: 10 queries of 64 channels 1.1 to 1.8 x, 8 queries 0.9, but 8 queries and keys 2.0.
  const bool few = p.Lq <= (p.D < 64 ? decode_queries_narrow : decode_queries);
  if (few && !(brief && (p.Lq > 8 || (p.Lq > 4 && p.Lk <= 16))))
    return {Form::decode, "few queries: every key and value is read once"};
  if (brief) return {Form::brief, "few keys: all of a query at once, without a running maximum"};
  return {Form::tiled, "many queries: they lie along the lanes and share blocks of keys"};
}

Choice choose(const Problem& p, const Backend& backend) {
  const int forced = forced_form.load(std::memory_order_relaxed);
  if (forced >= 0 && able(Form(forced), p)) return {Form(forced), "forced"};
  return fastest(p, backend);
}

}  // namespace

const char* name_of(Form form) { return form_names[int(form)]; }

bool force_form(const char* name) {
  for (int form = 0; form < forms; ++form) {
    if (name && std::strcmp(name, form_names[form]) != 0) continue;
    forced_form = name ? form : -1;
    return true;
  }
  return false;
}

Plan cut(const Problem& p, const Backend& backend, int asked) {
  const int threads = usable_threads(asked);
  Plan plan;
  const Choice choice = choose(p, backend);
  plan.form = choice.form;
  plan.why_form = choice.why;
  const bool decode = plan.form == Form::decode;
  plan.heads = decode ? p.Hkv : p.Hq;
  plan.key_block = decode ? decode_block : plan.form == Form::brief ? p.Lk : tiled_block;
  plan.tile_rows = decode ? p.Lq : p.Lq < task_queries ? p.Lq : task_queries;
  plan.tiles = plan.tile_rows == 0 ? 0 : divide_up(p.Lq, plan.tile_rows);

  int64_t range = decode ? decode_range : tiled_range;
  bool split = (decode || plan.tiles <= few_tiles) && p.Lk > range && !p.weights.data;
  plan.ranges = split ? divide_up(p.Lk, range) : 1;
  plan.range_keys = split ? range : p.Lk;
  plan.why_ranges = split            ? "few tiles of queries and many keys: ranges of keys, added up in order"
                    : p.weights.data ? "weights are asked for: one range"
                                     : "the tiles of queries are enough, or the keys few";

  plan.tasks = p.batches * plan.heads * plan.tiles * plan.ranges;
  int64_t rows = decode ? p.Lq * (p.Hkv ? p.Hq / p.Hkv : 0) : plan.tile_rows;
  int64_t width = p.type == Type::f64 ? 8 : 4;
  plan.partial_bytes = split ? (rows * (p.Dv + 2) * width + 63) / 64 * 64 : 0;
  plan.partials = nullptr;
  plan.first_task = 0;

  bool small = microseconds(p, backend) < 15;
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
  int64_t range = index % plan.ranges, tile = index / plan.ranges % plan.tiles, head = index / plan.ranges / plan.tiles;
  task.b = head / plan.heads;
  task.h = head % plan.heads;
  task.q0 = tile * plan.tile_rows;
  task.q1 = task.q0 + plan.tile_rows < p.Lq ? task.q0 + plan.tile_rows : p.Lq;
  task.k0 = range * plan.range_keys;
  task.k1 = task.k0 + plan.range_keys < p.Lk ? task.k0 + plan.range_keys : p.Lk;
  return task;
}

}  // namespace harken
