// P2P_ALSO_AVX2: compile a function for AVX2 as well; the loader picks. For plain loops outside the rooms, whose results do
// not depend on the width of a vector: AVX2 alone brings no fused multiply-add, so the bits are the same. Only for functions
// of an anonymous namespace: GCC gives the dispatcher of any other default visibility. Needs glibc's indirect functions,
// which the start-up of sanitizers does not bear (CMakeLists.txt defines P2P_NO_CLONES for them).
#pragma once
#include <cstdint>  // __GLIBC__

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__UCLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(P2P_NO_CLONES)
#define P2P_ALSO_AVX2 __attribute__((target_clones("avx2", "default")))
#else
#define P2P_ALSO_AVX2
#endif
