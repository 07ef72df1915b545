// All kernels of all rooms, and the question which of them a room may run.
#pragma once
#include <string>
#include <vector>

#include "isa.h"
#include "kernels.h"

namespace p2p::cpu {

// Every kernel compiled in, best room first, runnable here or not.
std::vector<const Kernel*> all_kernels();
// The kernels of `isa` and of the rooms below it, best first.
std::vector<const Kernel*> kernels_for(Isa isa);
// By id; throws std::invalid_argument for an unknown one, BackendUnavailable where this CPU cannot run it.
const Kernel& kernel_by_id(const std::string& id);
Isa room_of(const Kernel& kernel);
// Null where none fits. Among equal kernels the best room wins.
const Kernel* find_kernel(Isa isa, Op op, Algorithm algorithm, DType dtype);
// A convolution that shows what the best room computes, at best.
const Kernel* plain_kernel(Isa isa, DType dtype);

}  // namespace p2p::cpu
