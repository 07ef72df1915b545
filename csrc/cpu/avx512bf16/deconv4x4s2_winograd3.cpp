#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::avx512bf16 {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/winograd.inl"
#include "../body/convolution.inl"
#include "../body/deconv4x4s2.inl"
}  // namespace

using Tiles3 = Convolution<BF16, DeconvWinograd<Winograd3>>;
extern const Kernel kDeconvWinograd3;
const Kernel kDeconvWinograd3 = {"avx512bf16/deconv4x4s2_winograd3_bf16", Op::kDeconv, Algorithm::kWinograd3, DType::kBF16,
                                 Tiles3::geometry, Tiles3::pack, Tiles3::run};
}  // namespace p2p::cpu::avx512bf16
