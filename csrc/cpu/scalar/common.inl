// What the readable kernels share: weights as [tap][input channel][output channel], one item per output row, statistics of
// a row by two plain passes. Included inside the room's anonymous namespace.

inline int64_t ci_total(const Problem& p) { return p.ci_stored[0] + p.ci_stored[1]; }

// A source pixel's channel after its norm and the reader's activation.
inline float activated(const Source& source, int64_t i, int32_t c, float slope) {
  const float x = ((const float*)source.data)[i] * source.scale[c] + source.shift[c];
  return x > slope * x ? x : slope * x;
}

// acc[co] += taps of one input pixel (y, x) with tap number `tap`; pixels outside the picture are zero.
inline void add_pixel(const Problem& p, const Args& args, int32_t y, int32_t x, int32_t tap, float* acc) {
  if (y < 0 || y >= p.hi || x < 0 || x >= p.wi) return;
  const float* weights = (const float*)args.weights + tap * ci_total(p) * p.co_stored;
  for (int32_t s = 0; s < 2; ++s) {
    const int64_t pixel = ((int64_t)y * p.wi + x) * p.ci_stored[s];
    for (int32_t c = 0; c < p.ci_stored[s]; ++c, weights += p.co_stored) {
      const float value = activated(args.src[s], pixel + c, c, args.slope);
      for (int32_t n = 0; n < p.co_stored; ++n) acc[n] += value * weights[n];
    }
  }
}

inline void write_statistics(const Problem& p, const float* row, float* stats) {
  float *mean = stats, *deviations = stats + p.co_stored, *count = stats + 2 * (int64_t)p.co_stored;
  for (int32_t n = 0; n < p.co_stored; ++n) mean[n] = deviations[n] = 0, count[n] = (float)p.wo;
  // Relative to the first pixel, so that the mean of a constant row is that constant and its deviations are exactly 0.
  for (int32_t x = 1; x < p.wo; ++x)
    for (int32_t n = 0; n < p.co_stored; ++n) mean[n] += row[(int64_t)x * p.co_stored + n] - row[n];
  for (int32_t n = 0; n < p.co_stored; ++n) mean[n] = row[n] + mean[n] / (float)p.wo;
  for (int32_t x = 0; x < p.wo; ++x)
    for (int32_t n = 0; n < p.co_stored; ++n) {
      const float d = row[(int64_t)x * p.co_stored + n] - mean[n];
      deviations[n] += d * d;
    }
}

// One row of outputs into dst, with its statistics. Pixel is a function (x, acc) that adds the taps of output pixel x.
template <class Pixel>
inline void write_row(const Problem& p, const Args& args, int32_t y, Pixel add_taps) {
  float* row = (float*)args.dst + (int64_t)y * p.wo * p.co_stored;
  for (int32_t x = 0; x < p.wo; ++x) {
    float* acc = row + (int64_t)x * p.co_stored;
    for (int32_t n = 0; n < p.co_stored; ++n) acc[n] = args.bias ? args.bias[n] : 0.0f;
    add_taps(x, acc);
  }
  if (args.stats) write_statistics(p, row, args.stats + (int64_t)y * 3 * p.co_stored);
}

inline void row_geometry(const Problem& p, int64_t taps_per_output, Geometry* g) {
  g->rows = p.ho * p.wo;
  g->phases = 1;
  g->items[0] = p.ho;
  g->items[1] = 0;
  g->stat_blocks = p.ho;
  g->pack_items = 16;
  g->weight_bytes = g->read_bytes = 16 * ci_total(p) * p.co_stored * 4;
  g->shared_bytes = 0;
  g->scratch_bytes = 0;
  g->macs = (int64_t)g->rows * taps_per_output * ci_total(p) * p.co_stored;
}

// raw (co, ci, 4, 4) of a convolution, (ci, co, 4, 4) of a transposed one; item = tap.
inline void pack_taps(const Problem& p, const float* raw, void* dst, int32_t tap, bool transposed) {
  float* out = (float*)dst + tap * ci_total(p) * p.co_stored;
  const int64_t ci = p.ci[0] + p.ci[1];
  for (int32_t s = 0; s < 2; ++s)
    for (int32_t c = 0; c < p.ci[s]; ++c)
      for (int32_t n = 0; n < p.co; ++n) {
        const int64_t from = s ? p.ci[0] + c : c, to = s ? p.ci_stored[0] + c : c;
        out[to * p.co_stored + n] = raw[(transposed ? from * p.co + n : n * ci + from) * 16 + tap];
      }
}
