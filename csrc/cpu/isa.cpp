#include "isa.h"

#include <sched.h>
#if defined(P2P_ROOM_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "../check.h"
#include "../options.h"

namespace p2p::cpu {

namespace {
#if defined(P2P_ROOM_AMX) && !defined(P2P_EMULATE)
// CPUID leaf 7, and the kernel's leave: tile registers are off in a process until it asks for them (8 KB of state a thread).
bool amx_granted() {
  constexpr long kGetSupported = 0x1021, kRequest = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool bf16 = d & (1u << 22), tile = d & (1u << 24);
  uint64_t supported = 0;
  return bf16 && tile && syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 && (supported >> kTileData & 1) &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx};
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512bf16";
    case Isa::kAmx: return "amx";
  }
  return "?";
}

// The compiler's builtin asks CPUID and, for AVX and AVX-512, XGETBV: registers that the OS does not save do not count.
bool can_run(Isa isa) {
#if defined(P2P_EMULATE)  // tests/cpp/emulated_avx512.h
  return isa == Isa::kScalar || (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
#elif defined(__x86_64__)
  switch (isa) {
    case Isa::kScalar: return true;
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return can_run(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16: return can_run(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx: {
#if defined(P2P_ROOM_AMX)
      static const bool granted = amx_granted();
      return can_run(Isa::kAvx512Bf16) && granted;
#else
      return false;
#endif
    }
  }
  return false;
#else
  return isa == Isa::kScalar;
#endif
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> found;
  for (Isa isa : kAll)
    if (can_run(isa)) found.push_back(isa);
  return found;
}

Isa resolve_isa(const std::string& name) {
  const std::string& wanted = name.empty() ? environment().isa : name;
  if (wanted.empty()) return runnable_isas().back();
  for (Isa isa : kAll) {
    if (wanted != isa_name(isa)) continue;
    if (!can_run(isa))
      throw BackendUnavailable(text("the instruction set '", wanted, "' was asked for", name.empty() ? " by P2P_ISA" : "",
                                    ", but this CPU (", cpu_name(), ") runs at most '",
                                    isa_name(runnable_isas().back()), "'"));
    return isa;
  }
  P2P_REQUIRE(false, "unknown instruction set '", wanted, name.empty() ? "' in P2P_ISA" : "'",
              ": expected scalar, avx2, avx512, avx512bf16 or amx");
  return Isa::kScalar;
}

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(':');
      return colon + 2 < line.size() ? line.substr(colon + 2) : "unknown CPU";
    }
  return "unknown CPU";
}

int cpu_quota(const std::string& groups, const std::string& mount) {
  std::string two, one;  // this process's group in version 2, and with version 1's controller "cpu"
  std::ifstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",", path = line.substr(second + 1);
    if (controllers == ",,") two = path == "/" ? "" : path;
    else if (controllers.find(",cpu,") != std::string::npos) one = path == "/" ? "" : path;
  }
  int least = 0;
  const auto take = [&](double quota, double period) {
    if (quota <= 0 || period <= 0) return;  // -1: not limited
    const int cpus = std::max(1, (int)std::ceil(std::min(quota / period, 1e6)));
    least = least ? std::min(least, cpus) : cpus;
  };
  // A group is bound by those above it too. In a container the path may be that of the host, which is not there: the mounted
  // root is then the container's own.
  const auto climb = [](std::string path, auto&& read) {
    for (;; path.erase(path.find_last_of('/'))) {
      read(path);
      if (path.find('/') == std::string::npos) return;
    }
  };
  climb(two, [&](const std::string& path) {
    double quota = 0, period = 0;
    if (std::ifstream file(mount + path + "/cpu.max"); file >> quota >> period) take(quota, period);  // "max" is no number
  });
  climb(one, [&](const std::string& path) {
    double quota = 0, period = 0;
    std::ifstream(mount + "/cpu" + path + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(mount + "/cpu" + path + "/cpu.cfs_period_us") >> period;
    take(quota, period);
  });
  return least;
}

// A thread beyond the quota would only use it up, and the kernel would then stop all of them till the next period.
int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = (int)std::thread::hardware_concurrency();
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) count = CPU_COUNT(&set);
  const int quota = cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  return std::max(1, quota ? std::min(count, quota) : count);
}

}  // namespace p2p::cpu
