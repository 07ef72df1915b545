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
#include "../body/deconv4x4s2_last.inl"
}  // namespace

using Last = DeconvLast<F32>;
extern const Kernel kDeconvLast;
const Kernel kDeconvLast = {"avx2/deconv4x4s2_last_f32", Op::kDeconvLast, Algorithm::kDirect, DType::kF32,
                            Last::geometry, Last::pack, Last::run};
}  // namespace p2p::cpu::avx2
