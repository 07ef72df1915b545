#include "backend.h"

#include "check.h"
#include "cpu/cpu_model.h"
#ifdef P2P_CUDA
#include "cuda/cuda_model.h"
#endif

namespace p2p {

const char* precision_name(Precision precision) {
  return precision == Precision::kF16 ? "f16" : precision == Precision::kBF16 ? "bf16" : "f32";
}

void CompiledModel::run_on(const ImageView&, const ImageView&, uint64_t, std::optional<uintptr_t>) {
  P2P_REQUIRE(false, "this engine computes on the CPU and takes no device memory");
}
std::vector<double> CompiledModel::timed_graph(int32_t, int32_t, int32_t, int32_t, int64_t) {
  P2P_REQUIRE(false, "this engine computes on the CPU and has no graph");
  return {};
}

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options) {
  validate(network);
  if (options.device == Device::kCuda) {
#ifdef P2P_CUDA
    return cuda::compile(std::move(network), weights, options);
#else
    throw BackendUnavailable(kNoCuda);
#endif
  }
  if (options.precision == Precision::kF16)
    throw BackendUnavailable("precision='f16' is for GPUs; the cpu back-end computes in 'f32' or 'bf16'");
  return cpu::compile(std::move(network), weights, options);
}

}  // namespace p2p
