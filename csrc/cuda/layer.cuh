// One layer in one kernel: the implicit GEMM
//     dst[pixel][co] = bias[co] + sum over (tap, c) of act(src[pixel moved by tap][c]) * weights[co][tap][c]
// with act(x) = max(v, slope * v), v = x * scale + shift of the norm in front. No im2col, pad, concat, norm or cast pass:
//
//   loop:  weights --copy_async, `stages` slices deep--> shared          (asked for before grid_wait: they depend on nobody)
//          pixels --16-byte loads--> registers --affine, activation, rounding--> shared, one slice ahead
//          shared --ldmatrix--> mma.sync, f32 accumulators                (kF32: plain multiply-adds, for reference)
//   end:   splits of the depth are summed by the block that arrives last, in split order
//          mean and squared deviations of each channel of the tile, from the f32 values
//          16-byte stores; the last block of a channel column turns the tiles' statistics into scale and shift
//
// Blocks meet only in `arrive`; whoever comes last reads in a fixed order, so that every run gives the same bits.
// Rows of a slice are 128 bytes, their 16-byte pieces permuted by row % 8: ldmatrix and stores meet no bank conflict.
// Other forms of the same: patch.cuh for large maps, stream.cuh for small ones.
// Read next: kernels.h for the arguments, network.cpp for who sets them, docs/cuda.md for a drawing.
#pragma once
#include "device.cuh"

namespace p2p::cuda {
namespace {

constexpr int32_t kPieces = kSliceBytes / 16;  // of a slice's row

template <DType kType>
constexpr int32_t kVec = kType == DType::kF32 ? 4 : 8;  // values in 16 bytes

template <Kind kKind>
constexpr int32_t kStride = kKind == Kind::kFirst || kKind == Kind::kConv ? 2 : 1;

P2P_DEVICE int32_t piece_offset(int32_t row, int32_t piece) { return row * kSliceBytes + ((piece ^ (row & 7)) << 4); }

// Where a thread stands in the depth: a tap that is alive, and a 16-byte piece of its channels.
struct Cursor {
  int32_t th, tw, piece;
};

struct LiveTaps {
  int32_t h0, h1, w0, w1;
};
P2P_DEVICE LiveTaps live_of(const LayerArgs& a, int32_t phase) {
  const int32_t ph = phase / 2, pw = phase % 2;
  return {a.live_h[ph][0], a.live_h[ph][1], a.live_w[pw][0], a.live_w[pw][1]};
}

P2P_DEVICE Cursor cursor_at(const LayerArgs& a, const LiveTaps& live, int32_t piece) {
  const int32_t tap = piece / a.chunks_per_tap, wide = live.w1 - live.w0;
  return {live.h0 + tap / wide, live.w0 + tap % wide, piece % a.chunks_per_tap};
}
P2P_DEVICE void advance(const LayerArgs& a, const LiveTaps& live, Cursor& at) {
  at.piece += kPieces;
  while (at.piece >= a.chunks_per_tap) {
    at.piece -= a.chunks_per_tap;
    if (++at.tw == live.w1) {
      at.tw = live.w0;
      ++at.th;
    }
  }
}

// Asks for a slice of weights: this block's columns, a tap's channels. Each thread brings the pieces of its own place in a
// slice: piece `at` of the tap, or zeros where it is not `valid`.
template <Tile kTile>
P2P_DEVICE void ask_for_slice(const LayerArgs& a, char* slice, int32_t phase, int32_t th, int32_t tw, int32_t at, bool valid) {
  constexpr int32_t kColumns = tile_shape(kTile).bn, kRows = kThreads / kPieces;
  const int32_t piece = thread_index() % kPieces;
#pragma unroll
  for (int32_t i = 0; i < kColumns / kRows; ++i) {
    const int32_t row = thread_index() / kPieces + i * kRows, column = block_y() * kColumns + row;
    const bool any = column < a.columns && valid;
    const int64_t from =
        ((int64_t)(phase * a.columns + column) * (a.taps_h * a.taps_w) + th * a.taps_w + tw) * a.chunks_per_tap + at;
    copy_async(slice + piece_offset(row, piece), (const char*)a.weights + (any ? from * 16 : 0), any);
  }
}

// np.pad(mode="reflect"), as image.cpp's reflect_indices.
P2P_DEVICE int32_t reflect(int32_t i, int32_t size) {
  if (i < size) return i;
  const int32_t period = 2 * (size - 1);
  if (period == 0) return 0;
  i %= period;
  return i < size ? i : period - i;
}

P2P_DEVICE int64_t place_in(const Picture& p, int32_t image, int32_t y, int32_t x, int32_t c) {
  return image * p.stride_n + y * p.stride_h + x * p.stride_w + c * p.stride_c;
}

// norm.cpp's kept(): the dropout of the engine depends on (seed, frame, layer, element) alone.
P2P_DEVICE bool kept(uint64_t seed, uint64_t frame, uint64_t layer, uint64_t element) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull * (frame + 1) + 0xD1B54A32D192ED03ull * (layer + 1) +
               0x8CB92BA72F3D8DD7ull * (element + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return z >> 63;
}

template <DType kType>
P2P_DEVICE void unpack_vec(const Vec16& v, float* values) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if constexpr (kType == DType::kF32) values[i] = bits_float(v.word[i]);
    else unpack<kType>(v.word[i], values + 2 * i);
  }
}
template <DType kType>
P2P_DEVICE Vec16 pack_vec(const float* values) {
  Vec16 v;
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    if constexpr (kType == DType::kF32) v.word[i] = float_bits(values[i]);
    else v.word[i] = pack<kType>(values[2 * i], values[2 * i + 1]);
  }
  return v;
}

// What the layer makes of 16 bytes of a source, at channel c of pixel (y, x): norm, dropout, activation, rounding.
template <DType kType>
P2P_DEVICE Vec16 prepared(const LayerArgs& a, const Source& s, int32_t image, int32_t y, int32_t x, int32_t c, const Vec16& raw,
                          bool dropout) {
  float v[kVec<kType>];
  unpack_vec<kType>(raw, v);
  if (s.affine) {
    const float* affine = s.affine + (int64_t)image * 2 * s.channels + c;
    Vec16 scale[kVec<kType> / 4], shift[kVec<kType> / 4];
#pragma unroll
    for (int32_t j = 0; j < kVec<kType>; j += 4) {
      scale[j / 4] = load16(affine + j);
      shift[j / 4] = load16(affine + s.channels + j);
    }
#pragma unroll
    for (int32_t j = 0; j < kVec<kType>; ++j)
      v[j] = fused(v[j], bits_float(scale[j / 4].word[j % 4]), bits_float(shift[j / 4].word[j % 4]));
  }
  if (dropout) {
    const int64_t pixel = (int64_t)y * a.wi + x;
#pragma unroll
    for (int32_t j = 0; j < kVec<kType>; ++j)
      v[j] = kept(load(a.dropout), load(a.dropout + 1) + image, s.dropout_layer, pixel * s.dropout_channels + c + j)
                 ? 2.0f * v[j]
                 : 0.0f;
  }
#pragma unroll
  for (int32_t j = 0; j < kVec<kType>; ++j) v[j] = max_of(v[j], a.slope * v[j]);
  return pack_vec<kType>(v);
}

P2P_DEVICE bool drops(const LayerArgs& a, const Source& s) { return s.dropout_layer >= 0 && a.dropout; }

// Of a channel's mean and variance; one that is constant but for the rounding of its mean comes out as beta.
struct ScaleShift {
  float scale, shift;
};
P2P_DEVICE ScaleShift norm_of(const LayerArgs& a, int32_t channel, float mean, float variance) {
  const float noise = mean * 2.4e-7f;
  const bool varies = variance > noise * noise && channel < a.co;
  const float gamma = channel < a.co ? load(a.gamma + channel) : 0.0f, beta = channel < a.co ? load(a.beta + channel) : 0.0f;
  const float scale = varies ? gamma / root(variance + a.eps) : 0.0f;
  return {scale, varies ? beta - mean * scale : beta};
}

// Which pixels of an image are the rows of its tile t: row r is pixel (y + i / across, x + i % across), i = offset + r.
struct RowTile {
  int32_t y, x, across, offset, rows;
};
template <Tile kTile>
P2P_DEVICE RowTile row_tile(const LayerArgs& a, int32_t t) {
  constexpr int32_t bm = tile_shape(kTile).bm;
  if (a.tiles_across > 0) {  // a square, cut at the map's edges
    const int32_t y = t / a.tiles_across * kPatchSide, x = t % a.tiles_across * kPatchSide;
    const int32_t down = a.mh - y < kPatchSide ? a.mh - y : kPatchSide, across = a.mw - x < kPatchSide ? a.mw - x : kPatchSide;
    return {y, x, across, 0, down * across};
  }
  const int32_t left = a.mh * a.mw - t * bm;
  return {0, 0, a.mw, t * bm, left < bm ? left : bm};
}

// The pixels that one thread brings to each slice: rows thread / 8 + 16 i, piece thread % 8.
template <DType kType, Tile kTile, Kind kKind>
struct Pixels {
  static constexpr int32_t kRows = tile_shape(kTile).bm / (kThreads / kPieces);
  int32_t image[kRows], y[kRows], x[kRows];  // of tap (0, 0); rows that do not exist lie far above the map
  Vec16 raw[kRows];
  Cursor at;         // of raw
  uint32_t inside;   // bit i: raw[i] was read, not padding

  P2P_DEVICE void place(const LayerArgs& a, int32_t ph, int32_t pw) {
    const int32_t pixels = a.mh * a.mw;
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t row = thread_index() / kPieces + i * (kThreads / kPieces);
      int32_t pixel;
      bool valid;
      if (a.images_per_tile > 1) {
        const int32_t in_tile = row / pixels;
        image[i] = block_x() * a.images_per_tile + in_tile;
        pixel = row - in_tile * pixels;
        valid = in_tile < a.images_per_tile && image[i] < a.n;
      } else {
        image[i] = block_x() / a.tiles_per_image;
        pixel = (block_x() - image[i] * a.tiles_per_image) * tile_shape(kTile).bm + row;
        valid = pixel < pixels;
      }
      const int32_t my = pixel / a.mw, mx = pixel - my * a.mw;
      const bool phased = kKind == Kind::kDeconv;
      y[i] = valid ? kStride<kKind> * my - 1 + (phased ? ph : 0) : -(1 << 28);
      x[i] = kStride<kKind> * mx - 1 + (phased ? pw : 0);
    }
  }

  // Asks for a slice; `done` makes it wait for nothing but the loads' use.
  P2P_DEVICE void fetch(const LayerArgs& a, const LiveTaps& live, const Cursor& from) {
    at = from;
    inside = 0;
    if constexpr (kKind == Kind::kFirst) {
      fetch_picture(a);
      return;
    }
    const int32_t pieces0 = a.src[0].channels / kVec<kType>;
    const bool second = at.piece >= pieces0;
    const Source& s = a.src[second];
    const int32_t c = (at.piece - (second ? pieces0 : 0)) * kVec<kType>;
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t yy = y[i] + at.th, xx = x[i] + at.tw;
      raw[i] = {};
      if (at.th < live.h1 && (uint32_t)yy < (uint32_t)a.hi && (uint32_t)xx < (uint32_t)a.wi) {
        const int64_t pixel = (int64_t)(image[i] * a.hi + yy) * a.wi + xx;
        raw[i] = load16((const char*)s.data + (pixel * s.channels + c) * (16 / kVec<kType>));
        inside |= 1u << i;
      }
    }
  }

  // Depth k is (tap, channel) = (k / ci, k % ci). uint8 pixels come as u - 127.5, which 16-bit floats hold exactly.
  P2P_DEVICE void fetch_picture(const LayerArgs& a) {
    float values[kRows][kVec<kType>];
    const int32_t ci = a.picture.c;
#pragma unroll
    for (int32_t j = 0; j < kVec<kType>; ++j) {
      const int32_t k = at.th ? 16 * ci : at.piece * kVec<kType> + j;  // at.th > 0: past the end
      const int32_t tap = k / ci, c = k - tap * ci;
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) {
        const int32_t yy = y[i] + (tap >> 2), xx = x[i] + (tap & 3);
        values[i][j] = 0.0f;
        if (tap < 16 && (uint32_t)yy < (uint32_t)a.hi && (uint32_t)xx < (uint32_t)a.wi) {
          const int64_t at = place_in(a.picture, image[i], reflect(yy, a.picture.h), reflect(xx, a.picture.w), c);
          values[i][j] = a.picture.bytes == 1
                             ? (float)load((const uint8_t*)a.picture.data + at) - 127.5f
                             : fused(load((const float*)a.picture.data + at), a.picture.scale, a.picture.offset);
        }
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i) raw[i] = pack_vec<kType>(values[i]);
  }

  // Norm, dropout and activation on the way into shared memory. Padding stays zero: no shift leaks into it.
  P2P_DEVICE void put(const LayerArgs& a, char* slice) {
    const int32_t piece = thread_index() % kPieces, row0 = thread_index() / kPieces;
    if constexpr (kKind != Kind::kFirst) {
      const int32_t pieces0 = a.src[0].channels / kVec<kType>;
      const bool second = at.piece >= pieces0;
      const Source& s = a.src[second];
      const int32_t c = (at.piece - (second ? pieces0 : 0)) * kVec<kType>;
#pragma unroll
      for (int32_t i = 0; i < kRows; ++i) {
        if (!(inside >> i & 1)) continue;
        raw[i] = prepared<kType>(a, s, image[i], y[i] + at.th, x[i] + at.tw, c, raw[i], drops(a, s));
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kRows; ++i)
      shared_store16(slice + piece_offset(row0 + i * (kThreads / kPieces), piece), raw[i]);
  }
};

template <DType kType, Tile kTile>
struct Accumulators {
  static constexpr TileShape kShape = tile_shape(kTile);
  static constexpr bool kTensor = kType != DType::kF32;
  // Tensor cores: warps in a grid of warps_m x warps_n, each kMT x kNT products of 16x8.
  static constexpr int32_t kWarpsN = kThreads / 32 / kShape.warps_m;
  static constexpr int32_t kWarpRows = kShape.bm / kShape.warps_m, kWarpColumns = kShape.bn / kWarpsN;
  static constexpr int32_t kMT = kTensor ? kWarpRows / 16 : kShape.bm / 8;
  static constexpr int32_t kNT = kTensor ? kWarpColumns / 8 : kShape.bn / 16;
  float v[kMT][kNT][kTensor ? 4 : 1];

  P2P_DEVICE void clear() {
#pragma unroll
    for (int32_t m = 0; m < kMT; ++m)
#pragma unroll
      for (int32_t n = 0; n < kNT; ++n)
#pragma unroll
        for (int32_t i = 0; i < (kTensor ? 4 : 1); ++i) v[m][n][i] = 0.0f;
  }

  // pixels(m, row, piece): the address of a piece of the row, which is row m of those that this thread names to ldmatrix.
  template <class F>
  P2P_DEVICE void multiply(F pixels, const char* weights) {
    if constexpr (kTensor) {
      const int32_t lane = thread_index() % 32, row0 = first_row(), column0 = first_column();
#pragma unroll
      for (int32_t k = 0; k < kPieces; k += 4) {  // 32 values of depth
        uint32_t b[kNT][4];
#pragma unroll
        for (int32_t n = 0; n < kNT; ++n)
          ldmatrix_x4(b[n], weights + piece_offset(column0 + 8 * n + (lane & 7), k + (lane >> 3)));
#pragma unroll
        for (int32_t half = 0; half < 2; ++half)
#pragma unroll
          for (int32_t m = 0; m < kMT; ++m) {
            uint32_t r[4];
            ldmatrix_x4(r, pixels(m, row0 + 16 * m + (lane & 15), k + 2 * half + (lane >> 4)));
#pragma unroll
            for (int32_t n = 0; n < kNT; ++n) mma_16816<kType>(v[m][n], r, b[n][2 * half], b[n][2 * half + 1]);
          }
      }
    } else {  // thread (ty, tx) of 8 x 16: rows ty + 8 m, columns tx + 16 n
      const int32_t ty = thread_index() / 16, tx = thread_index() % 16;
      for (int32_t k = 0; k < kSliceBytes / 4; ++k) {
        float w[kNT];
#pragma unroll
        for (int32_t n = 0; n < kNT; ++n)
          w[n] = shared_get((const float*)(weights + piece_offset(tx + 16 * n, k / 4)) + k % 4);
#pragma unroll
        for (int32_t m = 0; m < kMT; ++m) {
          const float p = shared_get((const float*)pixels(m, ty + 8 * m, k / 4) + k % 4);
#pragma unroll
          for (int32_t n = 0; n < kNT; ++n) v[m][n][0] = fused(p, w[n], v[m][n][0]);
        }
      }
    }
  }

  // The first of the rows and of the columns that this warp's tensor-core products are for.
  P2P_DEVICE static int32_t first_row() { return thread_index() / 32 / kWarpsN * kWarpRows; }
  P2P_DEVICE static int32_t first_column() { return thread_index() / 32 % kWarpsN * kWarpColumns; }

  // f(row, column, value, value of the next column) for every element of tensor cores that this thread holds.
  template <class F>
  P2P_DEVICE void each_two(F f) const {
    const int32_t lane = thread_index() % 32, row = first_row() + lane / 4, column = first_column() + lane % 4 * 2;
#pragma unroll
    for (int32_t m = 0; m < kMT; ++m)
#pragma unroll
      for (int32_t n = 0; n < kNT; ++n) {
        f(row + 16 * m, column + 8 * n, v[m][n][0], v[m][n][1]);
        f(row + 16 * m + 8, column + 8 * n, v[m][n][2], v[m][n][3]);
      }
  }

  // f(row, column, value) for every element that this thread holds.
  template <class F>
  P2P_DEVICE void each(F f) const {
    if constexpr (kTensor) {
      each_two([&](int32_t row, int32_t column, float first, float second) {
        f(row, column, first);
        f(row, column + 1, second);
      });
    } else {
#pragma unroll
      for (int32_t m = 0; m < kMT; ++m)
#pragma unroll
        for (int32_t n = 0; n < kNT; ++n) f(thread_index() / 16 + 8 * m, thread_index() % 16 + 16 * n, v[m][n][0]);
    }
  }
};

// True in the block that arrives last of `total` at the counter, which it sets back to zero. What the others wrote before
// arriving may then be read with load_of_blocks. All threads call it; `word` is a float of shared memory.
P2P_DEVICE bool last_to_arrive(uint32_t* counter, uint32_t total, float* word) {
  sync_block();
  if (total == 1) return true;
  if (thread_index() == 0) {
    fence();
    const bool last = arrive(counter) == total - 1;
    if (last) store(counter, 0u);
    shared_set(word, last ? 1.0f : 0.0f);
    fence();
  }
  sync_block();
  const bool last = shared_get(word) != 0.0f;
  sync_block();
  return last;
}

// A column of the tile is shared by kThreads / bn threads, its parts.
template <Tile kTile>
P2P_DEVICE float sum_of_parts(float value, float* scratch) {
  constexpr int32_t bn = tile_shape(kTile).bn;
  shared_set(scratch + thread_index(), value);
  sync_block();
  float sum = 0.0f;
#pragma unroll
  for (int32_t p = 0; p < kThreads / bn; ++p) sum += shared_get(scratch + p * bn + thread_index() % bn);
  sync_block();
  return sum;
}

// Statistics of the tile, and by the last block of this channel column the norm of its images.
template <Tile kTile>
P2P_DEVICE void take_statistics(const LayerArgs& a, const float* tile, float* scratch, int32_t phase) {
  constexpr TileShape shape = tile_shape(kTile);
  constexpr int32_t parts = kThreads / shape.bn, stride = shape.bn + 4;
  const int32_t column = thread_index() % shape.bn, part = thread_index() / shape.bn;
  const int32_t channel = block_y() * shape.bn + column;
  const int32_t pixels = a.mh * a.mw, entries = a.phases * a.tiles_per_image;
  const bool whole = a.images_per_tile > 1;
  const int32_t first_image = whole ? block_x() * a.images_per_tile : block_x() / a.tiles_per_image;
  const int32_t images = whole ? (a.n - first_image < a.images_per_tile ? a.n - first_image : a.images_per_tile) : 1;
  const int32_t tile_in_image = whole ? 0 : block_x() % a.tiles_per_image;

  const auto rows_of = [&](int32_t t) { return row_tile<kTile>(a, t).rows; };
  const int32_t rows = rows_of(tile_in_image);
  for (int32_t g = 0; g < images; ++g) {
    const float* from = tile + g * rows * stride + column;
    float sum = 0.0f, squares = 0.0f;
    for (int32_t r = part; r < rows; r += parts) sum += shared_get(from + r * stride);
    const float mean = sum_of_parts<kTile>(sum, scratch) / (float)rows;
    for (int32_t r = part; r < rows; r += parts) {
      const float d = shared_get(from + r * stride) - mean;
      squares = fused(d, d, squares);
    }
    squares = sum_of_parts<kTile>(squares, scratch);
    if (part == 0 && channel < a.co_stored) {
      float* entry = a.stats + (((int64_t)(first_image + g) * entries + phase * a.tiles_per_image + tile_in_image) * 2) * a.co_stored;
      store(entry + channel, mean);
      store(entry + a.co_stored + channel, squares);
    }
  }

  const int32_t group = whole ? block_x() : first_image;
  if (!last_to_arrive(a.stats_done + group * blocks_y() + block_y(), entries, scratch)) return;
  const float count = (float)pixels * (float)a.phases;
  const bool stored = channel < a.co_stored;
  for (int32_t g = 0; g < images; ++g) {
    const float* entry = a.stats + (int64_t)(first_image + g) * entries * 2 * a.co_stored + channel;
    float sum = 0.0f, squares = 0.0f;
    for (int32_t e = part; e < entries && stored; e += parts)
      sum += load_of_blocks(entry + (int64_t)e * 2 * a.co_stored) * (float)rows_of(e % a.tiles_per_image);
    const float mean = sum_of_parts<kTile>(sum, scratch) / count;
    for (int32_t e = part; e < entries && stored; e += parts) {
      const float d = load_of_blocks(entry + (int64_t)e * 2 * a.co_stored) - mean;
      squares += load_of_blocks(entry + ((int64_t)e * 2 + 1) * a.co_stored) + d * d * (float)rows_of(e % a.tiles_per_image);
    }
    const float variance = sum_of_parts<kTile>(squares, scratch) / count;
    if (part == 0 && stored) {
      const ScaleShift norm = norm_of(a, channel, mean, variance);
      float* affine = a.affine + (int64_t)(first_image + g) * 2 * a.co_stored + channel;
      store(affine, norm.scale);
      store(affine + a.co_stored, norm.shift);
    }
  }
}

// y in [-1, 1] as image.cpp stores it: nearest, ties to even; a NaN becomes black.
P2P_DEVICE void store_pixel(const Picture& picture, int64_t at, float y) {
  if (picture.bytes == 4) {
    store((float*)picture.data + at, fused(y, picture.scale, picture.offset));
    return;
  }
  const float unit = y >= -1.0f ? min_of(y, 1.0f) : -1.0f;
  store((uint8_t*)picture.data + at, (uint8_t)nearest_even((unit + 1.0f) * 127.5f));
}

// What a map can hold of a value.
template <DType kType>
P2P_DEVICE float in_range(float v) {
  return kType == DType::kF16 ? max_of(min_of(v, 65504.0f), -65504.0f) : v;
}

// Where pixel (my, mx) of phase (ph, pw) lies in the output map.
template <Kind kKind>
P2P_DEVICE int64_t output_pixel(const LayerArgs& a, int32_t image, int32_t my, int32_t mx, int32_t ph, int32_t pw) {
  return kKind == Kind::kDeconv ? ((int64_t)image * 2 * a.mh + 2 * my + ph) * 2 * a.mw + 2 * mx + pw
                                : ((int64_t)image * a.mh + my) * a.mw + mx;
}

template <DType kType, Tile kTile, Kind kKind>
P2P_DEVICE void store_tile(const LayerArgs& a, const float* tile, int32_t ph, int32_t pw) {
  constexpr TileShape shape = tile_shape(kTile);
  constexpr int32_t stride = shape.bn + 4;
  const int32_t pixels = a.mh * a.mw;
  constexpr int32_t across = kKind == Kind::kLast ? shape.bn : shape.bn / kVec<kType>;  // items in a row
  const RowTile rows = row_tile<kTile>(a, block_x() % a.tiles_per_image);
  for (int32_t item = thread_index(); item < shape.bm * across; item += kThreads) {
    const int32_t row = item / across;
    int32_t image, my, mx;
    if (a.images_per_tile > 1) {
      const int32_t in_tile = row / pixels, pixel = row - in_tile * pixels;
      image = in_tile < a.images_per_tile ? block_x() * a.images_per_tile + in_tile : a.n;
      my = pixel / a.mw;
      mx = pixel - my * a.mw;
    } else {
      image = row < rows.rows ? block_x() / a.tiles_per_image : a.n;
      my = (rows.offset + row) / rows.across;
      mx = rows.x + rows.offset + row - my * rows.across;
      my += rows.y;
    }
    if (image >= a.n) continue;
    if constexpr (kKind == Kind::kLast) {
      const int32_t column = block_y() * shape.bn + item % across;
      if (column >= a.columns) continue;
      const int32_t phase = column / a.co, c = column - phase * a.co;
      const int32_t y = 2 * my + phase / 2, x = 2 * mx + phase % 2;
      if (y >= a.picture.h || x >= a.picture.w) continue;  // cropped
      const float v = shared_get(tile + row * stride + item % across);
      store_pixel(a.picture, place_in(a.picture, image, y, x, c), a.tanh ? tanh_of(v) : v);
    } else {
      const int32_t column = item % across * kVec<kType>, channel = block_y() * shape.bn + column;
      if (channel >= a.co_stored) continue;
      float v[kVec<kType>];
#pragma unroll
      for (int32_t j = 0; j < kVec<kType>; ++j) {
        v[j] = in_range<kType>(shared_get(tile + row * stride + column + j));
      }
      const int64_t at = output_pixel<kKind>(a, image, my, mx, ph, pw);
      store16((char*)a.dst + (at * a.co_stored + channel) * (16 / kVec<kType>), pack_vec<kType>(v));
    }
  }
}

// From a block's sums to its part of the output: splits, bias, the tile, statistics.
template <DType kType, Tile kTile, Kind kKind>
P2P_DEVICE void finish(const LayerArgs& a, const Accumulators<kType, kTile>& sums, int32_t phase, int32_t split) {
  constexpr TileShape shape = tile_shape(kTile);
  sync_block();

  // The slices' memory becomes the tile of f32 values.
  float* const tile = (float*)shared_memory();
  float* const scratch = tile + shape.bm * (shape.bn + 4);
  const auto finished = [&](int32_t column, float sum) {
    const int32_t at = block_y() * shape.bn + column;
    if constexpr (kKind == Kind::kFirst) sum = a.picture.bytes == 1 ? sum * (1.0f / 127.5f) : sum;
    return a.bias && at < a.columns ? sum + load(a.bias + (kKind == Kind::kLast ? at % a.co : at)) : sum;
  };
  if (a.splits == 1) {
    sums.each([&](int32_t row, int32_t column, float v) { shared_set(tile + row * (shape.bn + 4) + column, finished(column, v)); });
  } else {
    constexpr int32_t size = shape.bm * shape.bn;
    const int32_t tile_index = (phase * blocks_y() + block_y()) * blocks_x() + block_x();
    float* const partial = a.partial + (int64_t)tile_index * a.splits * size;
    sums.each([&](int32_t row, int32_t column, float v) { store(partial + (int64_t)split * size + row * shape.bn + column, v); });
    if (!last_to_arrive(a.split_done + tile_index, a.splits, scratch)) return;
    for (int32_t i = thread_index(); i < size; i += kThreads) {
      float sum = 0.0f;
      for (int32_t p = 0; p < a.splits; ++p) sum += load_of_blocks(partial + (int64_t)p * size + i);
      shared_set(tile + i / shape.bn * (shape.bn + 4) + i % shape.bn, finished(i % shape.bn, sum));
    }
  }
  sync_block();
  store_tile<kType, kTile, kKind>(a, tile, phase / 2, phase % 2);
  if constexpr (kKind == Kind::kConv || kKind == Kind::kDeconv)
    if (a.affine) take_statistics<kTile>(a, tile, scratch, phase);
}

template <DType kType, Tile kTile, Kind kKind>
P2P_KERNEL layer_kernel(const LayerArgs a) {
  constexpr TileShape shape = tile_shape(kTile);
  constexpr int32_t kPixelSlice = shape.bm * kSliceBytes, kWeightSlice = shape.bn * kSliceBytes;
  char* const pixel_slices = shared_memory();
  char* const weight_slices = pixel_slices + 2 * kPixelSlice;

  const int32_t phase = block_z() / a.splits, split = block_z() % a.splits;
  const int32_t ph = phase / 2, pw = phase % 2;
  const LiveTaps live = live_of(a, phase);
  const int32_t pieces = (live.h1 - live.h0) * (live.w1 - live.w0) * a.chunks_per_tap;
  const int32_t slices = (pieces + kPieces - 1) / kPieces;
  const int32_t begin = (int64_t)slices * split / a.splits, count = (int64_t)slices * (split + 1) / a.splits - begin;
  const int32_t piece = thread_index() % kPieces;

  // Weights: slice s of this block into place s % stages.
  Cursor weight_at = cursor_at(a, live, begin * kPieces + piece);
  const auto ask_for_weights = [&](int32_t s) {
    if (s < count) {
      ask_for_slice<kTile>(a, weight_slices + s % shape.stages * kWeightSlice, phase, weight_at.th, weight_at.tw,
                           weight_at.piece, weight_at.th < live.h1);
      advance(a, live, weight_at);
    }
    copy_commit();
  };

  grid_release();
#pragma unroll 1
  for (int32_t s = 0; s < shape.stages - 1; ++s) ask_for_weights(s);
  Pixels<kType, kTile, kKind> pixels;
  pixels.place(a, ph, pw);
  Accumulators<kType, kTile> sums;
  sums.clear();
  grid_wait();  // nothing but weights was read, and nothing written, before this line

  Cursor pixel_at = cursor_at(a, live, begin * kPieces + piece);
  pixels.fetch(a, live, pixel_at);
  pixels.put(a, pixel_slices);
#pragma unroll 1
  for (int32_t s = 0; s < count; ++s) {
    copy_wait<shape.stages - 2>();
    if (s + 1 < count) {
      advance(a, live, pixel_at);
      pixels.fetch(a, live, pixel_at);
    }
    sync_block();  // slice s is whole; nobody reads slice s - 1 any more
    ask_for_weights(s + shape.stages - 1);
    const char* const slice = pixel_slices + s % 2 * kPixelSlice;
    sums.multiply([&](int32_t, int32_t row, int32_t at) { return slice + piece_offset(row, at); },
                  weight_slices + s % shape.stages * kWeightSlice);
    if (s + 1 < count) pixels.put(a, pixel_slices + (s + 1) % 2 * kPixelSlice);
  }
  finish<kType, kTile, kKind>(a, sums, phase, split);
}

// The kernels of one precision: every tile for maps, one for pictures. Null where there is none.
template <DType kType>
LayerKernel kernels_of(Kind kind, Tile tile) {
  if (kind == Kind::kFirst) return tile == Tile::k64x64 ? &layer_kernel<kType, Tile::k64x64, Kind::kFirst> : nullptr;
  if (kind == Kind::kLast) return tile == Tile::k64x16 ? &layer_kernel<kType, Tile::k64x16, Kind::kLast> : nullptr;
  const bool down = kind == Kind::kConv;
  if (tile == Tile::k64x64)
    return down ? &layer_kernel<kType, Tile::k64x64, Kind::kConv> : &layer_kernel<kType, Tile::k64x64, Kind::kDeconv>;
  if constexpr (kType != DType::kF32) {
    if (tile == Tile::k64x32)
      return down ? &layer_kernel<kType, Tile::k64x32, Kind::kConv> : &layer_kernel<kType, Tile::k64x32, Kind::kDeconv>;
    if (tile == Tile::k16x32)
      return down ? &layer_kernel<kType, Tile::k16x32, Kind::kConv> : &layer_kernel<kType, Tile::k16x32, Kind::kDeconv>;
  }
  return nullptr;
}

}  // namespace
}  // namespace p2p::cuda
