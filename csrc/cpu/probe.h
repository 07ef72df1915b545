// One kernel on plain arrays: the door of the kernel tests and of bench/kernels.py. The same structs, packing and items as
// in a network; nothing of it runs in a translate call.
#pragma once
#include <string>
#include <vector>

namespace p2p::cpu {

struct ProbeInput {
  std::string kernel;               // id
  int hi, wi, ci0, ci1, co;         // ci1 = 0: one source
  const float *src0, *src1;         // (hi, wi, ci): before the norm
  const float *scale0, *shift0, *scale1, *shift1;  // null: 1 and 0
  const float* weight;              // PyTorch order
  const float* bias;                // or null
  float slope;
  bool tanh;
  int tile_block;                   // -1: the engine's choice; 0: two phases; n > 0: one phase
  int threads;
  int repeats;                      // timed runs after the first
};

struct ProbeOutput {
  std::vector<float> dst;           // (ho, wo, co)
  std::vector<float> scale, shift;  // of a norm with gamma 1, beta 0, eps 1e-5; empty for first and last layers
  std::vector<double> seconds;      // one per repeat
  long long macs, weight_bytes;
  int phases;                       // 1, or 2 for each turn
  int stat_blocks;                  // partial statistics per channel: parts of the rows times output phases
};

// Throws std::invalid_argument, or BackendUnavailable where this CPU cannot run the kernel.
ProbeOutput probe(const ProbeInput& input);

}  // namespace p2p::cpu
