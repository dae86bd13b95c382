// pieces.hpp - a problem of the host as pieces that a card holds: cut along batch rows, key heads, queries, keys.
#pragma once

#include <deque>
#include <vector>

#include "axes.hpp"

namespace harken {

struct Piece {
  Problem problem;
  int64_t of;  // pieces with the same number are the same queries against keys after keys; -1: against all keys
  bool last;   // of those
};

// What pieces point to besides the arrays of the problem.
struct Made {
  std::deque<int64_t> integers;
  std::deque<std::vector<int64_t>> begins;
  std::deque<std::vector<Interval>> intervals;
};

// Bytes of all arrays without gaps.
int64_t bytes_of(const Problem& problem);

// Along batch rows and heads into pieces of about `good` bytes; one head of one row further if it has more than `most`.
// Throws a Fault where that cannot be.
std::vector<Piece> pieces_of(const Problem& problem, int64_t good, int64_t most, Made& made);

}  // namespace harken
