// A film's 8-bit Y, U and V planes <-> interleaved RGB, or gray, of the same size.
//
//   Y = kr R + (1 - kr - kb) G + kb B,  U = (B - Y) / (2 - 2 kb),  V = (R - Y) / (2 - 2 kr)
//
// scaled to 16..235 and 16..240 (limited range) or 0..255. Halved chroma lies where H.264 puts it: in line with the even
// columns, between two rows. It is interpolated and averaged there, and results are rounded once, at the end. Resizing is
// libswscale's business (video_frames.py), which is good at it; its exact RGB conversion takes several times as long as
// this one.
#pragma once
#include <cstdint>

namespace p2p {

struct YuvPlanes {
  uint8_t* y;  // (h, w)
  uint8_t* u;  // (ceil(h / 2^chroma_y), ceil(w / 2^chroma_x)), and v
  uint8_t* v;
  int64_t stride_y, stride_u, stride_v;  // bytes
  int32_t h, w;
  int32_t chroma_x, chroma_y;  // 0 or 1: log2 of how much smaller U and V are
  float kr, kb;
  bool full;
};

// dst: (h, w, channels) uint8, packed; channels is 3 or 1.
void yuv_to_rgb(const YuvPlanes& src, int32_t channels, uint8_t* dst);
void rgb_to_yuv(const uint8_t* src, int32_t channels, const YuvPlanes& dst);

}  // namespace p2p
