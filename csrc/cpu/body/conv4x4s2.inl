// Schemes of the 4x4, stride 2, padding 1 convolution: y[o] = sum over k of x[2 o - 1 + k] w[k], in each axis.
//
// Winograd: taps of equal parity meet one input phase, x_p[i] = x[2 i - 1 + p], and y[o] = sum over p of
// (x_p[o] w[p] + x_p[o + 1] w[2 + p]): a stride-1, 2-tap filter per phase. The four 2-D phases lie side by side in k, so
// their sum happens inside the product, in the transform domain. Read next: docs/winograd.md.

struct ConvDirect {
  using Output = Identity;
  static constexpr int kPositions = 16, kPhases = 1, kRounds = 1, kProducts = 16, kSplit = 1, kStep = 1;
  static constexpr bool kAccumulate = true;

  static int32_t rows(const Problem& p) { return p.ho * p.wo; }
  static Range rows_at(const Problem& p, int32_t) { return {0, rows(p)}; }
  static int32_t position(int32_t, int32_t product) { return product; }
  static bool axis_live(int32_t k, int32_t size, int32_t out) {  // does tap k of any output meet the picture?
    for (int32_t o = 0; o < out; ++o)
      if (2 * o - 1 + k >= 0 && 2 * o - 1 + k < size) return true;
    return false;
  }
  static bool live(const Problem& p, int32_t, int32_t tap) {
    return axis_live(tap / 4, p.hi, p.ho) && axis_live(tap % 4, p.wi, p.wo);
  }
  static void weights(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t, int32_t, double* u) {
    const float* w = raw + ((int64_t)n * (p.ci[0] + p.ci[1]) + c) * 16;
    for (int tap = 0; tap < 16; ++tap) u[tap] = w[tap];
  }
  template <class E>
  static void gather_row(const Problem& p, const Source& source, int32_t channels, float slope, int32_t row, int32_t,
                         char* a, int64_t stride, const RowPlace* places, int64_t k0) {
    gather<E, Window<4>>(false, false, p, source, channels, slope, 2 * (row / p.wo) - 1, 2 * (row % p.wo) - 1, 1, a, stride,
                         places, k0);
  }
  static Place place(const Problem& p, int32_t row, int32_t) { return {row / p.wo, row % p.wo, false, false}; }
};

template <class W>
struct ConvWinograd {
  using Output = W;
  static constexpr int kPositions = W::kPoints * W::kPoints, kPhases = 1, kRounds = 1, kProducts = kPositions, kSplit = 4, kStep = 1;
  static constexpr bool kAccumulate = false;

  static Tiling<W> tiling(const Problem& p) { return {Axis<W>(p.ho), Axis<W>(p.wo)}; }
  static int32_t rows(const Problem& p) { return tiling(p).rows(); }
  static Range rows_at(const Problem& p, int32_t product) {
    return tiling(p).rows_at(product / W::kPoints, product % W::kPoints);
  }
  static int32_t position(int32_t, int32_t product) { return product; }
  static bool live(const Problem&, int32_t, int32_t) { return true; }
  // The 2x2 filter of an input phase (split).
  static void taps(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t, int32_t split, double g[2][2]) {
    const float* w = raw + ((int64_t)n * (p.ci[0] + p.ci[1]) + c) * 16 + (split / 2) * 4 + split % 2;
    g[0][0] = w[0];
    g[0][1] = w[2];
    g[1][0] = w[8];
    g[1][1] = w[10];
  }
  static void weights(const Problem& p, const float* raw, int32_t c, int32_t n, int32_t phase, int32_t split, double* u) {
    double g[2][2];
    taps(p, raw, c, n, phase, split, g);
    transform_weights<W>(g, u);
  }
  template <class E>
  static void gather_row(const Problem& p, const Source& source, int32_t channels, float slope, int32_t row, int32_t,
                         char* a, int64_t stride, const RowPlace* places, int64_t k0) {
    const Tiling<W> map = tiling(p);
    const auto tile = map.tile(row);
    const int32_t y = 2 * map.y.start(tile.y) - 1, x = 2 * map.x.start(tile.x) - 1;
    for (int32_t split = 0; split < 4; ++split)
      gather<E, W>(tile.short_y, tile.short_x, p, source, channels, slope, y + split / 2, x + split % 2, 2, a, stride, places,
                   split * (int64_t)(p.ci_stored[0] + p.ci_stored[1]) + k0);
  }
  static Place place(const Problem& p, int32_t row, int32_t) {
    const Tiling<W> map = tiling(p);
    const auto tile = map.tile(row);
    return {map.y.start(tile.y), map.x.start(tile.x), tile.short_y, tile.short_x};
  }
};
