// The last layer, straight into the picture: transposed convolution to a few channels, bias, tanh.
//
// Every input pixel is multiplied once with all 16 taps (a product with N = 16 co columns ordered kh, kw, channel); then
// the four contributions to each output are added. In x, columns (2 j - 1, 2 j) of the output are neighbouring values of
// pixel j - 1's taps kw = 2, 3 plus pixel j's taps kw = 0, 1; rows likewise. So the sums run over 2 co neighbouring floats.
// An item is a band of row windows j: output rows 2 j - 1 and 2 j from input rows j - 1 and j; the one row that two bands
// share is computed twice.

constexpr int kLastWindows = 16;  // windows of an item: 17 input rows, 32 output rows

// tanh by 1 - 2 / (exp(2x) + 1) with exp = 2^n * polynomial(f), |f| <= 1/2. Absolute error below 2e-7 (test_kernels.py).
inline Vec tanh(Vec x) {
  const Vec clamped = min(broadcast(9.5f), max(broadcast(-9.5f), x));  // in this order a NaN stays one
  const Vec scaled = mul(clamped, broadcast(2.885390082f));  // 2 log2(e)
  const Vec n = round_nearest(scaled);
  const Vec f = sub(scaled, n);
  Vec e = broadcast(1.535336188e-4f);
  e = fma(e, f, broadcast(1.339887440e-3f));
  e = fma(e, f, broadcast(9.618437357e-3f));
  e = fma(e, f, broadcast(5.550332471e-2f));
  e = fma(e, f, broadcast(2.402264791e-1f));
  e = fma(e, f, broadcast(6.931472028e-1f));
  e = fma(e, f, broadcast(1.0f));
  e = mul(e, power_of_two(n));
  return sub(broadcast(1.0f), div(broadcast(2.0f), add(e, broadcast(1.0f))));
}

// A row of the picture: sums, which tanh turns into pixels in place (up to a vector past the row's end).
inline void finish_row(const Problem& p, const Args& args, int32_t y, float* row) {
  const int64_t count = (int64_t)p.wo * p.co;
  if (args.tanh)
    for (int64_t i = 0; i < count; i += kWidth) store(row + i, tanh(load(row + i)));
  args.picture.store_row(args.picture.context, y, row);
}

// The product with packed panels of body/gemm.inl: how the last layer's weights lie, and one row of pixels times all columns.
template <class E>
struct LastByPanels {
  static constexpr int kOverrun = 0;  // pixels that multiply may write past the row
  static int64_t a_bytes(const Problem& p, int64_t k) { return p.wi * k * E::kBytes; }
  static int64_t weight_offset(int64_t k_total, int32_t columns, int64_t k, int32_t column) {  // in elements
    const int32_t panel = column / kPanel, width = panel_vecs(columns, panel) * kWidth;
    return panel * k_total * kPanel + (k / E::kWord) * width * E::kWord + (int64_t)(column % kPanel) * E::kWord +
           k % E::kWord;
  }
  // c: the products of row y, [pixel][n].
  static void multiply(const Problem& p, const Args& args, int32_t y, int64_t k, char* a, float* c, int32_t n) {
    const RowBlocks blocks(p.wi);
    const Vec slope = broadcast(args.slope);
    for (int32_t block = 0; block < blocks.count; ++block) {
      const int32_t start = blocks.start(block), size = blocks.size(block);
      char* line = a + start * k * E::kBytes;
      for (int32_t s = 0; s < 2; ++s) {
        const int32_t channels = p.ci_stored[s];
        const int64_t pixel = ((int64_t)y * p.wi + start) * channels;
        for (int32_t c0 = 0; c0 < channels; c0 += E::kChunk, line += size * 64)
          for (int32_t u = 0; u < E::kChunk; u += kWidth) {
            const int32_t c = c0 + u;
            const Vec scale = load(args.src[s].scale + c), shift = load(args.src[s].shift + c);
            for (int32_t i = 0; i < size; ++i)
              E::store(line + i * 64, u, activated<E>(args.src[s].data, pixel + i * channels + c, scale, shift, slope));
          }
      }
    }
    for (int32_t panel = 0; panel < panels_of(n); ++panel) {
      const int32_t vecs = panel_vecs(n, panel);
      const char* b = (const char*)args.weights + panel * k * kPanel * E::kBytes;
      for (int32_t block = 0; block < blocks.count; ++block) {
        const int32_t start = blocks.start(block);
        choose_gemm<E>(blocks.size(block), vecs)(a + start * k * E::kBytes, b, k / E::kChunk,
                                                 c + (int64_t)start * n + panel * kPanel, n, false, b, 0);
      }
    }
  }
};

template <class E, class Product = LastByPanels<E>>
struct DeconvLast {
  // Columns (kh, kw, channel), padded to whole vectors.
  static int32_t columns(const Problem& p) { return (16 * p.co + kWidth - 1) / kWidth * kWidth; }
  static int64_t k_of(const Problem& p) { return p.ci_stored[0] + p.ci_stored[1]; }
  static int64_t a_bytes(const Problem& p) { return Product::a_bytes(p, k_of(p)); }  // one row of pixels
  // Two rows of products; one pixel of zeros stands left and right.
  static int64_t c_floats(const Problem& p) { return ((int64_t)p.wi + 2) * columns(p) + 16; }
  static int64_t c_bytes(const Problem& p) { return align64((c_floats(p) + Product::kOverrun * columns(p)) * 4); }
  static int64_t row_floats(const Problem& p) { return (int64_t)(p.wo + 2) * p.co + 32; }

  static void geometry(const Problem& p, Geometry* g) {
    const int32_t windows = p.hi + 1;
    g->rows = p.hi * p.wi;
    g->phases = 1;
    g->items[0] = (windows + kLastWindows - 1) / kLastWindows;
    g->items[1] = 0;
    g->stat_blocks = 0;
    g->pack_items = (columns(p) + kWidth - 1) / kWidth;
    g->weight_bytes = g->read_bytes = k_of(p) * columns(p) * E::kBytes;
    g->shared_bytes = g->shared_read_bytes = 0;
    g->scratch_bytes = align64(a_bytes(p)) + 2 * c_bytes(p) + align64(row_floats(p) * 4) +
                       align64((4ll * p.co + 32) * 4);
    g->macs = (int64_t)g->rows * k_of(p) * columns(p);
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t vec) {
    for (int32_t s = 0; s < 2; ++s)
      for (int32_t c = 0; c < p.ci[s]; ++c)
        for (int32_t i = 0; i < kWidth; ++i) {
          const int32_t column = vec * kWidth + i, tap = column / p.co, n = column % p.co;
          if (tap >= 16) continue;
          const int64_t k = (s ? p.ci_stored[0] : 0) + c;
          const float w = raw[((int64_t)((s ? p.ci[0] : 0) + c) * p.co + n) * 16 + tap];
          E::store_scalar(dst, Product::weight_offset(k_of(p), columns(p), k, column), w);
        }
  }

  // Products of input row y: c[pixel + 1][columns], zeros at both ends.
  static void multiply_row(const Problem& p, const Args& args, int32_t y, char* a, float* c) {
    const int32_t n = columns(p);
    if (y < 0 || y >= p.hi) {
      for (int64_t i = 0; i < c_floats(p); i += kWidth) store(c + i, zero());
      return;
    }
    for (int32_t i = 0; i < n; i += kWidth) store(c + i, zero());
    Product::multiply(p, args, y, k_of(p), a, c + n, n);
    // What ran over the end is the next window's zero pixel.
    for (int32_t i = 0; i < n; i += kWidth) store(c + (int64_t)(p.wi + 1) * n + i, zero());
  }

  // One output row from the products of two input rows, taps kh = upper_kh of the upper and upper_kh - 2 of the lower.
  static void combine(const Problem& p, const Args& args, const float* upper, const float* lower, int32_t upper_kh,
                      const float* bias, float* row, int32_t y) {
    const int32_t n = columns(p), co = p.co, pair = 2 * co;
    const int64_t up = upper_kh * 4 * co, low = (upper_kh - 2) * 4 * co;
    // Windows in ascending order: what a vector writes past its pair, the next window overwrites.
    for (int32_t j = 0; j <= p.wi; ++j) {
      const int64_t left = (int64_t)j * n, right = left + n;  // pixel j - 1 and pixel j
      for (int32_t i = 0; i < pair; i += kWidth) {
        const Vec a = add(load(upper + left + up + pair + i), load(lower + left + low + pair + i));
        const Vec b = add(load(upper + right + up + i), load(lower + right + low + i));
        store(row + (int64_t)j * pair + i, add(add(a, b), load(bias + i)));
      }
    }
    finish_row(p, args, y, row + co);  // the first window's left column is outside the picture
  }

  static void run(const Problem& p, const Args& args, int32_t, int32_t item, void* scratch) {
    char* a = (char*)scratch;
    float* upper = (float*)(a + align64(a_bytes(p)));
    float* lower = (float*)((char*)upper + c_bytes(p));
    float* row = (float*)((char*)lower + c_bytes(p));
    float* bias = (float*)((char*)row + align64(row_floats(p) * 4));
    for (int32_t i = 0; i < 2 * p.co + 16; ++i) bias[i] = args.bias && i < 2 * p.co ? args.bias[i % p.co] : 0.0f;

    const int32_t first = item * kLastWindows;
    const int32_t end = first + kLastWindows < p.hi + 1 ? first + kLastWindows : p.hi + 1;
    multiply_row(p, args, first - 1, a, upper);
    for (int32_t j = first; j < end; ++j) {
      multiply_row(p, args, j, a, lower);
      if (j > 0) combine(p, args, upper, lower, 2, bias, row, 2 * j - 1);
      if (j < p.hi) combine(p, args, upper, lower, 3, bias, row, 2 * j);
      float* swap = upper;
      upper = lower;
      lower = swap;
    }
  }
};
