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
#include "../body/taps.inl"
#include "../body/columns.inl"
}  // namespace

using Columns = ColumnsConvolution<ConvWinograd<Winograd4Taps>>;
extern const Kernel kConvWinograd4Columns;
const Kernel kConvWinograd4Columns = {
    "avx512/conv4x4s2_winograd4columns_f32", Op::kConv, Algorithm::kWinograd4Columns, DType::kF32,
    Columns::geometry, Columns::pack, Columns::run};
}  // namespace p2p::cpu::avx512
