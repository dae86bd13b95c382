// card.hpp - what is asked of a card: its facts, its memory, its streams; CUDA answers it, or the emulator.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "interface.h"

namespace harken::card {

const char* build();  // the compiler, and what the code is for
int count();
int where(const void* at);  // the card that an address lies on; -1: the host
int capability(int card);   // 80, 90
harken_cuda_card_facts facts(int card);

// While it lives, `card` is the one that this thread means.
class Meant {
 public:
  explicit Meant(int card);
  Meant(const Meant&) = delete;
  ~Meant();

 private:
  int before_;
};

// Of the card that is meant. All throw a Fault.
void* allocate(size_t bytes, void* stream);
void release(void* at, void* stream) noexcept;
void copy(void* to, const void* from, size_t bytes, void* stream);  // in any direction
void copy_rows(void* to, int64_t to_step, const void* from, int64_t from_step, size_t bytes, size_t rows, void* stream);
void clear(void* at, size_t bytes, void* stream);  // to zeros
void wait(void* stream);
int64_t free_memory();

// Streams of harken's own, and events: a stream follows an event when its later work waits for that.
void* new_stream();
void* new_event();
void record(void* event, void* stream);
void follow(void* stream, void* event);
void wait_for(void* event);

// Memory of the host that stays where it is, so that a card copies it by itself.
extern const int64_t buffer_bytes;  // of a buffer for copies
void* pin(size_t bytes);
void unpin(void* at) noexcept;
bool pinned(const void* at);

}  // namespace harken::card
