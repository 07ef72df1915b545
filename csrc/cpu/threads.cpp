#include "threads.h"

#include <cfenv>
#include <system_error>

#include "../check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace p2p::cpu {

namespace {

// About 50 us of pauses before a worker sleeps: longer than the gap between two frames' calls in a tight loop, far
// shorter than a frame.
constexpr int kSpinsBeforeSleep = 2000;
// A barrier is normally microseconds away; yield when a neighbour has our core.
constexpr int kSpinsBeforeYield = 4000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// A host may round upward, flush denormals or trap, in one of its threads: the pixels would depend on who computes which item
// (docs/decisions/004). Here all compute in the default environment, and the caller finds its own again.
class DefaultFloats {
 public:
  DefaultFloats() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&callers_); }
  DefaultFloats(const DefaultFloats&) = delete;

 private:
  std::fenv_t callers_;
};

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads) {
  workers_.reserve(threads - 1);
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { worker(t); });
  } catch (const std::system_error& error) {
    const size_t started = workers_.size() + 1;
    join();
    throw BackendUnavailable(text("only ", started, " of ", threads, " threads could be started (", error.code().message(),
                                  "): ask for fewer threads, or raise the limit on processes or memory"));
  } catch (...) {  // no memory for a thread's state
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::run(Work work, void* context) {
  const DefaultFloats floats;
  if (size_ > 1) {
    work_ = work;
    context_ = context;
    running_.store(size_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }
  work(context, 0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins > kSpinsBeforeYield) std::this_thread::yield();
    else pause();
  }
}

void ThreadPool::worker(int thread) {
  std::fesetenv(FE_DFL_ENV);  // a thread begins with its starter's
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (epoch_.load(std::memory_order_acquire) == seen) {
      if (++spins > kSpinsBeforeSleep) epoch_.wait(seen, std::memory_order_acquire);
      else pause();
    }
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    work_(context_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Barrier::wait(uint32_t epoch) const {
  for (int spins = 0; epoch_.load(std::memory_order_acquire) == epoch; ++spins) {
    if (spins > kSpinsBeforeYield) std::this_thread::yield();
    else pause();
  }
}

}  // namespace p2p::cpu
