// The first layer, straight from the picture: y[oy][ox][n] = bias[n] + sum over kh, (kw, c) of row[2 oy - 1 + kh][2 ox - 1 ...] w.
//
// A row of the picture comes as padded floats, so the 4 taps of a kernel row are 4 ci neighbouring values: pixels step by
// 2 ci floats, and every one is a broadcast from L1. No packing of A, no norm (the first layer has none), float32
// arithmetic in every precision (K is small: the layer is bound by writing its output). Weights: [panel][kh][kw, ci][panel].

constexpr int kFirstRows = 4;  // output rows of an item: 10 picture rows in L1/L2

template <int kRows, int kVecs>
inline void gemm_first(const float* a, int64_t stride_row, int64_t stride_pixel, int64_t taps, const float* b,
                       Vec acc[kRows][kVecs]) {
  for (int kh = 0; kh < 4; ++kh, a += stride_row)
    for (int64_t k = 0; k < taps; ++k) {
      Vec weights[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) weights[v] = load(b + v * kWidth);
      b += kVecs * kWidth;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec x = broadcast(a[r * stride_pixel + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, weights[v], acc[r][v]);
      }
    }
}

template <class E, int kRows, int kVecs>
void first_block(const Problem& p, const Args& args, const float* a, const float* b, int64_t pixel, int64_t channel) {
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) acc[r][v] = args.bias ? load(args.bias + channel + v * kWidth) : zero();
  const int64_t ci = p.ci[0];
  gemm_first<kRows, kVecs>(a, (p.wi + 2) * ci, 2 * ci, 4 * ci, b, acc);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) E::store(args.dst, (pixel + r) * p.co_stored + channel + v * kWidth, acc[r][v]);
}

template <class E, int kVecs, int kRows = kRowsMax>
inline void first_block_of_rows(int32_t rows, const Problem& p, const Args& args, const float* a, const float* b,
                                int64_t pixel, int64_t channel) {
  if (rows == kRows) return first_block<E, kRows, kVecs>(p, args, a, b, pixel, channel);
  if constexpr (kRows > 1) first_block_of_rows<E, kVecs, kRows - 1>(rows, p, args, a, b, pixel, channel);
}

template <class E>
struct ConvFirst {
  static int64_t panel_floats(const Problem& p, int32_t vecs) { return 16ll * p.ci[0] * vecs * kWidth; }

  static void geometry(const Problem& p, Geometry* g) {
    g->rows = p.ho * p.wo;
    g->phases = 1;
    g->items[0] = (p.ho + kFirstRows - 1) / kFirstRows;
    g->items[1] = 0;
    g->stat_blocks = 0;
    g->pack_items = panels_of(p.co_stored);
    g->weight_bytes = g->read_bytes = 16ll * p.ci[0] * p.co_stored * 4;
    g->shared_bytes = g->shared_read_bytes = 0;
    g->scratch_bytes = align64((2ll * kFirstRows + 2) * (p.wi + 2) * p.ci[0] * 4);
    g->macs = (int64_t)g->rows * 16 * p.ci[0] * p.co_stored;
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t panel) {
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth, n0 = panel * kPanel;
    float* out = (float*)dst + panel * panel_floats(p, kPanelVecs);
    for (int32_t n = 0; n < width && n0 + n < p.co; ++n)
      for (int32_t c = 0; c < p.ci[0]; ++c)
        for (int32_t tap = 0; tap < 16; ++tap)
          out[((int64_t)tap * p.ci[0] + c) * width + n] = raw[((int64_t)(n0 + n) * p.ci[0] + c) * 16 + tap];
  }

  static void run(const Problem& p, const Args& args, int32_t, int32_t item, void* scratch) {
    const int32_t y0 = item * kFirstRows, rows = p.ho - y0 < kFirstRows ? p.ho - y0 : kFirstRows;
    const float* picture = (const float*)scratch;
    args.picture.load_rows(args.picture.context, 2 * y0 - 1, 2 * rows + 2, (float*)scratch);
    const RowBlocks blocks(p.wo);
    for (int32_t panel = 0; panel < panels_of(p.co_stored); ++panel) {
      const float* b = (const float*)args.weights + panel * panel_floats(p, kPanelVecs);
      const int32_t vecs = panel_vecs(p.co_stored, panel);
      for (int32_t r = 0; r < rows; ++r)
        for (int32_t block = 0; block < blocks.count; ++block) {
          const int32_t x = blocks.start(block);
          const float* a = picture + (2ll * r * (p.wi + 2) + 2 * x) * p.ci[0];
          const int64_t pixel = (int64_t)(y0 + r) * p.wo + x;
          if (vecs == kPanelVecs)
            first_block_of_rows<E, kPanelVecs>(blocks.size(block), p, args, a, b, pixel, panel * kPanel);
          else
            first_block_of_rows<E, 1>(blocks.size(block), p, args, a, b, pixel, panel * kPanel);
        }
    }
  }
};
