// Which algorithm and schedule a layer gets: pure functions of the problem, so that the same model gives the same bits for
// every thread count and in every process.
#pragma once
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace p2p {

// What the cost model believes about a machine: two threads of the class of CPU that the room is for. The algorithm must not
// depend on the thread count (other algorithm, other bits), so the balance of two threads serves all.
struct MachineBalance {
  double flops;            // multiply-adds count as two; what the product reaches inside a network
  double weight_bytes;     // per second from memory, streamed
  double shared_bytes;     // per second from the shared cache
  double transform_bytes;  // per second through transforms
  double own_cache;        // bytes of a core's own cache
  double kept_weights;     // bytes of weights that stay in the shared cache beside all else
  double two_phase_bytes;  // of A at a time, up to which two phases win whatever the estimate says
};
MachineBalance balance_of(cpu::Isa isa, cpu::DType dtype);

// Estimated seconds of one run.
double estimate(const cpu::Kernel& kernel, const cpu::Problem& problem, const MachineBalance& balance);

// The cheapest kernel of this op for the problem.
const cpu::Kernel& choose_kernel(cpu::Isa isa, cpu::Op op, cpu::DType dtype, const cpu::Problem& problem);

// Rows per item of the one-phase schedule, or 0 for two phases through a shared buffer.
int32_t choose_tile_block(const cpu::Kernel& kernel, const cpu::Problem& problem);

}  // namespace p2p
