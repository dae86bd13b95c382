// decode.cu - softmax(Q K^T) V for few queries a key head: every key and value is read once, by all processors at once.
//
// The queries of all heads that share a key head are rows of one tile: row r is query r mod Lq of head r / Lq. The keys
// of the head are cut into ranges (ranges.hpp); a block takes one range and all rows of its head, and streams the range
// through shared memory in tiles of 16 KiB of keys and 16 KiB of values, the next of which is on its way meanwhile.
//
//     channels   keys of a tile   pieces of 16 keys   registers   blocks at once, sm_80   sm_90
//     <= 64      128              8                   118         2                       3
//     <= 128      64              4                   167         2                       3
//     <= 256      32              2                   255         2                       2
//
// A warp takes one strip of 16 rows, and its share of the pieces: 4 warps are 1, 2 or 4 strips times 4, 2 or 1 shares.
// At the end of a range the states of the shares add up in shared memory, and where there are many ranges a second
// kernel adds up theirs: in the order of the keys, all by
//
//     (m, l, O) + (m', l', O') = (M, a l + a' l', a O + a' O')
//
// A processor's share of an H100's 3.3 TB/s is 25 GB/s, for which 18 KB are under way at a latency of 0.7 us: a block
// has up to 32 KiB, and 2 or 3 blocks hide each other's beginnings and ends. 64 rows are 64 operations for a byte, 210
// TFLOP/s at that speed, of about 600 that mma.sync has to give.
//
// The bits of a row depend on its own head alone: on the keys, and on whether it has 16, 32 or more rows. It is so on
// processors, where ranges are cut by the keys, too (csrc/plan.cpp, csrc/cpu/decode.hpp). The blocks that a short head
// of a batch is given for the sake of the longest end at once.
//
// It has never run on a card: what is said of it comes from the emulator, the assembler and such arithmetic.
#include "decoding.hpp"
#include "fragments.hpp"
#include "takes.hpp"

namespace harken {
namespace {

constexpr int stages = 2;
constexpr int piece = 16, most_rows = warps * strip_rows;
constexpr int half_bytes = 16 << 10;  // the keys of a tile, or its values

template <class S>
using Form64 = Form<S, 64, piece, 1>;
template <class S>
using Form128 = Form<S, 128, piece, 1>;
template <class S>
using Form256 = Form<S, 256, piece, 1>;
template <class Form>
constexpr int tile_keys = half_bytes / Form::row_bytes;

// What a block shares besides tiles.
struct Common {
  BatchRow batch;
  Head<float> head;  // the first of those that share the keys
  Interval range;
  Seat seats[most_rows];
  float scale[most_rows], slope[most_rows];  // times log2 e
  int64_t special[stages];
};

// What the shares of a range end with.
struct Ends {
  float m[warps][strip_rows], l[warps][strip_rows], a[warps][strip_rows];  // a: what O is multiplied by
  float factor[most_rows];                                                 // 1 / l
};

// Behind the tiles, which become O, lies what is shared, and behind that Q, which becomes the Ends.
constexpr int common_at = 2 * stages * half_bytes, queries_at = common_at + (int(sizeof(Common)) + 127) / 128 * 128;

HARKEN_WORD char* keys_of(int stage) { return shared_memory() + 2 * stage * half_bytes; }
HARKEN_WORD char* values_of(int stage) { return keys_of(stage) + half_bytes; }

HARKEN_ANYWHERE int strips_of(int rows) { return rows <= strip_rows ? 1 : rows <= 2 * strip_rows ? 2 : 4; }

// The rows of a lane (RowsOfHead says what is asked of them).
struct RowsOfGroup {
  const Problem& p;
  const Common& common;
  int row;  // its first

  HARKEN_WORD Seat seat(int r) const { return common.seats[row + 8 * r]; }
  HARKEN_WORD int64_t query(int, int r) const { return seat(r).query; }
  HARKEN_WORD int64_t behind(int, int r) const { return seat(r).query - seat(0).query; }
  HARKEN_WORD int64_t mask(int, int r) const { return seat(r).head * p.mask.head; }
  HARKEN_WORD int64_t bias(int, int r) const { return seat(r).head * p.bias.head; }
  HARKEN_WORD int64_t lists(int, int r) const { return seat(r).head * p.lists.number.head; }
  HARKEN_WORD float factor() const { return p.scales.data ? 0.0f : float(common.head.scale); }
  HARKEN_WORD float scale(int, int r, float) const { return common.scale[row + 8 * r]; }
  HARKEN_WORD float slope(int, int r) const { return common.slope[row + 8 * r]; }
};

// The first thread says which problem it is, then each its row.
HARKEN_WORD void set_up(const Decoding& of, Common& common, int64_t task, int64_t range) {
  const Problem& p = of.p;
  const int64_t h = task % p.Hkv * of.group;
  if (thread() == 0) {
    locate(p, task / p.Hkv, common.batch);
    common.head = head_at<float>(p, common.batch, h);
    common.range = range_at(common.head.sight.keys, range);
    for (int n = 0; n < stages; ++n) common.special[n] = -1;
  }
  barrier();
  if (const int row = thread(); row < most_rows) {
    const Seat seat = row < of.rows ? Seat{row / int(p.Lq), row % int(p.Lq)} : Seat{0, most_rows};
    common.seats[row] = seat;
    common.scale[row] = float(number_at(p.scales, common.batch, h + seat.head, p.scale) * log2e);
    common.slope[row] = float(number_at(p.slopes, common.batch, h + seat.head, 0) * log2e);
  }
  barrier();
}

// The first tile from key `from` on, which begins one, of which some row sees some key. Every warp finds it by itself.
template <class Form>
HARKEN_WORD Visit next_tile(const Decoding& of, const Common& common, int64_t from) {
  constexpr int keys = tile_keys<Form>, lanes_rows = most_rows / lanes_of_warp, never = 1 << 30;
  const Head<float>& head = common.head;
  Interval sees[lanes_rows];
  int64_t first = unbounded;
#pragma unroll
  for (int n = 0; n < lanes_rows; ++n) {
    const int row = lane() + n * lanes_of_warp;
    sees[n] = {unbounded, unbounded};
    const Seat seat = common.seats[row];
    if (seat.query >= head.queries) continue;
    sees[n] = next_seen(head.sight, seat.query, from, seat.head * of.p.lists.number.head);
    first = least(first, sees[n].first);
  }
  const int next = over_lanes(int(least(first - from, never)), [](int a, int b) { return a < b ? a : b; });
  const int64_t k0 = from + next / keys * keys;
  bool whole = true;
#pragma unroll
  for (int n = 0; n < lanes_rows; ++n) {
    const bool there = common.seats[lane() + n * lanes_of_warp].query < head.queries;
    whole &= !there || (sees[n].first == k0 && sees[n].end >= k0 + keys);
  }
  return {k0, from + next < common.range.end, ballot(!whole) == 0};
}

// Begins to copy rows; row(n) says where row n lies, null: zeros, as for channels at or past D.
template <class Form, class Row>
HARKEN_WORD void bring(char* to, int count, int64_t D, const char* anywhere, Row row) {
#pragma unroll 2
  for (int n = thread(); n < count * Form::width / chunk_numbers; n += threads) {
    const Spot spot = copied(Form::width, n);
    const char* from = spot.chunk * chunk_numbers < D ? row(spot.row) : nullptr;
    copy_async(to + offset_of(Form::width, spot.row, spot.chunk), from ? from + spot.chunk * chunk_bytes : anywhere,
               from ? chunk_bytes : 0);
  }
}

template <class Form>
HARKEN_WORD void bring_tile(char* to, const Stored& M, int64_t k0, int64_t end, int64_t D) {
  const int count = int(least(tile_keys<Form>, end - k0));
  if (M.even(k0, k0 + count)) {
    const char* first = M.page(k0).data + k0 * M.row;
    bring<Form>(to, tile_keys<Form>, D, M.data,
                [&](int n) -> const char* { return n < count ? first + n * M.row : nullptr; });
  } else {
    bring<Form>(to, tile_keys<Form>, D, M.data,
                [&](int n) -> const char* { return n < count ? M.page(k0 + n).data + (k0 + n) * M.row : nullptr; });
  }
}

// The state of a strip's share, 16 rows, where the warps can add them up. Row by row, 8 numbers of row r lie at place
// c ^ (r mod 8): a store of 8 rows meets each bank once in its two phases.
template <class Form>
HARKEN_WORD float* state_of(int warp, int row, int chunk) {
  return (float*)shared_memory() + (warp * strip_rows + row) * Form::width + (chunk ^ (row & 7)) * chunk_numbers;
}

template <class Form>
HARKEN_WORD void put_state(Ends& ends, const Softmax<Form>& state) {
#pragma unroll
  for (int r = 0; r < rows_of_lane; ++r) {
    const int row = cell_of(lane(), 2 * r).row;
    float sum = state.l[0][r];
    sum += from_neighbour(sum, 1);
    sum += from_neighbour(sum, 2);
    if (lane() % 4 == 0) {
      ends.m[warp()][row] = state.m[0][r];
      ends.l[warp()][row] = sum;
    }
#pragma unroll
    for (int n = 0; n < Form::width / 8; ++n) {
      float* to = state_of<Form>(warp(), row, n) + first_key();
      to[0] = state.O[0][n][2 * r];
      to[1] = state.O[0][n][2 * r + 1];
    }
  }
}

struct alignas(chunk_bytes) Words {
  uint32_t pairs[4];
};

// The shares of a range add up, and leave.
template <class Form>
HARKEN_WORD void leave(const Decoding& of, const Common& common, Ends& ends, int64_t task, int range, int strips,
                       int shares) {
  const Problem& p = of.p;
  if (const int row = thread(); row < of.rows) {
    const int strip = row / strip_rows, r = row % strip_rows;
    float m = -__builtin_inff(), l = 0;
    for (int n = 0; n < shares; ++n) m = max(m, ends.m[n * strips + strip][r]);
    for (int n = 0; n < shares; ++n) {
      const int w = n * strips + strip;
      const float a = exp2(ends.m[w][r] - reference(m));
      ends.a[w][r] = a;
      l += a * ends.l[w][r];
    }
    if (of.parts) {
      *(Floats<2>*)of.m_l_at(of.state_at(task, range, row)) = {{m, l}};
    } else {
      ends.factor[row] =
          finish(p, common.batch, task % p.Hkv * of.group + common.seats[row].head, common.seats[row], m, l);
    }
  }
  barrier();
  const int chunks = int(p.Dv) / chunk_numbers;
  for (int n = thread(); n < of.rows * chunks; n += threads) {
    const int row = n / chunks, chunk = n % chunks, strip = row / strip_rows, r = row % strip_rows;
    Floats<chunk_numbers> O = {};
    for (int share = 0; share < shares; ++share) {
      const int w = share * strips + strip;
      const float a = ends.a[w][r];
      const auto from = *(const Floats<chunk_numbers>*)state_of<Form>(w, r, chunk);
#pragma unroll
      for (int c = 0; c < chunk_numbers; ++c) O.x[c] += a * from.x[c];
    }
    if (of.parts) {
      *(Floats<chunk_numbers>*)(of.O_at(of.state_at(task, range, row)) + chunk * chunk_numbers) = O;
      continue;
    }
    const Seat seat = common.seats[row];
    const float factor = ends.factor[row];
    Words out;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      out.pairs[c] = factor < 0 ? 0 : packed(typename Form::S{}, O.x[2 * c] * factor, O.x[2 * c + 1] * factor);
    *(Words*)(common.head.out.data + seat.head * p.out.head + seat.query * p.out.row + chunk * chunk_bytes) = out;
  }
}

template <class Form>
HARKEN_KERNEL(threads, Form::width <= 128 ? 3 : 2)
attend_decode(HARKEN_CONSTANT Decoding of) {
  constexpr int keys = tile_keys<Form>, pieces = keys / piece;
  static_assert(int(sizeof(Ends)) <= strip_rows * Form::row_bytes, "the ends replace Q");
  static_assert(most_rows * Form::width * 4 <= 2 * stages * half_bytes, "O passes through the tiles");
  static_assert(least_range % keys == 0, "ranges are made of tiles");
  Common& common = *(Common*)(shared_memory() + common_at);
  const Problem& p = of.p;
  const uint32_t task = uint32_t(block()) / uint32_t(of.ranges), range = uint32_t(block()) % uint32_t(of.ranges);
  set_up(of, common, task, range);
  const Head<float>& head = common.head;
  const Interval& all = common.range;
  if (range > 0 && all.first >= all.end) return;

  const int strips = strips_of(of.rows), shares = warps / strips < pieces ? warps / strips : pieces;
  const int share = warp() / strips, strip = warp() % strips;
  const RowsOfGroup whose = {p, common, strip * strip_rows + lane() / 4};
  const Spot spot = of_rows(lane());
  const int of_strip = offset_of(Form::width, strip * strip_rows + spot.row, spot.chunk);
  char* const Q = shared_memory() + queries_at;
  Visit visit = next_tile<Form>(of, common, all.first);
  if (visit.any) {
    bring<Form>(Q, strips * strip_rows, p.D, head.Q.data, [&](int n) -> const char* {
      const Seat seat = common.seats[n];
      return seat.query < head.queries ? head.Q.data + seat.head * p.q.head + seat.query * p.q.row : nullptr;
    });
    bring_tile<Form>(keys_of(0), head.K, visit.k0, all.end, p.D);
    bring_tile<Form>(values_of(0), head.V, visit.k0, all.end, p.Dv);
    commit();
  }
  Softmax<Form> state;
  begin(state);
  for (int stage = 0; visit.any; stage ^= 1) {
    wait<0>();
    if ((!visit.whole || head.mask.data) &&
        clear_special<typename Form::S, Form::width, keys, threads>(values_of(stage)))
      common.special[stage] = visit.k0;
    barrier();
    const bool has_special = common.special[stage] == visit.k0;
    const Visit next = next_tile<Form>(of, common, visit.k0 + keys);
    if (next.any) {
      bring_tile<Form>(keys_of(stage ^ 1), head.K, next.k0, all.end, p.D);
      bring_tile<Form>(values_of(stage ^ 1), head.V, next.k0, all.end, p.Dv);
    }
    commit();
#pragma unroll 1
    for (int n = share * (pieces / shares); share < shares && n < (share + 1) * (pieces / shares); ++n) {
      if (visit.k0 + n * piece >= all.end) break;
      absorb(
          state, head, whose, visit.k0 + n * piece, visit.whole, keys_of(stage) + n * Form::tile_bytes,
          values_of(stage) + n * Form::tile_bytes, has_special, p.Dv,
          [&](uint32_t (&A)[4], int, int step) { load_matrix(A, Q + along(of_strip, 2 * step)); },
          [&](int64_t key) {
            const char* of_key = head.V.page(key).at(key, 0);
            return [of_key](int channel) { return of_key + channel * 2; };
          });
    }
    visit = next;
  }
  barrier();  // the last tile has been read
  Ends& ends = *(Ends*)Q;
  put_state(ends, state);
  barrier();
  leave<Form>(of, common, ends, task, int(range), strips, shares);
}

// --- the host's side ---

// body(Form) for what the problem takes.
template <class Body>
auto formed(const Problem& p, Body body) {
  return formed_of_halves<Form64, Form128, Form256>(p, body);
}

Decoding decoding(const Problem& p, char* parts) {
  const int64_t group = p.Hkv == 0 ? 0 : p.Hq / p.Hkv, rows = group * p.Lq;
  const bool takes = rows <= most_rows;
  return {
      p, parts, p.batches * p.Hkv, int(most_ranges(p.Lk)), takes ? int(group) : 0, takes ? int(rows) : most_rows + 1};
}

const char* lacks(const Problem& p) {
  if (const char* what = lacks_of_halves(p)) return what;
  if (p.pages.table.data && (p.pages.k_step | p.pages.v_step) % chunk_bytes != 0)
    return "takes rows at multiples of 16 bytes";
  const Decoding of = decoding(p, nullptr);
  if (of.rows > most_rows) return "takes at most 64 queries of all heads that share keys";
  if (of.tasks * most(of.ranges, of.rows) > most_blocks) return "takes 2^31 ranges at most";
  return nullptr;
}

Grid grid(const Problem& p) {
  const Decoding of = decoding(p, nullptr);
  const int bytes = formed(p, [&](auto form) {
    using Form = decltype(form);
    return queries_at + strips_of(of.rows) * strip_rows * Form::row_bytes;
  });
  return {of.rows == 0 ? 0 : of.tasks * of.ranges, threads, bytes};
}

int64_t workspace(const Problem& p) {
  const Decoding of = decoding(p, nullptr);
  return of.ranges == 1 ? 0 : of.states() * (p.Dv + 2) * int64_t(sizeof(float));
}

void attend(const Problem& p, char* parts, void* stream) {
  const Decoding of = decoding(p, parts);
  formed(p, [&](auto form) {
    using Form = decltype(form);
    launch(attend_decode<Form>, grid(p), stream, of);
    if (parts) launch(merge_ranges<Form>, Grid{of.tasks * of.rows, threads, int(sizeof(Merging))}, stream, of);
  });
}

}  // namespace

extern const Kernel decode_kernel;
const Kernel decode_kernel = {"decode",      "few queries a key head, its keys in ranges, float16 and bfloat16",
                              HARKEN_SOURCE, 80,
                              true,          lacks,
                              grid,          workspace,
                              attend};

}  // namespace harken
