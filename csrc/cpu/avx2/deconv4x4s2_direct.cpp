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

using Direct = Convolution<Fixed24, DeconvDirect>;
extern const Kernel kDeconvDirect;
const Kernel kDeconvDirect = {"avx2/deconv4x4s2_direct_f32", Op::kDeconv, Algorithm::kDirect, DType::kF32,
                              Direct::geometry, Direct::pack, Direct::run};
}  // namespace p2p::cpu::avx2
