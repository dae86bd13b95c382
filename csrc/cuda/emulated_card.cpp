// emulated_card.cpp - a card made of the host's memory: addresses and sizes are checked, streams are late.
//
// What is queued on a stream that new_stream() made is done when somebody waits for it and no sooner, so that work that
// follows no event finds memory that nothing was copied to yet, or not any more. All other streams do it at once.
#include <stdlib.h>
#include <string.h>

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "card.hpp"
#include "fault.hpp"
#include "words.hpp"

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

struct Stream {
  std::deque<std::function<void()>> work;
  int64_t done = 0;

  void until(int64_t count) {
    while (done < count) {
      const auto next = std::move(work.front());
      work.pop_front();
      ++done;
      next();
    }
  }
  int64_t queued() const { return done + int64_t(work.size()); }
};

struct Event {
  Stream* stream = nullptr;  // null: nothing to wait for
  int64_t count = 0;
};

std::deque<Stream> streams;
std::deque<Event> events;
std::map<const char*, size_t> pins;

Stream* own(void* stream) {
  for (Stream& one : streams)
    if (&one == stream) return &one;
  return nullptr;
}

void queue(void* stream, std::function<void()> work) {
  if (Stream* const of = own(stream)) {
    of->work.push_back(std::move(work));
  } else {
    work();
  }
}

const bool kernels_queue_too = (emulator::launched = queue, true);

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

// HARKEN_EMULATOR_FAILS=n: the nth allocation from now on fails, and all after it.
bool fails() {
  static int so_far = 0;
  const char* const at = getenv("HARKEN_EMULATOR_FAILS");
  so_far = at == nullptr ? 0 : so_far + 1;
  return at != nullptr && so_far >= atoi(at);
}

void* allocate(size_t bytes, void*) {
  const std::lock_guard<std::mutex> guard(lock);
  if (fails()) throw Fault{HARKEN_OUT_OF_MEMORY, "the emulator says out of memory"};
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

void release(void* at, void* stream) noexcept {
  queue(stream, [at] {
    const std::lock_guard<std::mutex> guard(lock);
    const auto found = held.find(static_cast<char*>(at));
    if (found == held.end()) return;
    in_use -= (found->second + alignment) / alignment * alignment;
    held.erase(found);
    free(at);
  });
}

void copy(void* to, const void* from, size_t bytes, void* stream) {
  queue(stream, [=] { memcpy(to, from, bytes); });
}
void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, size_t bytes, size_t rows,
               void* stream) {
  for (size_t n = 0; n < rows; ++n)
    copy(static_cast<char*>(to) + n * to_step, static_cast<const char*>(from) + n * from_step, bytes, stream);
}
void clear(void* at, size_t bytes, void* stream) {
  queue(stream, [=] { memset(at, 0, bytes); });
}
void wait(void* stream) {
  if (Stream* const of = own(stream)) of->until(of->queued());
}

int64_t free_memory() { return facts(0).free; }

void* new_stream() { return &streams.emplace_back(); }
void* new_event() { return &events.emplace_back(); }
void record(void* event, void* stream) { *static_cast<Event*>(event) = {own(stream), own(stream)->queued()}; }
void follow(void* stream, void* event) {
  queue(stream, [of = *static_cast<Event*>(event)] { of.stream->until(of.count); });
}
void wait_for(void* event) {
  const Event of = *static_cast<Event*>(event);
  if (of.stream) of.stream->until(of.count);
}

const int64_t buffer_bytes = 64 << 10;

void* pin(size_t bytes) {
  const std::lock_guard<std::mutex> guard(lock);
  char* const at = static_cast<char*>(malloc(bytes));
  if (at == nullptr) throw Fault{HARKEN_OUT_OF_MEMORY, "the host is out of memory"};
  memset(at, poison, bytes);
  pins[at] = bytes;
  return at;
}

void unpin(void* at) noexcept {
  const std::lock_guard<std::mutex> guard(lock);
  pins.erase(static_cast<char*>(at));
  free(at);
}

bool pinned(const void* at) {
  const std::lock_guard<std::mutex> guard(lock);
  auto next = pins.upper_bound(static_cast<const char*>(at));
  return next != pins.begin() && static_cast<const char*>(at) < (--next, next->first + next->second);
}

}  // namespace harken::card
