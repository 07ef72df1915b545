// F(m, 2) with the weights transformed in registers: the packed weights are the plain 2x2 taps, and the product forms a
// position's weights on the way.
//
// For layers that few tiles use, reading transformed matrices from memory costs more than the arithmetic. Weights:
// [panel][phase][chunk of k][ty][k][tx][panel]. A chunk stays near the core while all positions read it (docs/decisions/023,
// 025). In each axis a weight is W::combine of two taps, one or two additions. Of the positions (i, j) of a row i of the
// transform the first two, points 0 and infinity, combine rows of taps, (0, tx) with (1, tx), and keep what they form; the
// others combine what was kept: no position combines more than two vectors, and no pass is spent on it.

constexpr int64_t kTapLines = 1 << kTapLinesLog2;  // lines of A in a chunk (vec.h); A is cut into the same parts
constexpr int64_t kKeptBytes = kTapLines * 16 * 2 * kPanel * 4;

enum class Packed { kTaps, kColumns };  // what lies in memory: here, or in columns.inl

// What becomes of the weights that a position combines of two vectors for each k, of every second one in memory.
enum class TapSource {
  kPair,        // nothing
  kPairToKeep,  // kept for the positions after it, every second vector too
  kPairToForm,  // left for the position's other blocks of rows (columns.inl)
  kFormed,      // nothing is combined: the weights are there
};
constexpr int kTapSources = 4;

// Lines of later weights that a position asks for in four steps, so that all positions that read the same weights ask for all
// of four channels: 16 vectors of taps for every position of W, 8 of a pair of columns for those of a row.
template <class W, Packed kPacked> constexpr int ask_lines(int vecs) {
  constexpr bool kWhole = kPacked == Packed::kTaps;
  constexpr int kPositions = kWhole ? W::kPoints * W::kPoints : W::kPoints, kVectors = kWhole ? 16 : 8;
  return (kVectors + kPositions - 1) / kPositions * ((vecs * kWidth * 4 + 63) / 64);
}

template <class W, Packed kPacked, int kRows, int kVecs, int kPoint, TapSource kSource>
void gemm_taps(const char* a, const char* first, const char* second, char* keep, int64_t chunks, float* c, int64_t stride_c,
               bool accumulate, const char* ahead, const char* ahead_end) {
  constexpr int kStride = kVecs * kWidth * 4;  // bytes of a tap
  constexpr int kStep = (kSource == TapSource::kFormed ? 1 : 2) * kStride;
  constexpr int kKeepStep = (kSource == TapSource::kPairToForm ? 1 : 2) * kStride;
  constexpr int kAsk = ask_lines<W, kPacked>(kVecs);
  // Channels in a step: fewer where many rows make long code. kSteps go through a vector of A, kVectorOfRows bytes through one
  // of every row (RowPlace).
  constexpr int kChannels = kRows * kVecs > 8 ? 4 : 8, kSteps = kWidth / kChannels, kVectorOfRows = kRows * kWidth * 4;
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = zero();

  // One loop, as a loop of four in a loop of chunks costs 3 % of the layers that have few rows. With two steps `advance` takes
  // turns: GCC makes a branch of what tells every kSteps-th, and d5 and e4 lose 2 % (AVX2; with more, AVX-512, not timed).
  int64_t advance = kSteps == 1 ? kVectorOfRows : kChannels * 4;
#pragma GCC unroll 1
  for (int64_t steps = chunks * (F32::kChunk / kChannels); steps > 0; --steps) {
#pragma GCC unroll 16
    for (int k = 0; k < kChannels; ++k) {
      if (k % 4 == 0 && ahead < ahead_end)
#pragma GCC unroll 4
        for (int line = 0; line < kAsk; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      Vec weights[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        weights[v] = W::template combine<kPoint>(F32::load_words(first + k * kStep + v * kWidth * 4),
                                                 F32::load_words(second + k * kStep + v * kWidth * 4));
        if constexpr (kSource == TapSource::kPairToKeep || kSource == TapSource::kPairToForm)
          store((float*)(keep + k * kKeepStep) + v * kWidth, weights[v]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec x = F32::broadcast_word(a + r * kWidth * 4 + k * 4);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) F32::multiply_into(acc[r][v], x, weights[v]);
      }
    }
    first += kChannels * kStep;
    second += kChannels * kStep;
    keep += kChannels * kKeepStep;
    a += advance;
    if constexpr (kSteps == 2) advance = kVectorOfRows - advance;
    if constexpr (kSteps > 2) a += steps % kSteps == 1 ? kVectorOfRows - kWidth * 4 : 0;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      float* out = c + r * stride_c + v * kWidth;
      store(out, accumulate ? add(load(out), acc[r][v]) : acc[r][v]);
    }
}

using GemmTaps = void (*)(const char* a, const char* first, const char* second, char* keep, int64_t chunks, float* c,
                          int64_t stride_c, bool accumulate, const char* ahead, const char* ahead_end);

// [rows - 1][point][source]: those that `kPacked` needs.
template <class W, Packed kPacked, int kVecs>
struct GemmTapsTable {
  GemmTaps of[kRowsMax][W::kPoints][kTapSources];
  constexpr GemmTapsTable() : of() { rows<kRowsMax>(); }

 private:
  template <int kRows> constexpr void rows() {
    points<kRows, 0>();
    if constexpr (kRows > 1) rows<kRows - 1>();
  }
  template <int kRows, int kPoint, TapSource kSource> constexpr void add() {
    of[kRows - 1][kPoint][(int)kSource] = gemm_taps<W, kPacked, kRows, kVecs, kPoint, kSource>;
  }
  template <int kRows, int kPoint> constexpr void points() {
    add<kRows, kPoint, TapSource::kPair>();
    if constexpr (kPacked == Packed::kTaps) {
      // The rows of the points 0 and infinity combine no rows of taps.
      if constexpr (kPoint > 1) add<kRows, kPoint, TapSource::kPairToKeep>();
    } else {
      if constexpr (kPoint > 1) add<kRows, kPoint, TapSource::kPairToForm>();
      if constexpr (kPoint == 0) add<kRows, kPoint, TapSource::kFormed>();
    }
    if constexpr (kPoint < W::kPoints - 1) points<kRows, kPoint + 1>();
  }
};

template <class W, Packed kPacked>
inline GemmTaps choose_gemm_taps(int32_t rows, int32_t vecs, int32_t point, TapSource source) {
  static constexpr GemmTapsTable<W, kPacked, kPanelVecs> kFull;
  if constexpr (kPanel > F32::kChunk) {  // else channels are stored in whole panels
    static constexpr GemmTapsTable<W, kPacked, 1> kNarrow;
    if (vecs != kPanelVecs) return kNarrow.of[rows - 1][point][(int)source];
  }
  return kFull.of[rows - 1][point][(int)source];
}

// The Convolution of a Winograd scheme with weights of its own: kVectors for each k, from which a Product forms the others.
template <class Scheme, int kVectors, int32_t kLinesLog2, int64_t kBeside>
struct FormedConvolution : Convolution<F32, Scheme, kLinesLog2, kBeside> {
  using Base = Convolution<F32, Scheme, kLinesLog2, kBeside>;

  static int64_t panel_bytes(const Problem& p, int32_t vecs) { return Base::k_of(p) * kVectors * vecs * kWidth * 4; }
  static const char* panel_weights(const Problem& p, const void* weights, int32_t panel, int32_t phase) {
    return (const char*)weights + Base::weights_at(p, panel, phase, panel_bytes(p, 1));
  }

  static void geometry(const Problem& p, Geometry* g) {
    Base::geometry(p, g);
    g->weight_bytes = g->read_bytes = (int64_t)Scheme::kPhases * Base::k_of(p) * kVectors * p.co_stored * 4;
    g->pass_bytes = g->phases > 1 ? g->read_bytes / Scheme::kRounds : g->read_bytes;
  }

  // The chunk in which k lies; only the last may be shorter.
  struct Chunk {
    int64_t begin, length;
  };
  static Chunk chunk_of(const Problem& p, int64_t k) {
    constexpr int64_t kLength = (int64_t{1} << kLinesLog2) * 16;
    const int64_t begin = k / kLength * kLength, left = Base::k_of(p) - begin;
    return {begin, left < kLength ? left : kLength};
  }

  // put(k, n, g) for each filter g[2][2] of a panel and phase: n is its column there.
  template <class Put> static void pack_filters(const Problem& p, const float* raw, int32_t panel, int32_t phase, Put&& put) {
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth, n0 = panel * kPanel;
    const int64_t ci_stored = p.ci_stored[0] + p.ci_stored[1];
    for (int32_t s = 0; s < 2; ++s)
      for (int32_t c = 0; c < p.ci[s]; ++c)
        for (int32_t split = 0; split < Scheme::kSplit; ++split)
          for (int32_t n = 0; n < width && n0 + n < p.co; ++n) {
            double g[2][2];
            Scheme::taps(p, raw, (s ? p.ci[0] : 0) + c, n0 + n, phase, split, g);
            put(split * ci_stored + (s ? p.ci_stored[0] : 0) + c, n, g);
          }
  }
};

template <class Scheme>
struct TapsConvolution : FormedConvolution<Scheme, 4, kTapLinesLog2, kKeptBytes> {
  using Formed = FormedConvolution<Scheme, 4, kTapLinesLog2, kKeptBytes>;
  using Base = typename Formed::Base;
  using W = typename Scheme::Output;

  static void pack(const Problem& p, const float* raw, void* dst, int32_t item) {
    const int32_t panel = item / Scheme::kPhases, phase = item % Scheme::kPhases;
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth;
    float* out = (float*)Formed::panel_weights(p, dst, panel, phase);
    Formed::pack_filters(p, raw, panel, phase, [&](int64_t k, int32_t n, const double g[2][2]) {
      const auto chunk = Formed::chunk_of(p, k);
      for (int t = 0; t < 4; ++t) {
        const int64_t vector = chunk.begin * 4 + (t / 2 * chunk.length + k - chunk.begin) * 2 + t % 2;
        out[vector * width + n] = (float)g[t / 2][t % 2];
      }
    });
  }

  struct Product {
    static void fill(const Problem& p, const Args& args, const char* a, float* c, int32_t, int32_t rows, int32_t panel,
                     int32_t phase, typename Base::OutputLines& output_lines) {
      static_assert(W::kLeftOut < 0, "all positions have the same rows");
      constexpr int n = W::kPoints;
      const int32_t vecs = panel_vecs(p.co_stored, panel);
      const int64_t stride_c = vecs * kWidth, matrix = Base::output_floats(rows, stride_c), tap = stride_c * 4;
      const char* b = Formed::panel_weights(p, args.weights, panel, phase);
      const RowBlocks blocks(rows);
      const int64_t lines = Base::lines_of(p);
      char* const kept = (char*)c + Base::c_bytes(rows) - kKeptBytes;
      for (int64_t line = 0; line < lines; line += kTapLines, a += Base::part_bytes(p, rows)) {
        const int64_t now = lines - line < kTapLines ? lines - line : kTapLines, row_of_taps = now * 16 * 2 * tap;
        const char* ahead = b + 2 * row_of_taps;  // the next chunk, a part of it for each position until all is asked for
        const char* const ahead_end = ahead + 2 * row_of_taps;
        for (int32_t i = 0; i < n; ++i)
          for (int32_t j = 0; j < n; ++j) {  // those that keep come first
            const int32_t q = i * n + j;
            for (int32_t block = 0; block < blocks.count; ++block) {
              const int32_t start = blocks.start(block), size = blocks.size(block);
              TapSource source = TapSource::kPair;
              const char *first = kept, *second = kept + tap;
              int32_t point = j;
              if (i < 2) {
                first = b + i * row_of_taps;
                second = first + tap;
              } else if (j < 2 && block == 0) {
                source = TapSource::kPairToKeep;
                first = b + j * tap;
                second = first + row_of_taps;
                point = i;
              }
              const GemmTaps product = choose_gemm_taps<W, Packed::kTaps>(size, vecs, point, source);
              product(a + Scheme::position(phase, q) * Base::position_bytes(p, rows) + start * kTapLines * 64, first, second,
                      kept + j * tap, now, c + q * matrix + start * stride_c, stride_c, line > 0, ahead,
                      block == 0 ? ahead_end : ahead);
            }
            ahead += now * 4 * ask_lines<W, Packed::kTaps>(vecs) * 64;
            output_lines.ask();
          }
        b += 2 * row_of_taps;
      }
    }
  };

  static void run(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    Base::template run_with<Product>(p, args, phase, item, scratch);
  }
};
