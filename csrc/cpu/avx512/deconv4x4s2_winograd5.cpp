#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::avx512 {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/winograd.inl"
#include "../body/convolution.inl"
#include "../body/deconv4x4s2.inl"
}  // namespace

using Tiles5 = Convolution<F32, DeconvWinograd<Winograd5>>;
extern const Kernel kDeconvWinograd5;
const Kernel kDeconvWinograd5 = {"avx512/deconv4x4s2_winograd5_f32", Op::kDeconv, Algorithm::kWinograd5, DType::kF32,
                                 Tiles5::geometry, Tiles5::pack, Tiles5::run};
}  // namespace p2p::cpu::avx512
