// P2P_TRACE=1: what every step of a call did and cost, beside what the machine could do.
#pragma once
#include <string>
#include <vector>

#include "backend.h"

namespace p2p {

// Peaks of this machine as the trace's yardstick, measured once when the first trace is printed.
struct Peaks {
  double flops;          // multiply-adds count as two
  double bytes_per_second;
};

std::string format_trace(const std::vector<StepReport>& steps, const Peaks& peaks, int threads);

}  // namespace p2p
