#include "peaks.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "../arena.h"
#include "../check.h"
#include "registry.h"

namespace p2p::cpu {

namespace {

double seconds_of(ThreadPool& pool, ThreadPool::Work work, void* context) {
  const auto start = std::chrono::steady_clock::now();
  pool.run(work, context);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A direct convolution whose operands stay in a core's own cache, with sums so long that nearly nothing but the product is
// left: 12 rows, whole register tiles of every room.
double arithmetic_peak(Isa isa, DType dtype, ThreadPool& pool) {
  const Kernel* kernel = plain_kernel(isa, dtype);
  // seven row tiles with AMX, so that its products are two by two
  const bool tiles = room_of(*find_kernel(isa, Op::kConv, Algorithm::kDirect, dtype)) == Isa::kAmx;
  Problem p{};
  p.hi = tiles ? 20 : 4;
  p.wi = tiles ? 20 : 12;
  p.ho = p.hi / 2;
  p.wo = p.wi / 2;
  p.ci[0] = p.ci_stored[0] = tiles ? 32 : 128;
  p.co = p.co_stored = 32;
  Geometry g{};
  kernel->geometry(p, &g);
  struct Job {
    const Kernel* kernel;
    Problem p;
    Geometry g;
    std::vector<Memory> memory;  // per thread: weights, source, shared, scratch, dst, its scale and shift
    int repeats;
    std::vector<double> best;  // seconds of each thread: neighbours on a shared machine slow now one, now the other
  } job{kernel, p, g, {}, 40, std::vector<double>(pool.size(), 1e9)};
  for (int t = 0; t < pool.size(); ++t)
    for (int64_t bytes : {g.weight_bytes + 16384, (int64_t)p.hi * p.wi * p.ci_stored[0] * 4, g.shared_bytes, g.scratch_bytes,
                          (int64_t)p.ho * p.wo * p.co_stored * 4, (int64_t)p.ci_stored[0] * 4})
      job.memory.emplace_back(bytes);
  const auto work = [](void* context, int thread) {
    Job& j = *(Job*)context;
    const Memory* m = j.memory.data() + thread * 6;
    Args a{};
    a.src[0] = {m[1].data(), (const float*)m[5].data(), (const float*)m[5].data()};
    a.weights = m[0].data();
    a.shared = m[2].data();
    a.dst = m[4].data();
    const auto start = std::chrono::steady_clock::now();
    for (int r = 0; r < j.repeats; ++r)
      for (int32_t phase = j.g.phases > 1 ? 1 : 0; phase < j.g.phases; phase += 2)  // without gathering, where that is a phase
        for (int32_t item = 0; item < j.g.items[phase % 2]; ++item) j.kernel->run(j.p, a, phase, item, m[3].data());
    j.best[thread] = std::min(j.best[thread], std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  for (double spent = 0; spent < 0.4;) spent += seconds_of(pool, work, &job);
  double peak = 0;
  for (double seconds : job.best) peak += 2.0 * g.macs * job.repeats / seconds;
  return peak;
}

double read_peak(ThreadPool& pool) {
  constexpr int64_t kBytes = 256 << 20;
  struct Job {
    Memory memory{kBytes};
    int threads;
    std::atomic<uint64_t> sum{0};
  } job;
  job.threads = pool.size();
  std::fill_n((uint64_t*)job.memory.data(), kBytes / 8, 1);
  const auto work = [](void* context, int thread) {
    Job& j = *(Job*)context;
    const int64_t words = kBytes / 8 / j.threads;
    const uint64_t* at = (const uint64_t*)j.memory.data() + thread * words;
    uint64_t sum[8] = {};
    for (int64_t i = 0; i + 8 <= words; i += 8)
      for (int k = 0; k < 8; ++k) sum[k] += at[i + k];
    for (uint64_t s : sum) j.sum += s;
  };
  double best = 1e9;
  for (int round = 0; round < 5; ++round) best = std::min(best, seconds_of(pool, work, &job));
  return kBytes / best;
}

}  // namespace

Peaks measured_peaks(Isa isa, DType dtype, ThreadPool& pool) {
  static std::mutex lock;
  static std::map<std::tuple<Isa, DType, int>, Peaks> known;
  std::lock_guard<std::mutex> guard(lock);
  const auto key = std::make_tuple(isa, dtype, pool.size());
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const Peaks peaks{arithmetic_peak(isa, dtype, pool), read_peak(pool)};
  known[key] = peaks;
  return peaks;
}

}  // namespace p2p::cpu
