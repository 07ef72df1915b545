// The first layer: the convolution of conv4x4s2_direct.cpp on rows of the picture. A row is padded by a zero pixel on
// both ends, so output pixel x meets row pixels 2 x .. 2 x + 3.
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::scalar {
namespace {
#include "common.inl"

void geometry(const Problem& p, Geometry* g) {
  row_geometry(p, 16, g);
  g->stat_blocks = 0;
  g->weight_bytes = g->read_bytes = 16ll * p.ci[0] * p.co_stored * 4;
  g->scratch_bytes = 4ll * (p.wi + 2) * p.ci[0] * 4;
  g->macs = (int64_t)g->rows * 16 * p.ci[0] * p.co_stored;
}

// [tap][channel of the picture][output channel]: the picture's channels are not padded.
void pack(const Problem& p, const float* raw, void* dst, int32_t tap) {
  float* out = (float*)dst + (int64_t)tap * p.ci[0] * p.co_stored;
  for (int32_t c = 0; c < p.ci[0]; ++c)
    for (int32_t n = 0; n < p.co; ++n) out[(int64_t)c * p.co_stored + n] = raw[((int64_t)n * p.ci[0] + c) * 16 + tap];
}

void run(const Problem& p, const Args& args, int32_t, int32_t y, void* scratch) {
  const float* rows = (const float*)scratch;
  args.picture.load_rows(args.picture.context, 2 * y - 1, 4, (float*)scratch);
  const int64_t row_floats = (int64_t)(p.wi + 2) * p.ci[0];
  write_row(p, args, y, [&](int32_t x, float* acc) {
    const float* weights = (const float*)args.weights;
    for (int32_t kh = 0; kh < 4; ++kh)
      for (int32_t kw = 0; kw < 4; ++kw)
        for (int32_t c = 0; c < p.ci[0]; ++c, weights += p.co_stored) {
          const float value = rows[kh * row_floats + (int64_t)(2 * x + kw) * p.ci[0] + c];
          for (int32_t n = 0; n < p.co_stored; ++n) acc[n] += value * weights[n];
        }
  });
}

}  // namespace

extern const Kernel kConvFirst;
const Kernel kConvFirst = {"scalar/conv4x4s2_first_f32", Op::kConvFirst, Algorithm::kDirect, DType::kF32,
                           geometry, pack, run};
}  // namespace p2p::cpu::scalar
