// choice.cpp - which form of kernel computes a problem: one table of measured crossover points.
//
// All from `python bench/run.py --calibrate`, one thread of a Xeon with AMX; ratios are times of the other form by the
// time of the one chosen. The choice is a function of one (batch, head) problem, as the cut is.
#include <atomic>
#include <cstring>

#include "backend.hpp"

namespace harken {
namespace {

constexpr const char* form_names[] = {
#define HARKEN_FORM(name) #name,
    HARKEN_FORMS(HARKEN_FORM)
#undef HARKEN_FORM
};
constexpr int forms = sizeof form_names / sizeof *form_names;
std::atomic<int> forced_form{-1};

constexpr int64_t narrow_channels = 64;  // fewer are narrow

// Up to so many queries every key is read once, with channels in lanes. Tiled over decode: 10 queries and 1024 keys
// 1.16 to 1.22 x, 12 and 4096 1.15; 8 and 1024 0.8 to 0.9 in AVX-512, 1.14 in AVX2.
constexpr int64_t decode_queries = 8;

// Brief holds the weights of all keys. Over tiled: 1.07 to 1.2 x up to 256 keys, 1.3 x when causal; AVX-512 with 512
// keys 1.02 to 1.1, 768 1.00; AVX2 with 384 0.98. 16 channels 0.87, 24 0.74: the last register of a row holds zeros.
constexpr int64_t most_brief_keys = 1024, brief_keys_a_lane = 32, brief_channels = 32;
// Over decode from five queries on, 1.1 to 1.9 x, while the keys are few; decode reads 16-bit keys without a copy.
constexpr int64_t brief_queries = 5, brief_key_numbers = 16384, brief_key_numbers_16_bit = 4096;
// ... and from three (1.1 to 1.5 x) where rows of keys are short.
constexpr int64_t handful_queries = 3, handful_keys = 16;

// The matrix engine packs keys and values first, which enough queries must share, and more of them where the other
// forms multiply floats as they come. It is ahead from either of these on, by 1.0 to 1.2 x there and 1.5 (three terms)
// to 5 (one) for long sequences.
struct Crossing {
  int64_t queries, keys;
};
constexpr Crossing matrix_from[2][3][2] = {
    // one term            two                    three
    {{{5, 64}, {32, 32}}, {{32, 128}, {64, 64}}, {{128, 128}, {128, 128}}},  // narrow
    {{{5, 64}, {10, 32}}, {{24, 128}, {64, 48}}, {{64, 256}, {112, 96}}},    // wide
};

// Many units of a short causal problem are a diagonal. Over brief, three terms, 12 to 96 heads: 32 channels 128 keys
// 0.97 x, 160 1.06; 64 channels 129 0.96, 144 1.00, 160 1.10; 128 channels 128 0.97 to 1.1, 144 0.96 to 1.06.
constexpr int64_t causal_keys = 160;

// Decoding bfloat16 by tiles costs up to 8 rows of a group the same, and more of them little; vectors cost each row its
// own time. One thread, 64 and 128 channels, vectors over tiles from 128 to 2048 keys: 1 row 0.5 to 0.75, 2 rows 0.7 to
// 0.8, 3 and 4 rows 0.9 to 1.1, 8 rows 1.25 to 1.6, 16 rows 1.5 to 2. How many heads share the keys may not decide (the
// bits of a row), so the queries do: from three on, those of a few heads are many rows. The matrix form over
// tiles, 3 or 4 queries: 1.0 to 1.6, of many heads with 64 channels 0.85.
constexpr int64_t bf16_part_queries = 3, bf16_part_keys = 128;

// Additive scores cost the same a lane in both forms, but for what they do besides: tiled over decode, with as many
// lanes at work, 0.8 to 0.95 x. AVX-512, 128 channels, 8 queries 1.27, 12 1.02, 16 0.86, 20 1.18, 24 1.15, 32 0.81;
// AVX2 6 queries 1.10, 8 0.94, 10 1.25, 12 1.13, 16 0.93.
constexpr double tiled_advantage = 1.25;

// Can it compute the problem at all?
bool able(Form form, const Problem& p, const Backend& backend) {
  switch (form) {
    case Form::tiled: return true;
    case Form::brief: return !p.weights.data && p.score != Score::additive && p.Lk <= most_brief_keys;
    case Form::decode: return !p.weights.data;
    case Form::
        matrix:  // alibi puts the first keys far below the others; 16-bit numbers divided by a norm have more bits
      return backend.engine && p.type != Type::f64 && !p.weights.data && !p.slopes.data &&
             ((p.score == Score::dot && p.k_scale.col == 0) || (p.score != Score::additive && p.type == Type::f32)) &&
             p.D > 0 && p.Dv > 0;
  }
  return false;
}

bool brief_pays(const Problem& p, const Backend& backend) {
  const int64_t lanes = backend.tiling[p.type == Type::f64].lanes, idle = (lanes - p.Dv % lanes) % lanes;
  return p.Lk <= brief_keys_a_lane * lanes && p.D >= brief_channels && p.Dv >= brief_channels && idle * 8 <= p.Dv;
}

bool matrix_pays(const Problem& p, const Backend& backend) {
  if (!able(Form::matrix, p, backend)) return false;
  if (p.right == 0 && p.Lk < causal_keys && terms_of(p) == 3) return false;
  for (const Crossing& from : matrix_from[p.D >= narrow_channels][terms_of(p) - 1])
    if (p.Lq >= from.queries && p.Lk >= from.keys) return true;
  return false;
}

bool additive_decode_pays(const Problem& p, const Backend& backend) {
  const int64_t lanes = backend.tiling[p.type == Type::f64].lanes;
  auto whole = [&](int64_t n) { return double((n + lanes - 1) / lanes * lanes); };
  return whole(p.Lq) * double(p.D) > tiled_advantage * double(p.Lq) * whole(p.D);
}

bool decode_pays(const Problem& p, bool brief) {
  if (!brief) return p.Lq <= decode_queries;
  if (p.Lk <= handful_keys && p.D < narrow_channels) return p.Lq < handful_queries;
  const bool few = p.Lk * p.D <= (size_of(p.type) == 2 ? brief_key_numbers_16_bit : brief_key_numbers);
  return p.Lq < brief_queries || (p.Lq <= decode_queries && !few);
}

Choice fastest(const Problem& p, const Backend& backend) {
  static constexpr const char* products[] = {"one bfloat16 product on the matrix engine",
                                             "float16 or two terms: three bfloat16 products on the matrix engine",
                                             "float32 in three terms: six bfloat16 products on the matrix engine"};
  if (p.weights.data) return {Form::tiled, "weights are asked for, which tiles of queries give"};
  if (p.score == Score::additive) {
    if (additive_decode_pays(p, backend)) return {Form::decode, "additive, and queries would leave lanes idle"};
    return {Form::tiled, "additive: queries lie along the lanes and share what is made of keys"};
  }
  if (matrix_pays(p, backend)) return {Form::matrix, products[terms_of(p) - 1]};
  const bool brief = brief_pays(p, backend);
  if (decode_pays(p, brief)) {
    if (backend.engine && decoded_in_parts(p))
      return {Form::decode, "few queries: every key and value is read once, as tiles of the matrix engine"};
    return {Form::decode, "few queries: every key and value is read once"};
  }
  if (brief) return {Form::brief, "few keys: all of a query at once, without a running maximum"};
  return {Form::tiled, "many queries: they lie along the lanes and share blocks of keys"};
}

}  // namespace

bool decoded_in_parts(const Problem& p) {
  if (p.type == Type::f64 || p.score != Score::dot || p.D == 0) return false;
  if (p.k.type == Type::i8 && p.v.type == Type::i8)
    return p.D % 64 == 0 && p.Dv % 64 == 0 && p.D <= 1024;  // sums of digits stay below 2^24, which float holds
  return p.k.type == Type::bf16 && p.v.type == Type::bf16 && p.D % 32 == 0 && p.Dv % 32 == 0 && p.D <= 256 &&
         p.Lq >= bf16_part_queries && p.Lk >= bf16_part_keys;
}

int terms_of(const Problem& p) {
  if (p.type == Type::bf16) return 1;
  if (p.type == Type::f16) return 2;
  return p.precision == Precision::medium ? 1 : p.precision == Precision::high ? 2 : 3;
}

Choice choose(const Problem& p, const Backend& backend) {
  const int forced = forced_form.load(std::memory_order_relaxed);
  if (forced >= 0 && able(Form(forced), p, backend)) return {Form(forced), "forced"};
  return fastest(p, backend);
}

const char* name_of(Form form) { return form_names[int(form)]; }

bool force_form(const char* name) {
  for (int form = 0; form < forms; ++form) {
    if (name && std::strcmp(name, form_names[form]) != 0) continue;
    forced_form = name ? form : -1;
    return true;
  }
  return false;
}

}  // namespace harken
