// emulated_engines.cpp - barriers that count bytes, copies that come late, products that are not there yet.
#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "engines.hpp"

namespace harken::emulator {
namespace {

constexpr int poison = 0xff, registers_of_processor = 65536, named_barriers = 16;
constexpr uint64_t mark_of_barrier = 0xba4;

// A Barrier as it lies in shared memory.
struct Phase {
  int64_t bytes : 27;
  uint64_t pending : 12, expected : 12, parity : 1, mark : 12;
};
static_assert(sizeof(Phase) == sizeof(Barrier));

struct Copy {
  char* to;
  TensorMap map;
  int at[map_axes];
  Barrier* barrier;
};

// What C of a thread will be, and the group whose end that is.
struct Sum {
  float* C;
  std::vector<float> sum;
  int group;
};

struct Operand {
  uint64_t descriptor, hash;
  int size, group;
  bool turned;
};

struct Registers {
  const uint32_t* at;
  uint32_t were[4];
  int group;
};

struct Thread {
  std::vector<Sum> sums;
  std::vector<Operand> operands;
  std::vector<Registers> given;
  int groups = 0, registers = 0;
  bool begun = false;
};

struct Named {
  int arrived = 0, count = 0;
  int64_t rounds = 0;
  bool truth = false, answer = false;
};

struct State {
  std::vector<Copy> copies;
  std::vector<Thread> threads;
  std::vector<char> seen;  // shared memory as engines see it
  Named named[named_barriers];
  int free_registers = 0;
  uint64_t random = 0;
  int64_t rounds = 0;  // of the threads of the block
  int lingering = 0;   // threads whose products last until the next
} state;

Thread& mine() { return state.threads[here.thread]; }

Phase phase_of(const Barrier& barrier) {
  Phase phase;
  memcpy(&phase, &barrier, sizeof phase);
  if (phase.mark != mark_of_barrier) faulty("arrives or waits at what is no barrier");
  return phase;
}

// The phase is over when nobody and nothing is missing.
void settle(Barrier& barrier, Phase phase) {
  if (phase.pending == 0 && phase.bytes == 0) {
    phase.parity ^= 1;
    phase.pending = phase.expected;
    got_on();
  }
  memcpy(&barrier, &phase, sizeof phase);
}

int box_bytes(const TensorMap& map) { return map.rows * slab_row_bytes; }

void write(const Copy& copy) {
  const Boxed& array = copy.map.array;
  const uint32_t base = shared_address(copy.to);
  bool inside = true;
  const char* from = array.data;
  for (int axis = 2; axis < map_axes; ++axis) {
    inside = inside && copy.at[axis] >= 0 && copy.at[axis] < array.sizes[axis];
    from += copy.at[axis] * array.strides[axis - 1];
  }
  for (int r = 0; r < copy.map.rows; ++r)
    for (int c = 0; c < slab_numbers; ++c) {
      const int64_t row = copy.at[1] + r, col = copy.at[0] + c;
      const bool there = inside && row >= 0 && row < array.sizes[1] && col >= 0 && col < array.sizes[0];
      const uint32_t at = swizzled(base + r * slab_row_bytes + 2 * c);
      if (there) {
        memcpy(here.shared + at, from + row * array.strides[0] + 2 * col, 2);
      } else {
        memset(here.shared + at, 0, 2);
      }
      memcpy(&state.seen[at], here.shared + at, 2);
    }
  Phase phase = phase_of(*copy.barrier);
  phase.bytes = phase.bytes - box_bytes(copy.map);
  settle(*copy.barrier, phase);
}

uint32_t drawn(uint32_t end) {
  state.random = state.random * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(state.random >> 33) % end;
}

void begin_block(int threads) {
  state.copies.clear();
  state.threads.assign(threads, {});
  state.seen.assign(here.shared, here.shared + here.shared_bytes);
  std::fill(std::begin(state.named), std::end(state.named), Named{});
  const int at_first = std::min(registers_of_processor / threads / 8 * 8, 248);
  for (Thread& thread : state.threads) thread.registers = at_first;
  state.free_registers = registers_of_processor - threads * at_first;
  state.random = uint64_t(here.block) + 7;
  state.lingering = 0;
}

// A copy may come when threads got on, and must when they did not.
bool step(bool idle) {
  ++state.rounds;
  if (state.copies.empty() || (!idle && drawn(2) == 0)) return state.lingering > 0;
  const size_t n = drawn(uint32_t(state.copies.size()));
  const Copy copy = state.copies[n];
  state.copies.erase(state.copies.begin() + int64_t(n));
  write(copy);
  return true;
}

const bool there = (engines = {begin_block, step}, true);

uint16_t number_at(uint32_t address) {
  address = swizzled(address);
  if (address + 2 > state.seen.size()) faulty("multiplies what is past its shared memory");
  uint16_t bits;
  memcpy(&bits, &state.seen[address], sizeof bits);
  return bits;
}

struct Fields {
  uint32_t address, leading, stride;
};
Fields fields_of(uint64_t descriptor) {
  if (descriptor >> 62 != 1) faulty("multiplies by a descriptor without the swizzle of 128 bytes");
  return {uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4,
          uint32_t(descriptor >> 32 & 0x3fff) << 4};
}

uint64_t hash_of(const Operand& of) {
  uint64_t hash = 0;
  for (int i = 0; i < of.size; ++i)
    for (int k = 0; k < 16; ++k)
      hash = hash * 31 + (of.turned ? of_rows(of.descriptor, i, k) : of_channels(of.descriptor, i, k));
  return hash;
}

Named& named(int n, int count) {
  Named& one = state.named[n];
  if (n < 1 || n >= named_barriers || count % lanes_of_warp != 0) faulty("meets at a barrier that there is not");
  if (one.arrived > 0 && one.count != count) faulty("meets at a barrier that others meet at in another number");
  one.count = count;
  return one;
}

void be_counted(Named& one) {
  if (++one.arrived < one.count) return;
  one.answer = one.truth;
  one.arrived = 0;
  one.truth = false;
  ++one.rounds;
  got_on();
}

}  // namespace

void prepare(Barrier& barrier, int count) {
  if (shared_address(reinterpret_cast<char*>(&barrier)) % sizeof(Barrier) != 0) faulty("prepares a barrier askew");
  const Phase phase = {0, uint64_t(count), uint64_t(count), 0, mark_of_barrier};
  memcpy(&barrier, &phase, sizeof phase);
}

void arrive(Barrier& barrier, int bytes) {
  Phase phase = phase_of(barrier);
  phase.bytes = phase.bytes + bytes;
  --phase.pending;
  settle(barrier, phase);
}

void wait_for(Barrier& barrier, uint32_t parity) {
  while (phase_of(barrier).parity == (parity & 1)) give_way();
}

void copy_box(char* to, const TensorMap& map, const int (&at)[map_axes], Barrier& barrier) {
  const int64_t address = to - here.shared;
  if (address < 0 || address + box_bytes(map) > here.shared_bytes) faulty("copies past its shared memory");
  if (address % slab_block_bytes != 0) faulty("copies a swizzled box to an address that is no multiple of 1024");
  phase_of(barrier);
  memset(to, poison, box_bytes(map));
  memset(&state.seen[address], poison, box_bytes(map));
  Copy copy = {to, map, {}, &barrier};
  std::copy(std::begin(at), std::end(at), copy.at);
  state.copies.push_back(copy);
}

bool meet(int n, int count, bool truth) {
  Named& one = named(n, count);
  const int64_t round = one.rounds;
  one.truth |= truth;
  be_counted(one);
  while (one.rounds == round) give_way();
  return one.answer;
}

void come(int n, int count) { be_counted(named(n, count)); }

void show_engines() { state.seen.assign(here.shared, here.shared + here.shared_bytes); }

void registers(int count, bool more) {
  int& own = mine().registers;
  if (count % 8 != 0 || count < 24 || count > 256 || more != (count >= own))
    faulty("asks for a number of registers that there is not");
  while (state.free_registers < count - own) give_way();
  state.free_registers -= count - own;
  own = count;
  got_on();
}

// PTX, "strides": rows of 128 bytes in blocks of 8.
uint16_t of_channels(uint64_t descriptor, int i, int k) {
  const Fields of = fields_of(descriptor);
  return number_at(of.address + i / 8 * of.stride + i % 8 * slab_row_bytes + 2 * k);
}
uint16_t of_rows(uint64_t descriptor, int i, int k) {
  const Fields of = fields_of(descriptor);
  return number_at(of.address + i / slab_numbers * of.leading + k / 8 * of.stride + k % 8 * slab_row_bytes +
                   2 * (i % slab_numbers));
}

void begin_products() { mine().begun = true; }

float* sum_of(float* C, int count, bool add) {
  Thread& thread = mine();
  if (!thread.begun) faulty("multiplies with registers that it did not show to the engine");
  auto found = std::find_if(thread.sums.begin(), thread.sums.end(), [&](const Sum& sum) { return sum.C == C; });
  if (found == thread.sums.end()) {
    thread.sums.push_back({C, std::vector<float>(C, C + count), 0});
    found = thread.sums.end() - 1;
    memset(C, poison, size_t(count) * sizeof(float));
  }
  found->group = thread.groups;
  if (!add) std::fill(found->sum.begin(), found->sum.end(), 0.0f);
  return found->sum.data();
}

void watch(uint64_t descriptor, int size, bool turned) {
  if (lane() != 0) return;
  Operand of = {descriptor, 0, size, mine().groups, turned};
  of.hash = hash_of(of);
  mine().operands.push_back(of);
}

void watch(const uint32_t (&A)[4]) { mine().given.push_back({A, {A[0], A[1], A[2], A[3]}, mine().groups}); }

void commit_products() { ++mine().groups; }

void wait_products(int groups) {
  Thread& thread = mine();
  ++state.lingering;
  for (const int64_t round = state.rounds; state.rounds == round;) give_way();
  --state.lingering;
  const auto done = [&](int group) { return group < thread.groups - groups; };
  for (const Operand& of : thread.operands)
    if (done(of.group) && hash_of(of) != of.hash) faulty("overwrites what is being multiplied");
  for (const Registers& of : thread.given)
    if (done(of.group) && memcmp(of.at, of.were, sizeof of.were) != 0) faulty("changes what is being multiplied");
  for (const Sum& sum : thread.sums)
    if (done(sum.group)) std::copy(sum.sum.begin(), sum.sum.end(), sum.C);
  std::erase_if(thread.operands, [&](const Operand& of) { return done(of.group); });
  std::erase_if(thread.given, [&](const Registers& of) { return done(of.group); });
  std::erase_if(thread.sums, [&](const Sum& sum) { return done(sum.group); });
  thread.begun = false;
}

}  // namespace harken::emulator
