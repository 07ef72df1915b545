// A small random U-Net through csrc/backend.h without Python: what sanitizers run, and where the heap allocations of a warm
// call are counted (none are allowed: house rule "after the first call of a size a call allocates nothing").
//
//   p2p_driver [key=value ...]
//     isa= precision=f32|bf16 depth= ngf= threads= callers= calls= dropout=0|1 sizes=HxW,HxW,...
//     plant=overflow|race|undefined   a fault on purpose, which the sanitizer must catch
//     plant=allocation                one that the count must show
//     quota=FOLDER                    instead: the CPUs that FOLDER/cgroup and FOLDER/mount allow
//     fail=1                          instead: every allocation of loading, then of first calls, fails in turn
//
// For each size: one warm-up call, `calls` counted ones, then `callers` threads at once that must give the same bits. Prints
// one line a size and "ok"; exit code 1 and a line on stderr where bits differ. The test decides what a count may be.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"
#include "check.h"
#include "cpu/isa.h"

// Allocations ---------------------------------------------------------------------------------------------------------------

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define COUNTS 0  // the sanitizer owns malloc
#else
#define COUNTS 1
#endif

static std::atomic<long> allocations{0};  // constant-initialised: malloc runs before any constructor
static std::atomic<long> until_failure{0};  // 1: the next one fails; 0: none does

[[maybe_unused]] static bool refused() {
  ++allocations;
  if (until_failure.load() == 0 || --until_failure > 0) return false;
  errno = ENOMEM;
  return true;
}

#if COUNTS
// malloc and its family for the whole process, operator new and std::thread included, in front of glibc's own.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept {
  return refused() ? nullptr : __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  return refused() ? nullptr : __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) noexcept {
  return refused() ? nullptr : __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  return refused() ? nullptr : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return refused() ? nullptr : __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) noexcept {
  *out = refused() ? nullptr : __libc_memalign(alignment, bytes);
  return *out ? 0 : ENOMEM;
}
void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  return refused() ? MAP_FAILED : (void*)syscall(SYS_mmap, at, bytes, protection, flags, file, offset);
}
}
#endif

// A random network ----------------------------------------------------------------------------------------------------------

namespace {

p2p::Network network_of(int depth, int ngf, bool dropout) {
  const auto width = [&](int k) { return k == 0 ? 3 : ngf * std::min(1 << (k - 1), 8); };
  p2p::Network network;
  for (int k = 1; k <= depth; ++k) {
    p2p::Layer l{};
    l.name = "e" + std::to_string(k);
    l.op = p2p::LayerOp::kConv4x4s2;
    l.ci = width(k - 1);
    l.co = width(k);
    l.slope = k == 1 ? 1.0f : 0.2f;
    l.norm = k > 1 && k < depth;
    l.eps = 1e-5f;
    network.layers.push_back(l);
  }
  for (int k = 1; k <= depth; ++k) {
    p2p::Layer l{};
    l.name = "d" + std::to_string(k);
    l.op = p2p::LayerOp::kDeconv4x4s2;
    l.skip = k > 1 ? "e" + std::to_string(depth + 1 - k) : "";
    l.ci = width(depth + 1 - k) * (k > 1 ? 2 : 1);
    l.co = k == depth ? 3 : width(depth - k);
    l.slope = 0.0f;
    l.norm = k < depth;
    l.eps = 1e-5f;
    l.dropout = dropout && k < depth ? 0.5f : 0.0f;
    l.tanh = k == depth;
    network.layers.push_back(l);
  }
  return network;
}

class RandomWeights final : public p2p::WeightSource {
 public:
  p2p::LayerTensors fetch(const p2p::Layer& layer) override {
    std::normal_distribution<float> normal;
    const float scale = 0.7f / std::sqrt((float)layer.ci);
    weight_.resize((size_t)layer.ci * layer.co * 16);
    for (float& w : weight_) w = scale * normal(random_);
    for (std::vector<float>* v : {&bias_, &gamma_, &beta_}) {
      v->resize(layer.co);
      for (float& x : *v) x = 0.1f * normal(random_) + (v == &gamma_);
    }
    return {weight_.data(), bias_.data(), layer.norm ? gamma_.data() : nullptr, layer.norm ? beta_.data() : nullptr};
  }

 private:
  std::mt19937 random_{7};
  std::vector<float> weight_, bias_, gamma_, beta_;
};

// A picture of exactly its bytes, so that a byte more is out of bounds.
struct Bytes {
  explicit Bytes(size_t bytes) : data((char*)std::malloc(bytes)), size(bytes) { std::memset(data, 0, bytes); }
  ~Bytes() { std::free(data); }
  Bytes(const Bytes&) = delete;
  char* data;
  size_t size;
};

p2p::ImageView view(char* data, int h, int w) {
  return {data, p2p::PixelType::kU8, 1, h, w, 3, (int64_t)h * w * 3, (int64_t)w * 3, 3, 1, 0.0f, 1.0f};
}

std::string option(int count, char** values, const char* key, const char* otherwise) {
  const size_t length = std::strlen(key);
  for (int i = 1; i < count; ++i)
    if (!std::strncmp(values[i], key, length) && values[i][length] == '=') return values[i] + length + 1;
  return otherwise;
}

unsigned long digest(const Bytes& bytes) {  // FNV-1a
  unsigned long hash = 14695981039346656037ul;
  for (size_t i = 0; i < bytes.size; ++i) hash = (hash ^ (unsigned char)bytes.data[i]) * 1099511628211ul;
  return hash;
}

// attempt() with its n-th allocation failing, n = 1, 2, ... until it needs fewer; it may do without. after(): what must work
// then. Returns how many there are.
template <class Attempt, class After> long fail_each(Attempt&& attempt, After&& after) {
  for (long n = 1;; ++n) {
    until_failure = n;
    bool failed = true;
    try {
      attempt();
      failed = false;
    } catch (const std::bad_alloc&) {
    } catch (const p2p::OutOfMemory&) {
    } catch (const p2p::BackendUnavailable&) {  // a thread could not be started
    }
    const bool enough = until_failure.exchange(0) > 0;
    P2P_REQUIRE(!failed || !enough, "an error without a failed allocation");
    if (enough) return n - 1;
    after();
  }
}

int fail(const p2p::CompileOptions& options, const p2p::Network& network) {
  std::unique_ptr<p2p::CompiledModel> model, other;
  const auto load = [&] {
    RandomWeights weights;
    return p2p::compile(network, weights, options);
  };
  // A thread that was joined is still listed for a moment.
  const auto alone = [] {
    for (int wait = 0; wait < 1000; ++wait, usleep(10'000)) {
      const std::filesystem::directory_iterator threads("/proc/self/task");
      if (std::distance(begin(threads), end(threads)) == 1) return true;
    }
    return false;
  };
  const long loading = fail_each([&] { model = load(); }, [&] {
    model.reset();  // some allocations may fail without harm
    P2P_REQUIRE(alone(), "threads live on after a failed load");
  });
  other = load();
  // A size of its own each time, so that every call is the first; `other` makes the calls that do not fail.
  int h = 9;
  Bytes source(3 * 32 * 400), target(3 * 32 * 400), wanted(3 * 32 * 400);
  for (size_t i = 0; i < source.size; ++i) source.data[i] = (char)(i * i % 251);
  const auto run = [&](p2p::CompiledModel& of, Bytes& into) {
    of.run(view(source.data, h, 32), view(into.data, h, 32), 5, nullptr);
  };
  const long calling = fail_each([&] { run(*model, target); }, [&] {
    run(*model, target);
    run(*other, wanted);
    P2P_REQUIRE(digest(target) == digest(wanted), "a picture after a failure is wrong");
    h = h < 390 ? h + 16 : 10;
  });
  run(*other, wanted);
  P2P_REQUIRE(model->stats().workspace_bytes == other->stats().workspace_bytes, "workspace_bytes ",
              model->stats().workspace_bytes, " after failures, ", other->stats().workspace_bytes, " without");
  std::printf("loading=%ld calling=%ld\nok\n", loading, calling);
  return 0;
}

int drive(int count, char** values) {
  const auto text_of = [&](const char* key, const char* otherwise) { return option(count, values, key, otherwise); };
  const auto number_of = [&](const char* key, const char* otherwise) { return std::stoi(text_of(key, otherwise)); };
  const std::string plant = text_of("plant", ""), sizes = text_of("sizes", "32x32,37x50,64x16,1x1");
  const int calls = number_of("calls", "3"), callers = number_of("callers", "2");

  if (const std::string folder = text_of("quota", ""); !folder.empty()) {
    std::printf("%d\nok\n", p2p::cpu::cpu_quota(folder + "/cgroup", folder + "/mount"));
    return 0;
  }
  if (plant == "undefined") {
    volatile int most = INT_MAX;
    most = most + 1;
  }

  p2p::CompileOptions options;
  options.isa = text_of("isa", "");
  options.precision = text_of("precision", "f32") == "bf16" ? p2p::Precision::kBF16 : p2p::Precision::kF32;
  options.threads = number_of("threads", "2");
  if (number_of("dropout", "0")) options.dropout_seed = 7;
  options.h = options.w = 32;
  const p2p::Network network = network_of(number_of("depth", "4"), number_of("ngf", "8"), options.dropout_seed.has_value());
  if (number_of("fail", "0")) return fail(options, network);
  RandomWeights weights;
  const std::unique_ptr<p2p::CompiledModel> model = p2p::compile(network, weights, options);
  const p2p::ModelStats stats = model->stats();
  std::printf("room=%s precision=%s threads=%d counts=%d\n", stats.isa.c_str(), p2p::precision_name(stats.precision),
              stats.threads, COUNTS);

  for (size_t at = 0; at < sizes.size();) {
    int h = 0, w = 0, used = 0;
    P2P_REQUIRE(std::sscanf(sizes.c_str() + at, "%dx%d%n", &h, &w, &used) == 2, "sizes: expected HxW,..., got ", sizes);
    at += used + 1;
    const size_t bytes = (size_t)h * w * 3;
    Bytes source(bytes), target(plant == "overflow" ? bytes - (size_t)w * 3 : bytes);
    std::mt19937 random(h * 1000 + w);
    for (size_t i = 0; i < bytes; ++i) source.data[i] = (char)random();
    const p2p::ImageView src = view(source.data, h, w), dst = view(target.data, h, w);

    model->run(src, dst, 5, nullptr);  // the warm-up of this size; with plant=overflow the last row has no room
    const unsigned long want = digest(target);
    const long before = allocations.load();
    for (int i = 0; i < calls; ++i) {
      model->run(src, dst, 5, nullptr);
      if (plant == "allocation") const Bytes more(100);
    }
    const long made = allocations.load() - before;

    std::atomic<int> wrong{digest(target) != want};
    std::vector<std::thread> threads;
    for (int i = 0; i < callers; ++i)
      threads.emplace_back([&] {
        Bytes own(bytes);
        const p2p::ImageView result = view(plant == "race" ? target.data : own.data, h, w);
        for (int j = 0; j < calls; ++j) {
          model->run(src, result, 5, nullptr);
          if (plant != "race" && digest(own) != want) ++wrong;
          if (plant == "race") ++target.data[0];
        }
      });
    for (std::thread& thread : threads) thread.join();
    std::printf("size=%dx%d allocations=%ld digest=%016lx\n", h, w, made, want);
    if (wrong && plant.empty()) {
      std::fprintf(stderr, "%dx%d: %d results differ from the first\n", h, w, wrong.load());
      return 1;
    }
  }
  std::puts("ok");
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return drive(count, values);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
