// Between a producer and its consumers: partial statistics -> scale and shift; and the dropout pass, where it is on.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace p2p::cpu {

struct NormParameters {
  const float* gamma;  // co_stored values, 0 in the padding
  const float* beta;
  float eps;
};

// stats: [blocks][3][channels] as kernels write them. scale = gamma / sqrt(var + eps), shift = beta - mean * scale, with
// the biased variance. Merged in double and in block order: the same bits whoever computed the blocks. A channel that is
// constant over the picture gives exactly beta (scale 0), as (x - mean) = 0 does.
void finish_norm(const float* stats, int32_t blocks, int32_t channels, const NormParameters& norm, float* scale,
                 float* shift);

// One row of the output map: x = keep ? 2 * (x * scale + shift) : 0, in place; the consumer's scale and shift become 1 and
// 0 afterwards. Counter-based: which elements are kept depends on (seed, frame, layer, element) alone.
void apply_dropout(const Problem& problem, DType dtype, void* dst, const float* scale, const float* shift, int32_t row,
                   uint64_t seed, uint64_t frame, uint64_t layer);

float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);  // nearest, ties to even

}  // namespace p2p::cpu
