#include "trace.h"

#include <algorithm>
#include <cstdio>

namespace p2p {

std::string format_trace(const std::vector<StepReport>& steps, const Peaks& peaks, int threads) {
  std::string out;
  char line[256];
  std::snprintf(line, sizeof(line), "p2p trace: %d threads, peak %.0f GFLOP/s, read %.0f GB/s\n", threads,
                peaks.flops / 1e9, peaks.bytes_per_second / 1e9);
  out += line;
  std::snprintf(line, sizeof(line), "%-4s %-40s %-16s %5s %9s %9s %9s %8s %6s\n", "", "kernel", "map", "block", "MMAC",
                "weights", "us", "GFLOP/s", "floor");
  out += line;
  double total_us = 0, total_floor_us = 0;
  for (const StepReport& s : steps) {
    const double floor_us = 1e6 * std::max(2.0 * s.macs / peaks.flops, s.weight_bytes / peaks.bytes_per_second);
    char map[64];
    std::snprintf(map, sizeof(map), "%dx%dx%d>%d", s.hi, s.wi, s.ci, s.co);
    std::snprintf(line, sizeof(line), "%-4s %-40s %-16s %5d %9.1f %7.1fMB %9.0f %8.0f %5.0f%%\n", s.layer.c_str(),
                  s.kernel.c_str(), map, s.tile_block, s.macs / 1e6, s.weight_bytes / 1e6, s.measured_us,
                  2e-3 * s.macs / s.measured_us, 100 * floor_us / s.measured_us);
    out += line;
    total_us += s.measured_us;
    total_floor_us += floor_us;
  }
  std::snprintf(line, sizeof(line), "%-4s %-40s %-16s %5s %9s %9s %9.0f %8s %5.0f%%\n", "", "sum", "", "", "", "", total_us,
                "", 100 * total_floor_us / total_us);
  out += line;
  return out;
}

}  // namespace p2p
