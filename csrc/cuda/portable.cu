// portable.cu - softmax(Q K^T) V in tiles of a matrix engine, by what every card since compute capability 8.0 has.
//
// A block is 4 warps, a task one tile of queries of one head. Keys and values come in tiles, two of each in shared
// memory: the copies of tile j + 1 are begun when j is there, and have all of its arithmetic to arrive.
//
//     wait for the copies of tile j, barrier, begin those of j + 1
//     S = Q K^T,  P = 2^(score(S) - M),  O = a O + P V          (fragments.hpp)
//
// The barrier is the only one of a tile: behind it tile j is there for all, and nobody reads j - 1 any more, which
// j + 1 replaces.
//
//     channels   queries, keys of a tile   Q           shared memory   registers   blocks at once, sm_80   sm_90
//     <= 64      128, 64                   registers    33 KiB         255         2                       2
//     <= 128     128, 32                   shared       65 KiB         253         2                       2
//     <= 256      64, 32                   shared       97 KiB         242         1                       2
//
// A fragment of keys or values is 512 bytes, 4 cycles of shared memory, which 4 warps take turns at: 16 cycles, in
// which a warp's share of an sm_80 multiplies two pairs of fragments. One strip of 16 queries a warp would make two of
// each, and reading as long as multiplying; two strips make four. For 256 channels O of two has no room in registers.
//
// It has never run on a card: what is said of it comes from the emulator, the assembler and such arithmetic.
#include "fragments.hpp"
#include "halves.hpp"
#include "kernels.hpp"

namespace harken {
namespace {

constexpr int warps = 4, threads = warps * lanes_of_warp, stages = 2;

template <class S>
using Form64 = Form<S, 64, 64, 2>;
template <class S>
using Form128 = Form<S, 128, 32, 2>;
template <class S>
using Form256 = Form<S, 256, 32, 1>;

template <class Form>
constexpr int tile_rows = warps * Form::strips * strip_rows;

// O of 32 queries and 128 channels, or 16 and 256, takes 128 registers, and leaves none for as many of Q.
template <class Form>
constexpr bool keeps_queries = Form::width <= 64;

// What a block shares besides tiles. The first thread writes it. The head is 500 bytes, of which few are read for each
// tile: in registers they would take the room of O.
struct Common {
  BatchRow row;
  Head<float> head;
  Walk walk;
  Visit visits[stages];
  int64_t special[stages];  // k0 of the tile in which NaN or Inf was found among the values
};

template <class Form>
constexpr int queries_at = 2 * stages * Form::tile_bytes;
template <class Form>
constexpr int common_at = queries_at<Form> + (keeps_queries<Form> ? 0 : tile_rows<Form> * Form::row_bytes);
template <class Form>
constexpr int shared_bytes = common_at<Form> + int(sizeof(Common));

template <class Form>
HARKEN_WORD char* keys_of(int stage) {
  return shared_memory() + 2 * stage * Form::tile_bytes;
}
template <class Form>
HARKEN_WORD char* values_of(int stage) {
  return keys_of<Form>(stage) + Form::tile_bytes;
}

struct Task {
  int64_t b, h, i0;
};

template <class Form>
HARKEN_ANYWHERE int64_t tiles_of(const Problem& p) {
  return (p.Lq + tile_rows<Form> - 1) / tile_rows<Form>;
}

template <class Form>
HARKEN_ANYWHERE int64_t tasks_of(const Problem& p) {
  return p.batches * p.Hq * tiles_of<Form>(p);
}

// The tiles of a head side by side, which read the same keys; its last first, which sees most of them if it is causal.
template <class Form>
HARKEN_WORD Task task_at(const Problem& p, int64_t n) {
  const int64_t tiles = tiles_of<Form>(p), head = n / tiles;
  return {head / p.Hq, head % p.Hq, (tiles - 1 - n % tiles) * tile_rows<Form>};
}

// Begins to copy rows first .. first + count - 1, zeros at or past `end` and for channels at or past D.
template <class Form, int count>
HARKEN_WORD void bring(char* to, const Matrix& M, int64_t first, int64_t end, int64_t D) {
  constexpr int chunks = count * Form::width / chunk_numbers;
  static_assert(chunks % threads == 0);
#pragma unroll 1  // all addresses at once would take the registers of O
  for (int n = 0; n < chunks / threads; ++n) {
    const Spot spot = copied(Form::width, thread() + n * threads);
    const bool there = first + spot.row < end && spot.chunk * chunk_numbers < D;
    const char* from = there ? M.data + (first + spot.row) * M.row + spot.chunk * chunk_bytes : M.data;
    copy_async(to + offset_of(Form::width, spot.row, spot.chunk), from, there ? chunk_bytes : 0);
  }
}

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
  constexpr int keys = Form::keys, rows = tile_rows<Form>;
  static_assert(rows * Form::row_bytes <= queries_at<Form>, "O passes through the tiles");
  static_assert(!keeps_queries<Form> || rows * Form::row_bytes <= 2 * Form::tile_bytes, "Q passes through a stage");
  Common& common = *(Common*)(shared_memory() + common_at<Form>);
  const Task task = task_at<Form>(p, block());
  if (thread() == 0) {
    locate(p, task.b, common.row);
    common.head = head_at<float>(p, common.row, task.h);
    const Sight& sight = common.head.sight;
    common.walk = walk_of(sight, task.i0, least(task.i0 + rows, common.head.queries), keys);
    common.visits[0] = next_visit(sight, common.walk, keys);
    for (int n = 0; n < stages; ++n) common.special[n] = -1;
  }
  barrier();
  const Head<float>& head = common.head;
  const RowsOfHead<Form> whose = {head, task.i0};
  Visit visit = common.visits[0];

  // In registers Q comes through the second stage, which the loop writes behind its first barrier.
  char* const Q = keeps_queries<Form> ? keys_of<Form>(1) : shared_memory() + queries_at<Form>;
  Queries<Form> kept;
  if (visit.any) {
    bring<Form, rows>(Q, head.Q, task.i0, head.queries, p.D);
    commit();
    bring<Form, keys>(keys_of<Form>(0), head.K, visit.k0, head.sight.keys, p.D);
    bring<Form, keys>(values_of<Form>(0), head.V, visit.k0, head.sight.keys, p.Dv);
    commit();
    wait<1>();
    barrier();
    if constexpr (keeps_queries<Form>) {
#pragma unroll
      for (int strip = 0; strip < Form::strips; ++strip)
#pragma unroll
        for (int step = 0; step < Form::steps; ++step) load_queries<Form>(kept.A[strip][step], Q, strip, step);
    }
  }
  Softmax<Form> state;
  begin(state);
  for (int stage = 0; visit.any; stage ^= 1) {
    wait<0>();
    if ((!visit.whole || head.mask.data) &&
        clear_special<typename Form::S, Form::width, keys, threads>(values_of<Form>(stage)))
      common.special[stage] = visit.k0;
    if (thread() == 0) common.visits[stage ^ 1] = next_visit(head.sight, common.walk, keys);
    barrier();
    const bool has_special = common.special[stage] == visit.k0;
    const Visit next = common.visits[stage ^ 1];
    if (next.any) {
      bring<Form, keys>(keys_of<Form>(stage ^ 1), head.K, next.k0, head.sight.keys, p.D);
      bring<Form, keys>(values_of<Form>(stage ^ 1), head.V, next.k0, head.sight.keys, p.Dv);
    }
    commit();
    absorb(
        state, head, whose, visit.k0, visit.whole, keys_of<Form>(stage), values_of<Form>(stage), has_special, p.Dv,
        [&](uint32_t (&A)[4], int strip, int step) {
          if constexpr (keeps_queries<Form>) {
#pragma unroll
            for (int n = 0; n < 4; ++n) A[n] = kept.A[strip][step][n];
          } else {
            load_queries<Form>(A, Q, strip, step);
          }
        },
        [&](int64_t key) {
          return [&head, key](int64_t channel) { return head.V.data + key * head.V.row + channel * head.V.col; };
        });
    visit = next;
  }
  leave(p, head, task, state);
}

// --- the host's side ---

// body(Form) for what the problem takes.
template <class Body>
auto formed(const Problem& p, Body body) {
  const int64_t channels = most(p.D, p.Dv);
  if (p.type == Type::f16) {
    if (channels <= 64) return body(Form64<f16>{});
    return channels <= 128 ? body(Form128<f16>{}) : body(Form256<f16>{});
  }
  if (channels <= 64) return body(Form64<bf16>{});
  return channels <= 128 ? body(Form128<bf16>{}) : body(Form256<bf16>{});
}

const char* lacks(const Problem& p) {
  if (p.pages.table.data || p.pages.origins.data) return "takes no keys in pages";
  if (const char* what = lacks_of_halves(p)) return what;
  if (formed(p, [&](auto form) { return tasks_of<decltype(form)>(p); }) > most_blocks)
    return "takes 2^31 tiles at most";
  return nullptr;
}

Grid grid(const Problem& p) {
  return formed(p, [&](auto form) {
    using Form = decltype(form);
    return Grid{tasks_of<Form>(p), threads, shared_bytes<Form>};
  });
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
