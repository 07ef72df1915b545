// Every environment variable of the C++ core, read once, here.
//   P2P_ISA    force a room: scalar, avx2, avx512, avx512bf16, amx (one that this CPU cannot run is an error)
//   P2P_TRACE  1: after each call, print every step's time, GFLOP/s and share of its floor to stderr
//   P2P_CUDA_PDL  1: programmatic dependent launch between the CUDA kernels (compute capability 9.0 and newer)
//   P2P_CUDA_CLUSTER  0: no kernels with thread-block clusters (which need compute capability 9.0)
#pragma once
#include <string>

namespace p2p {

struct Environment {
  std::string isa;     // empty: the best that this CPU runs
  bool trace = false;
  bool cuda_pdl = false;  // off until it has been timed on a GPU
  bool cuda_cluster = true;
};

const Environment& environment();

}  // namespace p2p
