#include "layer.cuh"

namespace p2p::cuda {
LayerKernel layer_f16(Kind kind, Tile tile) { return kernels_of<DType::kF16>(kind, tile); }
}  // namespace p2p::cuda
