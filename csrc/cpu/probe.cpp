#include "probe.h"

#include <algorithm>
#include <chrono>

#include "../arena.h"
#include "../check.h"
#include "../choose.h"
#include "../image.h"
#include "../plan.h"
#include "norm.h"
#include "registry.h"
#include "threads.h"

namespace p2p::cpu {

namespace {

// (h, w, c) floats -> stored channels and element type.
Memory stored(const float* values, int64_t pixels, int32_t c, int32_t c_stored, DType dtype) {
  Memory memory(pixels * c_stored * 4);
  for (int64_t i = 0; i < pixels; ++i)
    for (int32_t k = 0; k < c; ++k) {
      if (dtype == DType::kF32) ((float*)memory.data())[i * c_stored + k] = values[i * c + k];
      else ((uint16_t*)memory.data())[i * c_stored + k] = f32_to_bf16(values[i * c + k]);
    }
  return memory;
}

std::vector<float> padded(const float* values, int32_t c, int32_t c_stored, float otherwise) {
  std::vector<float> v(c_stored, 0.0f);
  for (int32_t k = 0; k < c; ++k) v[k] = values ? values[k] : otherwise;
  return v;
}

}  // namespace

ProbeOutput probe(const ProbeInput& in) {
  const Kernel& kernel = kernel_by_id(in.kernel);
  const bool first = kernel.op == Op::kConvFirst, last = kernel.op == Op::kDeconvLast;
  const bool down = first || kernel.op == Op::kConv;
  P2P_REQUIRE(in.hi >= 1 && in.wi >= 1 && in.ci0 >= 1 && in.ci1 >= 0 && in.co >= 1, "sizes must be positive");
  P2P_REQUIRE(!down || (in.hi % 2 == 0 && in.wi % 2 == 0), "a convolution needs even sizes, got ", in.hi, "x", in.wi);
  P2P_REQUIRE(!first || in.ci1 == 0, "the first layer has one source");
  P2P_REQUIRE(in.threads >= 1 && in.threads <= 64 && in.repeats >= 0, "threads must be 1..64");

  Problem p{};
  p.hi = in.hi;
  p.wi = in.wi;
  p.ho = down ? in.hi / 2 : in.hi * 2;
  p.wo = down ? in.wi / 2 : in.wi * 2;
  p.ci[0] = in.ci0;
  p.ci[1] = in.ci1;
  p.ci_stored[0] = stored_channels(in.ci0, kernel.dtype);
  p.ci_stored[1] = in.ci1 ? stored_channels(in.ci1, kernel.dtype) : 0;
  p.co = in.co;
  p.co_stored = stored_channels(in.co, kernel.dtype);
  p.tile_block = in.tile_block >= 0 ? in.tile_block : choose_tile_block(kernel, p);
  p.threads = in.threads;
  Geometry g{};
  kernel.geometry(p, &g);

  ThreadPool pool(in.threads);
  const Memory weights(g.weight_bytes + 4096), shared(g.shared_bytes), scratch(round_up(g.scratch_bytes, 64) * in.threads);
  for (int32_t item = 0; item < g.pack_items; ++item) kernel.pack(p, in.weight, weights.data(), item);
  const int64_t pixels = (int64_t)p.hi * p.wi, outputs = (int64_t)p.ho * p.wo;
  const Memory src0 = first ? Memory(64) : stored(in.src0, pixels, in.ci0, p.ci_stored[0], kernel.dtype);
  const Memory src1 = in.ci1 ? stored(in.src1, pixels, in.ci1, p.ci_stored[1], kernel.dtype) : Memory(64);
  const Memory dst(last ? 64 : outputs * p.co_stored * 4), stats(12ll * std::max(g.stat_blocks, 1) * p.co_stored);
  const std::vector<float> scale0 = padded(in.scale0, in.ci0, p.ci_stored[0], 1), shift0 = padded(in.shift0, in.ci0, p.ci_stored[0], 0);
  const std::vector<float> scale1 = padded(in.scale1, in.ci1, p.ci_stored[1], 1), shift1 = padded(in.shift1, in.ci1, p.ci_stored[1], 0);
  const std::vector<float> bias = padded(in.bias, in.co, p.co_stored, 0);

  ProbeOutput out;
  out.dst.resize(outputs * p.co);
  const auto rows = reflect_indices(p.hi, p.hi), columns = reflect_indices(p.wi, p.wi);
  const ImageView source{(char*)in.src0, PixelType::kF32, 1, p.hi, p.wi, in.ci0, 0, 4ll * p.wi * in.ci0, 4ll * in.ci0, 4, -1, 1};
  const ImageView target{(char*)out.dst.data(), PixelType::kF32, 1, p.ho, p.wo, p.co, 0, 4ll * p.wo * p.co, 4ll * p.co, 4, -1, 1};
  const BoundPicture picture{&source, &target, 0, p.hi, p.wi, rows.data(), columns.data()};

  struct Job {
    const Kernel& kernel;
    const Problem& p;
    const Geometry& g;
    Args args;
    char* scratch;
    Barrier barrier;
    std::vector<std::atomic<int32_t>> next;  // of each phase
  } job{kernel, p, g, {}, scratch.data(), Barrier(in.threads), std::vector<std::atomic<int32_t>>(g.phases)};
  job.args.src[0] = {src0.data(), scale0.data(), shift0.data()};
  job.args.src[1] = {src1.data(), scale1.data(), shift1.data()};
  job.args.slope = in.slope;
  job.args.weights = weights.data();
  job.args.bias = in.bias ? bias.data() : nullptr;
  job.args.dst = dst.data();
  job.args.stats = g.stat_blocks ? (float*)stats.data() : nullptr;
  job.args.shared = shared.data();
  job.args.picture = {(void*)&picture, load_rows, store_row};
  job.args.tanh = in.tanh;
  const auto work = [](void* context, int thread) {
    Job& j = *(Job*)context;
    for (int32_t phase = 0; phase < j.g.phases; ++phase) {
      for (int32_t item; (item = j.next[phase].fetch_add(1)) < j.g.items[phase % 2];)
        j.kernel.run(j.p, j.args, phase, item, j.scratch + thread * round_up(j.g.scratch_bytes, 64));
      j.barrier.arrive([] {});
    }
  };
  for (int r = 0; r <= in.repeats; ++r) {
    for (auto& next : job.next) next = 0;
    const auto start = std::chrono::steady_clock::now();
    pool.run(work, &job);
    if (r) out.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  if (!last)
    for (int64_t i = 0; i < outputs; ++i)
      for (int32_t c = 0; c < p.co; ++c) {
        const int64_t at = i * p.co_stored + c;
        out.dst[i * p.co + c] =
            kernel.dtype == DType::kF32 ? ((const float*)dst.data())[at] : bf16_to_f32(((const uint16_t*)dst.data())[at]);
      }
  if (g.stat_blocks) {
    const std::vector<float> ones(p.co_stored, 1.0f), zeros(p.co_stored, 0.0f);
    out.scale.resize(p.co_stored);
    out.shift.resize(p.co_stored);
    finish_norm((const float*)stats.data(), g.stat_blocks, p.co_stored, {ones.data(), zeros.data(), 1e-5f},
                out.scale.data(), out.shift.data());
    out.scale.resize(p.co);
    out.shift.resize(p.co);
  }
  out.macs = g.macs;
  out.phases = g.phases;
  out.weight_bytes = g.read_bytes;
  out.stat_blocks = g.stat_blocks;
  return out;
}

}  // namespace p2p::cpu
