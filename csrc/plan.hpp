// plan.hpp - how a problem is cut: into query tiles, and into key ranges where tiles are few.
//
// The cut is a function of one (batch, head) problem and of the instruction set, never of the number of threads or of
// what else is in the batch: that is what makes a row's bits the same wherever and beside whatever it is computed.
#pragma once

#include "problem.hpp"

namespace harken {

struct Backend;

// What a kernel is made like.
#define HARKEN_FORMS(X)                                                                            \
  X(tiled)  /* queries in lanes: tiles of queries against blocks of keys */                        \
  X(brief)  /* queries in lanes, then channels: all keys of a query at once, no running maximum */ \
  X(decode) /* channels in lanes: few queries, every key read once */                              \
  X(matrix) /* keys in lanes: strips of queries on a matrix engine */

enum class Form : int32_t {
#define HARKEN_FORM(name) name,
  HARKEN_FORMS(HARKEN_FORM)
#undef HARKEN_FORM
};

// Multiplications and additions of a call, about.
double work(const Problem& problem);

// What to do: tasks = batches x heads x tiles x ranges, the key range innermost.
struct Plan {
  Form form;
  int terms;                   // matrix: bfloat16 terms of a number
  int64_t heads;               // Hq when tiled; else Hkv, because a group's heads share the keys
  int64_t tiles, tile_rows;    // query tiles a head, query rows a tile
  int64_t ranges, range_keys;  // key ranges a tile, keys a range
  int64_t key_block;           // keys that are handled at once
  int64_t tasks;
  int threads;
  double microseconds;  // a guess, on one thread

  int64_t scratch_bytes;  // a thread
  int64_t partial_bytes;  // one (m, l, O) of a tile and a range; 0 when ranges == 1
  int64_t wave;           // tiles that are computed before their ranges are added up, to bound the memory

  char* partials;      // set by answer(), for each wave
  int64_t first_task;  // that the partials begin with

  const char* why_form;
  const char* why_ranges;
  const char* why_threads;
};

struct Task {
  int64_t b, h;    // h counts Plan::heads
  int64_t q0, q1;  // queries, before q_lengths
  int64_t k0, k1;  // keys, before what the mask leaves of them
  int64_t index;
};

struct Choice {
  Form form;
  const char* why;
};
Choice choose(const Problem& problem, const Backend& backend);
bool decoded_in_parts(const Problem& problem);  // decode has a matrix engine make its products, where there is one
int terms_of(const Problem& problem);  // bfloat16 terms that hold its type, or with which the caller is content

Plan cut(const Problem& problem, const Backend& backend, int threads);  // 0: as many as get_threads() says

const char* name_of(Form form);
bool force_form(const char* name);  // wherever it is able, for measuring and testing. nullptr: by the table again
Task task_at(const Problem& problem, const Plan& plan, int64_t index);

}  // namespace harken
