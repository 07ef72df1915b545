#include "yuv.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "clones.h"

namespace p2p {

namespace {

// To the nearest level, halves up: the cast cuts toward zero, and what is below zero becomes zero anyway. Clamping whole
// numbers instead of floats is what lets a compiler vectorise the loops, which are plain so that it does so for any machine;
// their lengths are copies, as a byte that is written might be the length itself.
inline int32_t level(float x) { return std::min(std::max((int32_t)(x + 0.5f), 0), 255); }

struct Scale {
  float luma, black, chroma;  // levels per level of RGB; the level of black; as luma, for U and V
};

Scale scale_of(const YuvPlanes& p) {
  if (p.full) return {1.0f, 0.0f, 1.0f};
  return {219.0f / 255.0f, 16.0f, 224.0f / 255.0f};
}

// One full-size row of a chroma plane as floats, in levels: first between two rows, then between two columns.
// blended: room for columns floats.
P2P_ALSO_AVX2
void chroma_row(const uint8_t* plane, int64_t stride, int32_t rows, int32_t columns, const YuvPlanes& p, int32_t y,
                float* blended, float* dst) {
  const int32_t i = y >> p.chroma_y;
  const uint8_t* near = plane + i * stride;
  if (p.chroma_y) {
    int32_t j = y & 1 ? i + 1 : i - 1;
    j = j < 0 ? 0 : (j >= rows ? rows - 1 : j);
    const uint8_t* far = plane + j * stride;
    for (int32_t x = 0; x < columns; ++x) blended[x] = 0.75f * (float)near[x] + 0.25f * (float)far[x];
  } else {
    for (int32_t x = 0; x < columns; ++x) blended[x] = (float)near[x];
  }
  if (!p.chroma_x) {
    std::memcpy(dst, blended, p.w * sizeof(float));
    return;
  }
  const int32_t last = columns - 1;
  for (int32_t x = 0; x < last; ++x) {
    dst[2 * x] = blended[x];
    dst[2 * x + 1] = 0.5f * (blended[x] + blended[x + 1]);
  }
  for (int32_t x = 2 * last; x < p.w; ++x) dst[x] = blended[last];  // no right neighbour
}

// One row of U or V from full-size columns, each the sum over `rows_summed` source rows.
P2P_ALSO_AVX2
void shrink_row(const float* sum, float rows_summed, const YuvPlanes& p, uint8_t* dst) {
  if (!p.chroma_x) {
    const float scale = 1.0f / rows_summed;
    for (int32_t x = 0, w = p.w; x < w; ++x) dst[x] = (uint8_t)level(sum[x] * scale);
    return;
  }
  const float scale = 0.25f / rows_summed;
  const int32_t last = (p.w - 1) / 2;
  const auto at = [&](int32_t x) { return sum[x < 0 ? 0 : (x < p.w ? x : p.w - 1)]; };
  for (const int32_t x : {0, last})  // the columns that may lack a neighbour
    dst[x] = (uint8_t)level((at(2 * x - 1) + 2.0f * at(2 * x) + at(2 * x + 1)) * scale);
  for (int32_t x = 1; x < last; ++x)
    dst[x] = (uint8_t)level((sum[2 * x - 1] + 2.0f * sum[2 * x] + sum[2 * x + 1]) * scale);
}

P2P_ALSO_AVX2
void to_rgb(const YuvPlanes& p, int32_t channels, uint8_t* dst) {
  const Scale s = scale_of(p);
  const float luma = 1.0f / s.luma, black = -s.black / s.luma;
  if (channels == 1) {
    for (int32_t y = 0; y < p.h; ++y, dst += p.w) {
      const uint8_t* row = p.y + y * p.stride_y;
      for (int32_t x = 0, w = p.w; x < w; ++x) dst[x] = (uint8_t)level((float)row[x] * luma + black);
    }
    return;
  }
  const float kg = 1.0f - p.kr - p.kb;
  const float rv = (2.0f - 2.0f * p.kr) / s.chroma, bu = (2.0f - 2.0f * p.kb) / s.chroma;
  const float gu = -bu * p.kb / kg, gv = -rv * p.kr / kg;
  const int32_t rows = (p.h + p.chroma_y) >> p.chroma_y, columns = (p.w + p.chroma_x) >> p.chroma_x;
  std::vector<float> room(2 * (size_t)p.w + columns);
  std::vector<int32_t> packed((size_t)p.w);
  float* const u = room.data();
  float* const v = u + p.w;
  float* const blended = v + p.w;
  for (int32_t y = 0; y < p.h; ++y, dst += 3 * (int64_t)p.w) {
    chroma_row(p.u, p.stride_u, rows, columns, p, y, blended, u);
    chroma_row(p.v, p.stride_v, rows, columns, p, y, blended, v);
    const uint8_t* row = p.y + y * p.stride_y;
    int32_t* const out = packed.data();
    for (int32_t x = 0; x < p.w; ++x) {
      const float bright = (float)row[x] * luma + black, du = u[x] - 128.0f, dv = v[x] - 128.0f;
      out[x] = level(bright + rv * dv) | level(bright + gu * du + gv * dv) << 8 | level(bright + bu * du) << 16;
    }
    // Four bytes at a time, the fourth overwritten by the next pixel: half the stores of three single bytes.
    for (int32_t x = 0; x < p.w - 1; ++x) std::memcpy(dst + 3 * (int64_t)x, out + x, 4);
    std::memcpy(dst + 3 * (int64_t)(p.w - 1), out + p.w - 1, 3);
  }
}

P2P_ALSO_AVX2
void to_yuv(const uint8_t* src, int32_t channels, const YuvPlanes& p) {
  const Scale s = scale_of(p);
  const int32_t rows = (p.h + p.chroma_y) >> p.chroma_y, columns = (p.w + p.chroma_x) >> p.chroma_x;
  if (channels == 1) {
    for (int32_t y = 0; y < p.h; ++y, src += p.w) {
      uint8_t* row = p.y + y * p.stride_y;
      for (int32_t x = 0, w = p.w; x < w; ++x) row[x] = (uint8_t)level((float)src[x] * s.luma + s.black);
    }
    for (int32_t y = 0; y < rows; ++y) {
      std::memset(p.u + y * p.stride_u, 128, columns);
      std::memset(p.v + y * p.stride_v, 128, columns);
    }
    return;
  }
  const float kg = 1.0f - p.kr - p.kb;
  const float yr = p.kr * s.luma, yg = kg * s.luma, yb = p.kb * s.luma, black = s.black;
  const float tu = s.chroma / (2.0f - 2.0f * p.kb), tv = s.chroma / (2.0f - 2.0f * p.kr);
  const float ur = -p.kr * tu, ug = -kg * tu, ub = (1.0f - p.kb) * tu;
  const float vr = (1.0f - p.kr) * tv, vg = -kg * tv, vb = -p.kb * tv;
  std::vector<float> room(2 * (size_t)p.w);
  std::vector<int32_t> packed((size_t)p.w);
  float* const u = room.data();
  float* const v = u + p.w;
  for (int32_t y = 0; y < p.h; ++y, src += 3 * (int64_t)p.w) {
    int32_t* const in = packed.data();
    for (int32_t x = 0; x < p.w - 1; ++x) std::memcpy(in + x, src + 3 * (int64_t)x, 4);
    std::memcpy(in + p.w - 1, src + 3 * (int64_t)(p.w - 1), 3);
    uint8_t* row = p.y + y * p.stride_y;
    const bool first = !p.chroma_y || !(y & 1);
    if (first) std::memset(u, 0, room.size() * sizeof(float));
    for (int32_t x = 0, w = p.w; x < w; ++x) {
      const float r = (float)(in[x] & 255), g = (float)(in[x] >> 8 & 255), b = (float)(in[x] >> 16 & 255);
      in[x] = level(yr * r + yg * g + yb * b + black);
      u[x] += ur * r + ug * g + ub * b + 128.0f;
      v[x] += vr * r + vg * g + vb * b + 128.0f;
    }
    for (int32_t x = 0, w = p.w; x < w; ++x) row[x] = (uint8_t)in[x];
    const bool last = !p.chroma_y || (y & 1) || y == p.h - 1;
    if (!last) continue;
    const float summed = first ? 1.0f : 2.0f;  // an odd last row stands alone
    const int64_t at = y >> p.chroma_y;
    shrink_row(u, summed, p, p.u + at * p.stride_u);
    shrink_row(v, summed, p, p.v + at * p.stride_v);
  }
}

}  // namespace

void yuv_to_rgb(const YuvPlanes& p, int32_t channels, uint8_t* dst) { to_rgb(p, channels, dst); }
void rgb_to_yuv(const uint8_t* src, int32_t channels, const YuvPlanes& p) { to_yuv(src, channels, p); }

}  // namespace p2p
