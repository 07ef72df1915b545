#include "norm.h"

#include <cmath>
#include <cstring>

namespace p2p::cpu {

void finish_norm(const float* stats, int32_t blocks, int32_t channels, const NormParameters& norm, float* scale,
                 float* shift) {
  constexpr int32_t kStrip = 64;  // channels at once: the loops below are inner loops over neighbours
  const int64_t stride = 3ll * channels;
  for (int32_t c0 = 0; c0 < channels; c0 += kStrip) {
    const int32_t strip = channels - c0 < kStrip ? channels - c0 : kStrip;
    double count[kStrip] = {}, mean[kStrip] = {}, deviations[kStrip] = {};
    for (int32_t b = 0; b < blocks; ++b) {
      const float* block = stats + b * stride + c0;
      for (int32_t c = 0; c < strip; ++c) {
        const double n = block[2ll * channels + c];
        count[c] += n;
        mean[c] += n * block[c];
      }
    }
    for (int32_t c = 0; c < strip; ++c) mean[c] /= count[c];
    for (int32_t b = 0; b < blocks; ++b) {
      const float* block = stats + b * stride + c0;
      for (int32_t c = 0; c < strip; ++c) {
        const double n = block[2ll * channels + c], d = block[c] - mean[c];
        deviations[c] += block[channels + c] + n * d * d;
      }
    }
    for (int32_t c = 0; c < strip; ++c) {
      const double gamma = norm.gamma[c0 + c], beta = norm.beta[c0 + c];
      // 0 where all values are one; not for NaN, which must reach the picture
      const double s = deviations[c] <= 0 ? 0.0 : gamma / std::sqrt(deviations[c] / count[c] + norm.eps);
      scale[c0 + c] = (float)s;
      shift[c0 + c] = (float)(beta - mean[c] * s);
    }
  }
}

float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return (uint16_t)(bits >> 16 | 0x40);  // rounding could make a number of it
  return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

namespace {

bool kept(uint64_t seed, uint64_t frame, uint64_t layer, uint64_t element) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull * (frame + 1) + 0xD1B54A32D192ED03ull * (layer + 1) +
               0x8CB92BA72F3D8DD7ull * (element + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;  // the finaliser of splitmix64
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return z >> 63;
}

}  // namespace

void apply_dropout(const Problem& p, DType dtype, void* dst, const float* scale, const float* shift, int32_t row,
                   uint64_t seed, uint64_t frame, uint64_t layer) {
  for (int32_t x = 0; x < p.wo; ++x) {
    const int64_t pixel = (int64_t)row * p.wo + x;
    for (int32_t c = 0; c < p.co; ++c) {
      const int64_t i = pixel * p.co_stored + c;
      const bool keep = kept(seed, frame, layer, (uint64_t)(pixel * p.co + c));
      if (dtype == DType::kF32) {
        float& value = ((float*)dst)[i];
        value = keep ? 2.0f * (value * scale[c] + shift[c]) : 0.0f;
      } else {
        uint16_t& value = ((uint16_t*)dst)[i];
        value = keep ? f32_to_bf16(2.0f * (bf16_to_f32(value) * scale[c] + shift[c])) : 0;
      }
    }
  }
}

}  // namespace p2p::cpu
