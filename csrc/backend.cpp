#include "backend.h"

#include "check.h"
#include "cpu/cpu_model.h"

namespace p2p {

const char* precision_name(Precision precision) { return precision == Precision::kBF16 ? "bf16" : "f32"; }

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options) {
  validate(network);
  return cpu::compile(std::move(network), weights, options);
}

}  // namespace p2p
