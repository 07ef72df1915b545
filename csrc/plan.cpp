#include "plan.h"

#include <algorithm>

#include "check.h"
#include "choose.h"

namespace p2p {

using namespace cpu;

int32_t stored_channels(int32_t channels, DType dtype) {
  return (int32_t)round_up(channels, dtype == DType::kBF16 ? 32 : 16);
}

Op op_of(const Network& network, int32_t layer) {
  if (layer == 0) return Op::kConvFirst;
  if (layer == (int32_t)network.layers.size() - 1) return Op::kDeconvLast;
  return network.layers[layer].op == LayerOp::kConv4x4s2 ? Op::kConv : Op::kDeconv;
}

Problem problem_of(const Network& network, int32_t index, int32_t h, int32_t w, DType dtype) {
  const Layer& layer = network.layers[index];
  const int32_t depth = network.depth(), count = 2 * depth;
  const int32_t halvings = index < depth ? index : count - index;  // of the input map
  Problem p{};
  p.hi = h >> halvings;
  p.wi = w >> halvings;
  p.ho = index < depth ? p.hi / 2 : p.hi * 2;
  p.wo = index < depth ? p.wi / 2 : p.wi * 2;
  const int32_t skip = layer.skip_index >= 0 ? network.layers[layer.skip_index].co : 0;
  if (skip) {
    p.ci[0] = skip;
    p.ci[1] = layer.ci - skip;
    p.ci_stored[1] = stored_channels(p.ci[1], dtype);
  } else {
    p.ci[0] = layer.ci;
  }
  p.ci_stored[0] = stored_channels(p.ci[0], dtype);
  p.co = layer.co;
  p.co_stored = stored_channels(layer.co, dtype);
  return p;
}

Plan make_plan(const Network& network, const std::vector<const Kernel*>& kernels, int32_t h, int32_t w,
               const PlanOptions& options) {
  const int32_t count = (int32_t)network.layers.size();
  P2P_ASSERT((int32_t)kernels.size() == count && h % network.multiple() == 0 && w % network.multiple() == 0);
  Plan plan;
  plan.h = h;
  plan.w = w;
  plan.steps.resize(count);
  std::vector<int32_t> last_reader(count, 0);

  for (int32_t i = 0; i < count; ++i) {
    const Layer& layer = network.layers[i];
    Step& step = plan.steps[i];
    step.layer = i;
    step.kernel = kernels[i];
    step.problem = problem_of(network, i, h, w, options.dtype);
    step.problem.tile_block = choose_tile_block(*step.kernel, step.problem);
    step.problem.threads = options.threads;  // after the choice, which must not depend on it: other rows, other bits
    step.kernel->geometry(step.problem, &step.geometry);
    step.input = layer.input;
    step.skip = layer.skip_index;
    step.dropout = options.dropout && layer.dropout > 0;
    if (step.input >= 0) last_reader[step.input] = i;
    if (step.skip >= 0) last_reader[step.skip] = i;
    plan.scratch_bytes = std::max(plan.scratch_bytes, round_up(step.geometry.scratch_bytes, 64));
  }

  // Buffers and where their offsets go.
  std::vector<Lifetime> lifetimes;
  std::vector<int64_t*> targets;
  const auto want = [&](int64_t bytes, int32_t first, int32_t last, int64_t* target) {
    if (bytes == 0) return;
    lifetimes.push_back({bytes, first, options.keep ? count : last});
    targets.push_back(target);
  };
  int64_t shared_bytes = 0, shared = -1;
  for (int32_t i = 0; i < count; ++i) {
    Step& step = plan.steps[i];
    const Problem& p = step.problem;
    const bool last = i == count - 1;
    const int64_t element = options.dtype == DType::kBF16 ? 2 : 4;
    step.dst_bytes = last ? 0 : checked_product({p.ho, p.wo, p.co_stored, element});
    want(step.dst_bytes, i, last_reader[i], &step.dst);
    shared_bytes = std::max(shared_bytes, step.geometry.shared_bytes);
    if (!last) {
      want(4ll * p.co_stored, i, last_reader[i], &step.scale);
      want(4ll * p.co_stored, i, last_reader[i], &step.shift);
    }
    if (network.layers[i].norm) want(12ll * p.co_stored * step.geometry.stat_blocks, i, i, &step.stats);
  }
  // One place for every layer's A: what the last one left there is in the shared cache, which a write from memory would wait for.
  want(shared_bytes, 0, count, &shared);
  const std::vector<int64_t> offsets = place(lifetimes, 64, &plan.arena_bytes);
  for (size_t b = 0; b < offsets.size(); ++b) *targets[b] = offsets[b];
  for (Step& step : plan.steps)
    if (step.geometry.shared_bytes > 0) step.shared = shared;
  return plan;
}

}  // namespace p2p
