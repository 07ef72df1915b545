// AMX: products of 16x16x32 bf16 tiles; everything else in the AVX-512 and bf16 words of ../avx512bf16/vec.h.
#include "../avx512bf16/vec.h"

constexpr int64_t kStreamAhead = 32768;  // bytes of weights that memory is asked for ahead of their use
constexpr int64_t kColdAhead = 8192;
constexpr int kStreamLocality = 2;  // into L2: L1 has too few lines in flight to hide memory

inline void clear(char* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm512_store_si512(at + i, _mm512_setzero_si512());
}

// One row of the input, all sources, normed and activated, as pixels of bf16 `pixel` bytes apart.
template <class E>
inline void normalise_row(const Problem& p, const Args& args, int32_t y, char* dst, int64_t pixel) {
  const Vec slope = broadcast(args.slope);
  int64_t at = 0;
  for (int32_t s = 0; s < 2; ++s) {
    const Source& source = args.src[s];
    const int32_t channels = p.ci_stored[s];
    for (int32_t c = 0; c < channels; c += kWidth) {
      const Vec scale = load(source.scale + c), shift = load(source.shift + c);
      const int64_t first = (int64_t)y * p.wi * channels + c;
      char* out = dst + (at + c) * E::kBytes;
      for (int32_t x = 0; x < p.wi; ++x, out += pixel) {
        const Vec v = fma(E::load(source.data, first + (int64_t)x * channels), scale, shift);
        E::store(out, 0, max(v, mul(v, slope)));
      }
    }
    at += channels;
  }
}
