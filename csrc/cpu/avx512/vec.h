// AVX-512F: 16 float lanes, 32 registers. Included inside the room's anonymous namespace.
// Register tile 12 x 2: 24 accumulators + 2 columns of weights + 1 broadcast = 27 of 32.

using Vec = __m512;
constexpr int kWidth = 16;
constexpr int kRowsMax = 12;
constexpr int kTapLinesLog2 = 4;  // 256 channels x 4 taps x 128 bytes = 128 KB (and 64 KB kept) of L2, a line a cycle
constexpr int kPanelVecs = 2;
constexpr int64_t kOwnC = int64_t{1} << 40;  // of C: all rows at once; parts were not timed with 1 or 2 MB of own cache
constexpr int kTileUnroll = 6;  // most of a transform's tile stays in the 32 registers

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec round_nearest(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2^n for integral n in [-126, 127].
inline Vec power_of_two(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

// Four vectors of whole numbers of 24 bits, times 256, from three (../body/fixed24.inl).
inline void load24(const char* p, Vec w[4]) {
  const __m512i a = _mm512_load_si512(p), b = _mm512_load_si512(p + 64), c = _mm512_load_si512(p + 128);
  const __m512i upper = _mm512_set1_epi32(-256), low = _mm512_set1_epi32(255);
  w[0] = _mm512_cvtepi32_ps(_mm512_and_si512(a, upper));
  w[1] = _mm512_cvtepi32_ps(_mm512_and_si512(b, upper));
  w[2] = _mm512_cvtepi32_ps(_mm512_and_si512(c, upper));
  const __m512i second = _mm512_slli_epi32(_mm512_and_si512(b, low), 16), third = _mm512_slli_epi32(_mm512_and_si512(c, low), 8);
  w[3] = _mm512_cvtepi32_ps(_mm512_or_si512(_mm512_slli_epi32(a, 24), _mm512_or_si512(second, third)));
}

struct F32 {
  static constexpr int kBytes = 4;
  static constexpr int kChunk = 16;  // channels in a 64-byte line
  static constexpr int kWord = 1;    // channels that one multiply consumes per lane
  static inline Vec load(const void* base, int64_t i) { return _mm512_loadu_ps((const float*)base + i); }
  static inline void store(void* base, int64_t i, Vec v) { _mm512_storeu_ps((float*)base + i, v); }
  static inline void store_scalar(void* base, int64_t i, float x) { ((float*)base)[i] = x; }
  static inline Vec load_words(const char* p) { return _mm512_load_ps((const float*)p); }
  static inline Vec broadcast_word(const char* p) { return _mm512_set1_ps(*(const float*)p); }
  static inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static inline void multiply_into(Vec& sum, Vec a, Vec b) { sum = _mm512_fmadd_ps(a, b, sum); }
};
