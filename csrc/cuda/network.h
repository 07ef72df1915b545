// From layers to launches: packed weights, tiles and splits, buffers in the arena. No CUDA header: the host shim of the
// tests runs the same plan.
#pragma once
#include <string>
#include <vector>

#include "../backend.h"
#include "../model.h"
#include "kernels.h"

namespace p2p::cuda {

struct LayerShape {
  Kind kind;
  DType dtype;
  Tile tile;
  int32_t n, hi, wi;    // images; the padded input map
  int32_t c0, c1, co;   // true channels: skip (or the only input), decoder, output
  int32_t splits;
  int32_t cluster = 0;       // blocks of a stream kernel's cluster; 0: a kernel of layer.cuh
  int32_t stage_slices = 0;  // of a stream kernel; 0: as many as hold all weights
  bool patch = false;        // a kernel of patch.cuh
};

// What the plan must know of a device.
struct Limits {
  int32_t sms;
  // Bytes of shared memory: what a multiprocessor has, and what one block may take. 0: no clusters, so no stream kernels.
  int32_t sm_shared = 0, block_shared = 0;
};

// Kernel, tile, and splits or cluster for about one wave of the multiprocessors.
void choose_tile(LayerShape& shape, const Limits& limits);
// Everything but pointers.
Launch launch_of(const LayerShape& shape);

struct LayerNeeds {
  int64_t dst_bytes, stats_bytes, affine_bytes, partial_bytes;
  int32_t split_counters, stats_counters;
};
LayerNeeds needs_of(const Launch& launch);

int32_t stored(int32_t channels);
int32_t value_bytes(DType dtype);
// raw: PyTorch's order, (co, ci, 4, 4) or (ci, co, 4, 4).
std::vector<char> pack_weights(Kind kind, DType dtype, int32_t c0, int32_t c1, int32_t co, const float* raw);

struct PackedLayer {
  std::vector<char> weights;
  std::vector<float> bias, gamma, beta;  // empty where there is none
};
PackedLayer pack_layer(const Network& network, int32_t layer, DType dtype, const LayerTensors& tensors);

// Addresses of a packed layer.
struct LayerData {
  const void* weights;
  const float *bias, *gamma, *beta;
};

struct Step {
  Launch launch;
  int32_t input = -1, skip = -1;  // producing steps; -1: the picture / none
  // The step whose end this kernel's grid_wait awaits, and with it all that that one had awaited. Before it a kernel reads
  // weights and writes nothing. -1: none, the kernel begins as soon as the launch in front of it does.
  int32_t waits_for = -1;
  int64_t dst = -1, stats = -1, affine = -1, partial = -1;  // offsets in the arena
  int64_t counters = 0;           // first of this step, in words
};

struct Plan {
  int32_t n = 0, h = 0, w = 0;    // pictures as the caller sees them
  std::vector<Step> steps;
  int64_t arena_bytes = 0, counters = 0;
};

Kind kind_of(const Network& network, int32_t layer);
// keep: every output lives until the end and is the raw one, so that there are no stream kernels.
Plan make_plan(const Network& network, DType dtype, int32_t n, int32_t h, int32_t w, const Limits& limits, bool keep = false);
// Where all strides are zero, those of one dense piece; where scale is, 1.
Picture completed(Picture picture);
// Fills in the pointers. `dropout`: device memory {seed, frame} or null.
void bind(Plan& plan, const Network& network, const std::vector<LayerData>& layers, char* arena, uint32_t* counters,
          const Picture& in, const Picture& out, const uint64_t* dropout);

// "" if no kernel overwrites what one that it has not waited for may still read or write, and nobody overwrites what a later
// one is to read, and every map is normed once; else which steps are wrong, and where.
std::string hazard(const Plan& plan);

}  // namespace p2p::cuda
