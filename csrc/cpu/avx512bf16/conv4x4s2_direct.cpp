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
#include "../body/conv4x4s2.inl"
}  // namespace

using Direct = Convolution<BF16, ConvDirect>;
extern const Kernel kConvDirect;
const Kernel kConvDirect = {"avx512bf16/conv4x4s2_direct_bf16", Op::kConv, Algorithm::kDirect, DType::kBF16,
                              Direct::geometry, Direct::pack, Direct::run};
}  // namespace p2p::cpu::avx512bf16
