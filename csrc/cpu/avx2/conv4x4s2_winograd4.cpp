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
#include "../body/conv4x4s2.inl"
}  // namespace

using Tiles4 = Convolution<F32, ConvWinograd<Winograd4>>;
extern const Kernel kConvWinograd4;
const Kernel kConvWinograd4 = {"avx2/conv4x4s2_winograd4_f32", Op::kConv, Algorithm::kWinograd4, DType::kF32,
                                 Tiles4::geometry, Tiles4::pack, Tiles4::run};
}  // namespace p2p::cpu::avx2
