#include "patch.cuh"
#include "stream.cuh"

namespace p2p::cuda {
LayerKernel layer_bf16(Kind kind, Tile tile) { return kernels_of<DType::kBF16>(kind, tile); }
LayerKernel patch_bf16(Kind kind, Tile tile) { return patch_kernels_of<DType::kBF16>(kind, tile); }
LayerKernel stream_bf16(Kind kind, Tile tile) { return stream_kernels_of<DType::kBF16>(kind, tile); }
}  // namespace p2p::cuda
