// parallel.cpp - tasks are handed out one by one from a counter to a team that OpenMP keeps.
//
// Which thread runs a task never shows in the result, so handing out is free to follow the load. Measured on two cores
// with libgomp: fork and join 1 us while the team is hot; see python/harken/_load.py for the cold case and the
// spinning.
#include "parallel.hpp"

#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <cstdlib>

#include "processors.hpp"

namespace harken {
namespace {

struct Run {
  const Job& job;
  int64_t count;
  unsigned modes;  // the caller's floating point modes, which a signal handler must find
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> stop{false};
};

constexpr int most_threads = 1024;  // libgomp ends the process where the system refuses a thread

// Idle threads watch for work for some 0.1 ms (python/harken/_load.py), then sleep. To wake one takes 0.06 ms on a busy
// machine, up to 0.7 where the processor sleeps, too; and the call waits for it, done or not, because a run of OpenMP
// ends when all have come. So a short call that comes after a pause stays alone; the next one, if it comes at once,
// wakes the others.
constexpr unsigned long long watched = 400000;  // cycles
constexpr double worth_a_wake = 200;            // microseconds

// What a thread knows; together, because finding it is 3 ns each time.
struct Thread {
  Run* run;                      // that it works for,
  bool began;                    // and that it began itself
  bool has_use;                  // for others, in this call
  bool has_team;                 // each thread that calls has one of its own
  unsigned asks;                 // whether it is interrupted
  int64_t asked_at;              // Python, in milliseconds; 0: not yet in this call
  unsigned long long looked_at;  // the clock, in cycles; 0: not yet in this call
  unsigned long long busy_at;    // when a call that has use for others last ended
};
thread_local Thread this_thread;

std::atomic<bool (*)()> interrupt{nullptr};

int64_t milliseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void work(Run& run, int thread) {
  for (int64_t i; (i = run.next.fetch_add(1, std::memory_order_relaxed)) < run.count;) {
    if (interrupted()) return;
    run.job.task(run.job.context, i, thread);
    run.done.fetch_add(1, std::memory_order_release);
  }
}

// The caller waits here and not at OpenMP's barrier, where it could not hear Ctrl-C, and where a libgomp that another
// library has loaded would spin for milliseconds and keep its own helpers from running.
void wait_for_others(Run& run) {
  constexpr int spins = 1000;  // about 60 us
  constexpr timespec nap = {0, 20000};
  for (int i = 0; run.done.load(std::memory_order_acquire) < run.count && !interrupted(); ++i) {
    if (i < spins) {
      __builtin_ia32_pause();
    } else {
      nanosleep(&nap, nullptr);
    }
  }
}

int positive(const char* name) {
  const char* text = std::getenv(name);
  int count = text ? std::atoi(text) : 0;  // OMP_NUM_THREADS may be a list, one number a level: the first counts
  return count > 0 ? count : 0;
}

struct Threads {
  int count;
  const char* why;
};

Threads default_threads() {
  if (int count = positive("HARKEN_NUM_THREADS")) return {count, "HARKEN_NUM_THREADS"};
  if (int count = positive("OMP_NUM_THREADS")) return {count, "OMP_NUM_THREADS"};
  Processors cpus = processors();
  return {cpus.usable, cpus.quota_binds ? "the container's CPU quota" : "the processors this process may use"};
}

const Threads by_default = default_threads();
const int openmp_at_load = omp_get_max_threads();
std::atomic<int> set_by_call{0};

// After a fork the child has none of the team's threads, and libgomp would wait for them for ever. Ending the team
// before the fork cures both sides: each makes a new one when it next needs it.
void before_fork() {
  // A signal handler that forks in the middle of a call cannot end the team: the child, inside of the call too,
  // computes alone, and the team is still there to be ended before the next fork.
  bool& has_team = this_thread.has_team;
  if (has_team && omp_pause_resource_all(omp_pause_hard) == 0) has_team = false;
}

const int fork_handler = pthread_atfork(before_fork, nullptr, nullptr);

}  // namespace

int get_threads() {
  int count = set_by_call.load(std::memory_order_relaxed);
  return count > 0 ? count : by_default.count;
}

void set_threads(int count) { set_by_call = count; }

const char* why_threads() { return set_by_call.load() > 0 ? "set_num_threads" : by_default.why; }

int usable_threads(int asked) {
  int count = asked > 0 ? asked : get_threads();
  if (count > most_threads) count = most_threads;
  int limit = omp_get_max_threads();  // threadpoolctl and omp_set_num_threads change this one
  if (limit != openmp_at_load && limit < count) count = limit;
  return count;
}

bool interrupted() {
  Thread& here = this_thread;
  Run* run = here.run;
  if (!run) return false;
  if (run->stop.load(std::memory_order_relaxed)) return true;
  if (!here.began || ++here.asks % 4) return false;  // a short call asks two or three times
  bool (*ask)() = interrupt.load(std::memory_order_relaxed);
  if (!ask) return false;
  unsigned long long cycle = __builtin_ia32_rdtsc();  // 40 cycles where the clock takes 60 and more
  if (here.looked_at == 0) here.looked_at = cycle;
  if (cycle - here.looked_at < 1000000) return false;
  here.looked_at = cycle;
  int64_t now = milliseconds(), last = here.asked_at;
  if (last == 0 || now - last >= 20) here.asked_at = now;
  if (last == 0 || now - last < 20) return false;
  unsigned modes = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(run->modes);
  if (ask()) run->stop = true;
  __builtin_ia32_ldmxcsr(modes);
  return run->stop;
}

void set_interrupt(bool (*asked)()) { interrupt = asked; }

int worth_waking(int threads, double microseconds) {
  if (threads <= 1) return threads;
  Thread& here = this_thread;
  here.has_use = true;
  return microseconds < worth_a_wake && __builtin_ia32_rdtsc() - here.busy_at > watched ? 1 : threads;
}

bool run(const Job& job, int64_t count, int threads) {
  Run run{job, count, __builtin_ia32_stmxcsr()};
  // A signal handler that interrupted() lets in may call again on this thread, so what was there is put back.
  Thread& here = this_thread;
  Run* outer = here.run;
  bool outer_began = here.began;
  here.run = &run;
  here.began = true;
  if (outer == nullptr) {  // the clocks themselves are 2 to 4 % of the shortest calls, each time
    here.asks = 0;
    here.asked_at = 0;
    here.looked_at = 0;
  }

  if (threads <= 1) {
    work(run, 0);
  } else {
    here.has_team = true;
    // Always the same team: libgomp ends and creates threads when the number changes. The surplus goes straight on.
    int usual = usable_threads(0), team = threads > usual ? threads : usual;
#pragma omp parallel num_threads(team)
    {
      int thread = omp_get_thread_num();
      if (thread < threads) {
        if (thread > 0) {
          this_thread.run = &run;
          this_thread.began = false;
        }
        work(run, thread);
        if (thread > 0) {
          this_thread.run = nullptr;
        } else {
          wait_for_others(run);
        }
      }
    }
    here.has_use = true;
  }
  if (here.has_use) {
    here.busy_at = __builtin_ia32_rdtsc();
    here.has_use = false;
  }
  here.run = outer;
  here.began = outer_began;
  return !run.stop;
}

const char* openmp_runtime() {
  Dl_info library;
  return dladdr((void*)&omp_get_max_threads, &library) ? library.dli_fname : "";
}

}  // namespace harken
