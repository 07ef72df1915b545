// Schemes of the 4x4, stride 2, padding 1 transposed convolution, as four output phases of 2-tap filters; zeros are never
// inserted. In each axis
//
//   y[2 j]     = x[j - 1] w[3] + x[j] w[1]          (phase 0)
//   y[2 j + 1] = x[j] w[2] + x[j + 1] w[0]          (phase 1)
//
// Both are a 2-tap filter on the window (x[o], x[o + 1]): phase 1 of o = j, phase 0 of o = j - 1. So one input transform of
// tiles with origin m t - 1 can serve all four 2-D phases. Read next: docs/winograd.md.

struct DeconvDirect {
  using Output = Identity;
  static constexpr int kPositions = 9, kPhases = 4, kRounds = 1, kProducts = 4, kSplit = 1, kStep = 2;
  static constexpr bool kAccumulate = true;

  static int32_t rows(const Problem& p) { return p.hi * p.wi; }
  static Range rows_at(const Problem& p, int32_t) { return {0, rows(p)}; }
  // Product (ty, tx) of phase (py, px) reads the pixel shifted by (py - 1 + ty, px - 1 + tx); position = shift + 1.
  static int32_t position(int32_t phase, int32_t product) {
    return (phase / 2 + product / 2) * 3 + phase % 2 + product % 2;
  }
  static bool live(const Problem& p, int32_t phase, int32_t product) {
    return (p.hi > 1 || phase / 2 - 1 + product / 2 == 0) && (p.wi > 1 || phase % 2 - 1 + product % 2 == 0);
  }
  static int32_t tap(int32_t phase, int32_t t) { return 3 - phase - 2 * t; }
  static void weights(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t phase, int32_t, double* u) {
    const float* w = raw + ((int64_t)c * p.co + n) * 16;
    for (int q = 0; q < 4; ++q) u[q] = w[tap(phase / 2, q / 2) * 4 + tap(phase % 2, q % 2)];
  }
  template <class E>
  static void gather_row(const Problem& p, const Source& source, int32_t channels, float slope, int32_t row, int32_t,
                         char* a, int64_t stride, const RowPlace* places, int64_t k0) {
    gather<E, Window<3>>(false, false, p, source, channels, slope, row / p.wi - 1, row % p.wi - 1, 1, a, stride, places, k0);
  }
  static Place place(const Problem& p, int32_t row, int32_t phase) {
    return {2 * (row / p.wi) + phase / 2, 2 * (row % p.wi) + phase % 2, false, false};
  }
};

// The phases share their tiles, or each has its own. All phases together have in + 1 windows a side (o = -1 .. in - 1), each
// alone has `in`: where m divides `in`, that one window more costs every phase a row and a column of tiles, and four input
// transforms instead of one are cheaper.
enum class PhaseTiles { kShared, kOwn };

template <class W, PhaseTiles kTiles = PhaseTiles::kShared>
struct DeconvWinograd {
  using Output = W;
  static constexpr bool kAccumulate = false, kOwn = kTiles == PhaseTiles::kOwn;
  static constexpr int kPhases = 4, kRounds = kOwn ? kPhases : 1, kSplit = 1, kStep = 2;
  static constexpr int kProducts = W::kPoints * W::kPoints, kPositions = kProducts;

  static Axis<W> axis(int32_t in) { return Axis<W>(kOwn ? in : in + 1); }
  static Tiling<W> tiling(const Problem& p) { return {axis(p.hi), axis(p.wi)}; }
  static int32_t rows(const Problem& p) { return tiling(p).rows(); }
  static Range rows_at(const Problem& p, int32_t product) {
    return tiling(p).rows_at(product / W::kPoints, product % W::kPoints);
  }
  static int32_t position(int32_t, int32_t product) { return product; }
  static bool live(const Problem&, int32_t, int32_t) { return true; }
  // The 2x2 filter of an output phase.
  static void taps(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t phase, int32_t, double g[2][2]) {
    const float* w = raw + ((int64_t)c * p.co + n) * 16;
    for (int ty = 0; ty < 2; ++ty)
      for (int tx = 0; tx < 2; ++tx)
        g[ty][tx] = w[DeconvDirect::tap(phase / 2, ty) * 4 + DeconvDirect::tap(phase % 2, tx)];
  }
  static void weights(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t phase, int32_t split, double* u) {
    double g[2][2];
    taps(p, raw, c, n, phase, split, g);
    transform_weights<W>(g, u);
  }
  // The first window of a tile in one axis, for the phase of that axis.
  static int32_t window(const Axis<W>& axis, int32_t tile, int32_t phase) {
    return axis.start(tile) - 1 + (kOwn ? phase : 0);
  }
  template <class E>
  static void gather_row(const Problem& p, const Source& source, int32_t channels, float slope, int32_t row, int32_t round,
                         char* a, int64_t stride, const RowPlace* places, int64_t k0) {
    const Tiling<W> map = tiling(p);
    const auto tile = map.tile(row);
    gather<E, W>(tile.short_y, tile.short_x, p, source, channels, slope, window(map.y, tile.y, round / 2),
                 window(map.x, tile.x, round % 2), 1, a, stride, places, k0);
  }
  // Window o gives row 2 o + 1 (phase 1) or 2 o + 2 (phase 0).
  static Place place(const Problem& p, int32_t row, int32_t phase) {
    const Tiling<W> map = tiling(p);
    const auto tile = map.tile(row);
    return {2 * window(map.y, tile.y, phase / 2) + 2 - phase / 2, 2 * window(map.x, tile.x, phase % 2) + 2 - phase % 2,
            tile.short_y, tile.short_x};
  }
};
