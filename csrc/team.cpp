// team.cpp - a meeting is a line of memory that each writes and the others watch: at first closely, then ever less so.
#include "team.hpp"

#include <sched.h>

#include <ctime>

#include "parallel.hpp"

namespace harken {
namespace {

// Looks until `there`, or until the run is to end; false then. Steps are as short as 0.5 us, so the first looks follow
// each other at once; from `patience` looks on, some 60 us, the processor is offered to others, who may be the one that
// is waited for, and then left. Steps of LSTM with 512 units take 32 us, of which members may differ by a third: with 3
// us of patience their leader took that for a busy machine and went on alone, in 2.5 times the time.
template <class There>
bool watch(There there, bool& late) {
  constexpr int closely = 256, patience = 1500, offers = 200;
  constexpr timespec nap = {0, 50000};
  for (int look = 0; !there(); ++look) {
    if (look < closely) continue;
    if (interrupted()) return false;
    if (look < patience) {
      __builtin_ia32_pause();
    } else {
      late = true;
      look < patience + offers ? void(sched_yield()) : void(nanosleep(&nap, nullptr));
    }
  }
  return true;
}

}  // namespace

void Team::say(int64_t meeting, int before, int count) {
  said_.store(uint64_t(meeting) << 16 | uint64_t(before) << 8 | uint64_t(count), std::memory_order_release);
}

Team::Said Team::heard() const {
  const uint64_t said = said_.load(std::memory_order_acquire);
  return {int64_t(said >> 16), int(said >> 8 & 255), int(said & 255)};
}

Team::Member Team::lead(int wanted) {
  constexpr int looks = 2000;  // about 5 us
  for (int look = 0; look < looks && joined_.load(std::memory_order_relaxed) < wanted; ++look) {
  }
  const int count = joined_.load(std::memory_order_relaxed);
  say(1, 1, count < most ? count : most);
  return {this, 0, count < most ? count : most, 1};
}

bool Team::join(Member& member) {
  if (over_.load(std::memory_order_relaxed)) return false;
  const int index = joined_.fetch_add(1, std::memory_order_relaxed);
  if (index >= most) return false;
  bool over = false, late = false;
  Said said{};
  auto counted = [&] {
    over = over_.load(std::memory_order_acquire);  // before the other, which then is the leader's last word
    said = heard();
    return said.before > index || said.count > index || over;
  };
  if (!watch(counted, late)) return false;
  if (said.before > index) {  // the leader is through with its share of the part that is our first
    member = {this, index, said.before, said.meeting - 1};
    return true;
  }
  if (said.count <= index) return false;
  member = {this, index, said.count, said.meeting};
  for (int other = 1; other < said.before; ++other)
    if (!arrived(other, said.meeting, late)) return false;
  return true;
}

bool Team::arrived(int other, int64_t meeting, bool& late) {
  return watch([&] { return lines_[other].done.load(std::memory_order_acquire) >= meeting; }, late);
}

bool Team::meet(Member& member) {
  const int before = member.count;
  const int64_t meeting = ++member.meetings;
  bool late = false;
  if (interrupted()) return false;
  if (member.index == 0) {
    // Late at four meetings in a row, or at more than a fifth of them: with both threads of a team on one processor,
    // which a busy system leaves them on, each meeting costs two switches, 10 us.
    if (!alone_ && late_ > 12) {
      alone_ = true;
      over_ = true;  // whoever is counted is told by what was said before
    }
    int count = alone_ ? 1 : joined_.load(std::memory_order_relaxed);
    if (count > most) count = most;
    say(meeting, before, count);
    member.count = count;
  } else {
    lines_[member.index].done.store(meeting, std::memory_order_release);
    Said said{};
    auto led = [&] { return (said = heard()).meeting >= meeting; };
    if (!watch(led, late)) return false;
    member.count = said.meeting == meeting ? said.count : said.before;  // the leader may be one meeting ahead
    if (member.count <= member.index) return false;
  }
  for (int other = 1; other < before; ++other)
    if (other != member.index && !arrived(other, meeting, late)) return false;
  if (member.index == 0) late_ = late ? late_ + 4 : late_ - (late_ > 0);
  return true;
}

void Team::end() { over_ = true; }

}  // namespace harken
