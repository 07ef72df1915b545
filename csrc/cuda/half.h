// 16-bit floats on the host, rounded to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace p2p::cuda {

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline float from_bf16(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline uint16_t to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;
  if (bits >= 0x477FF000) return sign | 0x7C00;  // 65520 and more round to infinity
  if (bits < 0x38800000) {                       // below the normal numbers: whole multiples of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;  // 2^-24 is the last bit of numbers in [0.5, 1)
    uint32_t sum;
    std::memcpy(&sum, &magnitude, 4);
    return (uint16_t)(sign | (sum - 0x3F000000));
  }
  bits += 0xFFF + (bits >> 13 & 1);
  return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}
inline float from_f16(uint16_t value) {
  const uint32_t sign = (uint32_t)(value & 0x8000) << 16, exponent = value >> 10 & 31, fraction = value & 1023;
  float wide;
  if (exponent == 0) {
    wide = (float)fraction * 0x1p-24f;
    return sign ? -wide : wide;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000 | fraction << 13 : ((exponent + 112) << 23) | fraction << 13);
  std::memcpy(&wide, &bits, 4);
  return wide;
}

}  // namespace p2p::cuda
