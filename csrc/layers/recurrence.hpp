// recurrence.hpp - LSTM and GRU over sequences as plain data, and the strands of rows that go through time together.
#pragma once

#include <stdint.h>

namespace harken {

// Gates lie in this order, a = x W_ih^T + b_ih, u = h W_hh^T + b_hh, s the logistic function:
//
//   lstm              i, f, o = s(a + u);  g = tanh(a_g + u_g);  c' = f c + i g;  h' = o tanh(c')
//   gru               r, z = s(a + u);  n = tanh(a_n + r u_n);                h' = n + z (h - n)
//   gru_reset_before  r, z = s(a + u);  n = tanh(a_n + (r h) W_n^T + b_n);    h' = n + z (h - n)
enum class Cell { lstm, gru, gru_reset_before };

// One layer in one or both directions. Arrays are contiguous, of float or double.
struct Recurrence {
  Cell cell;
  bool in_double;
  int64_t B, L, C, H;
  int directions;
  const void* x;                       // (B, L, C)
  void* y;                             // (B, L, directions H); h of the step before is read from here
  const void* h0;                      // (directions, B, H)
  void *h, *c;                         // (directions, B, H): comes as the first state, leaves as the last
  const void *W_ih[2], *W_hh[2];       // (gates H, C), (gates H, H)
  const void *b_ih[2], *b_hh[2];       // (gates H), or null
  const int64_t* lengths;              // (B), or null
  int64_t lanes;                       // units of a panel
  int64_t engine_steps;                // of a row whose x W_ih^T a matrix engine computes, or of more
  int64_t in_panels;                   // inputs whose weights panels hold: C, or 0 where all rows are such
  static constexpr int64_t slots = 4;  // of a unit's gates: a and u meet in one, those of gru's n stand apart

  int64_t gates() const { return cell == Cell::lstm ? 4 : 3; }
  int phases() const { return cell == Cell::gru_reset_before ? 2 : 1; }  // parts of a step, everybody waits between
  int64_t panels() const { return (H + lanes - 1) / lanes; }
  int64_t size() const { return in_double ? 8 : 4; }
  int64_t length(int64_t row) const { return lengths ? lengths[row] : L; }

  bool on_engine(int64_t row) const { return length(row) >= engine_steps; }

  // Weights of the units of a panel, in lanes: [in_panels][gates], [H][gates] (reset before: [H][2], [H][1]), and
  // biases [gates], and that of u_n.
  int64_t panel() const { return ((in_panels + H + 1) * gates() + 1) * lanes; }

  // Bytes of 16 rows of x, or of a gate's 16 units of W_ih, as tiles of a matrix engine: [C / 32][3 terms][16][64].
  int64_t tiles() const { return (C + 31) / 32 * 3 * 1024; }
};

// Rows of one direction that go through time together, longest first.
struct Strand {
  int direction;
  int64_t rows, on_engine;  // the second: the first of them
  const int64_t* which;     // [rows] of the batch
  int64_t chunk;            // steps whose a is computed at once
  void* a;                  // [panels][chunk][rows][slots][lanes]
  void* reset;              // [rows][H], r h
  char* x;                  // that of a chunk as tiles
};

// What an instruction set does; `panels` is where the weights of the first panel lie.
struct Recurrent {
  int lanes[2];  // of float, of double
  bool engine;   // has the last three
  void (*pack)(const Recurrence&, int direction, int64_t panel, void* to);
  void (*project)(const Recurrence&, const Strand&, const void* panels, int64_t panel, int64_t step, int64_t steps);
  void (*advance)(const Recurrence&, const Strand&, const void* panels, int64_t from, int64_t to, int64_t step,
                  int phase);

  // Rows on a matrix engine: W_ih and, part by part, x become tiles; a of the panels from .. to - 1, the first of whose
  // tiles and panels are given.
  void (*pack_tiles)(const Recurrence&, int direction, int64_t panel, char* to);
  void (*pack_steps)(const Recurrence&, const Strand&, int64_t step, int64_t steps, int64_t part, int64_t parts);
  void (*project_tiles)(const Recurrence&, const Strand&, const char* tiles, const void* panels, int64_t from,
                        int64_t to, int64_t step, int64_t steps);
};

// `order`: the rows of the batch, longest first; null where all are as long. On at most so many threads.
enum class Recurred { done, interrupted, out_of_memory };
Recurred recur(const Recurrent& verbs, Recurrence& p, const int64_t* order, int threads);

}  // namespace harken
