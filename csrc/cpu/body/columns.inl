// F(m, 2) with half of the weight transform done before and half in registers: the packed weights are the columns of taps
// transformed, 2 m + 2 matrices instead of (m + 1)^2, and the product forms a position's weights from two of them.
//
// Between the plain taps of taps.inl, which every block of rows would have to combine anew in both axes, and whole matrices,
// which take longer to read than to use: layers of a few blocks of rows with many channels. Weights:
// [panel][phase][chunk of k][i][k][tx][panel], which is the order of use. The first block of rows leaves the weights that it
// forms to the others.

constexpr int kColumnLinesLog2 = kTapLinesLog2 + 1;  // lines of A in a chunk: no plain taps need room beside what is formed
constexpr int64_t kColumnLines = 1 << kColumnLinesLog2;
constexpr int64_t kFormedBytes = kColumnLines * 16 * kPanel * 4;

template <class Scheme>
struct ColumnsConvolution
    : FormedConvolution<Scheme, 2 * Scheme::Output::kPoints, kColumnLinesLog2, kFormedBytes> {
  using Formed = FormedConvolution<Scheme, 2 * Scheme::Output::kPoints, kColumnLinesLog2, kFormedBytes>;
  using Base = typename Formed::Base;
  using W = typename Scheme::Output;
  static constexpr int n = W::kPoints;

  template <int kPoint = 0> static double combine(int i, double g0, double g1) {
    if constexpr (kPoint < n - 1)
      if (i != kPoint) return combine<kPoint + 1>(i, g0, g1);
    return W::template combine<kPoint>(g0, g1);
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t item) {
    const int32_t panel = item / Scheme::kPhases, phase = item % Scheme::kPhases;
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth;
    float* out = (float*)Formed::panel_weights(p, dst, panel, phase);
    Formed::pack_filters(p, raw, panel, phase, [&](int64_t k, int32_t m, const double g[2][2]) {
      const auto chunk = Formed::chunk_of(p, k);
      for (int i = 0; i < n; ++i)
        for (int tx = 0; tx < 2; ++tx)
          out[(chunk.begin * 2 * n + (i * chunk.length + k - chunk.begin) * 2 + tx) * width + m] = (float)combine(i, g[0][tx], g[1][tx]);
    });
  }

  struct Product {
    static void fill(const Problem& p, const Args& args, const char* a, float* c, int32_t, int32_t rows, int32_t panel,
                     int32_t phase, typename Base::OutputLines& output_lines) {
      static_assert(W::kLeftOut < 0, "all positions have the same rows");
      const int32_t vecs = panel_vecs(p.co_stored, panel);
      const int64_t stride_c = vecs * kWidth, matrix = Base::output_floats(rows, stride_c), vector = stride_c * 4;
      const char* b = Formed::panel_weights(p, args.weights, panel, phase);
      const RowBlocks blocks(rows);
      const int64_t lines = Base::lines_of(p);
      char* const formed = (char*)c + Base::c_bytes(rows) - kFormedBytes;
      for (int64_t line = 0; line < lines; line += kColumnLines, a += Base::part_bytes(p, rows)) {
        const int64_t now = lines - line < kColumnLines ? lines - line : kColumnLines, row = now * 16 * 2 * vector;
        for (int32_t i = 0; i < n; ++i, b += row) {
          const char* ahead = b + row;  // the next row of positions, little by little
          const char* const ahead_end = ahead + row;
          for (int32_t j = 0; j < n; ++j) {
            const int32_t q = i * n + j;
            for (int32_t block = 0; block < blocks.count; ++block) {
              const int32_t start = blocks.start(block), size = blocks.size(block);
              TapSource source = TapSource::kPair;
              const char *first = b, *second = b + vector;
              int32_t point = j;
              if (j > 1 && block > 0) {
                source = TapSource::kFormed;
                first = second = formed;
                point = 0;
              } else if (j > 1 && blocks.count > 1) {
                source = TapSource::kPairToForm;
              }
              const GemmTaps product = choose_gemm_taps<W, Packed::kColumns>(size, vecs, point, source);
              product(a + Scheme::position(phase, q) * Base::position_bytes(p, rows) + start * kColumnLines * 64, first, second,
                      formed, now, c + q * matrix + start * stride_c, stride_c, line > 0, ahead, block == 0 ? ahead_end : ahead);
            }
            ahead += now * 4 * ask_lines<W, Packed::kColumns>(vecs) * 64;
            output_lines.ask();
          }
        }
      }
    }
  };

  static void run(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    Base::template run_with<Product>(p, args, phase, item, scratch);
  }
};
