// parallel.hpp - many tasks on some threads: the only part of the house that knows OpenMP.
#pragma once

#include <stdint.h>

namespace harken {

struct Job {
  void (*task)(const void* context, int64_t index, int thread);
  const void* context;
};

int get_threads();              // what a call uses that names no number
void set_threads(int count);    // 0: the default again
const char* why_threads();      // where that number comes from
int usable_threads(int asked);  // asked (0: the default), less what OpenMP's own limit allows

// How many of these threads to use for so many microseconds of work, as one thread would take: 1 where they are few and
// the others sleep.
int worth_waking(int threads, double microseconds);

// Runs task 0 .. count - 1, in any order, on at most `threads` threads, the caller among them. False: interrupted.
bool run(const Job& job, int64_t count, int threads);

// Every thread asks this between blocks of keys: is the call to end early?
bool interrupted();

// `asked` is called on the calling thread, every 20 ms of a run; true ends the run. May be null.
void set_interrupt(bool (*asked)());

const char* openmp_runtime();  // the library that answers, as the loader names it

}  // namespace harken
