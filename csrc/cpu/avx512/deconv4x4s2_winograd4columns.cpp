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
#include "../body/deconv4x4s2.inl"
#include "../body/taps.inl"
#include "../body/columns.inl"
}  // namespace

using Columns = ColumnsConvolution<DeconvWinograd<Winograd4Taps, PhaseTiles::kOwn>>;
extern const Kernel kDeconvWinograd4Columns;
const Kernel kDeconvWinograd4Columns = {
    "avx512/deconv4x4s2_winograd4columns_f32", Op::kDeconv, Algorithm::kWinograd4Columns, DType::kF32,
    Columns::geometry, Columns::pack, Columns::run};
}  // namespace p2p::cpu::avx512
