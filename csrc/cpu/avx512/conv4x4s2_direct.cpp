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

// Not for layers: its weights need no unpacking, so that it shows the room's arithmetic (peaks.cpp).
using Plain = Convolution<F32, ConvDirect>;
extern const Kernel kConvPlain;
const Kernel kConvPlain = {"avx512/conv4x4s2_plain_f32", Op::kConv, Algorithm::kDirect, DType::kF32,
                           Plain::geometry, Plain::pack, Plain::run};
}  // namespace p2p::cpu::avx512
