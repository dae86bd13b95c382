// emulated_card.cpp - a card made of the host's memory: addresses and sizes are checked like there.
#include <stdlib.h>
#include <string.h>

#include <map>
#include <mutex>

#include "card.hpp"
#include "fault.hpp"

namespace harken::card {
namespace {

constexpr size_t memory_bytes = size_t(64) << 20, alignment = 256;
constexpr int poison = 0xff;

std::mutex lock;
std::map<const char*, size_t> held;  // where, how much
size_t in_use = 0;

bool within(const char* at, size_t bytes) {
  auto next = held.upper_bound(at);
  if (next == held.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

}  // namespace

const char* build() { return "the emulator"; }
int count() { return 1; }

int capability(int card) {
  const harken_cuda_card_facts of = facts(card);
  return of.major * 10 + of.minor;
}

harken_cuda_card_facts facts(int card) {
  if (card != 0) throw Fault{HARKEN_MISUSED, "there is no card " + std::to_string(card) + ": wanted 0 to 0"};
  const std::lock_guard<std::mutex> guard(lock);
  return {"emulator", 9, 0, 1, int64_t(memory_bytes), int64_t(memory_bytes - in_use)};
}

Meant::Meant(int card) : before_(card) { facts(card); }
Meant::~Meant() = default;

int where(const void* at) {
  const std::lock_guard<std::mutex> guard(lock);
  return within(static_cast<const char*>(at), 1) ? 0 : -1;
}

void* allocate(size_t bytes, void*) {
  const std::lock_guard<std::mutex> guard(lock);
  const size_t whole = (bytes + alignment) / alignment * alignment;
  if (bytes > memory_bytes || in_use + whole > memory_bytes)
    throw Fault{HARKEN_OUT_OF_MEMORY, "the emulator says out of memory"};
  char* at = static_cast<char*>(aligned_alloc(alignment, whole));
  if (at == nullptr) throw Fault{HARKEN_OUT_OF_MEMORY, "the host is out of memory"};
  memset(at, poison, whole);
  held[at] = bytes;
  in_use += whole;
  return at;
}

void release(void* at, void*) noexcept {
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = held.find(static_cast<char*>(at));
  if (found == held.end()) return;
  in_use -= (found->second + alignment) / alignment * alignment;
  held.erase(found);
  free(at);
}

void copy(void* to, const void* from, size_t bytes, void*) { memcpy(to, from, bytes); }
void clear(void* at, size_t bytes, void*) { memset(at, 0, bytes); }
void wait(void*) {}

}  // namespace harken::card
