// ranges.hpp - how the keys of a head are cut into ranges, each computed by itself and added up in order.
//
// The cut depends on how many keys the head has and on nothing else: neither on the processors of the card nor on what
// else is in the batch, so that a row's bits are the same wherever and beside whatever it is computed. The processors
// share the ranges of all heads by taking one when they are done with another.
//
//     keys       of a range    ranges       one range of 128 channels of 2 bytes
//     <= 4096    256           1 .. 16      128 KiB of keys and values
//     <= 65536   512           9 .. 128     256 KiB
//     more       2^n > 512     65 .. 128
//
// 128 ranges are about the processors of a large card, so that a long head alone keeps it busy. What a range leaves for
// each row is 4 (Dv + 2) bytes, written once and read once: of 8 rows and 128 channels 3 % of what 512 keys take.
#pragma once

#include "../mask.hpp"

namespace harken {
namespace {

constexpr int64_t least_range = 256, few_keys = 4096, few_ranges = few_keys / least_range, largest_count = 128;

HARKEN_ANYWHERE int64_t keys_of_range(int64_t keys) {
  int64_t range = keys <= few_keys ? least_range : 2 * least_range;
  while (range * largest_count < keys) range *= 2;
  return range;
}

HARKEN_ANYWHERE int64_t ranges_of(int64_t keys) {  // one at least, which may be empty
  return most(1, (keys + keys_of_range(keys) - 1) / keys_of_range(keys));
}

HARKEN_ANYWHERE Interval range_at(int64_t keys, int64_t n) {  // empty at and past ranges_of(keys)
  const int64_t range = keys_of_range(keys);
  return {n * range, least(keys, (n + 1) * range)};
}

// As many as a head of at most so many keys may have.
HARKEN_ANYWHERE int64_t most_ranges(int64_t keys) {
  if (keys <= few_keys) return ranges_of(keys);
  return keys_of_range(keys) == 2 * least_range ? most(few_ranges, ranges_of(keys)) : largest_count;
}

}  // namespace
}  // namespace harken
