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
#include "../body/taps.inl"
}  // namespace

using Taps = TapsConvolution<DeconvWinograd<Winograd2Taps, PhaseTiles::kOwn>>;
extern const Kernel kDeconvWinograd2Taps;
const Kernel kDeconvWinograd2Taps = {"avx512/deconv4x4s2_winograd2taps_f32", Op::kDeconv, Algorithm::kWinograd2Taps, DType::kF32,
                                 Taps::geometry, Taps::pack, Taps::run};
}  // namespace p2p::cpu::avx512
