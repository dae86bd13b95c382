// portable.cu - softmax(Q K^T) V in tiles of a matrix engine, by what every card since compute capability 8.0 has.
//
// A task is one tile of queries of one head; the walk over its keys is that of tiles.hpp, one step of it
//
//     S = Q K^T,  P = 2^(score(S) - M),  O = a O + P V          (fragments.hpp)
//
//     channels   queries, keys of a tile   Q           shared memory   registers   blocks at once, sm_80   sm_90
//     <= 64      128, 64                   registers    33 KiB         255         2                       2
//     <= 128     128, 32                   shared       65 KiB         254         2                       2
//     <= 256      64, 32                   shared       97 KiB         247         1                       2
//
// A fragment of keys or values is 512 bytes, 4 cycles of shared memory, which 4 warps take turns at: 16 cycles, in
// which a warp's share of an sm_80 multiplies two pairs of fragments. One strip of 16 queries a warp would make two of
// each, and reading as long as multiplying; two strips make four. For 256 channels O of two has no room in registers.
//
// It has never run on a card: what is said of it comes from the emulator, the assembler and such arithmetic.
#include "kernels.hpp"
#include "takes.hpp"
#include "tiles.hpp"

namespace harken {
namespace {

template <class S>
using Form64 = Form<S, 64, 64, 2>;
template <class S>
using Form128 = Form<S, 128, 32, 2>;
template <class S>
using Form256 = Form<S, 256, 32, 1>;

// O / l, by way of shared memory so that rows are written 16 bytes a lane, and m + log l.
template <class Form>
HARKEN_WORD void leave(const Problem& p, const Head<float>& head, const Task& task, Softmax<Form>& state) {
  using S = typename Form::S;
  char* const O = shared_memory();
  barrier();  // the last tile has been read
#pragma unroll
  for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
    for (int r = 0; r < rows_of_lane; ++r) {
      const int row = row_of<Form>(strip, r);
      const int64_t i = task.i0 + row;
      float sum = state.l[strip][r];
      sum += from_neighbour(sum, 1);
      sum += from_neighbour(sum, 2);
      double m = state.m[strip][r], l = sum, a = 1;
      if (i >= head.queries) {
        m = -__builtin_inf();
        l = 0;
      } else if (head.has_sink) {
        a = add_sink(m, l, head.sink);
      }
      const float factor = l == 0 ? 0.0f : float(a / l);
      if (head.lse.data && i < p.Lq && lane() % 4 == 0) put_element(head.lse, i, 0, float(log_sum(m, l)));
#pragma unroll
      for (int n = 0; n < Form::width / 8; ++n) {
        const float (&of)[4] = state.O[strip][n];
        const uint32_t pair =
            l == 0 ? 0 : packed(S{}, of[2 * r] * factor, of[2 * r + 1] * factor);  // 0 Inf is NaN: hidden rows are 0
        *(uint32_t*)(O + offset_of(Form::width, row, n) + lane() % 4 * 4) = pair;
      }
    }
  barrier();
  struct alignas(chunk_bytes) Chunk {
    uint32_t words[4];
  };
#pragma unroll 1
  for (int n = thread(); n < tile_rows<Form> * Form::width / chunk_numbers; n += threads) {
    const Spot spot = copied(Form::width, n);
    const int64_t i = task.i0 + spot.row;
    if (i >= p.Lq || spot.chunk * chunk_numbers >= p.Dv) continue;
    *(Chunk*)(head.out.data + i * head.out.row + spot.chunk * chunk_bytes) =
        *(const Chunk*)(O + offset_of(Form::width, spot.row, spot.chunk));
  }
}

template <class Form>
HARKEN_KERNEL(threads)
attend_portable(HARKEN_CONSTANT Problem p) {
  static_assert(tile_rows<Form> * Form::row_bytes <= queries_at<Form>, "O passes through the tiles");
  const Task task = task_at<Form>(p, block());
  const Head<float>& head = common_of<Form>().head;
  const RowsOfHead<Form> rows = {head, task.i0};
  Softmax<Form> state;
  begin(state);
  walk<Form>(
      p, task,
      [&](const Visit& visit, char* V) {
        return (!visit.whole || head.mask.data) && clear_special<typename Form::S, Form::width, Form::keys, threads>(V);
      },
      [&](const Visit& visit, int stage, bool has_special, const Queries<Form>& kept) {
        absorb(
            state, head, rows, visit.k0, visit.whole, keys_of<Form>(stage), values_of<Form>(stage), has_special, p.Dv,
            [&](uint32_t (&A)[4], int strip, int step) {
              if constexpr (keeps_queries<Form>) {
#pragma unroll
                for (int n = 0; n < 4; ++n) A[n] = kept.A[strip][step][n];
              } else {
                load_queries<Form>(A, shared_memory() + queries_at<Form>, strip, step);
              }
            },
            values_in(head.V));
      });
  leave(p, head, task, state);
}

// --- the host's side ---

// body(Form) for what the problem takes.
template <class Body>
auto formed(const Problem& p, Body body) {
  return formed_of_halves<Form64, Form128, Form256>(p, body);
}

Grid grid(const Problem& p) {
  return formed(p, [&](auto form) { return grid_of<decltype(form)>(p); });
}

const char* lacks(const Problem& p) {
  if (paged(p)) return "takes no keys in pages";
  if (const char* what = lacks_of_halves(p)) return what;
  return lacks_of_grid(grid(p));
}

int64_t workspace(const Problem&) { return 0; }

void attend(const Problem& p, char*, void* stream) {
  formed(p, [&](auto form) { launch(attend_portable<decltype(form)>, grid(p), stream, p); });
}

}  // namespace

extern const Kernel portable_kernel;
const Kernel portable_kernel = {
    "portable", "tiles of a matrix engine, float16 and bfloat16", HARKEN_SOURCE, 80, true, lacks, grid, workspace,
    attend};

}  // namespace harken
