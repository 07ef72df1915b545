// The room's only outside symbol. Best first within an op; the choice per layer is made in csrc/choose.cpp.
#include "../kernels.h"

namespace p2p::cpu::avx512 {
extern const Kernel kConvPlain, kConvFirst, kConvDirect, kConvWinograd3, kConvWinograd2Taps, kConvWinograd4, kConvWinograd4Taps,
    kConvWinograd4Columns, kDeconvDirect, kDeconvWinograd3, kDeconvWinograd2Taps, kDeconvWinograd4, kDeconvWinograd4Taps,
    kDeconvWinograd4Columns, kDeconvWinograd5, kDeconvLast;

namespace {
const Kernel* const kKernels[] = {
    &kConvFirst,           &kConvWinograd3,     &kConvWinograd2Taps,      &kConvWinograd4,     &kConvWinograd4Taps,
    &kConvWinograd4Columns, &kConvDirect,       &kDeconvWinograd3,        &kDeconvWinograd2Taps, &kDeconvWinograd4,
    &kDeconvWinograd4Taps, &kDeconvWinograd4Columns, &kDeconvWinograd5,   &kDeconvDirect,      &kDeconvLast};
}

extern const KernelTable kTable;
const KernelTable kTable = {kKernels, sizeof(kKernels) / sizeof(kKernels[0]), &kConvPlain};
}  // namespace p2p::cpu::avx512
