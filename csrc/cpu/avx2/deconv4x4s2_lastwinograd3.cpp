#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::avx2 {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/winograd.inl"
#include "../body/convolution.inl"
#include "../body/deconv4x4s2.inl"
#include "../body/deconv4x4s2_last.inl"
#include "../body/deconv4x4s2_last_winograd.inl"
}  // namespace

using Last = DeconvLastWinograd;
extern const Kernel kDeconvLastWinograd3;
const Kernel kDeconvLastWinograd3 = {"avx2/deconv4x4s2_lastwinograd3_f32", Op::kDeconvLast, Algorithm::kWinograd3, DType::kF32,
                                     Last::geometry, Last::pack, Last::run};
}  // namespace p2p::cpu::avx2
