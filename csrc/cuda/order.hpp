// order.hpp - in which order tiles of queries are taken: the longest first, heads together whose keys a cache holds.
//
// Blocks take the next tile when they are done with one. The last tile of a causal head sees the most keys: begun last,
// it would go on alone. But the longest tiles of all heads at once read the keys of all heads, so that the heads are
// taken in sections, as many as have their keys and values in half of the card's second cache, 50 MB on an H100.
#pragma once

#include "../mask.hpp"

namespace harken {
namespace {

struct Order {
  int tiles, heads, section;  // of a head; of all batch rows; heads of a section
};

struct Turn {
  int head, tile;
};

constexpr int64_t cached_bytes = 25 << 20;

// `group` query heads share a head of keys, of so many bytes.
HARKEN_ANYWHERE Order order_of(int64_t tiles, int64_t heads, int64_t group, int64_t bytes_of_keys) {
  const int64_t of_keys = most(1, cached_bytes / most(1, bytes_of_keys));
  return {int(tiles), int(heads), int(least(heads, of_keys * group))};
}

HARKEN_ANYWHERE Turn turn_at(const Order& order, int n) {
  const int first = n / (order.section * order.tiles) * order.section;
  const int heads = int(least(order.section, order.heads - first));
  const int within = n - first * order.tiles;
  return {first + within % heads, order.tiles - 1 - within / heads};
}

}  // namespace
}  // namespace harken
