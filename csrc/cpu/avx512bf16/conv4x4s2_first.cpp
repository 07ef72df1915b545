#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::avx512bf16 {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/conv4x4s2_first.inl"
}  // namespace

using First = ConvFirst<BF16>;
extern const Kernel kConvFirst;
const Kernel kConvFirst = {"avx512bf16/conv4x4s2_first_bf16", Op::kConvFirst, Algorithm::kDirect, DType::kBF16,
                           First::geometry, First::pack, First::run};
}  // namespace p2p::cpu::avx512bf16
