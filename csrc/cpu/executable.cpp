#include "executable.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../check.h"

namespace p2p::cpu {

namespace {
// Those of its kernel, and dropout.
int32_t phases_of(const Step& step) { return step.geometry.phases + (step.dropout ? 1 : 0); }

int64_t phases_of(const Plan& plan) {
  int64_t all = 0;
  for (const Step& step : plan.steps) all += phases_of(step);
  return all;
}
}  // namespace

Executable::Executable(const Network& network, const std::vector<PackedLayer>& layers, Plan plan, int threads)
    : network_(network),
      layers_(layers),
      plan_(std::move(plan)),
      threads_(threads),
      arena_(plan_.arena_bytes),
      scratch_(checked_product({plan_.scratch_bytes, threads})),
      counters_(phases_of(plan_) * threads),
      barrier_(threads) {
  int32_t channels = 0;
  for (const Step& step : plan_.steps) channels = std::max(channels, step.problem.co_stored);
  ones_.assign(channels, 1.0f);
  zeros_.assign(channels, 0.0f);

  const auto source = [&](int32_t producer) -> Source {
    if (producer < 0) return {nullptr, nullptr, nullptr};
    const Step& s = plan_.steps[producer];
    return {arena_.data() + s.dst, (const float*)(arena_.data() + s.scale), (const float*)(arena_.data() + s.shift)};
  };
  for (const Step& step : plan_.steps) {
    const PackedLayer& packed = layers_[step.layer];
    Args a{};
    a.src[0] = source(step.skip >= 0 ? step.skip : step.input);
    a.src[1] = source(step.skip >= 0 ? step.input : -1);
    a.slope = network_.layers[step.layer].slope;
    a.weights = packed.weights.data();
    a.bias = packed.bias.empty() ? nullptr : packed.bias.data();
    a.dst = step.dst >= 0 ? arena_.data() + step.dst : nullptr;
    a.stats = step.stats >= 0 ? (float*)(arena_.data() + step.stats) : nullptr;
    a.shared = step.shared >= 0 ? arena_.data() + step.shared : nullptr;
    a.picture = {&picture_, load_rows, store_row};
    args_.push_back(a);
  }
}

void Executable::bind(int32_t h, int32_t w) {
  if (h == bound_h_ && w == bound_w_) return;
  rows_ = reflect_indices(h, plan_.h);
  columns_ = reflect_indices(w, plan_.w);
  bound_h_ = h;
  bound_w_ = w;
}

bool Executable::run(ThreadPool& pool, const Call& call) {
  call_ = call;
  picture_ = {call.src, call.dst, call.index, plan_.h, plan_.w, rows_.data(), columns_.data()};
  for (Args& args : args_) args.tanh = call.tanh && network_.layers.back().tanh;
  for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
  stop_wanted_.store(false, std::memory_order_relaxed);
  process_ = getpid();
  if (call_.step_us) phase_start_ = std::chrono::steady_clock::now();
  pool.run([](void* self, int thread) { ((Executable*)self)->work(thread); }, this);
  return !stopped_;
}

void Executable::work(int thread) {
  char* scratch = scratch_.data() + thread * plan_.scratch_bytes;
  Counter* counters = counters_.data();
  for (int32_t s = 0; s < (int32_t)plan_.steps.size(); ++s) {
    const Step& step = plan_.steps[s];
    const int32_t phases = phases_of(step);
    for (int32_t phase = 0; phase < phases; ++phase, counters += threads_) {
      const bool dropout = phase == step.geometry.phases;
      const int32_t items = dropout ? step.problem.ho : step.geometry.items[phase % 2];
      // Each thread begins with its own share, so that rows of a map stay in the cache of the core that wrote them, and
      // then helps the others.
      for (int32_t help = 0; help < threads_; ++help) {
        const int32_t share = (thread + help) % threads_;
        const int32_t begin = (int64_t)items * share / threads_, end = (int64_t)items * (share + 1) / threads_;
        for (int32_t item; (item = begin + counters[share].next.fetch_add(1, std::memory_order_relaxed)) < end;) {
          if (dropout)
            apply_dropout(step.problem, step.kernel->dtype, args_[s].dst, (const float*)(arena_.data() + step.scale),
                          (const float*)(arena_.data() + step.shift), item, call_.dropout_seed,
                          call_.frame, (uint64_t)step.layer);
          else
            step.kernel->run(step.problem, args_[s], phase, item, scratch);
        }
      }
      if (thread == 0 && call_.interrupt) {
        if (call_.interrupt->requested()) stop_wanted_.store(true);
        if (threads_ > 1 && getpid() != process_)  // a handler forked: the other threads are not here to be waited for
          throw ForkError("this process was forked inside a call by a signal handler: the call cannot go on here; new calls can");
      }
      barrier_.arrive([&] { finish_phase(s, phase, phases); });
      if (stopped_) return;
    }
  }
}

// By the last thread to arrive, while the others wait.
void Executable::finish_phase(int32_t s, int32_t phase, int32_t phases) {
  const Step& step = plan_.steps[s];
  stopped_ = stop_wanted_.load();
  if (step.scale >= 0 && phase >= step.geometry.phases - 1) {
    float* scale = (float*)(arena_.data() + step.scale);
    float* shift = (float*)(arena_.data() + step.shift);
    const PackedLayer& packed = layers_[step.layer];
    const int32_t channels = step.problem.co_stored;
    if (step.stats >= 0 && phase == step.geometry.phases - 1) {
      finish_norm(args_[s].stats, step.geometry.stat_blocks, channels,
                  {packed.gamma.data(), packed.beta.data(), network_.layers[step.layer].eps}, scale, shift);
    } else {  // no norm, or dropout has applied it
      std::memcpy(scale, ones_.data(), channels * sizeof(float));
      std::memcpy(shift, zeros_.data(), channels * sizeof(float));
    }
  }
  if (call_.step_us && phase == phases - 1) {
    const auto now = std::chrono::steady_clock::now();
    (*call_.step_us)[s] = std::chrono::duration<double, std::micro>(now - phase_start_).count();
    phase_start_ = now;
  }
}

}  // namespace p2p::cpu
