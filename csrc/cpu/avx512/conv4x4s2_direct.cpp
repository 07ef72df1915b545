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

using Direct = Convolution<Fixed24, ConvDirect>;
extern const Kernel kConvDirect;
const Kernel kConvDirect = {"avx512/conv4x4s2_direct_f32", Op::kConv, Algorithm::kDirect, DType::kF32,
                              Direct::geometry, Direct::pack, Direct::run};
}  // namespace p2p::cpu::avx512
