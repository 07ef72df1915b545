#include "cpu_model.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <list>
#include <mutex>
#include <unordered_set>

#include "../check.h"
#include "../choose.h"
#include "../options.h"
#include "../trace.h"
#include "executable.h"
#include "peaks.h"
#include "registry.h"

namespace p2p::cpu {

namespace {

constexpr size_t kIdleExecutables = 4;     // sizes that stay warm ...
constexpr int64_t kIdleBytes = 2ll << 30;  // ... as long as their buffers take no more than this
constexpr int64_t kPixelsMax = 1ll << 28;
constexpr int kThreadsMax = 1024;
constexpr std::chrono::milliseconds kWaitBetweenSignals(100);

class CpuModel;

// Live models, so that a forked child can give each of them fresh threads and locks: the threads of the parent do not exist
// there and its locks may be held for ever. Only this lock is taken around fork.
std::mutex& models_lock() {
  static std::mutex* lock = new std::mutex;
  return *lock;
}
std::unordered_set<CpuModel*>& models() {
  static auto* set = new std::unordered_set<CpuModel*>;
  return *set;
}

class CpuModel final : public CompiledModel {
 public:
  CpuModel(Network network, WeightSource& weights, const CompileOptions& options);
  ~CpuModel() override;

  bool run(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) override;
  bool run_alone(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) override;
  std::vector<StepReport> plan(int32_t h, int32_t w) override;
  std::vector<StepReport> timed(int32_t h, int32_t w, int32_t repeats) override;
  std::vector<Activation> activations(const ImageView& src) override;
  ModelStats stats() const override;

  void after_fork() {
    runtime_ = new Runtime;  // the parent's threads and locks are gone: leave them, join nothing
  }

 private:
  // Everything that a fork invalidates.
  struct Runtime {
    std::timed_mutex call_lock;  // held through a call when the pool has workers ...
    std::atomic<std::thread::id> caller{};  // ... by this thread
    std::mutex idle_lock;   // guards the rest
    std::unique_ptr<ThreadPool> pool;                    // started by the first call
    std::list<std::unique_ptr<Executable>> idle;         // most recent first
    std::list<std::unique_ptr<Executable>> idle_alone;   // of one thread, where the model has more
    int64_t calls = 0, workspace_bytes = 0;
  };

  // Names the calling thread for as long as it lives.
  struct Caller {
    explicit Caller(std::atomic<std::thread::id>* at) : at(at) { if (at) at->store(std::this_thread::get_id()); }
    ~Caller() { if (at) at->store({}); }
    std::atomic<std::thread::id>* at;
  };

  // A slot is a list of one node: moved between lists by splicing, so that a warm call allocates nothing.
  using Slots = std::list<std::unique_ptr<Executable>>;
  Slots acquire(Runtime& runtime, int32_t h, int32_t w, bool alone = false);
  void release(Runtime& runtime, Slots slot, bool alone = false);
  bool run_in(Runtime& runtime, ThreadPool& pool, bool alone, const ImageView& src, const ImageView& dst, uint64_t frame,
              Interrupt* interrupt);
  PlanOptions plan_options(bool keep) const { return {dtype_, seed_.has_value(), keep, threads_}; }
  struct Size {
    int32_t h, w;
  };
  Size padded_size(int32_t h, int32_t w) const;
  Plan plan_for(int32_t h, int32_t w, bool keep) const;
  void pack(int32_t index, const LayerTensors& tensors, ThreadPool& pool);
  std::vector<StepReport> report(const Plan& plan, const std::vector<double>* step_us) const;

  Network network_;
  DType dtype_;
  Isa isa_;
  int threads_;
  std::optional<uint64_t> seed_;
  std::vector<PackedLayer> layers_;
  std::vector<const Kernel*> kernels_;
  double load_seconds_ = 0;
  int64_t weight_bytes_ = 0;
  Runtime* runtime_;
};

CpuModel::CpuModel(Network network, WeightSource& weights, const CompileOptions& options)
    : network_(std::move(network)),
      dtype_(options.precision == Precision::kBF16 ? DType::kBF16 : DType::kF32),
      isa_(resolve_isa(options.isa)),
      threads_(options.threads ? options.threads : std::min(usable_cpus(), kThreadsMax)),
      seed_(options.dropout_seed) {
  const auto start = std::chrono::steady_clock::now();
  P2P_REQUIRE(threads_ >= 1 && threads_ <= kThreadsMax, "threads must be 1 to ", kThreadsMax, ", got ", threads_);
  if (dtype_ == DType::kBF16 && isa_ < Isa::kAvx512Bf16)
    throw BackendUnavailable(text("precision 'bf16' needs bf16 dot products (AVX512_BF16); the room in use is '",
                                  isa_name(isa_), "' on ", cpu_name(), ". Use precision='f32'"));
  const auto [h, w] = padded_size(options.h, options.w);

  const int32_t count = (int32_t)network_.layers.size();
  std::map<std::string, std::string> forced = options.kernels;
  for (int32_t i = 0; i < count; ++i) {
    const std::string& name = network_.layers[i].name;
    const auto found = forced.find(name);
    if (found == forced.end()) {
      kernels_.push_back(&choose_kernel(isa_, op_of(network_, i), dtype_, problem_of(network_, i, h, w, dtype_)));
      continue;
    }
    const Kernel& kernel = kernel_by_id(found->second);
    P2P_REQUIRE(kernel.op == op_of(network_, i) && kernel.dtype == dtype_, "kernels: layer '", name, "' cannot use '",
                kernel.id, "', which is for another operation or precision");
    kernels_.push_back(&kernel);
    forced.erase(found);
  }
  P2P_REQUIRE(forced.empty(), "kernels: there is no layer '", forced.begin()->first, "'");

  auto runtime = std::make_unique<Runtime>();
  runtime->pool = std::make_unique<ThreadPool>(threads_);
  layers_.resize(count);
  for (int32_t i = 0; i < count; ++i) pack(i, weights.fetch(network_.layers[i]), *runtime->pool);
  Slots slot = acquire(*runtime, options.h, options.w);
  slot.front()->touch();  // or the first call would take twice as long
  release(*runtime, std::move(slot));
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  std::lock_guard<std::mutex> guard(models_lock());
  static const bool registered = [] {
    pthread_atfork([] { models_lock().lock(); }, [] { models_lock().unlock(); },
                   [] {
                     for (CpuModel* model : models()) model->after_fork();
                     models_lock().unlock();
                   });
    return true;
  }();
  (void)registered;
  models().insert(this);
  runtime_ = runtime.release();  // from here on nothing throws
}

CpuModel::~CpuModel() {
  {
    std::lock_guard<std::mutex> guard(models_lock());
    models().erase(this);
  }
  delete runtime_;
}

void CpuModel::pack(int32_t index, const LayerTensors& tensors, ThreadPool& pool) {
  const Layer& layer = network_.layers[index];
  PackedLayer& packed = layers_[index];
  packed.kernel = kernels_[index];
  const int32_t h = network_.multiple();  // packed weights do not depend on the size; any will do
  const Problem problem = problem_of(network_, index, h, h, dtype_);
  Geometry geometry{};
  packed.kernel->geometry(problem, &geometry);
  packed.weights = Memory(geometry.weight_bytes + 4096);  // kernels prefetch past the end, readers never do
  weight_bytes_ += geometry.weight_bytes;

  struct Job {
    const Kernel* kernel;
    const Problem* problem;
    const float* raw;
    void* dst;
    int32_t items;
    std::atomic<int32_t> next{0};
  } job{packed.kernel, &problem, tensors.weight, packed.weights.data(), geometry.pack_items};
  pool.run(
      [](void* context, int) {
        Job& j = *(Job*)context;
        for (int32_t item; (item = j.next.fetch_add(1)) < j.items;) j.kernel->pack(*j.problem, j.raw, j.dst, item);
      },
      &job);

  const auto padded = [&](const float* values, float otherwise) {
    std::vector<float> v(problem.co_stored, 0.0f);
    for (int32_t c = 0; c < layer.co; ++c) v[c] = values ? values[c] : otherwise;
    return v;
  };
  // A bias in front of a per-image norm cancels exactly: dropped.
  if (tensors.bias && !layer.norm) packed.bias = padded(tensors.bias, 0.0f);
  if (layer.norm) {
    packed.gamma = padded(tensors.gamma, 1.0f);
    packed.beta = padded(tensors.beta, 0.0f);
  }
}

CpuModel::Size CpuModel::padded_size(int32_t h, int32_t w) const {
  const int64_t padded_h = round_up(h, network_.multiple()), padded_w = round_up(w, network_.multiple());
  P2P_REQUIRE(h >= 1 && w >= 1 && padded_h * padded_w <= kPixelsMax, "picture size ", h, "x", w, " is out of range");
  return {(int32_t)padded_h, (int32_t)padded_w};
}

Plan CpuModel::plan_for(int32_t h, int32_t w, bool keep) const {
  const Size size = padded_size(h, w);
  return make_plan(network_, kernels_, size.h, size.w, plan_options(keep));
}

CpuModel::Slots CpuModel::acquire(Runtime& runtime, int32_t h, int32_t w, bool alone) {
  Slots& idle = alone ? runtime.idle_alone : runtime.idle;
  const Size size = padded_size(h, w);
  Slots found;
  {
    std::lock_guard<std::mutex> guard(runtime.idle_lock);
    for (auto it = idle.begin(); it != idle.end(); ++it)
      if ((*it)->plan().h == size.h && (*it)->plan().w == size.w) {
        found.splice(found.begin(), idle, it);
        break;
      }
  }
  if (found.empty()) {
    found.push_back(std::make_unique<Executable>(network_, layers_, plan_for(h, w, false), alone ? 1 : threads_));
    std::lock_guard<std::mutex> guard(runtime.idle_lock);
    runtime.workspace_bytes += found.front()->bytes();
  }
  return found;
}

void CpuModel::release(Runtime& runtime, Slots slot, bool alone) {
  std::lock_guard<std::mutex> guard(runtime.idle_lock);
  Slots& idle = alone ? runtime.idle_alone : runtime.idle;
  // With one thread callers compute beside each other, each in one of its own.
  const size_t kept = alone ? (size_t)threads_ : kIdleExecutables + (threads_ == 1 ? 4 : 0);
  idle.splice(idle.begin(), slot);
  int64_t bytes = 0;
  for (const auto& executable : idle) bytes += executable->bytes();
  while (idle.size() > kept || (idle.size() > 1 && bytes > kIdleBytes)) {
    bytes -= idle.back()->bytes();
    runtime.workspace_bytes -= idle.back()->bytes();
    idle.pop_back();
  }
}

bool CpuModel::run(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) {
  Runtime& runtime = *runtime_;
  // A signal handler's call, inside a call of the same thread: the pool is that call's.
  if (runtime.caller.load(std::memory_order_relaxed) == std::this_thread::get_id())
    return run_alone(src, dst, frame, interrupt);
  // With workers, calls take turns: each has all threads. With one thread, every caller computes on its own.
  std::unique_lock<std::timed_mutex> turn(runtime.call_lock, std::defer_lock);
  ThreadPool* pool;
  std::optional<ThreadPool> own;
  if (threads_ > 1) {
    // By the wall clock, as GCC 12's thread sanitizer does not see locks that wait by another.
    while (!turn.try_lock_until(std::chrono::system_clock::now() + kWaitBetweenSignals)) {
      if (interrupt && interrupt->requested()) return false;
      if (&runtime != runtime_) return run(src, dst, frame, interrupt);  // forked by a handler: this lock opens no more
    }
    if (!runtime.pool) runtime.pool = std::make_unique<ThreadPool>(threads_);
    pool = runtime.pool.get();
  } else {
    pool = &own.emplace(1);
  }
  const Caller caller(turn.owns_lock() ? &runtime.caller : nullptr);
  return run_in(runtime, *pool, false, src, dst, frame, interrupt);
}

bool CpuModel::run_alone(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) {
  if (threads_ == 1) return run(src, dst, frame, interrupt);
  ThreadPool pool(1);
  return run_in(*runtime_, pool, true, src, dst, frame, interrupt);
}

bool CpuModel::run_in(Runtime& runtime, ThreadPool& pool, bool alone, const ImageView& src, const ImageView& dst,
                      uint64_t frame, Interrupt* interrupt) {
  const bool trace = environment().trace;
  std::vector<double> step_us(trace ? network_.layers.size() : 0);
  bool finished = true;
  Slots slot = acquire(runtime, src.h, src.w, alone);
  Executable& executable = *slot.front();
  try {
    executable.bind(src.h, src.w);
    for (int32_t n = 0; n < src.n && finished; ++n)
      finished = executable.run(pool, {&src, &dst, n, frame + n, seed_.value_or(0), interrupt, true,
                                        trace ? &step_us : nullptr});
    if (trace && finished && src.n > 0)
      std::fputs(format_trace(report(executable.plan(), &step_us), measured_peaks(isa_, dtype_, pool), pool.size()).c_str(),
                 stderr);
  } catch (...) {  // the executable goes with the call: nobody knows what state it is in
    std::lock_guard<std::mutex> guard(runtime.idle_lock);
    runtime.workspace_bytes -= executable.bytes();
    throw;
  }
  release(runtime, std::move(slot), alone);
  std::lock_guard<std::mutex> guard(runtime.idle_lock);
  ++runtime.calls;
  return finished;
}

std::vector<StepReport> CpuModel::report(const Plan& plan, const std::vector<double>* step_us) const {
  std::vector<StepReport> steps;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& s = plan.steps[i];
    const Problem& p = s.problem;
    const int64_t taps = p.ho > p.hi ? 4 : 16;  // per output pixel
    steps.push_back({network_.layers[s.layer].name, s.kernel->id, p.hi, p.wi, p.ci[0] + p.ci[1], p.ho, p.wo, p.co,
                     s.geometry.rows, p.tile_block, s.geometry.macs,
                     (int64_t)p.ho * p.wo * taps * (p.ci[0] + p.ci[1]) * p.co, s.geometry.read_bytes,
                     s.geometry.shared_bytes, 1e6 * estimate(*s.kernel, p, balance_of(room_of(*s.kernel), dtype_)),
                     step_us ? (*step_us)[i] : 0.0});
  }
  return steps;
}

std::vector<StepReport> CpuModel::plan(int32_t h, int32_t w) { return report(plan_for(h, w, false), nullptr); }

std::vector<StepReport> CpuModel::timed(int32_t h, int32_t w, int32_t repeats) {
  Executable executable(network_, layers_, plan_for(h, w, false), threads_);
  executable.bind(h, w);
  const int32_t ci = network_.layers.front().ci, co = network_.channels_out();
  const std::vector<float> grey((size_t)h * w * ci);
  std::vector<float> picture((size_t)h * w * co);
  const ImageView src{(char*)grey.data(), PixelType::kF32, 1, h, w, ci, 0, (int64_t)w * ci * 4, (int64_t)ci * 4, 4, -1.0f, 1.0f};
  const ImageView dst{(char*)picture.data(), PixelType::kF32, 1, h, w, co, 0, (int64_t)w * co * 4, (int64_t)co * 4, 4, -1.0f, 1.0f};
  ThreadPool pool(threads_);
  std::vector<double> best, step_us(network_.layers.size());
  for (int32_t r = 0; r <= repeats; ++r) {  // the first one warms up
    executable.run(pool, {&src, &dst, 0, 0, seed_.value_or(0), nullptr, true, &step_us});
    if (r == 1) best = step_us;
    for (size_t i = 0; i < best.size(); ++i) best[i] = std::min(best[i], step_us[i]);
  }
  return report(executable.plan(), &best);
}

std::vector<Activation> CpuModel::activations(const ImageView& src) {
  Executable executable(network_, layers_, plan_for(src.h, src.w, true), threads_);
  executable.bind(src.h, src.w);
  const int32_t padded_h = executable.plan().h, padded_w = executable.plan().w, co = network_.channels_out();
  std::vector<float> picture((size_t)padded_h * padded_w * co);
  const ImageView dst{(char*)picture.data(), PixelType::kF32, 1, padded_h, padded_w, co, 0,
                      (int64_t)padded_w * co * 4, (int64_t)co * 4, 4, -1.0f, 1.0f};
  ThreadPool pool(threads_);
  executable.run(pool, {&src, &dst, 0, 0, seed_.value_or(0), nullptr, false, nullptr});

  std::vector<Activation> found;
  for (const Step& step : executable.plan().steps) {
    const Problem& p = step.problem;
    Activation a{network_.layers[step.layer].name, p.ho, p.wo, p.co, {}};
    if (step.dst < 0) {
      a.values = std::move(picture);
    } else {
      const char* data = executable.output(step.layer);
      for (int64_t pixel = 0; pixel < (int64_t)p.ho * p.wo; ++pixel)
        for (int32_t c = 0; c < p.co; ++c) {
          const int64_t i = pixel * p.co_stored + c;
          a.values.push_back(dtype_ == DType::kF32 ? ((const float*)data)[i] : bf16_to_f32(((const uint16_t*)data)[i]));
        }
    }
    found.push_back(std::move(a));
  }
  return found;
}

ModelStats CpuModel::stats() const {
  std::lock_guard<std::mutex> guard(runtime_->idle_lock);
  return {runtime_->calls, runtime_->workspace_bytes, weight_bytes_, load_seconds_, isa_name(isa_), threads_,
          dtype_ == DType::kBF16 ? Precision::kBF16 : Precision::kF32};
}

}  // namespace

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options) {
  return std::make_unique<CpuModel>(std::move(network), weights, options);
}

}  // namespace p2p::cpu
