// moment.hpp - where the rows of a strand are at a step: in x, in y, in a, among the states.
#pragma once

#include "../../layers/recurrence.hpp"
#include "../lanes.hpp"

namespace harken {
namespace {
namespace recurrence {

constexpr int64_t slots = Recurrence::slots;

// Where the rows of a strand are at a step.
template <class T>
struct Moment {
  const Recurrence& p;
  const Strand& strand;

  int64_t row(int64_t i) const { return strand.which[i]; }
  int64_t length(int64_t i) const { return p.length(row(i)); }
  int64_t live(int64_t step) const {  // the rows that are that long come first
    int64_t n = strand.rows;
    if (p.lengths)
      while (n > 0 && length(n - 1) <= step) --n;
    return n;
  }
  // The place in x and y: backwards from a sequence's own end.
  int64_t place(int64_t i, int64_t step) const {
    return row(i) * p.L + (strand.direction ? length(i) - 1 - step : step);
  }
  int64_t state(int64_t i) const { return (strand.direction * p.B + row(i)) * p.H; }
  const T* x(int64_t i, int64_t step) const { return (const T*)p.x + place(i, step) * p.C; }
  T* y(int64_t i, int64_t step) const { return (T*)p.y + (place(i, step) * p.directions + strand.direction) * p.H; }
  const T* before(int64_t i, int64_t step) const { return step ? y(i, step - 1) : (const T*)p.h0 + state(i); }
  T* reset(int64_t i) const { return (T*)strand.reset + i * p.H; }
  int64_t a_apart() const { return strand.chunk * strand.rows * slots * lanes<T>; }
  T* a(int64_t panel, int64_t i, int64_t step) const {
    return (T*)strand.a + panel * a_apart() + (step % strand.chunk * strand.rows + i) * slots * lanes<T>;
  }
};

// The live ones of the rows first .. end - 1, step by step.
template <class T>
struct Walk {
  const Moment<T>& at;
  int64_t first, end, s, i, stop;

  Walk(const Moment<T>& at, int64_t first, int64_t end, int64_t step)
      : at(at), first(first), end(end), s(step), i(first - 1), stop(live(step)) {}

  int64_t live(int64_t step) const {
    const int64_t n = at.live(step);
    return n < end ? n : end;
  }
  // On to the next, before the first one, too.
  void next() {
    for (++i; i >= stop; i = first) stop = live(++s);
  }
  // How many there are in the next steps.
  int64_t count(int64_t steps) const {
    int64_t n = 0;
    for (int64_t step = s; step < s + steps; ++step)
      if (live(step) > first) n += live(step) - first;
    return n;
  }
};

}  // namespace recurrence
}  // namespace
}  // namespace harken
