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

using Tiles4 = Convolution<F32, DeconvWinograd<Winograd4, PhaseTiles::kOwn>>;
extern const Kernel kDeconvWinograd4;
const Kernel kDeconvWinograd4 = {"avx2/deconv4x4s2_winograd4_f32", Op::kDeconv, Algorithm::kWinograd4, DType::kF32,
                                 Tiles4::geometry, Tiles4::pack, Tiles4::run};
}  // namespace p2p::cpu::avx2
