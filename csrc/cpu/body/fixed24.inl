// Weights of 24 bits for the layers that wait for memory: what few pixels use once costs its bytes, not its arithmetic.
//
// A column (output channel and phase) holds whole numbers q, |q| <= 2^23, times one power of two: off by at most 2^-23 of the
// column's largest weight (2^-114 where that is smaller than 2^-91), where float32 is off by 2^-24 of each. Every four vectors
// of the stream, in the order of use, lie in three: the upper 24 bits of a lane are q of one of the first three, the lower 8
// bits a byte of the fourth's q. load24 (vec.h) gives 256 q; the output transform multiplies by the column's scale, which
// changes no digit. docs/decisions/028.

// The element type of such a layer. Everything but its weights is float32.
struct Fixed24 : F32 {};
template <class E> constexpr bool kFixed = false;
template <> constexpr bool kFixed<Fixed24> = true;

// Bytes of `vectors` vectors of weights.
template <class E> constexpr int64_t stream_bytes(int64_t vectors) {
  return vectors * kWidth * 4 / (kFixed<E> ? 4 : 1) * (kFixed<E> ? 3 : 1);
}

struct Fixed24Column {
  float to_whole;  // q = nearest(w * to_whole)
  float scale;     // of 256 q; NaN where a weight is no number, so that no picture looks right
  Fixed24Column() = default;
  explicit Fixed24Column(float largest) {
    uint32_t bits;
    __builtin_memcpy(&bits, &largest, 4);
    int32_t exponent = (int32_t)(bits >> 23 & 255) - 126;  // largest < 2^exponent
    if (exponent < -90) exponent = -90;                    // both powers are normal numbers
    to_whole = __builtin_ldexpf(1.0f, 23 - exponent);
    scale = largest <= 3.4028234664e38f ? __builtin_ldexpf(1.0f, exponent - 31) : __builtin_nanf("");
  }
  // What is no number lands at the end too; the scale tells.
  int32_t whole(float w) const {
    const float q = w * to_whole;
    return q < 8388607.0f ? (int32_t)__builtin_lrintf(q) : 8388607;
  }
};

// The larger of both; NaN and infinity stay.
inline float larger(float largest, float w) {
  w = __builtin_fabsf(w);
  return w > largest || w != w ? w : largest;
}

// q into place `i` (in floats) of a stream of zeros.
inline void put24(char* stream, int64_t i, int32_t q) {
  uint32_t* group = (uint32_t*)stream + i / (4 * kWidth) * (3 * kWidth) + i % kWidth;
  const int64_t slot = i / kWidth % 4;
  if (slot < 3) {
    group[slot * kWidth] |= (uint32_t)q << 8;
  } else {
    for (int byte = 0; byte < 3; ++byte) group[byte * kWidth] |= (uint32_t)q >> (16 - 8 * byte) & 255;
  }
}
