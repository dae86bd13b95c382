// tf32.cu - softmax(Q K^T) V of float32 in tiles of a matrix engine, each product as three of tf32.
//
// A task is one tile of queries of one head; the walk over its keys is that of tiles.hpp, one step of it
//
//     S = Q K^T,  O = O + P V         (terms.hpp)
//     P = 2^(score(S) - M)            (fragments.hpp)
//
// precision "highest" and "high" take three products, "medium" one.
//
//     channels   queries, keys of a tile   Q           shared memory   registers   blocks at once
//     <= 64      64, 64                    registers    65 KiB         198         2
//     <= 128     64, 32                    registers    65 KiB         255         2
//     <= 256     64, 16                    shared      129 KiB         250         1
//
// Of 128 channels a warp's tile is 384 products of tf32 and 2015 instructions in all around them: 832 additions of
// float, 640 to split with, 96 loads. The products take an sm_80 3072 cycles, an sm_90 no less than 1536 by mma.sync.
//
// It has never run on a card: what is said of it comes from the emulator, the assembler and such arithmetic.
#include "takes.hpp"
#include "terms.hpp"
#include "tiles.hpp"

namespace harken {
namespace {

constexpr int chunk_floats = chunk_bytes / 4;

template <int terms>
using Form64 = FloatForm<64, 64, 1, terms>;
template <int terms>
using Form128 = FloatForm<128, 32, 1, terms>;
template <int terms>
using Form256 = FloatForm<256, 16, 1, terms>;

// NaN and Inf among the values that this thread copied become 0: their terms are NaN, which would reach those who do
// not see them. What would be rounded to Inf becomes the largest number that is not. True: there was NaN or Inf.
template <class Form>
HARKEN_WORD bool clear_values(char* V) {
  bool any = false;
#pragma unroll 1
  for (int n = thread(); n < Form::keys * Form::width / chunk_floats; n += threads) {
    const Spot spot = copied(Form::halves, n);
    uint32_t* words = (uint32_t*)(V + offset_of(Form::halves, spot.row, spot.chunk));
    uint32_t most = 0;
#pragma unroll
    for (int w = 0; w < chunk_floats; ++w) most = most > (words[w] << 1) ? most : words[w] << 1;
    if (most <= largest_term << 1) continue;
#pragma unroll
    for (int w = 0; w < chunk_floats; ++w) {
      const uint32_t x = words[w], sign = x & 0x80000000u;
      if (x - sign <= largest_term) continue;
      words[w] = special<float>(x) ? 0 : sign | largest_term;
      any |= special<float>(x);
    }
  }
  return any;
}

// One tile of keys.
template <class Form>
HARKEN_WORD void absorb(const Problem& p, const Head<float>& head, const Task& task, const Visit& visit, int stage,
                        bool has_special, const Queries<Form>& kept, Softmax<Form>& state) {
  Scores<Form> scores;
  terms::multiply_keys(scores, keys_of<Form>(stage), p.D, [&](uint32_t (&A)[4], int strip, int step) {
    if constexpr (keeps_queries<Form>) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        A[n] = Form::terms == 1 ? kept.A[strip][step][n] : fresh(kept.A[strip][step][n]);
      }
    } else {
      load_queries<Form>(A, shared_memory() + queries_at<Form>, strip, step);
    }
  });
  const RowsOfHead<Form> rows = {head, task.i0};
  const bool all = visit.whole && !head.mask.data;
  if (!all || head.modifiers.bias || has_special) look(scores, head, rows, visit.k0);
  mend(scores, head, task.i0, visit.k0, all, p.D);
  const float factor = modify(scores, head, rows, visit.k0);
  if (!all) hide(scores);
  exponentiate(state, scores, factor);
  terms::multiply_values(state, scores, values_of<Form>(stage), p.Dv);
  if (has_special) add_special(state, scores, visit.k0, head.sight.keys, p.Dv, values_in(head.V));
}

// O / l and m + log l. A lane has 4 channels side by side of each 16, which are 16 bytes.
template <class Form>
HARKEN_WORD void leave(const Problem& p, const Head<float>& head, const Task& task, Softmax<Form>& state) {
  struct alignas(chunk_bytes) Chunk {
    float x[chunk_floats];
  };
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r) {
      const int64_t i = task.i0 + row_of<Form>(strip, r);
      float sum = state.l[strip][r];
      sum += from_neighbour(sum, 1);
      sum += from_neighbour(sum, 2);
      if (i >= p.Lq) continue;
      double m = state.m[strip][r], l = sum, a = 1;
      if (i >= head.queries) {
        m = -__builtin_inf();
        l = 0;
      } else if (head.has_sink) {
        a = add_sink(m, l, head.sink);
      }
      if (head.lse.data && lane() % 4 == 0) put_element(head.lse, i, 0, float(log_sum(m, l)));
      const float factor = l == 0 ? 0.0f : float(a / l);
#pragma unroll
      for (int pair = 0; pair < Form::width / 16; ++pair) {
        const int channel = channel_of<Form>(4 * pair);
        if (channel >= p.Dv) continue;
        const float (&left)[4] = state.O[strip][2 * pair], (&right)[4] = state.O[strip][2 * pair + 1];
        Chunk of = {{left[2 * r], right[2 * r], left[2 * r + 1], right[2 * r + 1]}};
#pragma unroll
        for (float& x : of.x) x = l == 0 ? 0 : x * factor;  // 0 Inf is NaN: hidden rows are 0
        *(Chunk*)(head.out.data + i * head.out.row + channel * int(sizeof(float))) = of;
      }
    }
}

template <class Form>
HARKEN_KERNEL(threads)
attend_tf32(HARKEN_CONSTANT Problem p) {
  const Task task = task_at<Form>(p, block());
  const Head<float>& head = common_of<Form>().head;
  Softmax<Form> state;
  begin(state);
  walk<Form>(
      p, task, [&](const Visit&, char* V) { return clear_values<Form>(V); },
      [&](const Visit& visit, int stage, bool has_special, const Queries<Form>& kept) {
        absorb(p, head, task, visit, stage, has_special, kept, state);
      });
  leave(p, head, task, state);
}

// --- the host's side ---

// body(Form) for what the problem takes.
template <int terms, class Body>
auto formed(const Problem& p, Body body) {
  const int64_t channels = most(p.D, p.Dv);
  if (channels <= 64) return body(Form64<terms>{});
  return channels <= 128 ? body(Form128<terms>{}) : body(Form256<terms>{});
}
template <class Body>
auto formed(const Problem& p, Body body) {
  return p.precision == Precision::medium ? formed<1>(p, body) : formed<2>(p, body);
}

Grid grid(const Problem& p) {
  return formed(p, [&](auto form) { return grid_of<decltype(form)>(p); });
}

const char* lacks(const Problem& p) {
  if (p.type != Type::f32) return "takes float32 alone";
  if (paged(p)) return "takes no keys in pages";
  if (const char* what = lacks_of_tiles(p)) return what;
  return lacks_of_grid(grid(p));
}

int64_t workspace(const Problem&) { return 0; }

void attend(const Problem& p, char*, void* stream) {
  formed(p, [&](auto form) { launch(attend_tf32<decltype(form)>, grid(p), stream, p); });
}

}  // namespace

extern const Kernel tf32_kernel;
const Kernel tf32_kernel = {"tf32",        "tiles of a matrix engine, float32 as three products of tf32",
                            HARKEN_SOURCE, 80,
                            true,          lacks,
                            grid,          workspace,
                            attend};

}  // namespace harken
