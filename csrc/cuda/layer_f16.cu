#include "patch.cuh"
#include "stream.cuh"

namespace p2p::cuda {
LayerKernel layer_f16(Kind kind, Tile tile) { return kernels_of<DType::kF16>(kind, tile); }
LayerKernel patch_f16(Kind kind, Tile tile) { return patch_kernels_of<DType::kF16>(kind, tile); }
LayerKernel stream_f16(Kind kind, Tile tile) { return stream_kernels_of<DType::kF16>(kind, tile); }
}  // namespace p2p::cuda
