#include "choose.h"

#include <algorithm>

#include "check.h"
#include "cpu/registry.h"

namespace p2p {

using namespace cpu;

// Measured on two cores of a Zen 4, of a Xeon with AMX and of a Zen 3 (docs/decisions/020-cost-model.md). A class of CPU
// decides, not a measurement at load: noise would choose other kernels, and so other bits, in the next process. `tune` measures.
MachineBalance balance_of(Isa isa, DType dtype) {
  const double transform = isa == Isa::kAmx ? 60e9 : 10e9, kept = 24 << 20;
  // Of the A that is there at a time. Up to 5 MB two phases won everywhere (d6: 6 %), above it one phase won 12 to 30 % (e2, d7),
  // but on Zen 3 two still did for e2 and d7 (6 MB: 5 %), since outputs are asked for ahead of the stores, and with turns for e3
  // at 512x512 (4 MB of 13: 5 %). Turns were timed there alone.
  const double two_phase_bytes = 5 << 20;
  if (isa == Isa::kScalar) return {16e9, 50e9, 100e9, transform, 1e6, kept, two_phase_bytes};
  // CPUs whose best room is AVX2: slower memory, half the cache of a core.
  if (isa == Isa::kAvx2) return {190e9, 30e9, 117e9, transform, 512e3, 12 << 20, 8 << 20};
  // Two 512-bit multiply-add units, fed by a mesh that gives one core little: twice the arithmetic, half the bytes.
  const bool wide = is_intel();
  const double memory = wide ? 28e9 : 50e9, shared = wide ? 56e9 : 117e9, own = wide ? 2e6 : 1e6;
  double flops = wide ? 350e9 : 200e9;
  if (isa == Isa::kAmx) flops = 2500e9;
  else if (isa == Isa::kAvx512Bf16 && dtype == DType::kBF16) flops = wide ? 220e9 : 400e9;
  return {flops, memory, shared, transform, own, kept, two_phase_bytes};
}

double estimate(const Kernel& kernel, const Problem& problem, const MachineBalance& balance) {
  // Rows' worth of arithmetic that a block (taps, direct) or an item (columns) spends on forming its weights or unpacking them:
  // chosen as timed, F(2,2) or F(4,2) for d3 to d5, e4 to e6; columns for d5, e4, not for d6, e3.
  constexpr double kTapSums = 2, kColumnSums = 1.1, kUnpackSums = 1;
  constexpr double kColumnChunks = 0.05;  // C is added to after every 128 channels
  constexpr double kNotHidden = 0.4, kNotHiddenCached = 0.1;  // of the shorter of arithmetic and memory, shared cache
  Geometry g{};
  kernel.geometry(problem, &g);
  const bool taps = kernel.algorithm == Algorithm::kWinograd2Taps || kernel.algorithm == Algorithm::kWinograd4Taps;
  const bool columns = kernel.algorithm == Algorithm::kWinograd4Columns;
  const bool unpacked = kernel.algorithm == Algorithm::kDirect && kernel.dtype == DType::kF32 && g.block_rows > 0;
  const double sums = taps      ? 1 + kTapSums / g.block_rows
                      : unpacked ? 1 + kUnpackSums / g.block_rows
                      : columns ? 1 + kColumnChunks + kColumnSums / g.item_rows
                                : 1;
  const double arithmetic = sums * 2.0 * (double)g.macs / balance.flops;
  // Once from memory; every block or part of the rows reads them again, well hidden from the shared cache, unless the pass
  // before has pushed them out. (Parts without turns read them one right after the other.)
  const int32_t passes = g.item_rows > 0 ? divide_up(g.rows, g.item_rows) : 1;
  const double reread = (double)g.read_bytes * (passes - 1);
  const bool cached = g.phases == 2 || (double)g.pass_bytes <= balance.kept_weights;
  const double weights = ((double)g.read_bytes + (cached ? 0 : reread)) / balance.weight_bytes;
  // Items read A again and again, and a core's own cache may not hold it.
  const double again = (g.shared_bytes > balance.own_cache / 2 ? (double)g.shared_read_bytes / balance.shared_bytes : 0) +
                       (cached ? kNotHiddenCached * reread / balance.shared_bytes : 0);
  const double transforms = (double)g.transform_bytes / balance.transform_bytes;
  return std::max(arithmetic, weights) + kNotHidden * std::min(arithmetic, weights) + again + transforms;
}

const Kernel& choose_kernel(Isa isa, Op op, DType dtype, const Problem& problem) {
  const Kernel* best = nullptr;
  double best_seconds = 0;
  for (const Kernel* kernel : kernels_for(isa)) {
    if (kernel->op != op || kernel->dtype != dtype) continue;
    if (find_kernel(isa, op, kernel->algorithm, dtype) != kernel) continue;  // a better room has this one too
    if (op == Op::kConvFirst || op == Op::kDeconvLast) return *kernel;       // the room's best
    Problem scheduled = problem;
    scheduled.tile_block = choose_tile_block(*kernel, problem);
    const double seconds = estimate(*kernel, scheduled, balance_of(room_of(*kernel), dtype));
    if (!best || seconds < best_seconds) {
      best = kernel;
      best_seconds = seconds;
    }
  }
  P2P_ASSERT(best != nullptr);
  return *best;
}

namespace {
constexpr int32_t kTwoPhasesRows = 256;  // above, the estimate decides whatever the bytes
constexpr double kBlockShare = 0.9;  // of a core's own cache for its part of A; 1.4 of a Zen 4's was up to 1.6x slower
constexpr int32_t kBlockRows = 22, kBlockRowsMin = 12;
}  // namespace

int32_t choose_tile_block(const Kernel& kernel, const Problem& problem) {
  Problem two_phases = problem;
  two_phases.tile_block = 0;
  Geometry g{};
  kernel.geometry(two_phases, &g);
  const MachineBalance balance = balance_of(room_of(kernel), kernel.dtype);
  if (g.phases < 2 || ((double)g.shared_bytes <= balance.two_phase_bytes && g.rows <= kTwoPhasesRows)) return 0;
  const int64_t fit = (int64_t)(kBlockShare * balance.own_cache) / std::max<int64_t>(g.row_bytes, 1);
  const int32_t rows = (int32_t)std::clamp<int64_t>(fit, kBlockRowsMin, kBlockRows);
  const int32_t items = divide_up(g.rows, rows);
  Problem one_phase = problem;
  one_phase.tile_block = divide_up(g.rows, items);  // equal items
  kernel.geometry(one_phase, &g);
  if (g.phases != 1) return 0;  // some kernels have one schedule
  return estimate(kernel, one_phase, balance) < estimate(kernel, two_phases, balance) ? one_phase.tile_block : 0;
}

}  // namespace p2p
