// What this machine can do with these threads, measured: the yardstick of traces and benchmarks.
#pragma once
#include "../trace.h"
#include "isa.h"
#include "kernels.h"
#include "threads.h"

namespace p2p::cpu {

// Arithmetic: the room's own product kernel on operands that stay in L1/L2. Memory: reading 256 MB once. About half a second,
// repeated calls for the same room and thread count answer from memory.
Peaks measured_peaks(Isa isa, DType dtype, ThreadPool& pool);

}  // namespace p2p::cpu
