// The first layer on tiles: bf16 rows of the picture, of which every output pixel copies its 4 x 4 window as one line of A.
//
// A window's kernel row is 4 ci neighbouring values, padded to a multiple of 16 (the weights of the padding are zero), so
// three channels make two chunks of 32. Weights: [panel of 16][chunk][16 pairs][16 columns of 2].

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernels.h"

namespace p2p::cpu::amx {
namespace {
#include "vec.h"

#include "../body/fixed24.inl"
#include "../body/gemm.inl"
#include "../body/winograd.inl"
#include "../body/convolution.inl"
#include "../body/conv4x4s2.inl"
#include "tiles.inl"

constexpr int kFirstRows = 4;  // output rows of an item

struct TileFirst {
  static int64_t slots(const Problem& p) { return (4ll * p.ci[0] + 15) / 16 * 16; }  // of a kernel row
  static int64_t line_bytes(const Problem& p) { return 4 * slots(p) * 2; }           // of a window
  static int64_t chunks(const Problem& p) { return line_bytes(p) / 64; }
  static int64_t row_floats(const Problem& p) { return (int64_t)(p.wi + 2) * p.ci[0]; }
  static int64_t row_bytes(const Problem& p) { return align64(row_floats(p) * 2 + slots(p) * 2 + 64); }
  static int64_t windows(const Problem& p) { return (p.wo + 2 * kRowsOfTile - 1) / (2 * kRowsOfTile) * 2 * kRowsOfTile; }
  static int64_t floats_bytes(const Problem& p) { return align64((2ll * kFirstRows + 2) * row_floats(p) * 4 + 64); }

  static void geometry(const Problem& p, Geometry* g) {
    g->rows = p.ho * p.wo;
    g->phases = 1;
    g->items[0] = (p.ho + kFirstRows - 1) / kFirstRows;
    g->items[1] = 0;
    g->stat_blocks = 0;
    g->pack_items = p.co_stored / kColumnsOfTile;
    g->weight_bytes = g->read_bytes = chunks(p) * kTileBytes * (p.co_stored / kColumnsOfTile);
    g->shared_bytes = g->shared_read_bytes = 0;
    g->scratch_bytes = floats_bytes(p) + (2 * kFirstRows + 2) * row_bytes(p) + windows(p) * line_bytes(p) + 4 * kTileBytes;
    g->macs = (int64_t)g->rows * 4 * slots(p) * p.co_stored;
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t panel) {
    char* out = (char*)dst + panel * chunks(p) * kTileBytes;
    for (int32_t n = 0; n < kColumnsOfTile && panel * kColumnsOfTile + n < p.co; ++n)
      for (int32_t c = 0; c < p.ci[0]; ++c)
        for (int32_t tap = 0; tap < 16; ++tap) {
          const int64_t k = tap / 4 * slots(p) + tap % 4 * p.ci[0] + c;
          const float w = raw[((int64_t)(panel * kColumnsOfTile + n) * p.ci[0] + c) * 16 + tap];
          BF16::store_scalar(out + k / 32 * kTileBytes, k % 32 / 2 * 32 + n * 2 + k % 2, w);
        }
  }

  static void run(const Problem& p, const Args& args, int32_t, int32_t item, void* scratch) {
    const int32_t y0 = item * kFirstRows, rows = p.ho - y0 < kFirstRows ? p.ho - y0 : kFirstRows;
    float* picture = (float*)scratch;
    char* narrow = (char*)scratch + floats_bytes(p);
    char* a = narrow + (2 * kFirstRows + 2) * row_bytes(p);
    float* c = (float*)(a + windows(p) * line_bytes(p));
    args.picture.load_rows(args.picture.context, 2 * y0 - 1, 2 * rows + 2, picture);
    for (int32_t r = 0; r < 2 * rows + 2; ++r) {
      const float* from = picture + r * row_floats(p);
      char* to = narrow + r * row_bytes(p);
      int64_t i = 0;
      for (; i + kWidth <= row_floats(p); i += kWidth) BF16::store(to, i, load(from + i));
      for (; i < row_bytes(p) / 2; ++i) BF16::store_scalar(to, i, i < row_floats(p) ? from[i] : 0.0f);
    }
    const Tiles tiles;
    Taps window;
    window.count = 1;
    window.a[0] = window.b[0] = 0;
    const int64_t panel_bytes = chunks(p) * kTileBytes, line = line_bytes(p), part = slots(p) * 2;
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t kh = 0; kh < 4; ++kh) {
        const char* from = narrow + (2 * r + kh) * row_bytes(p);
        for (int32_t x = 0; x < p.wo; ++x)
          for (int64_t i = 0; i < part; i += 32)
            _mm256_storeu_si256((__m256i*)(a + x * line + kh * part + i),
                                _mm256_loadu_si256((const __m256i*)(from + x * 4ll * p.ci[0] + i)));
      }
      for (int32_t x = 0; x < p.wo; x += 2 * kRowsOfTile)
        for (int32_t panel = 0; panel < p.co_stored / kColumnsOfTile; panel += 2) {
          const char* w = (const char*)args.weights + panel * panel_bytes;
          NoEmission none;
          product_2x2<false>(a + x * line, line, window, chunks(p), kTileBytes, w, w + panel_bytes, c, none);
          emit(p, args, c, (int64_t)(y0 + r) * p.wo + x, p.wo - x, panel * kColumnsOfTile);
        }
    }
  }

  static void emit(const Problem& p, const Args& args, const float* c, int64_t pixel, int32_t count, int32_t channel) {
    for (int32_t half = 0; half < 2; ++half) {
      const Vec bias = args.bias ? load(args.bias + channel + half * kColumnsOfTile) : zero();
      for (int32_t r = 0; r < 2 * kRowsOfTile && r < count; ++r)
        BF16::store(args.dst, (pixel + r) * p.co_stored + channel + half * kColumnsOfTile,
                    add(load(c + (r / 16 * 2 + half) * 256 + r % 16 * 16), bias));
    }
  }
};
}  // namespace

extern const Kernel kConvFirst;
const Kernel kConvFirst = {"amx/conv4x4s2_first_bf16", Op::kConvFirst, Algorithm::kDirect, DType::kBF16,
                           TileFirst::geometry, TileFirst::pack, TileFirst::run};
}  // namespace p2p::cpu::amx
