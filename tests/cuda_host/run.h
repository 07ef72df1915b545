// Runs launches of csrc/cuda on the host. Throws std::runtime_error naming what a kernel did wrong, thread and block.
#pragma once
#include "kernels.h"

namespace p2p::cuda::host {

// Global memory that kernels may read (or write, too); everything else is out of bounds.
void allow(const void* begin, int64_t bytes, bool writable);
void forbid_all();
void run(const Launch& launch, uint32_t seed);

}  // namespace p2p::cuda::host
