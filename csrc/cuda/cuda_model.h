// The CUDA back-end behind backend.h. Throws BackendUnavailable where device 0 cannot run the kernels.
#pragma once
#include "../backend.h"

namespace p2p::cuda {

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options);

}  // namespace p2p::cuda
