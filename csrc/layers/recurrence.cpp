// recurrence.cpp - how a recurrence is cut: into strands of rows that need nothing of each other, and a team on each.
#include "recurrence.hpp"

#include <cerrno>
#include <new>

#include "../kept.hpp"
#include "../parallel.hpp"
#include "../processors.hpp"
#include "../team.hpp"

namespace harken {
namespace {

// What decides the cut; no bit of a result depends on it. Two cores with 2 MiB of L2 each, AVX-512, float32, a machine
// that had other work:
//
//   rows_at_least      of a strand that shares the batch with others, one full tile: strands need no meetings, and
//                      (32, 20, 256) takes 2.4 ms in two, 4.3 in one
//   rows_at_most       W comes from L2 once for so many rows: 85 thousand million multiply-adds a second and core
//   of_a_member        bytes of W_hh that are worth a meeting, 0.3 us: LSTM of H 128 (256 KiB, 2 us a step) takes 0.22
//                      ms for 100 steps in two, 0.30 in one
//   of_a               bytes of a chunk of a, which share L2 with W_hh
//   between_questions  multiply-adds, 3 ms, until somebody asks for Ctrl-C again
//   alone              multiply-adds, 10 us, of a call that other threads would come too late for
//
// W is packed in each call, 0.1 ns a number: h, broadcast, against units in lanes has no sums across lanes, and all
// rows and steps read the same panels. It is done in a run of its own, which also wakes the helpers: as the first
// part of a team's work it left the leader alone with the first chunk, 0.27 ms instead of 0.22.
constexpr int64_t rows_at_least = 6, rows_at_most = 48, of_a_member = 64 << 10, of_a = 1 << 20;
constexpr int64_t between_questions = 1 << 28, alone = 1 << 18;

// Which rows have their x W_ih^T computed by a matrix engine: those of float that have so many steps, and so many
// multiply-adds in all steps, in a layer of so many inputs and units. It goes by a row's own length, not by what it is
// padded to, nor by the batch: a row's bits are its own. A call for a part of the steps may differ in the last ones.
//
// FMA's time over the engine's, for whole calls (B, L, H) of LSTM, C = H, of whose products the engine takes half. One
// thread: (1, 64 to 400, 128) 0.99, 1.01, 1.07, 1.09; (1, 64, 256) 1.06; (16, 64, 128) 1.13; (16, 100, 48) 1.00;
// (32, 100, 256) 1.18. Two, where tiles travel from core to core: (1, 100 to 400, 128) 0.93, 0.98, 0.99; (1, 100, 256)
// 1.01; (1, 64, 512) 1.11; (32, 100, 256) 1.17. Making the tiles of W_ih takes as long as 40 steps of one row save.
constexpr int64_t engine_steps = 64, engine_work = 1 << 24, engine_inputs = 48, engine_units = 48;
// Bytes of x as tiles, which lie in the L2 beside a, and the rows that W_ih is to come from beyond it for at least.
constexpr int64_t of_x = 512 << 10, engine_rows = 128;

int64_t up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Work {
  const Recurrent& verbs;
  const Recurrence& p;
  char* panels;  // [directions][panels]; of a single step [threads]
  char* tiles;   // [directions][panels][gates], where there are rows on a matrix engine
  Strand* strands;
  Team* teams;
  int64_t count;
  int wanted;  // members that a leader waits a moment for

  const char* panel(int direction, int64_t panel) const {
    return panels + (direction * p.panels() + panel) * p.panel() * p.size();
  }
  char* tile(int direction, int64_t panel) const {
    return tiles + (direction * p.panels() + panel) * p.gates() * p.tiles();
  }
};

void pack_task(const void* context, int64_t index, int) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t direction = index / w.p.panels(), panel = index % w.p.panels();
  w.verbs.pack(w.p, int(direction), panel, const_cast<char*>(w.panel(int(direction), panel)));
  if (w.tiles) w.verbs.pack_tiles(w.p, int(direction), panel, w.tile(int(direction), panel));
}

// a of some panels, for some steps. False: interrupted.
bool project(const Work& w, const Strand& strand, int64_t from, int64_t to, int64_t step, int64_t steps) {
  const Recurrence& p = w.p;
  if (strand.on_engine < strand.rows)
    for (int64_t panel = from; panel < to; ++panel) {
      if (interrupted()) return false;
      w.verbs.project(p, strand, w.panel(strand.direction, panel), panel, step, steps);
    }
  if (strand.on_engine > 0)
    for (int64_t panel = from; panel < to; panel += 2) {  // 3 gates are an even number of tiles then
      if (interrupted()) return false;
      const int64_t end = panel + 2 < to ? panel + 2 : to;
      w.verbs.project_tiles(p, strand, w.tile(strand.direction, panel), w.panel(strand.direction, panel), panel, end,
                            step, steps);
    }
  return true;
}

// One member's share of all steps: some panels of each, which may be others after a meeting. Between the meetings of a
// chunk lie the phases of its steps, and before them, where a matrix engine is, the making of tiles of x.
void go(const Work& w, const Strand& strand, Team::Member& member) {
  const Recurrence& p = w.p;
  const int phases = p.phases(), making = strand.on_engine > 0;
  const int64_t panels = p.panels(), steps = p.length(strand.which[0]), parts = making + strand.chunk * phases;
  const int64_t meetings = steps * phases + making * ((steps + strand.chunk - 1) / strand.chunk);
  for (int64_t now = member.meetings - 1; now < meetings; ++now) {
    const int64_t first = now / parts * strand.chunk, part = now % parts - making;
    const int64_t count = steps - first < strand.chunk ? steps - first : strand.chunk;
    const int64_t from = panels * member.index / member.count, to = panels * (member.index + 1) / member.count;
    if (part < 0) {
      if (interrupted()) return;
      w.verbs.pack_steps(p, strand, first, count, member.index, member.count);
    } else {
      if (part == 0 && !project(w, strand, from, to, first, count)) return;
      w.verbs.advance(p, strand, w.panel(strand.direction, from), from, to, first + part / phases, int(part % phases));
    }
    if (now + 1 < meetings && !member.team->meet(member)) return;
  }
}

void go_task(const void* context, int64_t index, int) {
  const Work& w = *static_cast<const Work*>(context);
  const int64_t number = index % w.count;
  Team& team = w.teams[number];
  if (index < w.count) {
    Team::Member leader = team.lead(w.wanted);
    go(w, w.strands[number], leader);
    team.end();
  } else {
    Team::Member member;
    if (team.join(member)) go(w, w.strands[number], member);
  }
}

// A single step reads each weight once: a panel is made, used and forgotten, in a place of the thread's own.
void step_task(const void* context, int64_t index, int thread) {
  const Work& w = *static_cast<const Work*>(context);
  const Strand& strand = w.strands[index / w.p.panels()];
  const int64_t panel = index % w.p.panels();
  char* here = w.panels + thread * up(w.p.panel() * w.p.size());
  w.verbs.pack(w.p, strand.direction, panel, here);
  w.verbs.project(w.p, strand, here, panel, 0, 1);
  w.verbs.advance(w.p, strand, here, panel, panel + 1, 0, 0);
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

int of_this_machine() {
  static const int count = processors().usable;
  return count;
}

}  // namespace

Recurred recur(const Recurrent& verbs, Recurrence& p, const int64_t* order, int threads) {
  if (p.B == 0 || p.L == 0 || p.H == 0) return Recurred::done;
  p.lanes = verbs.lanes[p.in_double];
  const bool engine = verbs.engine && !p.in_double && p.C >= engine_inputs && p.H >= engine_units;
  const int64_t of_one = p.C * p.gates() * p.H;
  p.engine_steps = engine ? most(engine_steps, (engine_work + of_one - 1) / of_one) : INT64_MAX;
  int64_t on_engine = 0;
  for (int64_t row = 0; row < p.B; ++row) on_engine += p.on_engine(row);
  p.in_panels = on_engine < p.B ? p.C : 0;
  const int64_t panels = p.panels(), size = p.size(), directions = p.directions;
  const int64_t work = p.B * p.L * (p.C + p.H) * p.gates() * p.H * directions;
  threads = work < alone ? 1 : int(least(threads, of_this_machine()));  // steps of more than run at once are a jam

  const bool single = p.L == 1 && p.phases() == 1 && p.B <= rows_at_most;

  const int64_t wanted = single ? 1 : (threads + directions - 1) / directions;
  const int64_t parts = most(least(wanted, most(1, p.B / rows_at_least)), (p.B + rows_at_most - 1) / rows_at_most);
  const int64_t count = directions * parts, rows = (p.B + parts - 1) / parts;
  const int64_t useful = most(1, p.gates() * p.H * p.H * size / of_a_member);
  const int members = int(least(least(threads, Team::most), most(1, least(useful, panels))));
  const int64_t of_a_step = panels * rows * Recurrence::slots * p.lanes * size;
  const int64_t at_once = least(of_a / of_a_step, between_questions / (rows * (p.C + 1) * p.gates() * p.lanes));
  const int64_t with_engine = most(least(at_once, of_x / (rows * p.tiles() / 16)), (engine_rows + rows - 1) / rows);
  const int64_t chunk = least(p.L, most(1, on_engine ? with_engine : at_once));

  const int64_t packed = single ? threads * up(p.panel() * size) : up(directions * panels * p.panel() * size),
                tiles = on_engine ? directions * panels * p.gates() * p.tiles() : 0,
                x = on_engine ? (rows * chunk + 31) / 32 * 2 * p.tiles() : 0, a = up(of_a_step * chunk),
                reset = p.phases() == 2 ? up(rows * p.H * size) : 0, which = up(rows * sizeof(int64_t)),
                strands = up(count * sizeof(Strand));
  const Kept space(packed + tiles + count * (x + a + reset + which + sizeof(Team)) + strands);
  char* at = space.at();
  if (!at) return Recurred::out_of_memory;
  auto take = [&](int64_t bytes) {
    char* here = at;
    at += bytes;
    return here;
  };
  const int error_before = errno;
  Work w = {verbs, p, take(packed), nullptr, nullptr, nullptr, count, int(least(members, most(1, threads / count)))};
  if (on_engine) w.tiles = take(tiles);
  w.teams = reinterpret_cast<Team*>(take(count * sizeof(Team)));
  w.strands = reinterpret_cast<Strand*>(take(strands));
  int64_t made = 0;
  for (int direction = 0; direction < p.directions; ++direction)
    for (int64_t part = 0; part < parts; ++part) {
      auto* rows_of_it = reinterpret_cast<int64_t*>(take(which));
      int64_t n = 0, with = 0;
      for (int64_t i = part; i < p.B; i += parts) rows_of_it[n++] = order ? order[i] : i;  // each gets long ones
      while (with < n && p.on_engine(rows_of_it[with])) ++with;
      new (w.teams + made) Team;
      w.strands[made++] = {direction, n, with, rows_of_it, chunk, take(a), take(reset), take(x)};
    }
  const int team = int(least(threads, count * members));
  const bool done = single
                        ? run({step_task, &w}, count * panels, int(least(threads, count * panels)))
                        : run({pack_task, &w}, directions * panels, team) && run({go_task, &w}, count * members, team);
  errno = error_before;
  return done ? Recurred::done : Recurred::interrupted;
}

}  // namespace harken
