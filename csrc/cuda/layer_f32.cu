#include "layer.cuh"

namespace p2p::cuda {
LayerKernel layer_f32(Kind kind, Tile tile) { return kernels_of<DType::kF32>(kind, tile); }
}  // namespace p2p::cuda
