// F(2,2) with the weights transformed in registers: the packed weights are the plain 2x2 taps (4/9 of the transformed
// ones), and the product forms position (i, j)'s weights with 0, 1 or 3 additions on the way.
//
// For layers that few tiles use (16x16 maps and smaller), reading transformed matrices from memory costs more than the
// arithmetic. F(2,2) multiplies no more there than F(3,2), whose tiles do not divide the map, and has more rows for each
// sum of taps. Weights: [panel][phase][k][tap ty, tx][panel]. k advances in chunks that stay near the core while nine
// positions read them (docs/decisions/023).

constexpr int64_t kTapLines = 1 << kTapLinesLog2;  // lines of A in a chunk (vec.h); A is cut into the same parts

template <int kRows, int kVecs, int kPosition>
void gemm_taps(const char* a, const char* b, int64_t chunks, float* c, int64_t stride_c, bool accumulate,
               const char* ahead) {
  constexpr int kStride = kVecs * kWidth * 4;  // bytes of a tap
  constexpr int kI = kPosition / 3, kJ = kPosition % 3;
  constexpr int kAhead = (kVecs * kWidth + 15) / 16 * 64;  // bytes in two steps: nine positions ask for an eighth more
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();

  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
#pragma GCC unroll 2
    for (int k = 0; k < 16; ++k, b += 4 * kStride) {
      if (k % 2 == 0)
#pragma GCC unroll 2
        for (int line = 0; line < kAhead; line += 64, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      Vec weights[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const auto tap = [&](int t) { return F32::load_words(b + t * kStride + v * kWidth * 4); };
        const auto row = [&](int ty) {
          if constexpr (kJ == 0) return tap(2 * ty);
          else if constexpr (kJ == 2) return tap(2 * ty + 1);
          else return add(tap(2 * ty), tap(2 * ty + 1));
        };
        if constexpr (kI == 0) weights[v] = row(0);
        else if constexpr (kI == 2) weights[v] = row(1);
        else weights[v] = add(row(0), row(1));
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec x = F32::broadcast_word(a + r * 64 + k * 4);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = fma(x, weights[v], acc[r][v]);
      }
    }
    a += kRows * 64;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      float* out = c + r * stride_c + v * kWidth;
      store(out, accumulate ? add(load(out), acc[r][v]) : acc[r][v]);
    }
}

using GemmTaps = void (*)(const char* a, const char* b, int64_t chunks, float* c, int64_t stride_c, bool accumulate,
                          const char* ahead);

template <int kRows, int kVecs, int kPosition = 0>
inline GemmTaps gemm_taps_of_position(int32_t position) {
  if (position == kPosition) return gemm_taps<kRows, kVecs, kPosition>;
  if constexpr (kPosition < 8) return gemm_taps_of_position<kRows, kVecs, kPosition + 1>(position);
  return nullptr;
}

template <int kVecs, int kRows = kRowsMax>
inline GemmTaps choose_gemm_taps(int32_t rows, int32_t position) {
  if (rows == kRows) return gemm_taps_of_position<kRows, kVecs>(position);
  if constexpr (kRows > 1) return choose_gemm_taps<kVecs, kRows - 1>(rows, position);
  return nullptr;
}

// The Convolution of a Winograd2 scheme with other weights and another product loop.
template <class Scheme>
struct TapsConvolution : Convolution<F32, Scheme, kTapLinesLog2> {
  using Base = Convolution<F32, Scheme, kTapLinesLog2>;

  static int64_t pair_bytes(const Problem& p, int32_t vecs) { return Base::k_of(p) * 4 * vecs * kWidth * 4; }
  static const char* pair_weights(const Problem& p, const void* weights, int32_t panel, int32_t phase) {
    return (const char*)weights + panel * Scheme::kPhases * pair_bytes(p, kPanelVecs) +
           phase * pair_bytes(p, panel_vecs(p.co_stored, panel));
  }

  static void geometry(const Problem& p, Geometry* g) {
    Base::geometry(p, g);
    g->weight_bytes = g->read_bytes = (int64_t)Scheme::kPhases * Base::k_of(p) * 4 * p.co_stored * 4;
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t item) {
    const int32_t panel = item / Scheme::kPhases, phase = item % Scheme::kPhases;
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth, n0 = panel * kPanel;
    float* out = (float*)pair_weights(p, dst, panel, phase);
    const int64_t ci_stored = p.ci_stored[0] + p.ci_stored[1];
    for (int32_t s = 0; s < 2; ++s)
      for (int32_t c = 0; c < p.ci[s]; ++c)
        for (int32_t split = 0; split < Scheme::kSplit; ++split) {
          const int64_t k = split * ci_stored + (s ? p.ci_stored[0] : 0) + c;
          for (int32_t n = 0; n < width && n0 + n < p.co; ++n) {
            double g[2][2];
            Scheme::taps(p, raw, (s ? p.ci[0] : 0) + c, n0 + n, phase, split, g);
            for (int t = 0; t < 4; ++t) out[(k * 4 + t) * width + n] = (float)g[t / 2][t % 2];
          }
        }
  }

  struct Product {
    static void fill(const Problem& p, const Args& args, const char* a, float* c, int32_t rows, int32_t panel,
                     int32_t phase) {
      const int32_t vecs = panel_vecs(p.co_stored, panel);
      const int64_t stride_c = vecs * kWidth, matrix = Base::output_floats(rows, stride_c);
      const char* b = pair_weights(p, args.weights, panel, phase);
      const RowBlocks blocks(rows);
      const int64_t lines = Base::lines_of(p);
      for (int64_t line = 0; line < lines; line += kTapLines, a += Base::part_bytes(p, rows)) {
        const int64_t now = lines - line < kTapLines ? lines - line : kTapLines;
        const char* ahead = b + now * 16 * 4 * stride_c * 4;  // the next chunk, a part of it for each position
        for (int32_t q = 0; q < 9; ++q, ahead += now * 8 * align64(stride_c * 4))
          for (int32_t block = 0; block < blocks.count; ++block) {
            const int32_t start = blocks.start(block), size = blocks.size(block);
            const GemmTaps product = vecs == kPanelVecs ? choose_gemm_taps<kPanelVecs>(size, q) : choose_gemm_taps<1>(size, q);
            product(a + Scheme::position(phase, q) * Base::position_bytes(p, rows) + start * kTapLines * 64, b, now,
                    c + q * matrix + start * stride_c, stride_c, line > 0, ahead);
          }
        b += now * 16 * 4 * stride_c * 4;
      }
    }
  };

  static void run(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    Base::template run_with<Product>(p, args, phase, item, scratch);
  }
};
