#include "choose.h"

#include <algorithm>

#include "check.h"
#include "cpu/registry.h"

namespace p2p {

using namespace cpu;

// Measured on two cores of a Zen 4 (cpu.md, sections 1 and 3; `make bench` prints the peaks of the machine at hand). What
// decides is the ratio of arithmetic to memory, which differs by less than 2x between the machines this is for.
MachineBalance balance_of(Isa isa, DType dtype) {
  const double memory = 50e9, transform = 60e9;
  switch (isa) {
    case Isa::kScalar: return {16e9, memory, transform};
    case Isa::kAvx2: return {200e9, memory, transform};
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: break;
    case Isa::kAmx: return {4e12, memory, transform};
  }
  return {dtype == DType::kBF16 ? 440e9 : 222e9, memory, transform};
}

double estimate(const Kernel& kernel, const Problem& problem, const MachineBalance& balance) {
  Geometry g;
  kernel.geometry(problem, &g);
  const double arithmetic = 2.0 * (double)g.macs / balance.flops;
  const double weights = (double)g.read_bytes / balance.weight_bytes;
  // Transforms write A once and read C once; scratch is one item's C.
  const double transforms = ((double)g.shared_bytes + (double)g.scratch_bytes * g.items[1]) / balance.transform_bytes;
  return std::max(arithmetic, weights) + transforms;
}

const Kernel& choose_kernel(Isa isa, Op op, DType dtype, const Problem& problem) {
  const Kernel* best = nullptr;
  double best_seconds = 0;
  for (const Kernel* kernel : kernels_for(isa)) {
    if (kernel->op != op || kernel->dtype != dtype) continue;
    if (find_kernel(isa, op, kernel->algorithm, dtype) != kernel) continue;  // a better room has this one too
    if (op == Op::kConvFirst || op == Op::kDeconvLast) return *kernel;       // one algorithm
    const double seconds = estimate(*kernel, problem, balance_of(room_of(*kernel), dtype));
    if (!best || seconds < best_seconds) {
      best = kernel;
      best_seconds = seconds;
    }
  }
  P2P_ASSERT(best != nullptr);
  return *best;
}

namespace {
constexpr int64_t kSharedBytesMax = 6 << 20;     // A must stay in L3 beside the weights
constexpr int32_t kSharedRowsMax = 256;          // above, one phase won by 12 to 30 % (e2, d7)
constexpr int64_t kBlockBytes = 720 << 10;       // a thread's part of A in a 1 MB L2; twice that is up to 1.6x slower
constexpr int32_t kBlockRows = 22, kBlockRowsMin = 8;
}  // namespace

int32_t choose_tile_block(const Kernel& kernel, const Problem& problem) {
  Problem two_phases = problem;
  two_phases.tile_block = 0;
  Geometry g;
  kernel.geometry(two_phases, &g);
  if (g.phases < 2 || (g.shared_bytes <= kSharedBytesMax && g.rows <= kSharedRowsMax)) return 0;
  const int64_t fit = kBlockBytes / std::max<int64_t>(g.shared_bytes / g.rows, 1);
  const int32_t rows = (int32_t)std::clamp<int64_t>(fit, kBlockRowsMin, kBlockRows);
  const int32_t items = divide_up(g.rows, rows);
  two_phases.tile_block = divide_up(g.rows, items);  // equal items
  kernel.geometry(two_phases, &g);
  return g.phases == 1 ? two_phases.tile_block : 0;  // some kernels have one schedule
}

}  // namespace p2p
