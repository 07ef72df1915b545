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
#include "../body/conv4x4s2.inl"
#include "../body/taps.inl"
}  // namespace

using Taps = TapsConvolution<ConvWinograd<Winograd4Taps>>;
extern const Kernel kConvWinograd4Taps;
const Kernel kConvWinograd4Taps = {
    "avx512/conv4x4s2_winograd4taps_f32", Op::kConv, Algorithm::kWinograd4Taps, DType::kF32,
    Taps::geometry, Taps::pack, Taps::run};
}  // namespace p2p::cpu::avx512
