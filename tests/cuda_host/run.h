// Runs launches of csrc/cuda on the host. Throws std::runtime_error naming what a kernel did wrong, thread and block.
#pragma once
#include "kernels.h"

namespace p2p::cuda::host {

// Global memory that kernels may use; everything else is out of bounds.
enum class Memory {
  kConstant,  // weights and the like, written before any kernel: to be read, even before grid_wait
  kInput,     // to be read after grid_wait
  kOutput,    // to be read and written after grid_wait
};
void allow(const void* begin, int64_t bytes, Memory memory);
// true: no access is out of bounds, so that a sanitizer may be the one to find it.
void trust(bool all);
void forbid_all();
void run(const Launch& launch, uint32_t seed);

}  // namespace p2p::cuda::host
