// The 4x4, stride 2, padding 1 transposed convolution as written: input pixel i meets output y = 2 i - 1 + k with tap k, so
// output y takes the taps k of the parity of y + 1 from input (y + 1 - k) / 2.
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::scalar {
namespace {
#include "common.inl"

void geometry(const Problem& p, Geometry* g) { row_geometry(p, 4, g); }

void pack(const Problem& p, const float* raw, void* dst, int32_t tap) { pack_taps(p, raw, dst, tap, true); }

void run(const Problem& p, const Args& args, int32_t, int32_t y, void*) {
  write_row(p, args, y, [&](int32_t x, float* acc) {
    for (int32_t kh = (y + 1) % 2; kh < 4; kh += 2)
      for (int32_t kw = (x + 1) % 2; kw < 4; kw += 2)
        add_pixel(p, args, (y + 1 - kh) / 2, (x + 1 - kw) / 2, kh * 4 + kw, acc);
  });
}

}  // namespace

extern const Kernel kDeconvDirect;
const Kernel kDeconvDirect = {"scalar/deconv4x4s2_direct_f32", Op::kDeconv, Algorithm::kDirect, DType::kF32,
                              geometry, pack, run};
}  // namespace p2p::cpu::scalar
