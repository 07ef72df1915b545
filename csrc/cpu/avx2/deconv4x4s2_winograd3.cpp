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
}  // namespace

using Tiles3 = Convolution<F32, DeconvWinograd<Winograd3>>;
extern const Kernel kDeconvWinograd3;
const Kernel kDeconvWinograd3 = {"avx2/deconv4x4s2_winograd3_f32", Op::kDeconv, Algorithm::kWinograd3, DType::kF32,
                                 Tiles3::geometry, Tiles3::pack, Tiles3::run};
}  // namespace p2p::cpu::avx2
