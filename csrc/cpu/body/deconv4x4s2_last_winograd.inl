// The last layer by F(3, 2), straight into the picture: 16 products for 9 windows instead of 36 for their 2x2 taps.
//
// All four output phases of all channels are the columns of one product, ordered so that what a window gives lies as in the
// picture. Window (oy, ox) gives the rows 2 oy + 1 and 2 oy + 2 and in each the pixels 2 ox + 1 and 2 ox + 2, 2 co neighbouring
// floats (deconv4x4s2.inl: phase 1, then phase 0). Each row has vectors of its own, so one store writes a window's row; what
// its last vector writes behind the 2 co floats, the next window overwrites. An item is a row of tiles: six rows of the
// picture that no other item touches. F(3, 2): 129 windows are 43 tiles, and its rounding is close to the direct sum's.

struct DeconvLastWinograd {
  using W = Winograd3;
  using E = F32;
  using Scheme = DeconvWinograd<W>;
  using Conv = Convolution<E, Scheme>;  // whose A this has, block by block
  static constexpr int kPoints = W::kPoints, kPositions = kPoints * kPoints, kRows = 2 * W::kTile;
  static constexpr int64_t kBlockBytes = 160 << 10;  // of A: beside weights and C in the core's own cache

  static int32_t row_vecs(const Problem& p) { return (2 * p.co + kWidth - 1) / kWidth; }  // of a window's row
  static int32_t panels(const Problem& p) { return (2 * row_vecs(p) + kPanelVecs - 1) / kPanelVecs; }
  static int32_t tiles(int32_t in) { return Axis<W>(in + 1).tiles; }
  static int64_t product_floats(const Problem& p) { return Conv::k_of(p) * kPanel; }

  // Tiles that are gathered and multiplied together: equal parts of a row of tiles.
  static int32_t block_tiles(const Problem& p) {
    const int64_t fit = kBlockBytes / (kPositions * Conv::k_of(p) * 4), row = tiles(p.wi);
    const int64_t parts = fit < 1 ? row : (row + fit - 1) / fit;
    return (int32_t)((row + parts - 1) / parts);
  }
  static int64_t a_bytes(const Problem& p) { return Conv::a_bytes(p, block_tiles(p)); }
  static int64_t c_bytes(const Problem& p) { return panels(p) * Conv::c_bytes(block_tiles(p)); }
  static int64_t row_floats(const Problem& p) {
    return align64(2ll * p.co * W::kTile * tiles(p.wi) + row_vecs(p) * kWidth + kWidth);
  }

  static void geometry(const Problem& p, Geometry* g) {
    g->rows = tiles(p.hi) * tiles(p.wi);
    g->block_rows = RowBlocks(block_tiles(p)).size(0);
    g->phases = 1;
    g->items[0] = tiles(p.hi);
    g->items[1] = 0;
    g->stat_blocks = 0;
    g->pack_items = 2 * row_vecs(p);
    g->weight_bytes = g->read_bytes = kPositions * panels(p) * product_floats(p) * 4;
    g->shared_bytes = g->shared_read_bytes = 0;
    g->transform_bytes = g->rows * kPositions * (Conv::k_of(p) + panels(p) * kPanel) * 4;
    g->scratch_bytes = a_bytes(p) + c_bytes(p) + align64(kRows * row_floats(p) * 4) + align64(row_vecs(p) * kWidth * 4);
    g->macs = (int64_t)g->rows * kPositions * Conv::k_of(p) * panels(p) * kPanel;
  }

  // One vector of columns.
  static void pack(const Problem& p, const float* raw, void* dst, int32_t vec) {
    const int32_t phase_y = vec < row_vecs(p) ? 1 : 0, first = vec % row_vecs(p) * kWidth;
    for (int32_t s = 0; s < 2; ++s)
      for (int32_t c = 0; c < p.ci[s]; ++c)
        for (int32_t i = 0; i < kWidth && first + i < 2 * p.co; ++i) {
          const int32_t phase_x = first + i < p.co ? 1 : 0;
          double u[kPositions];
          Scheme::weights(p, raw, (s ? p.ci[0] : 0) + c, (first + i) % p.co, 2 * phase_y + phase_x, 0, u);
          const int64_t k = (s ? p.ci_stored[0] : 0) + c;
          for (int32_t q = 0; q < kPositions; ++q)
            ((float*)dst)[(q * panels(p) + vec / kPanelVecs) * product_floats(p) + k * kPanel + vec % kPanelVecs * kWidth + i] =
                (float)u[q];
        }
  }

  static void multiply(const Problem& p, const Args& args, const char* a, float* c, int32_t count) {
    const RowBlocks blocks(count);
    const char* b = (const char*)args.weights;
    for (int32_t q = 0; q < kPositions; ++q)
      for (int32_t panel = 0; panel < panels(p); ++panel, b += product_floats(p) * 4, c += Conv::output_floats(count, kPanel))
        for (int32_t block = 0; block < blocks.count; ++block) {
          const int32_t start = blocks.start(block);
          multiply_block<E>(blocks.size(block), kPanelVecs, a + q * Conv::position_bytes(p, count) + start * Conv::k_of(p) * 4, b,
                            Conv::lines_of(p), c + start * kPanel, kPanel, false, b, 0);
        }
  }

  // Outputs of the tiles into the six rows of the picture. The vectors of a window's row in descending order: only the last
  // one writes too far, into what the first one of the next window then writes.
  static void emit(const Problem& p, const float* c, const float* bias, float* rows, int32_t first, int32_t count) {
    const int64_t panel = Conv::output_floats(count, kPanel), matrix = panels(p) * panel, row = row_floats(p);
    const int32_t vecs = row_vecs(p);
    for (int32_t t = 0; t < count; ++t)
      for (int32_t u = vecs - 1; u >= 0; --u)
        for (int32_t lower = 0; lower < 2; ++lower) {
          const int32_t vec = lower * vecs + u;
          const float* points = c + vec / kPanelVecs * panel + t * kPanel + vec % kPanelVecs * kWidth;
          Vec half[W::kTile * kPoints];
#pragma GCC unroll 4
          for (int j = 0; j < kPoints; ++j) output_column<W, W>(points + j * matrix, matrix, half + j, kPoints);
          float* out = rows + lower * row + 2ll * p.co * W::kTile * (first + t) + u * kWidth;
#pragma GCC unroll 3
          for (int i = 0; i < W::kTile; ++i) {
            Vec y[W::kTile];
            W::output(half + i * kPoints, y);
#pragma GCC unroll 3
            for (int j = 0; j < W::kTile; ++j) store(out + 2 * i * row + 2ll * p.co * j, add(y[j], load(bias + u * kWidth)));
          }
        }
  }

  static void run(const Problem& p, const Args& args, int32_t, int32_t ty, void* scratch) {
    char* a = (char*)scratch;
    float* c = (float*)(a + a_bytes(p));
    float* rows = (float*)((char*)c + c_bytes(p));
    float* bias = (float*)((char*)rows + align64(kRows * row_floats(p) * 4));
    for (int32_t i = 0; i < row_vecs(p) * kWidth; ++i) bias[i] = args.bias && i < 2 * p.co ? args.bias[i % p.co] : 0.0f;

    const int32_t all = tiles(p.wi), block = block_tiles(p);
    for (int32_t first = 0; first < all; first += block) {
      const int32_t count = all - first < block ? all - first : block, tile = ty * all + first;
      Conv::gather_rows(p, args, 0, a, tile, count, tile, count);
      multiply(p, args, a, c, count);
      emit(p, c, bias, rows, first, count);
    }
    for (int32_t i = 0; i < kRows; ++i) {
      const int32_t y = kRows * ty - 1 + i;
      float* row = rows + i * row_floats(p) + p.co;  // the first window's left column is outside the picture
      if (y >= 0 && y < p.ho) finish_row(p, args, y, row);
    }
  }
};
