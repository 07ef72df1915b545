// AVX2 + FMA: 8 float lanes, 16 registers. Included inside the room's anonymous namespace.
// Register tile 6 x 2: 12 accumulators + 2 columns of weights + 1 broadcast = 15 of 16.

using Vec = __m256;
constexpr int kWidth = 8;
constexpr int kRowsMax = 6;
constexpr int kPanelVecs = 2;
constexpr int kTileUnroll = 1;  // a transform's tile does not fit 16 registers: rows and columns one by one, little code
constexpr int64_t kOwnC = 160 << 10;  // of C; a third of a Zen 3's own cache
constexpr int kTapLinesLog2 = 2;  // 64 channels x 4 taps x 64 bytes = 16 KB, and 8 KB kept: three quarters of L1

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec round_nearest(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
inline Vec power_of_two(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

// Four vectors of whole numbers of 24 bits, times 256, from three (../body/fixed24.inl).
inline void load24(const char* p, Vec w[4]) {
  const auto* from = (const __m256i*)p;
  const __m256i a = _mm256_load_si256(from), b = _mm256_load_si256(from + 1), c = _mm256_load_si256(from + 2);
  const __m256i upper = _mm256_set1_epi32(-256), low = _mm256_set1_epi32(255);
  w[0] = _mm256_cvtepi32_ps(_mm256_and_si256(a, upper));
  w[1] = _mm256_cvtepi32_ps(_mm256_and_si256(b, upper));
  w[2] = _mm256_cvtepi32_ps(_mm256_and_si256(c, upper));
  const __m256i second = _mm256_slli_epi32(_mm256_and_si256(b, low), 16), third = _mm256_slli_epi32(_mm256_and_si256(c, low), 8);
  w[3] = _mm256_cvtepi32_ps(_mm256_or_si256(_mm256_slli_epi32(a, 24), _mm256_or_si256(second, third)));
}

struct F32 {
  static constexpr int kBytes = 4;
  static constexpr int kChunk = 16;  // channels in a 64-byte line
  static constexpr int kWord = 1;    // channels that one multiply consumes per lane
  static inline Vec load(const void* base, int64_t i) { return _mm256_loadu_ps((const float*)base + i); }
  static inline void store(void* base, int64_t i, Vec v) { _mm256_storeu_ps((float*)base + i, v); }
  static inline void store_scalar(void* base, int64_t i, float x) { ((float*)base)[i] = x; }
  static inline Vec load_words(const char* p) { return _mm256_load_ps((const float*)p); }
  static inline Vec broadcast_word(const char* p) { return _mm256_broadcast_ss((const float*)p); }
  static inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  // sum += a * b in sum's own register. With the intrinsic, GCC 12 now and then goes on in a factor's register, and where few
  // are free it moves and spills the sums of taps.inl.
  static inline void multiply_into(Vec& sum, Vec a, Vec b) { __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }
};
