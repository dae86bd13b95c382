// decoding.hpp - what the ranges of a head's keys leave, and the kernel that makes rows of it.
#pragma once

#include "element.hpp"
#include "ranges.hpp"

namespace harken {
namespace {

constexpr int warps = 4, threads = warps * lanes_of_warp;

// What the kernels work on. parts: what the ranges leave, O [tasks][ranges][rows][Dv], then m and l of each; null where
// there is one range, whose rows leave as results.
struct Decoding {
  Problem p;
  char* parts;
  int64_t tasks;            // a key head of a batch row is a task
  int ranges, group, rows;  // of a task: ranges, heads of q, rows

  HARKEN_ANYWHERE int64_t states() const { return tasks * ranges * rows; }
  HARKEN_ANYWHERE int64_t state_at(int64_t task, int range, int row) const {
    return (task * ranges + range) * rows + row;
  }
  HARKEN_ANYWHERE float* O_at(int64_t state) const { return (float*)parts + state * p.Dv; }
  HARKEN_ANYWHERE float* m_l_at(int64_t state) const { return (float*)parts + states() * p.Dv + 2 * state; }
};

// Numbers side by side that are read and written together.
template <int n>
struct alignas(n < 4 ? 4 * n : 16) Floats {
  float x[n];
};

// A row of a tile: a query of a head, counted from the first that shares the keys.
struct Seat {
  int head, query;
};

// m and l of the keys become those with the sink: lse leaves, and the factor of O comes back; < 0: the row is 0.
HARKEN_WORD float finish(const Problem& p, const BatchRow& batch, int64_t h, const Seat& seat, float m_of_keys,
                         float l_of_keys) {
  double m = m_of_keys, l = l_of_keys, a = 1;
  if (seat.query >= integer_at(p.q_lengths, batch, p.Lq)) {
    m = -__builtin_inf();
    l = 0;
  } else if (p.sinks.data) {
    a = add_sink(m, l, number_at(p.sinks, batch, h, 0) * log2e);
  }
  if (p.lse.data) put_element(matrix_at(p.lse, batch, h), seat.query, 0, float(log_sum(m, l)));
  return l == 0 ? -1.0f : float(a / l);
}

struct Merging {
  BatchRow batch;
  float O[warps][256], l[warps];
};

// A block is a row. Warp w takes ranges w, w + 4, ..., and the warps add up in their order, whatever comes behind the
// keys of the row.
template <class Form>
HARKEN_KERNEL(threads)
merge_ranges(HARKEN_CONSTANT Decoding of) {
  constexpr int columns = Form::width / lanes_of_warp;  // channels of a lane, side by side
  Merging& shared = *(Merging*)shared_memory();
  const Problem& p = of.p;
  const uint32_t task = uint32_t(block()) / uint32_t(of.rows);
  const int row = int(uint32_t(block()) % uint32_t(of.rows));
  if (thread() == 0) locate(p, task / uint32_t(p.Hkv), shared.batch);
  barrier();
  const int ranges = int(ranges_of(integer_at(p.kv_lengths, shared.batch, p.Lk)));
  float m = -__builtin_inff();
  for (int n = lane(); n < ranges; n += lanes_of_warp) m = max(m, of.m_l_at(of.state_at(task, n, row))[0]);
  m = over_lanes(m, Larger{});

  float O[columns] = {}, l = 0;
  const int channel = lane() * columns;
  for (int first = warp(); first < ranges; first += warps * lanes_of_warp) {
    const int own = first + lane() * warps;
    float a = 0, its_l = 0;
    if (own < ranges) {
      const auto from = *(const Floats<2>*)of.m_l_at(of.state_at(task, own, row));
      a = exp2(from.x[0] - reference(m));
      its_l = from.x[1];
    }
    l += a * its_l;
    const uint32_t there = ballot(its_l != 0);  // a range of which the row sees nothing has left O as it was
#pragma unroll 4
    for (int n = 0; n < lanes_of_warp; ++n) {
      const float its_a = from_lane(a, n);
      if ((there >> n & 1) == 0 || channel >= p.Dv) continue;
      const auto from = *(const Floats<columns>*)(of.O_at(of.state_at(task, first + n * warps, row)) + channel);
#pragma unroll
      for (int c = 0; c < columns; ++c) O[c] += its_a * from.x[c];
    }
  }
  l = over_lanes(l, Sum{});
  if (lane() == 0) shared.l[warp()] = l;
#pragma unroll
  for (int c = 0; c < columns; ++c) shared.O[warp()][channel + c] = O[c];
  barrier();
  if (warp() != 0) return;
  float sum = 0;
  for (int w = 0; w < warps; ++w) sum += shared.l[w];
  const Seat seat = {row / int(p.Lq), row % int(p.Lq)};
  const int64_t h = int64_t(task % uint32_t(p.Hkv)) * of.group + seat.head;
  float factor = 0;
  if (lane() == 0) factor = finish(p, shared.batch, h, seat, m, sum);
  factor = from_lane(factor, 0);
  if (channel >= p.Dv) return;
  uint32_t* to = (uint32_t*)(matrix_at(p.out, shared.batch, h).data + seat.query * p.out.row + channel * 2);
#pragma unroll
  for (int c = 0; c < columns; c += 2) {
    float pair[2] = {};
    for (int w = 0; w < warps; ++w)
      for (int n = 0; n < 2; ++n) pair[n] += shared.O[w][channel + c + n];
    to[c / 2] = factor < 0 ? 0 : packed(typename Form::S{}, pair[0] * factor, pair[1] * factor);
  }
}

}  // namespace
}  // namespace harken
