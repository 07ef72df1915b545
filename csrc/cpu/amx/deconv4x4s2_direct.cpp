#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::amx {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/winograd.inl"
#include "../body/convolution.inl"
#include "../body/deconv4x4s2.inl"
#include "tiles.inl"
}  // namespace

using Direct = TileConvolution<DeconvDirect, false>;
extern const Kernel kDeconvDirect;
const Kernel kDeconvDirect = {"amx/deconv4x4s2_direct_bf16", Op::kDeconv, Algorithm::kDirect, DType::kBF16,
                            Direct::geometry, Direct::pack, Direct::run};
}  // namespace p2p::cpu::amx
