// slabs.hpp - tiles as the copy engine lays them and the matrix engine reads them: slabs of rows of 64 numbers.
//
// A row of a slab is 128 bytes, 8 chunks of 16, and chunk c of row r lies at place c ^ (r mod 8): bits 4 .. 6 of an
// address are exclusive-ored with its bits 7 .. 9, so slabs begin at multiples of 1024. A tile of 128 channels is two
// slabs, one behind the other.
//
// A descriptor names an operand of a product: 16 rows or channels of it, and 64 and more of the other. PTX, "matrix
// descriptor": bits 0-13 its address, 16-29 and 32-45 two distances, all in units of 16 bytes, and bits 62-63 are 1 for
// this swizzle. The distances are those between the blocks of 8 rows of 128 bytes that it is made of:
//
//     summed over channels (Q, K)   stride: to the next 8 rows, 1024     leading: none
//     summed over rows (V)          stride: to the next 8 rows, 1024     leading: to the next 64 channels, a slab
#pragma once

#include <stdint.h>

#include "../anywhere.hpp"

namespace harken {
namespace {

constexpr int slab_numbers = 64, slab_row_bytes = 2 * slab_numbers, slab_block_bytes = 8 * slab_row_bytes;

HARKEN_ANYWHERE constexpr uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

HARKEN_ANYWHERE constexpr uint64_t descriptor(uint32_t address, uint32_t leading) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 |
         uint64_t(slab_block_bytes >> 4) << 32 | uint64_t(1) << 62;
}

// What a descriptor moves by, in its units, from the first 16 channels, or rows, to those of a step.
HARKEN_ANYWHERE constexpr int channels_on(int step, int slab_bytes) {
  return (step / 4 * slab_bytes + step % 4 * 32) >> 4;
}
HARKEN_ANYWHERE constexpr int rows_on(int step) { return step * 16 * slab_row_bytes >> 4; }

}  // namespace
}  // namespace harken
