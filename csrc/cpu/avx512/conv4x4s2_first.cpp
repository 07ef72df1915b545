#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::avx512 {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/conv4x4s2_first.inl"
}  // namespace

using First = ConvFirst<F32>;
extern const Kernel kConvFirst;
const Kernel kConvFirst = {"avx512/conv4x4s2_first_f32", Op::kConvFirst, Algorithm::kDirect, DType::kF32,
                           First::geometry, First::pack, First::run};
}  // namespace p2p::cpu::avx512
