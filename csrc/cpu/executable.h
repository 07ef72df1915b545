// One plan with its buffers: serves one call at a time, shares the model's packed weights with its siblings, allocates
// nothing while it runs.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "../arena.h"
#include "../backend.h"
#include "../plan.h"
#include "norm.h"
#include "threads.h"

namespace p2p::cpu {

// What the model owns per layer, immutable after load.
struct PackedLayer {
  const Kernel* kernel = nullptr;
  Memory weights;
  std::vector<float> bias, gamma, beta;  // co_stored values; bias empty where none is needed
};

class Executable {
 public:
  Executable(const Network& network, const std::vector<PackedLayer>& layers, Plan plan, int threads);

  const Plan& plan() const { return plan_; }
  int64_t bytes() const { return arena_.bytes() + scratch_.bytes(); }
  const char* output(int32_t step) const { return arena_.data() + plan_.steps[step].dst; }

  // Has the system give every page of the buffers now.
  void touch() {
    arena_.touch();
    scratch_.touch();
  }
  // Binds pictures of h x w (at most the plan's padded size).
  void bind(int32_t h, int32_t w);

  struct Call {
    const ImageView *src, *dst;
    int32_t index;            // picture of the batch
    uint64_t frame;
    uint64_t dropout_seed;
    Interrupt* interrupt;     // may be null
    bool tanh;                // false: raw output of the last layer
    std::vector<double>* step_us;  // null, or room for one value per step
  };
  // One picture. False when interrupted. ForkError in the child of a fork that a signal handler made meanwhile.
  bool run(ThreadPool& pool, const Call& call);

 private:
  struct alignas(64) Counter {
    std::atomic<int32_t> next{0};
  };

  void work(int thread);
  void finish_phase(int32_t step, int32_t phase, int32_t phases);

  const Network& network_;
  const std::vector<PackedLayer>& layers_;
  Plan plan_;
  int threads_;
  Memory arena_, scratch_;
  std::vector<Args> args_;
  std::vector<Counter> counters_;  // [step][phase][thread's share]
  std::vector<float> ones_, zeros_;
  std::vector<int32_t> rows_, columns_;
  int32_t bound_h_ = 0, bound_w_ = 0;
  Barrier barrier_;
  BoundPicture picture_{};
  Call call_{};
  std::atomic<bool> stop_wanted_{false};
  pid_t process_ = 0;     // that the call began in
  bool stopped_ = false;  // written inside barriers only, so that all threads agree
  std::chrono::steady_clock::time_point phase_start_;
};

}  // namespace p2p::cpu
