// Large maps and the last layer: as layer.cuh, but a pixel is fetched and normed once for all taps. A tile's rows are a square
// of 8x8 pixels; a unit of the depth is 64 channels of the patch that the taps see of them, 9x9 or 10x10 pixels, and the taps
// are its rows, moved:
//
//   loop over units:  patch --16-byte loads--> registers --norm, dropout, activation--> shared, one unit ahead
//     loop over taps: weights --copy_async--> ring; ldmatrix from both; mma.sync
//   end:              that of layer.cuh
//
// The 16 taps of a convolution see 18x18 pixels. They are four units: taps (2 j + py, 2 i + px) see the pixels of rows and
// columns of one parity, 9x9 of them, and are 2x2 taps there.
// layer.cuh would norm each pixel once a tap, and tensor cores would wait for it.
#pragma once
#include "layer.cuh"

namespace p2p::cuda {
namespace {

// Units of 64 channels, and the distance of taps that share one.
template <Kind kKind>
constexpr int32_t kParities = kKind == Kind::kConv ? 4 : 1;
template <Kind kKind>
constexpr int32_t kTapStep = kKind == Kind::kConv ? 2 : 1;

// A tap of a unit, on its way through those that are alive.
template <Kind kKind>
struct Tap {
  int32_t unit, th, tw;

  P2P_DEVICE void enter(const LiveTaps& live, int32_t of) {
    const int32_t parity = of % kParities<kKind>;
    unit = of;
    th = live.h0 + ((live.h0 + parity / 2) % kTapStep<kKind>);
    tw = live.w0 + ((live.w0 + parity) % kTapStep<kKind>);
  }
  P2P_DEVICE void advance(const LiveTaps& live) {
    tw += kTapStep<kKind>;
    if (tw < live.w1) return;
    tw = live.w0 + ((live.w0 + unit % kParities<kKind>) % kTapStep<kKind>);
    th += kTapStep<kKind>;
    if (th >= live.h1) enter(live, unit + 1);
  }
};

// The pixels that one thread brings to each patch: thread / 8 + 16 i, piece thread % 8.
template <DType kType, Kind kKind>
struct Patch {
  static constexpr int32_t kPixels = patch_pixels(kKind), kSide = kPatchSide + (kKind == Kind::kLast ? 2 : 1);
  static constexpr int32_t kRows = (kPixels * kPieces + kThreads - 1) / kThreads;
  int32_t image, y0, x0;  // of the patch's first pixel in the input, at parity (0, 0)
  int32_t y, x;           // and at that of raw
  uint32_t inside;        // bit i: pixel i lies in the map
  int32_t plane;          // of raw
  Vec16 raw[kRows];

  P2P_DEVICE void place(const LayerArgs& a, const RowTile& tile, int32_t ph, int32_t pw) {
    image = block_x() / a.tiles_per_image;
    y0 = kStride<kKind> * tile.y - 1 + (kKind == Kind::kDeconv ? ph : 0);
    x0 = kStride<kKind> * tile.x - 1 + (kKind == Kind::kDeconv ? pw : 0);
  }

  // f(i, y, x, source, channel) for the pixels that lie in the map.
  template <class F>
  P2P_DEVICE void each(const LayerArgs& a, F f) {
    const int32_t at = plane * kPieces + thread_index() % kPieces, pieces0 = a.src[0].channels / kVec<kType>;
    const bool second = at >= pieces0;
    const Source& s = a.src[second];
    const int32_t c = (at - (second ? pieces0 : 0)) * kVec<kType>;
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t pixel = thread_index() / kPieces + i * (kThreads / kPieces);
      if (at < a.chunks_per_tap && (inside >> i & 1))
        f(i, y + kStride<kKind> * (pixel / kSide), x + kStride<kKind> * (pixel % kSide), s, c);
    }
  }

  P2P_DEVICE void fetch(const LayerArgs& a, int32_t unit) {
    plane = unit / kParities<kKind>;
    y = y0 + unit % kParities<kKind> / 2;
    x = x0 + unit % kParities<kKind> % 2;
    inside = 0;
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t pixel = thread_index() / kPieces + i * (kThreads / kPieces);
      const int32_t yy = y + kStride<kKind> * (pixel / kSide), xx = x + kStride<kKind> * (pixel % kSide);
      if (pixel < kPixels && (uint32_t)yy < (uint32_t)a.hi && (uint32_t)xx < (uint32_t)a.wi) inside |= 1u << i;
      raw[i] = {};
    }
    each(a, [&](int32_t i, int32_t yy, int32_t xx, const Source& s, int32_t c) {
      const int64_t pixel = ((int64_t)image * a.hi + yy) * a.wi + xx;
      raw[i] = load16((const char*)s.data + (pixel * s.channels + c) * (16 / kVec<kType>));
    });
  }

  // Padding stays zero: no shift leaks into it.
  P2P_DEVICE void put(const LayerArgs& a, char* patch) {
    each(a, [&](int32_t i, int32_t yy, int32_t xx, const Source& s, int32_t c) {
      raw[i] = prepared<kType>(a, s, image, yy, xx, c, raw[i], drops(a, s));
    });
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t pixel = thread_index() / kPieces + i * (kThreads / kPieces);
      if (pixel < kPixels) shared_store16(patch + piece_offset(pixel, thread_index() % kPieces), raw[i]);
    }
  }
};

template <DType kType, Tile kTile, Kind kKind>
P2P_KERNEL patch_kernel(const LayerArgs a) {
  constexpr TileShape shape = tile_shape(kTile);
  using Pixels = Patch<kType, kKind>;
  using Sums = Accumulators<kType, kTile>;
  constexpr int32_t kPatchBytes = Pixels::kPixels * kSliceBytes, kWeightSlice = shape.bn * kSliceBytes;
  char* const patches = shared_memory();
  char* const weight_slices = patches + 2 * kPatchBytes;

  const int32_t phase = block_z() / a.splits, split = block_z() % a.splits;
  const LiveTaps live = live_of(a, phase);
  const int32_t units = (a.chunks_per_tap + kPieces - 1) / kPieces * kParities<kKind>;
  const int32_t begin = units * split / a.splits, end = units * (split + 1) / a.splits;

  // Weights: slice s of this block, a tap of a unit, into place s % stages.
  Tap<kKind> asked;
  asked.enter(live, begin);
  const auto ask_for_weights = [&](int32_t s) {
    if (asked.unit < end) {
      const int32_t at = asked.unit / kParities<kKind> * kPieces + thread_index() % kPieces;
      ask_for_slice<kTile>(a, weight_slices + s % shape.stages * kWeightSlice, phase, asked.th, asked.tw, at,
                           at < a.chunks_per_tap);
      asked.advance(live);
    }
    copy_commit();
  };

  grid_release();
#pragma unroll 1
  for (int32_t s = 0; s < shape.stages - 1; ++s) ask_for_weights(s);
  const RowTile tile = row_tile<kTile>(a, block_x() % a.tiles_per_image);
  Pixels pixels;
  pixels.place(a, tile, phase / 2, phase % 2);
  // The rows that this thread names to ldmatrix, as pixels of the patch. Those that do not exist may be any.
  int32_t pixel[Sums::kMT];
#pragma unroll
  for (int32_t m = 0; m < Sums::kMT; ++m) {
    const int32_t row = Sums::first_row() + 16 * m + thread_index() % 16;
    pixel[m] = row < tile.rows ? row / tile.across * Pixels::kSide + row % tile.across : 0;
  }
  Sums sums;
  sums.clear();
  grid_wait();  // nothing but weights was read, and nothing written, before this line

  if (begin < end) {
    pixels.fetch(a, begin);
    pixels.put(a, patches);
  }
  Tap<kKind> tap;
  tap.enter(live, begin);
  int32_t s = 0;
#pragma unroll 1
  for (int32_t unit = begin; unit < end; ++unit) {
    if (unit + 1 < end) pixels.fetch(a, unit + 1);
    const char* const patch = patches + (unit - begin) % 2 * kPatchBytes;
#pragma unroll 1
    for (; tap.unit == unit; tap.advance(live), ++s) {
      copy_wait<shape.stages - 2>();
      sync_block();  // slice s and its patch are whole; nobody reads slice s - 1 any more, nor another patch
      ask_for_weights(s + shape.stages - 1);
      const int32_t moved = tap.th / kTapStep<kKind> * Pixels::kSide + tap.tw / kTapStep<kKind>;
      sums.multiply([&](int32_t m, int32_t, int32_t at) { return patch + piece_offset(pixel[m] + moved, at); },
                    weight_slices + s % shape.stages * kWeightSlice);
    }
    if (unit + 1 < end) pixels.put(a, patches + (unit + 1 - begin) % 2 * kPatchBytes);
  }
  finish<kType, kTile, kKind>(a, sums, phase, split);
}

// The kernels of patches of a 16-bit precision; null where there is none.
template <DType kType>
LayerKernel patch_kernels_of(Kind kind, Tile tile) {
  if (kind == Kind::kConv && tile == Tile::k64x64) return &patch_kernel<kType, Tile::k64x64, Kind::kConv>;
  if (kind == Kind::kDeconv && tile == Tile::k64x64) return &patch_kernel<kType, Tile::k64x64, Kind::kDeconv>;
  if (kind == Kind::kLast && tile == Tile::k64x16) return &patch_kernel<kType, Tile::k64x16, Kind::kLast>;
  return nullptr;
}

}  // namespace
}  // namespace p2p::cuda
