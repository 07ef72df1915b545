// AVX-512 with bf16 dot products: operands and stored activations in bf16, everything else in the f32 of ../avx512/vec.h.
// A lane of a dot product consumes two neighbouring channels and adds both products to an f32 accumulator.
#include "../avx512/vec.h"

struct BF16 {
  static constexpr int kBytes = 2;
  static constexpr int kChunk = 32;  // channels in a 64-byte line
  static constexpr int kWord = 2;    // channels that one multiply consumes per lane
  static inline Vec load(const void* base, int64_t i) {
    const __m256i halves = _mm256_loadu_si256((const __m256i*)((const uint16_t*)base + i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static inline void store(void* base, int64_t i, Vec v) {
    _mm256_storeu_si256((__m256i*)((uint16_t*)base + i), (__m256i)_mm512_cvtneps_pbh(v));
  }
  // Round to nearest even, as the vector instruction does for finite values.
  static inline void store_scalar(void* base, int64_t i, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    bits = x != x ? bits | 0x400000 : bits + 0x7FFF + ((bits >> 16) & 1);  // rounding could make a number of a NaN
    ((uint16_t*)base)[i] = (uint16_t)(bits >> 16);
  }
  static inline Vec load_words(const char* p) { return _mm512_load_ps((const float*)p); }
  static inline Vec broadcast_word(const char* p) { return _mm512_set1_ps(*(const float*)p); }
  static inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
};
