// layout.hpp - where the numbers of a tile lie: rows in shared memory, fragments in the lanes of a warp.
//
// A row of 64, 128 or 256 numbers of 2 bytes is 8, 16 or 32 chunks of 16 bytes. Chunk c of row r lies at place
// c ^ (r mod 8) of its row. Shared memory answers in phases of 8 lanes x 16 bytes, and 8 places side by side are all of
// its 32 banks. ldmatrix reads chunk c of 8 rows in a phase: places c ^ 0 .. c ^ 7, each bank once, where unswizzled
// rows of 128 bytes would meet in 4 banks. Copies write 8 chunks side by side of one row: each bank once, too. A number
// of 4 bytes counts as two here.
#pragma once

#include <stdint.h>

#include "../anywhere.hpp"

namespace harken {
namespace {

constexpr int chunk_bytes = 16, chunk_numbers = 8;

HARKEN_ANYWHERE constexpr int offset_of(int width, int row, int chunk) {
  return row * width * 2 + (chunk ^ (row & 7)) * chunk_bytes;
}

// The offset of chunk 0 or 1 of a row moved on by an even number of chunks: one of 4 XORs, and an addition that an
// instruction has for nothing.
HARKEN_ANYWHERE constexpr int along(int offset, int chunks) {
  return (offset ^ (chunks & 7) * chunk_bytes) + (chunks & ~7) * chunk_bytes;
}

// What the threads of a block copy: thread t the chunks t, t + threads, ..., row by row.
struct Spot {
  int row, chunk;
};
HARKEN_ANYWHERE constexpr Spot copied(int width, int n) {
  return {n / (width / chunk_numbers), n % (width / chunk_numbers)};
}

// The rows that a lane names to load_matrix, of 16 rows and 2 chunks.
//   of_rows: matrices (rows 0-7, chunk 0), (rows 8-15, 0), (0-7, 1), (8-15, 1)     A of mma; turned around: B twice,
//            where rows are what is summed over, and the chunks are two products side by side
//   of_columns: (0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1)                           B twice, where rows are its columns
HARKEN_ANYWHERE constexpr Spot of_rows(int lane) { return {lane % 16, lane / 16}; }
HARKEN_ANYWHERE constexpr Spot of_columns(int lane) { return {lane / 16 * 8 + lane % 8, lane / 8 % 2}; }

// C of mma, 16 x 8: number n of a lane.
struct Cell {
  int row, col;
};
HARKEN_ANYWHERE constexpr Cell cell_of(int lane, int n) { return {lane / 4 + n / 2 * 8, lane % 4 * 2 + n % 2}; }

// The lane of the same rows of C that holds a column, of as many C side by side as there are.
HARKEN_ANYWHERE constexpr int holder_of(int lane, int col) { return lane / 4 * 4 + col % 8 / 2; }

// Of numbers of 4 bytes a chunk is half of what a product takes, and word l % 4 of a row of a matrix is one number:
// of_rows are A of mma, of_columns B of two products of the same 8 channels.
//
// B of numbers of 4 bytes where rows are what is summed over has no load that turns them around. The order of a sum is
// free, so row t of the 8 of a product is row 2t of V, and row t + 4 is 2t + 1: where C has them as its columns, and no
// lane of P has to move. The columns are free, too: column g of two products side by side are channels 2g and 2g + 1 of
// 16, which are 8 bytes; 4 chunks along lie those of the next two. Half a warp reads 4 rows of one parity, 2 chunks
// each: places {0, 1} ^ {0, 2, 4, 6} or {0, 1} ^ {1, 3, 5, 7} of the 8, each bank once.
HARKEN_ANYWHERE constexpr int offset_of_pair(int halves, int lane, int parity) {
  return offset_of(halves, lane % 4 * 2 + parity, lane / 8) + lane / 4 % 2 * 8;
}

// The channel that C of product n along V's channels has in column 0 or 1 of a lane.
HARKEN_ANYWHERE constexpr int channel_of_pair(int lane, int n, int col) {
  return n / 2 * 16 + cell_of(lane, col).col * 2 + n % 2;
}

}  // namespace
}  // namespace harken
