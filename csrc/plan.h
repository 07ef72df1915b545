// Layers -> steps for one padded size: kernel, problem, geometry, and where everything lives in the arena.
//
// One step per layer: norm, activation, padding, concatenation and statistics are inside the convolutions. A layer's output
// is stored before its norm; the step that reads it applies x * scale + shift and the activation on load.
#pragma once
#include <vector>

#include "arena.h"
#include "cpu/kernels.h"
#include "model.h"

namespace p2p {

struct Step {
  int32_t layer;
  const cpu::Kernel* kernel;
  cpu::Problem problem;
  cpu::Geometry geometry;
  int32_t input = -1, skip = -1;  // producing steps; -1 = the picture / none
  bool dropout = false;           // an extra phase on the output
  // Offsets in the arena; -1 where the step has no such buffer.
  int64_t dst = -1, stats = -1, shared = -1, scale = -1, shift = -1;
  int64_t dst_bytes = 0;
};

struct Plan {
  int32_t h = 0, w = 0;  // padded
  std::vector<Step> steps;
  int64_t arena_bytes = 0;
  int64_t scratch_bytes = 0;  // per thread
};

struct PlanOptions {
  cpu::DType dtype = cpu::DType::kF32;
  bool dropout = false;
  bool keep = false;  // every output lives until the end (tests look at them)
  int32_t threads = 1;
};

int32_t stored_channels(int32_t channels, cpu::DType dtype);
cpu::Op op_of(const Network& network, int32_t layer);
// The problem of a layer at a padded picture size, tile_block = 0.
cpu::Problem problem_of(const Network& network, int32_t layer, int32_t h, int32_t w, cpu::DType dtype);
// kernels[i] runs layer i (its weights are packed for it).
Plan make_plan(const Network& network, const std::vector<const cpu::Kernel*>& kernels, int32_t h, int32_t w,
               const PlanOptions& options);

}  // namespace p2p
