// ragged.hpp - sequences of different lengths in one run: each is a problem of its own, and is cut as if it were alone.
#pragma once

#include "backend.hpp"

namespace harken {

// Sequence s is batch row s of a problem with one leading axis. Packed: its queries are the rows q_ends[s] ..
// q_ends[s + 1] - 1 of q, out and lse, its keys those of k_ends of k and v. Else it has the first keys[s] keys.
struct Ragged {
  int64_t count;
  const int64_t *q_ends, *k_ends;  // (count + 1); or null
  const int64_t* keys;             // (count); or null
};

// All tasks of all sequences, longest first.
Outcome answer(const Backend& backend, const Problem& all, const Ragged& ragged, int threads);

}  // namespace harken
