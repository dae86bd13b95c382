// emulator.cpp - the threads of a block as fibers that give way where they wait, so that a kernel runs on a processor.
#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "fault.hpp"
#include "words.hpp"

namespace harken::emulator {

Place here;

namespace {

constexpr size_t stack_bytes = 64 << 10, fence_bytes = 256;
constexpr char fence = 0x5a;
constexpr int copy_bytes = 16, poison = 0xff;  // NaN

// Those who come wait until all have come.
struct Meeting {
  int arrived = 0;
  int64_t rounds = 0;
};

struct Warp {
  Meeting meeting;
  char slots[2][lanes_of_warp][slot_bytes];  // one is read while the next is written
};

// A copy to shared memory that is under way, and the group that it was committed with.
struct Copy {
  char* to;
  const char* from;
  int bytes, group;
};

struct Fiber {
  ucontext_t first;
  jmp_buf at;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  std::vector<Copy> copies;
  bool begun, ended;
  int exchanges, groups;
};

// swapcontext() asks the kernel for the signal mask each time, 0.3 us; a jump between stacks takes 10 ns.
struct Block {
  jmp_buf scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Meeting meeting;
  bool moved;  // did any thread get further in this round?
  int running;
  const char* wrong;  // what a thread did that a card does not forgive
  void (*body)(const void*);
  const void* context;
} state;

void meet(Meeting& meeting, int count) {
  const int64_t mine = meeting.rounds;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.rounds;
    state.moved = true;
    return;
  }
  while (meeting.rounds == mine) give_way();
}

void begin() {
  state.body(state.context);
  state.fibers[state.running].ended = true;
  state.moved = true;
  _longjmp(state.scheduler, 1);
}

void go_on(int thread) {
  Fiber& fiber = state.fibers[thread];
  here.thread = state.running = thread;
  if (_setjmp(state.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.first);
  fiber.first.uc_stack = {fiber.stack.get(), 0, stack_bytes};
  fiber.first.uc_link = nullptr;
  makecontext(&fiber.first, begin, 0);
  setcontext(&fiber.first);
}

std::vector<int> drawn_order(int count, int64_t seed) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  uint64_t random = uint64_t(seed) + 1;
  for (int n = count - 1; n > 0; --n) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[n], order[(random >> 33) % uint64_t(n + 1)]);
  }
  return order;
}

// One warp as far as it gets without the others. True: it got on.
bool run_warp(int warp, const std::vector<int>& lanes) {
  for (bool any = false;; any = true) {
    state.moved = false;
    for (const int lane : lanes) {
      if (const int thread = warp * lanes_of_warp + lane; !state.fibers[thread].ended) go_on(thread);
      if (state.wrong) throw Fault{HARKEN_FAILED, "block " + std::to_string(here.block) + " " + state.wrong};
    }
    if (!state.moved) return any;
  }
}

void run_block(int threads) {
  for (Fiber& fiber : state.fibers)
    fiber.begun = fiber.ended = false, fiber.exchanges = fiber.groups = 0, fiber.copies.clear();
  for (Warp& warp : state.warps) warp.meeting = {};
  state.meeting = {};
  state.wrong = nullptr;
  engines.begin_block(threads);
  const std::vector<int> warps = drawn_order(threads / lanes_of_warp, here.block);
  const std::vector<int> lanes = drawn_order(lanes_of_warp, here.block);
  for (bool first = true;; first = false) {
    bool any = first, all = true;
    for (const int warp : warps) any |= run_warp(warp, lanes);
    for (const Fiber& fiber : state.fibers) all &= fiber.ended;
    if (all) return;
    if (engines.step(!any) || any) continue;
    std::string waiting;
    for (size_t warp = 0; warp < state.warps.size(); ++warp)
      waiting +=
          ", " + std::to_string(state.warps[warp].meeting.arrived) + " in an exchange of warp " + std::to_string(warp);
    throw Fault{HARKEN_FAILED, "block " + std::to_string(here.block) + " does not get on: " +
                                   std::to_string(state.meeting.arrived) + " threads wait at a barrier" + waiting};
  }
}

}  // namespace

void give_way() {
  if (_setjmp(state.fibers[state.running].at) == 0) _longjmp(state.scheduler, 1);
}

void got_on() { state.moved = true; }

void faulty(const char* text) {
  state.wrong = text;
  _longjmp(state.scheduler, 1);
}

constinit Engines engines = {[](int) {}, [](bool) { return false; }};

void (*launched)(void* stream, std::function<void()> work) = nullptr;

void meet_block() { meet(state.meeting, int(state.fibers.size())); }

const char* exchange(const void* mine, int bytes) {
  Warp& warp = state.warps[state.running / lanes_of_warp];
  auto& slots = warp.slots[state.fibers[state.running].exchanges++ % 2];
  memcpy(slots[state.running % lanes_of_warp], mine, bytes);
  meet(warp.meeting, lanes_of_warp);
  return slots[0];
}

float read_tf32(const char* at) {
  uint32_t bits;
  memcpy(&bits, at, sizeof bits);
  bits &= 0xffffe000u;  // the 13 low bits are not wired
  return __builtin_bit_cast(float, bits);
}

// As an sm_80 was found to add products of tf32 (MMA-Sim, arXiv 2511.10909): four exact products and c are cut towards
// zero at 2^-24 of the largest power of two among them, which for a product is that of its factors, then added exactly,
// and the sum is cut to a float. An sm_90 keeps one bit more and adds eight at once: it errs less. Not modelled: sums
// that are subnormal, and which NaN it is.
float added(float c, const float* a, const float* b) {
  const auto power = [](float x) { return int(__builtin_bit_cast(uint32_t, x) >> 23 & 255) - 127; };
  const auto two_to = [](int n) { return __builtin_bit_cast(double, int64_t(1023 + n) << 52); };
  constexpr int none = -1000, special = 128, kept = 24;
  int top = c == 0 ? none : power(c), largest = power(c);
  for (int k = 0; k < 4; ++k) {
    largest = std::max({largest, power(a[k]), power(b[k])});
    if (a[k] != 0 && b[k] != 0) top = std::max(top, power(a[k]) + power(b[k]));
  }
  if (largest == special) return c + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
  if (top == none) return c;
  const double unit = two_to(kept - top);
  int64_t sum = int64_t(c * unit);
  for (int k = 0; k < 4; ++k) sum += int64_t(double(a[k]) * b[k] * unit);
  constexpr uint64_t of_float = ~uint64_t(0) << 29;
  const double cut = __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, double(sum)) & of_float);
  return float(cut / unit);
}

void check_aligned(const char* at) {
  if (reinterpret_cast<uintptr_t>(at) % copy_bytes != 0)
    faulty("copies or loads from an address that is no multiple of 16");
}

void copy_async(char* to, const char* from, int bytes) {
  Fiber& fiber = state.fibers[state.running];
  check_aligned(to);
  check_aligned(from);
  memset(to, poison, copy_bytes);
  fiber.copies.push_back({to, from, bytes, fiber.groups});
}

void commit() { ++state.fibers[state.running].groups; }

void wait(int groups) {
  Fiber& fiber = state.fibers[state.running];
  std::vector<Copy> under_way;
  for (const Copy& copy : fiber.copies) {
    if (copy.group >= fiber.groups - groups) {
      under_way.push_back(copy);
      continue;
    }
    if (copy.bytes > 0) memcpy(copy.to, copy.from, copy.bytes);
    memset(copy.to + copy.bytes, 0, copy_bytes - copy.bytes);
  }
  fiber.copies.swap(under_way);
}

void run(const Grid& grid, void (*body)(const void*), const void* context) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  state.body = body;
  state.context = context;
  state.fibers = std::vector<Fiber>(grid.threads);
  state.warps = std::vector<Warp>(grid.threads / lanes_of_warp);
  const std::unique_ptr<char, decltype(&free)> memory(
      static_cast<char*>(aligned_alloc(1024, (grid.shared_bytes + fence_bytes + 1023) / 1024 * 1024)), free);
  char* const past = memory.get() + grid.shared_bytes;
  here = {0, 0, grid.blocks, memory.get(), grid.shared_bytes};
  for (; here.block < grid.blocks; ++here.block) {
    memset(memory.get(), poison, grid.shared_bytes);
    memset(past, fence, fence_bytes);
    run_block(grid.threads);
    for (size_t n = 0; n < fence_bytes; ++n)
      if (past[n] != fence)
        throw Fault{HARKEN_FAILED, "block " + std::to_string(here.block) + " writes past its shared memory"};
  }
}

}  // namespace harken::emulator
