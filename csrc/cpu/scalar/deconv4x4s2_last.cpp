// The last layer: the transposed convolution of deconv4x4s2_direct.cpp, then tanh, then a row of the picture.
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::scalar {
namespace {
#include "common.inl"

void geometry(const Problem& p, Geometry* g) {
  row_geometry(p, 4, g);
  g->stat_blocks = 0;
  g->scratch_bytes = ((int64_t)p.wo * p.co + p.co_stored) * 4;
}

void pack(const Problem& p, const float* raw, void* dst, int32_t tap) { pack_taps(p, raw, dst, tap, true); }

void run(const Problem& p, const Args& args, int32_t, int32_t y, void* scratch) {
  float* acc = (float*)scratch;
  float* row = acc + p.co_stored;
  for (int32_t x = 0; x < p.wo; ++x) {
    for (int32_t n = 0; n < p.co_stored; ++n) acc[n] = args.bias ? args.bias[n] : 0.0f;
    for (int32_t kh = (y + 1) % 2; kh < 4; kh += 2)
      for (int32_t kw = (x + 1) % 2; kw < 4; kw += 2)
        add_pixel(p, args, (y + 1 - kh) / 2, (x + 1 - kw) / 2, kh * 4 + kw, acc);
    for (int32_t n = 0; n < p.co; ++n) row[(int64_t)x * p.co + n] = args.tanh ? __builtin_tanhf(acc[n]) : acc[n];
  }
  args.picture.store_row(args.picture.context, y, row);
}

}  // namespace

extern const Kernel kDeconvLast;
const Kernel kDeconvLast = {"scalar/deconv4x4s2_last_f32", Op::kDeconvLast, Algorithm::kDirect, DType::kF32,
                            geometry, pack, run};
}  // namespace p2p::cpu::scalar
