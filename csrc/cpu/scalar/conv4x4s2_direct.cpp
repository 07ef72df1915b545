// The 4x4, stride 2, padding 1 convolution as written: y[oy][ox] = sum over kh, kw of x[2 oy - 1 + kh][2 ox - 1 + kw] w[kh][kw].
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::scalar {
namespace {
#include "common.inl"

void geometry(const Problem& p, Geometry* g) { row_geometry(p, 16, g); }

void pack(const Problem& p, const float* raw, void* dst, int32_t tap) { pack_taps(p, raw, dst, tap, false); }

void run(const Problem& p, const Args& args, int32_t, int32_t y, void*) {
  write_row(p, args, y, [&](int32_t x, float* acc) {
    for (int32_t kh = 0; kh < 4; ++kh)
      for (int32_t kw = 0; kw < 4; ++kw) add_pixel(p, args, 2 * y - 1 + kh, 2 * x - 1 + kw, kh * 4 + kw, acc);
  });
}

}  // namespace

extern const Kernel kConvDirect;
const Kernel kConvDirect = {"scalar/conv4x4s2_direct_f32", Op::kConv, Algorithm::kDirect, DType::kF32, geometry, pack, run};
}  // namespace p2p::cpu::scalar
