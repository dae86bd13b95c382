// team.hpp - threads that go through the steps of a job together: as many as come, none waited for that has not come.
#pragma once

#include <atomic>
#include <cstdint>

namespace harken {

// A run() may hand its tasks to fewer threads than there are tasks, one after the other. So nobody here waits for a
// task: the leader begins alone, and says at each meeting who of those that have come, and so are running, is of the
// next part. Whoever comes too late leaves. Where the others are late again and again, which is a machine that is busy,
// the leader goes on alone.
class Team {
 public:
  static constexpr int most = 32;

  struct Member {
    Team* team;
    int index, count;  // 0 is the leader; how many are of this part
    int64_t meetings;  // behind us
  };

  // The leader's way in: waits a moment for `wanted` members, some microseconds, as long as a hot team takes.
  Member lead(int wanted);
  // Another's: false if it comes too late.
  bool join(Member& member);
  // All that the others have written before is seen behind it. False: leave, there is nothing more to do.
  bool meet(Member& member);
  // The leader, at the end.
  void end();

 private:
  struct Said {
    int64_t meeting;
    int before, count;  // members of the part that ends here, and of the one that begins
  };
  Said heard() const;
  void say(int64_t meeting, int before, int count);
  bool arrived(int other, int64_t meeting, bool& late);

  // A line each: what one writes and the others read takes about 70 ns from core to core. The leader's also says how
  // many were of the part before, and how many are of the next.
  struct alignas(64) Line {
    std::atomic<int64_t> done{0};
  };
  alignas(64) std::atomic<int> joined_{1};
  std::atomic<bool> over_{false};
  bool alone_ = false;  // the leader's
  int late_ = 0;
  alignas(64) std::atomic<uint64_t> said_{0};  // meeting << 16 | before << 8 | count
  Line lines_[most];
};

}  // namespace harken
