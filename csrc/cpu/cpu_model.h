// The CPU back-end: packs weights once, keeps an executable (plan + arena) per picture size, walks the steps on its pool.
#pragma once
#include "../backend.h"

namespace p2p::cpu {

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options);

}  // namespace p2p::cpu
