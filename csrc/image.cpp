#include "image.h"

#include <cstring>

#include "clones.h"

namespace p2p {

std::vector<int32_t> reflect_indices(int32_t size, int32_t padded) {
  std::vector<int32_t> source(padded);
  const int32_t period = 2 * (size - 1);
  for (int32_t i = 0; i < padded; ++i) {
    const int32_t phase = period ? i % period : 0;
    source[i] = phase < size ? phase : period - phase;
  }
  return source;
}

namespace {

// Integers divide, so that 255 is exactly 1.
inline float from_level(uint8_t level) { return (float)level / 127.5f - 1.0f; }

P2P_ALSO_AVX2
void load_levels(const uint8_t* src, int64_t count, float* dst) {
  for (int64_t i = 0; i < count; ++i) dst[i] = from_level(src[i]);
}

template <class Pixel>
void load_row(const char* row, const ImageView& v, const int32_t* columns, int32_t padded_w, float* dst) {
  const double width = (double)v.high - v.low;
  const float scale = (float)(2.0 / width), offset = (float)(-1.0 - 2.0 * v.low / width);
  const auto value = [&](const char* at) {
    Pixel pixel;
    std::memcpy(&pixel, at, sizeof(pixel));
    if constexpr (sizeof(Pixel) == 1) return from_level(pixel);
    else if constexpr (sizeof(Pixel) == 2) return (float)pixel / 32767.5f - 1.0f;
    else return pixel * scale + offset;
  };
  const bool packed = v.stride_c == (int64_t)sizeof(Pixel) && v.stride_w == v.c * v.stride_c;
  int32_t x = 0;
  if (packed) {  // the picture itself in one run; only the padding looks indices up
    const int64_t count = (int64_t)v.w * v.c;
    if constexpr (sizeof(Pixel) == 1) load_levels((const uint8_t*)row, count, dst);
    else
      for (int64_t i = 0; i < count; ++i) dst[i] = value(row + i * (int64_t)sizeof(Pixel));
    x = v.w;
  }
  for (; x < padded_w; ++x)
    for (int32_t c = 0; c < v.c; ++c) dst[(int64_t)x * v.c + c] = value(row + columns[x] * v.stride_w + c * v.stride_c);
}

// Round to nearest even without a library call: adding 1.5 * 2^23 leaves no fraction bits.
inline int32_t round_even(float x) {
  const float biased = x + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &biased, 4);
  return bits - 0x4B400000;
}

// A NaN becomes the bottom of the range: no comparison is true of it.
inline float unit(float y) { return y >= -1.0f ? (y > 1.0f ? 1.0f : y) : -1.0f; }

inline uint8_t to_level(float y) { return (uint8_t)round_even((unit(y) + 1.0f) * 127.5f); }

P2P_ALSO_AVX2
void store_levels(const float* src, int64_t count, uint8_t* dst) {
  for (int64_t i = 0; i < count; ++i) dst[i] = to_level(src[i]);
}

template <class Pixel>
void store_pixels(char* row, const ImageView& v, const float* src) {
  const double width = (double)v.high - v.low;
  const float half = (float)(width / 2), low = v.low;
  const auto pixel = [&](float y) -> Pixel {
    if constexpr (sizeof(Pixel) == 1) return to_level(y);
    else if constexpr (sizeof(Pixel) == 2) return (Pixel)round_even((unit(y) + 1.0f) * 32767.5f);
    else return (y + 1.0f) * half + low;
  };
  if (v.stride_c == (int64_t)sizeof(Pixel) && v.stride_w == v.c * v.stride_c) {
    const int64_t count = (int64_t)v.w * v.c;
    if constexpr (sizeof(Pixel) == 1) {
      store_levels(src, count, (uint8_t*)row);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const Pixel p = pixel(src[i]);
        std::memcpy(row + i * (int64_t)sizeof(Pixel), &p, sizeof(p));
      }
    }
    return;
  }
  for (int32_t x = 0; x < v.w; ++x)
    for (int32_t c = 0; c < v.c; ++c) {
      const Pixel p = pixel(src[(int64_t)x * v.c + c]);
      std::memcpy(row + x * v.stride_w + c * v.stride_c, &p, sizeof(p));
    }
}

}  // namespace

void load_rows(const void* context, int32_t first, int32_t count, float* dst) {
  const BoundPicture& picture = *(const BoundPicture*)context;
  const ImageView& v = *picture.source;
  const int64_t row_floats = (int64_t)(picture.padded_w + 2) * v.c;
  for (int32_t y = first; y < first + count; ++y, dst += row_floats) {
    if (y < 0 || y >= picture.padded_h) {
      std::memset(dst, 0, row_floats * sizeof(float));
      continue;
    }
    std::memset(dst, 0, v.c * sizeof(float));
    std::memset(dst + row_floats - v.c, 0, v.c * sizeof(float));
    const char* row = v.data + picture.index * v.stride_n + picture.rows[y] * v.stride_h;
    switch (v.type) {
      case PixelType::kU8: load_row<uint8_t>(row, v, picture.columns, picture.padded_w, dst + v.c); break;
      case PixelType::kU16: load_row<uint16_t>(row, v, picture.columns, picture.padded_w, dst + v.c); break;
      case PixelType::kF32: load_row<float>(row, v, picture.columns, picture.padded_w, dst + v.c); break;
    }
  }
}

void store_row(const void* context, int32_t y, const float* src) {
  const BoundPicture& picture = *(const BoundPicture*)context;
  const ImageView& v = *picture.target;
  if (y >= v.h) return;  // cropped
  char* row = v.data + picture.index * v.stride_n + y * v.stride_h;
  switch (v.type) {
    case PixelType::kU8: store_pixels<uint8_t>(row, v, src); break;
    case PixelType::kU16: store_pixels<uint16_t>(row, v, src); break;
    case PixelType::kF32: store_pixels<float>(row, v, src); break;
  }
}

}  // namespace p2p
