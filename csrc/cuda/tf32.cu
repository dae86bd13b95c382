// tf32.cu - softmax(Q K^T) V of float32 in tiles of a matrix engine, each product as three of tf32.
//
// The page is portable.cu's: a block is 4 warps, a task one tile of queries of one head, keys and values come in tiles,
// two of each in shared memory, and the copies of tile j + 1 have all of the arithmetic of tile j to arrive.
//
//     wait for the copies of tile j, barrier, begin those of j + 1
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
#include "halves.hpp"
#include "terms.hpp"

namespace harken {
namespace {

constexpr int warps = 4, threads = warps * lanes_of_warp, stages = 2;
constexpr int chunk_floats = chunk_bytes / 4;

template <int terms>
using Form64 = FloatForm<64, 64, 1, terms>;
template <int terms>
using Form128 = FloatForm<128, 32, 1, terms>;
template <int terms>
using Form256 = FloatForm<256, 16, 1, terms>;

template <class Form>
constexpr int tile_rows = warps * Form::strips * strip_rows;

// O of 16 queries and 256 channels takes 128 registers, and leaves none for as many of Q.
template <class Form>
constexpr bool keeps_queries = Form::width <= 128;

// What a block shares besides tiles. The first thread writes it.
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
  constexpr int chunks = count * Form::width / chunk_floats;
  static_assert(chunks % threads == 0);
#pragma unroll 1  // all addresses at once would take the registers of O
  for (int n = 0; n < chunks / threads; ++n) {
    const Spot spot = copied(Form::halves, thread() + n * threads);
    const bool there = first + spot.row < end && spot.chunk * chunk_floats < D;
    const char* from = there ? M.data + (first + spot.row) * M.row + spot.chunk * chunk_bytes : M.data;
    copy_async(to + offset_of(Form::halves, spot.row, spot.chunk), from, there ? chunk_bytes : 0);
  }
}

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
  if (!all) {
#pragma unroll
    for (int strip = 0; strip < Form::strips; ++strip)
      for_scores(scores, strip,
                 [&](float& s, int r, int key) { s = hidden_where_zero(s, float(scores.sees[strip][r] >> key & 1)); });
  }
  exponentiate(state, scores, factor);
  terms::multiply_values(state, scores, values_of<Form>(stage), p.Dv);
  if (has_special)
    add_special(state, scores, visit.k0, head.sight.keys, p.Dv, [&](int64_t key) {
      return [&head, key](int64_t channel) { return head.V.data + key * head.V.row + channel * head.V.col; };
    });
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
  constexpr int keys = Form::keys, rows = tile_rows<Form>;
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
    if (clear_values<Form>(values_of<Form>(stage))) common.special[stage] = visit.k0;
    if (thread() == 0) common.visits[stage ^ 1] = next_visit(head.sight, common.walk, keys);
    barrier();
    const bool has_special = common.special[stage] == visit.k0;
    const Visit next = common.visits[stage ^ 1];
    if (next.any) {
      bring<Form, keys>(keys_of<Form>(stage ^ 1), head.K, next.k0, head.sight.keys, p.D);
      bring<Form, keys>(values_of<Form>(stage ^ 1), head.V, next.k0, head.sight.keys, p.Dv);
    }
    commit();
    absorb(p, head, task, visit, stage, has_special, kept, state);
    visit = next;
  }
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

const char* lacks(const Problem& p) {
  const Type type = Type::f32;
  if (p.type != type) return "takes float32 alone";
  if (p.q.type != type || p.k.type != type || p.v.type != type || p.out.type != type)
    return "takes q, k, v of one type";
  if (p.score != Score::dot) return "takes dot products alone";
  if (p.pages.table.data || p.pages.origins.data) return "takes no keys in pages";
  if (p.weights.data) return "gives no weights";
  if (p.D > 256 || p.Dv > 256) return "takes at most 256 channels";
  if (p.D % chunk_floats != 0 || p.Dv % chunk_floats != 0 || p.D == 0) return "takes channels in multiples of 4";
  if (p.bias.data && p.bias.type != type) return "takes a bias of float32";
  if (!lies_well(p, p.q, p.Hq, p.Lq, p.D) || !lies_well(p, p.k, p.Hkv, p.Lk, p.D) ||
      !lies_well(p, p.v, p.Hkv, p.Lk, p.Dv) || !lies_well(p, p.out, p.Hq, p.Lq, p.Dv))
    return "takes rows at multiples of 16 bytes";
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
