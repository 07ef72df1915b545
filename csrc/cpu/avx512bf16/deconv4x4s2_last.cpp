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
#include "../body/deconv4x4s2_last.inl"
}  // namespace

using Last = DeconvLast<BF16>;
extern const Kernel kDeconvLast;
const Kernel kDeconvLast = {"avx512bf16/deconv4x4s2_last_bf16", Op::kDeconvLast, Algorithm::kDirect, DType::kBF16,
                            Last::geometry, Last::pack, Last::run};
}  // namespace p2p::cpu::avx512bf16
