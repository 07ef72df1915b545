// The room's only outside symbol.
#include "../kernels.h"

namespace p2p::cpu::amx {
extern const Kernel kConvFirst, kConvDirect, kDeconvDirect, kDeconvLast;

namespace {
const Kernel* const kKernels[] = {&kConvFirst, &kConvDirect, &kDeconvDirect, &kDeconvLast};
}

extern const KernelTable kTable;
const KernelTable kTable = {kKernels, sizeof(kKernels) / sizeof(kKernels[0])};
}  // namespace p2p::cpu::amx
