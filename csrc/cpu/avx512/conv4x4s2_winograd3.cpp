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
}  // namespace

using Tiles3 = Convolution<F32, ConvWinograd<Winograd3>>;
extern const Kernel kConvWinograd3;
const Kernel kConvWinograd3 = {"avx512/conv4x4s2_winograd3_f32", Op::kConv, Algorithm::kWinograd3, DType::kF32,
                                 Tiles3::geometry, Tiles3::pack, Tiles3::run};
}  // namespace p2p::cpu::avx512
