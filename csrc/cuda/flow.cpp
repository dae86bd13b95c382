// flow.cpp - three streams and two rings of pinned buffers: copies and kernels wait for one another only.
//
//     host    pack 0 | pack 1 | pack 2 | unpack 0 ...      numbers without gaps, by several threads
//     up              copy 0  | copy 1 | copy 2
//     kernels                  | run 0 | run 1
//     down                             | copy 0
//
// What is pinned and has no gaps is copied from where it lies. Pieces that are keys after keys of the same queries are
// added up on the host, by the operation of states over disjoint keys (softmax.hpp) in its form for (out, lse).
#include "flow.hpp"

#include <math.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../head.hpp"
#include "card.hpp"
#include "element.hpp"
#include "fault.hpp"
#include "pieces.hpp"

namespace harken {
namespace {

constexpr int buffers = 4, pieces_under_way = 3;
constexpr int64_t worth_a_thread = 1 << 20;  // bytes; a thread begins and ends in 20 us, copies 200 KB in that time
constexpr int most_threads = 8;

// Between an array and its numbers without gaps, by as many threads as are worth it.
void pack_by_threads(const Axes& axes, char* apart, char* packed, int64_t first, int64_t end, bool to_packed) {
  const int64_t able = std::min<int64_t>(most_threads, std::max(1u, std::thread::hardware_concurrency()));
  const int64_t count = std::clamp<int64_t>((end - first) / worth_a_thread, 1, able);
  const int64_t share = ((end - first) / count + 63) / 64 * 64;
  std::vector<std::thread> others;
  for (int64_t n = 1; n < count; ++n) {
    const int64_t a = first + n * share, b = std::min(end, a + share);
    if (a < b) others.emplace_back([=, &axes] { pack(axes, apart, packed + (a - first), a, b, to_packed); });
  }
  pack(axes, apart, packed, first, std::min(end, first + share), to_packed);
  for (std::thread& other : others) other.join();
}

// Pinned memory between the host and a stream of copies.
struct Ring {
  struct Buffer {
    char* at = nullptr;
    void* copied = nullptr;                // the event after which it is free, or full
    std::function<void()> then = nullptr;  // what is to be done after it
    int64_t piece = 0;                     // that it is done for
  };
  Buffer all[buffers];
  int next = 0;
  int64_t used = card::buffer_bytes;  // of the one before `next`

  Buffer& fresh() {
    Buffer& buffer = all[next];
    next = (next + 1) % buffers;
    if (!buffer.at) {
      buffer.at = static_cast<char*>(card::pin(card::buffer_bytes));
      buffer.copied = card::new_event();
    } else {
      finish(buffer);
    }
    return buffer;
  }

  static void finish(Buffer& buffer) {
    card::wait_for(buffer.copied);
    if (const auto then = std::exchange(buffer.then, nullptr)) then();
  }
};

// What a card keeps from call to call.
struct Lanes {
  void *up = card::new_stream(), *kernels = card::new_stream(), *down = card::new_stream();
  Ring rising, falling;
  std::deque<void*> events;  // free ones

  void* event() {
    if (events.empty()) return card::new_event();
    void* const found = events.front();
    events.pop_front();
    return found;
  }
};

// What some keys give to some queries, without gaps.
struct Part {
  std::vector<char> out, lse;

  explicit Part(Problem& p) {  // whose results become these
    const Type of_lse = p.type == Type::f64 ? Type::f64 : Type::f32;
    const int64_t size = size_of(p.out.type), its = size_of(of_lse);
    out.resize(p.Hq * p.Lq * p.Dv * size);
    lse.resize(p.Hq * p.Lq * its);
    p.out = {out.data(), p.out.type, p.Lq * p.Dv * size, p.Dv * size, size, {}};
    p.lse = {lse.data(), of_lse, p.Lq * its, its, 0, {}};
  }
};

// The sum of parts.
class Total {
 public:
  explicit Total(const Problem& of) : Dv_(of.Dv), m_(of.Hq * of.Lq, -INFINITY), l_(m_.size()), O_(m_.size() * Dv_) {}

  void add(const Problem& p) {
    const Matrix part = {p.out.data, p.out.type, p.out.row, p.out.col};
    for (size_t r = 0; r < m_.size(); ++r) {
      const double its = number_of<double>(p.lse.type, p.lse.data + r * p.lse.row), M = fmax(m_[r], its);
      const double reach = M == -INFINITY ? 0 : M;  // no keys and no keys are no keys
      const double a = exp(m_[r] - reach), b = exp(its - reach);
      m_[r] = M;
      l_[r] = a * l_[r] + b;
      for (int64_t d = 0; d < Dv_; ++d) O_[r * Dv_ + d] = a * O_[r * Dv_ + d] + b * element<double>(part, r, d);
    }
  }

  void leave(const Problem& p) const {
    for (int64_t r = 0; r < int64_t(m_.size()); ++r) {
      const int64_t h = r / p.Lq, i = r % p.Lq;
      const Matrix to = {p.out.data + h * p.out.head, p.out.type, p.out.row, p.out.col};
      for (int64_t d = 0; d < Dv_; ++d) put_element(to, i, d, l_[r] == 0 ? 0 : O_[r * Dv_ + d] / l_[r]);
      const Matrix its = {p.lse.data + h * p.lse.head, p.lse.type, p.lse.row, 0};
      if (p.lse.data) put_element(its, i, 0, l_[r] == 0 ? -INFINITY : m_[r] + log(l_[r]));
    }
  }

 private:
  const int64_t Dv_;
  std::vector<double> m_, l_, O_;
};

class Flow {
 public:
  Flow(Lanes& lanes, const Compute& compute) : lanes_(lanes), compute_(compute) {}
  Flow(const Flow&) = delete;

  // After an error nothing may still be under way when memory is given back.
  ~Flow() {
    for (void* stream : {lanes_.up, lanes_.kernels, lanes_.down}) wait(stream);
    for (char* at : held_) card::release(at, lanes_.down);
    wait(lanes_.down);
    for (void* event : events_) lanes_.events.push_back(event);
    for (Ring* ring : {&lanes_.rising, &lanes_.falling}) {
      for (auto& buffer : ring->all) buffer.then = nullptr;
      ring->used = card::buffer_bytes;
    }
  }

  void run(const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
      if (under_way_.size() == pieces_under_way) settle();
      issue(piece);
    }
    while (!under_way_.empty()) settle();
    card::wait(lanes_.down);
  }

 private:
  struct UnderWay {
    int64_t number;
    void* left;                    // the event after which its results have left the card
    std::shared_ptr<Total> total;  // that the part is added to; or null
    std::unique_ptr<Part> part;
    Problem of_part, wanted;  // whose results are the part's, and where the total belongs
    bool last;
  };

  static void wait(void* stream) {
    try {
      card::wait(stream);
    } catch (const Fault&) {  // has been told
    }
  }

  void* record(void* stream) {
    void* const event = lanes_.event();
    events_.push_back(event);
    card::record(event, stream);
    return event;
  }

  char* reserve(int64_t bytes) {
    held_.push_back(static_cast<char*>(card::allocate(size_t(bytes), lanes_.up)));
    return held_.back();
  }

  void issue(const Piece& piece) {
    Problem p = piece.problem;
    UnderWay job = {++issued_, nullptr, nullptr, nullptr, p, p, piece.last};
    if (piece.of >= 0) {
      if (piece.of != group_) total_ = std::make_shared<Total>(p);
      group_ = piece.of;
      job.total = total_;
      job.part = std::make_unique<Part>(p);
      job.of_part = p;
    }
    struct Result {
      Axes axes;
      char *at, *to;
    };
    std::vector<Result> results;
    const size_t before = held_.size();
    for_arrays(p, [&](View& view, const Tail& tail, bool result) {
      if (!view.data) return;
      const Axes axes = axes_of(p, view, tail);
      const int64_t bytes = axes.bytes();
      char* const host = view.data;
      if (bytes == 0) {
        view.data = nullptr;
        return;
      }
      char* const at = reserve(bytes);
      lay_packed(p, axes, view, tail);
      view.data = at;
      if (!result) return send(axes, host, at);
      if (&view == &p.weights) card::clear(at, size_t(bytes), lanes_.up);
      results.push_back({axes, at, host});
    });
    send_lists(p);
    flush(lanes_.rising);
    card::follow(lanes_.kernels, record(lanes_.up));
    compute_(p, lanes_.kernels);
    card::follow(lanes_.down, record(lanes_.kernels));
    for (const Result& result : results) fetch(result.axes, result.at, result.to);
    for (size_t n = before; n < held_.size(); ++n) card::release(held_[n], lanes_.down);
    held_.resize(before);
    job.left = record(lanes_.down);
    under_way_.push_back(std::move(job));
  }

  bool direct(const Axes& axes, const char* host) const {
    int outside;
    return axes.run(outside) == axes.bytes() && card::pinned(host);
  }

  void send(const Axes& axes, char* host, char* at) {
    const int64_t bytes = axes.bytes();
    if (direct(axes, host)) return card::copy(at, host, size_t(bytes), lanes_.up);
    Ring& ring = lanes_.rising;
    for (int64_t first = 0; first < bytes;) {
      if (ring.used == card::buffer_bytes) {
        flush(ring);
        filled_ = &ring.fresh();
        ring.used = 0;
      }
      const int64_t count = std::min(card::buffer_bytes - ring.used, bytes - first);
      char* const from = filled_->at + ring.used;
      pack_by_threads(axes, host, from, first, first + count, true);
      card::copy(at + first, from, size_t(count), lanes_.up);
      ring.used += count;
      first += count;
    }
  }

  // The buffer that is being filled is free again when what was copied from it has arrived.
  void flush(Ring& ring) {
    if (filled_) card::record(filled_->copied, lanes_.up);
    filled_ = nullptr;
    ring.used = card::buffer_bytes;
  }

  void send_bytes(const void* from, int64_t bytes, char* at) {
    Axes axes;
    axes.element = 1;
    axes.add(bytes, 1);
    send(axes, static_cast<char*>(const_cast<void*>(from)), at);
  }

  void send_lists(Problem& p) {
    View& number = p.lists.number;
    if (!number.data) return;
    const Tail tail = {p.Hq, p.Lq, Tail::none};
    const Axes axes = axes_of(p, number, tail);
    const int64_t bytes = axes.bytes();
    std::vector<char> packed(bytes);
    pack(axes, number.data, packed.data(), 0, bytes, true);
    int64_t lists = 0;
    for (int64_t at = 0; at < bytes; at += sizeof(int64_t))
      lists = std::max(lists, *reinterpret_cast<const int64_t*>(packed.data() + at) + 1);
    char* const host = number.data;
    number.data = bytes ? reserve(bytes) : nullptr;
    if (bytes) send(axes, host, number.data);
    lay_packed(p, axes, number, tail);
    const int64_t of_begin = (lists + 1) * sizeof(int64_t), of_all = p.lists.begin[lists] * sizeof(Interval);
    char *const begin = reserve(of_begin), *const intervals = reserve(of_all + sizeof(Interval));
    send_bytes(p.lists.begin, of_begin, begin);
    send_bytes(p.lists.intervals, of_all, intervals);
    p.lists.begin = reinterpret_cast<const int64_t*>(begin);
    p.lists.intervals = reinterpret_cast<const Interval*>(intervals);
  }

  void fetch(const Axes& axes, char* at, char* host) {
    const int64_t bytes = axes.bytes();
    if (direct(axes, host)) return card::copy(host, at, size_t(bytes), lanes_.down);
    for (int64_t first = 0; first < bytes; first += card::buffer_bytes) {
      const int64_t count = std::min(card::buffer_bytes, bytes - first);
      Ring::Buffer& buffer = lanes_.falling.fresh();
      card::copy(buffer.at, at + first, size_t(count), lanes_.down);
      card::record(buffer.copied, lanes_.down);
      buffer.piece = issued_;
      buffer.then = [=, from = buffer.at] { pack_by_threads(axes, host, from, first, first + count, false); };
    }
  }

  // The oldest piece under way comes to its end.
  void settle() {
    const UnderWay job = std::move(under_way_.front());
    under_way_.pop_front();
    card::wait_for(job.left);
    for (Ring::Buffer& buffer : lanes_.falling.all)
      if (buffer.then && buffer.piece <= job.number) Ring::finish(buffer);
    if (!job.total) return;
    job.total->add(job.of_part);
    if (job.last) job.total->leave(job.wanted);
  }

  Lanes& lanes_;
  const Compute& compute_;
  std::deque<UnderWay> under_way_;
  std::vector<char*> held_;
  std::vector<void*> events_;
  Ring::Buffer* filled_ = nullptr;
  std::shared_ptr<Total> total_;
  int64_t group_ = -1, issued_ = 0;
};

}  // namespace

bool flows(const Problem& problem) {
  Problem p = problem;
  bool on_host = !p.pages.table.data && bytes_of(p) >= card::buffer_bytes / 16;
  for_arrays(p,
             [&](View& view, const Tail&, bool) { on_host = on_host && !(view.data && card::where(view.data) >= 0); });
  return on_host && !(p.lists.number.data && card::where(p.lists.number.data) >= 0);
}

void flow(const Problem& problem, int card, const Compute& compute) {
  static std::mutex one_at_a_time;  // the lanes are full with one
  static std::map<int, Lanes> of_cards;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  Lanes& lanes = of_cards[card];
  Made made;
  const std::vector<Piece> pieces = pieces_of(problem, 2 * card::buffer_bytes, card::free_memory() / 4, made);
  Flow(lanes, compute).run(pieces);
}

}  // namespace harken
