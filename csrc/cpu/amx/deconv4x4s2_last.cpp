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
#include "../body/deconv4x4s2_last.inl"
#include "tiles.inl"

// One row of pixels, normed, times all columns: 32 pixels by one column tile at a time, stored where `combine` reads them.
// Weights: [column tile][chunk][16 pairs of channels][16 columns of 2].
struct LastByTiles {
  static constexpr int kOverrun = kRowsOfTile - 1;
  static int64_t pixel_bytes(int64_t k) { return k * 2 + 64; }
  static int64_t a_bytes(const Problem& p, int64_t k) { return (p.wi + 2 * kRowsOfTile) * pixel_bytes(k); }
  static int64_t weight_offset(int64_t k_total, int32_t, int64_t k, int32_t column) {
    return column / 16 * k_total * 16 + k / 32 * 512 + k % 32 / 2 * 32 + column % 16 * 2 + k % 2;
  }
  static void multiply(const Problem& p, const Args& args, int32_t y, int64_t k, char* a, float* c, int32_t n) {
    const int64_t pixel = pixel_bytes(k);
    normalise_row<BF16>(p, args, y, a, pixel);
    const Tiles tiles;
    for (int32_t x = 0; x < p.wi; x += kRowsOfTile)  // C of a row tile lies n floats apart
      for (int32_t column = 0; column < n; column += 16) {
        const char* w = (const char*)args.weights + column / 16 * k * 32;
        _tile_zero(0);
        for (int64_t chunk = 0; chunk < k / 32; ++chunk) {
          _tile_loadd(4, a + x * pixel + chunk * 64, pixel);
          _tile_loadd(6, w + chunk * kTileBytes, 64);
          _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, c + (int64_t)x * n + column, n * 4);
      }
  }
};
}  // namespace

using Last = DeconvLast<BF16, LastByTiles>;
extern const Kernel kDeconvLast;
const Kernel kDeconvLast = {"amx/deconv4x4s2_last_bf16", Op::kDeconvLast, Algorithm::kDirect, DType::kBF16,
                            Last::geometry, Last::pack, Last::run};
}  // namespace p2p::cpu::amx
