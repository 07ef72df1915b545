// A 4x4 stride-2 convolution or transposed convolution as products on packed operands, written once for all rooms,
// precisions and algorithms. `Scheme` (conv4x4s2.inl, deconv4x4s2.inl) says what differs:
//
//   kPositions   operands A: Winograd points, taps (direct conv) or shifts (direct deconv)
//   kPhases      output phases: 1, or 4 for a transposed convolution
//   kRounds      1 where the phases share A, kPhases where each has its own: one A after the other, in the same place
//   kProducts    weight matrices per phase
//   kSplit       parts of k for each input channel: the four input phases of a Winograd convolution, else 1
//   kStep        from one output of a tile to the next in the picture: 2 where the output phases interleave
//   kAccumulate  all products of a phase add into one C (direct), or each has its own (Winograd)
//   Output       the transform from C to a tile of outputs
//
// and as functions: rows and rows_at (the rows of A, and those that a product has), position (a product's A), live (whether it
// meets the picture), weights (of one filter), gather_row (one row of A), place (where the outputs of a row begin).
//
// Weights: [round][panel of output channels][phase of the round][product][k][panel]. Statistics are taken where outputs are in
// registers, shifted by one of the item's outputs so that a large mean costs no digits, and merged in double by the backend.

template <class E> inline Vec activated(const void* data, int64_t i, Vec scale, Vec shift, Vec slope) {
  const Vec x = fma(E::load(data, i), scale, shift);
  return max(x, mul(x, slope));
}

// One row of A (a tile or a pixel): position (i, j) reads pixel (y0 + step i, x0 + step j); padding is zero after the norm.
// Writes channels [k0, k0 + channels) of every position. WY, WX: W or W::Short. places: of the positions with a product for
// whole and short tiles, for tiles whole in x, for those whole in y, for those whole in both (the first alone where W has no
// Short).
template <class E, class W, class WY, class WX>
inline void gather_shape(const Problem& p, const Source& source, int32_t channels, float slope_value, int32_t y0, int32_t x0,
                         int32_t step, char* a, int64_t position_bytes, const RowPlace* places, int64_t k0) {
  constexpr int n = W::kPoints, high = WY::kPoints, wide = WX::kPoints, kPlaces = W::kLeftOut < 0 ? 1 : 4;
  int64_t row_offset[high];
  bool row_inside[high], column_inside[wide];
  bool inside = true;
  for (int i = 0; i < high; ++i) {
    const int32_t y = y0 + step * i;
    row_inside[i] = y >= 0 && y < p.hi;
    inside = inside && row_inside[i];
    row_offset[i] = ((int64_t)y * p.wi + x0) * channels;
  }
  for (int j = 0; j < wide; ++j) {
    const int32_t x = x0 + step * j;
    column_inside[j] = x >= 0 && x < p.wi;
    inside = inside && column_inside[j];
  }
  const int64_t column_offset = (int64_t)step * channels;
  const Vec slope = broadcast(slope_value);

  // By lines of A: where one lies costs more to compute than a channel of a single position. A tile goes through the
  // transform by columns, then by rows, so that no more than a column has to be in registers (kTileUnroll, vec.h).
  for (int32_t c0 = 0; c0 < channels; c0 += E::kChunk) {
    char* lines[kPlaces];
    for (int k = 0; k < kPlaces; ++k) lines[k] = a + places[k].offset((k0 + c0) / E::kChunk);
    const auto next_vector = [&] {
      for (int k = 0; k < kPlaces; ++k) lines[k] += places[k].step;
    };
#pragma GCC unroll 1
    for (int32_t u = 0; u < E::kChunk; u += kWidth, next_vector()) {
      const int32_t c = c0 + u;
      const Vec scale = load(source.scale + c), shift = load(source.shift + c);
      Vec half[high * wide];
#pragma GCC unroll kTileUnroll
      for (int j = 0; j < wide; ++j) {
        const int64_t column = j * column_offset + c;
        Vec d[high];
        if (inside) {
#pragma GCC unroll 6
          for (int i = 0; i < high; ++i) {
            d[i] = activated<E>(source.data, row_offset[i] + column, scale, shift, slope);
            // As many streams as pixels: more than the hardware follows.
            if (u == 0)
              __builtin_prefetch((const char*)source.data + (row_offset[i] + column + W::kTile * column_offset) * E::kBytes);
          }
        } else {
#pragma GCC unroll 6
          for (int i = 0; i < high; ++i)
            d[i] = row_inside[i] && column_inside[j]
                       ? activated<E>(source.data, row_offset[i] + column, scale, shift, slope)
                       : zero();
        }
        if constexpr (!W::kTransforms) {
#pragma GCC unroll 6
          for (int i = 0; i < high; ++i) E::store(lines[0] + (i * n + j) * position_bytes, 0, d[i]);
        } else {
          WY::input(d);
#pragma GCC unroll 6
          for (int i = 0; i < high; ++i) half[i * wide + j] = d[i];
        }
      }
      if constexpr (!W::kTransforms) continue;
#pragma GCC unroll kTileUnroll
      for (int i = 0; i < high; ++i) {
        Vec d[wide];
#pragma GCC unroll 6
        for (int j = 0; j < wide; ++j) d[j] = half[i * wide + j];
        WX::input(d);
        const int row = WY::point(i);
        char* const* line = lines + (row == W::kLeftOut ? 2 : 0);
#pragma GCC unroll 6
        for (int j = 0; j < wide; ++j) {
          const int q = row * n + WX::point(j);
          E::store(line[WX::point(j) == W::kLeftOut] + q * position_bytes, 0, d[j]);
        }
      }
    }
  }
}

template <class E, class W, class... Arguments>
inline void gather(bool short_y, bool short_x, Arguments&&... arguments) {
  by_shape<W>(short_y, short_x, [&](auto y, auto x) { gather_shape<E, W, decltype(y), decltype(x)>(arguments...); });
}

// Where the outputs of a tile begin, and whether it is short.
struct Place {
  int32_t y, x;
  bool short_y, short_x;
};

// Running statistics of one vector of channels over an item: deviations from `shift`, one of its values.
struct Statistics {
  Vec shift = zero(), sum = zero(), squares = zero();
  int32_t count = 0;
  inline void take(Vec y) {
    if (count++ == 0) shift = y;
    const Vec d = sub(y, shift);
    sum = add(sum, d);
    squares = fma(d, d, squares);
  }
  // stats: [3][co_stored] of one block, at this vector's first channel.
  inline void write(float* stats, int32_t co_stored) const {
    const Vec n = broadcast((float)count);
    const Vec offset = count ? div(sum, n) : zero();
    const Vec deviations = count ? max(zero(), sub(squares, mul(sum, offset))) : zero();  // keeps a NaN
    store(stats, count ? add(shift, offset) : zero());
    store(stats + co_stored, deviations);
    store(stats + 2 * (int64_t)co_stored, n);
  }
};

// Outputs origin + step * i, 0 <= i < tile, that lie inside [0, size): those of [first, end).
struct Inside {
  int32_t first, end;
  Inside(int32_t origin, int32_t step, int32_t tile, int32_t size) {
    first = origin < 0 ? (step - 1 - origin) / step : 0;
    end = (size - origin + step - 1) / step;
    if (end > tile) end = tile;
  }
};

// One register sum runs over at most this many lines of A (256 words): longer sums lose digits, which Winograd's output
// transform multiplies. Adding C once per 256 steps costs less than 1 %.
constexpr int64_t kSumChunks = 16;

// A row block times a panel in such sums. ahead: as gemm's, for all of them.
template <class E>
inline void multiply_block(int32_t rows, int32_t vecs, const char* a, const char* b, int64_t chunks, float* c, int64_t stride_c,
                           bool accumulate, const char* ahead, int64_t ahead_bytes) {
  const Gemm product = choose_gemm<E>(rows, vecs);
  const int64_t chunk_bytes = stream_bytes<E>(E::kChunk / E::kWord * vecs);
  for (int64_t chunk = 0; chunk < chunks; chunk += kSumChunks) {
    const int64_t now = chunks - chunk < kSumChunks ? chunks - chunk : kSumChunks;
    product(a + chunk * rows * 64, b + chunk * chunk_bytes, now, c, stride_c, accumulate || chunk > 0,
            ahead + chunk * ahead_bytes, ahead_bytes);
  }
}

// kPartLog2 cuts A along k (RowPlace), and its lines into vectors. kBeside: bytes behind C that the product wants for itself.
template <class E, class Scheme, int32_t kPartLog2 = kWholeK, int64_t kBeside = 0>
struct Convolution {
  using W = typename Scheme::Output;
  static constexpr int kOutputs = Scheme::kAccumulate ? 1 : Scheme::kProducts;  // C matrices
  static constexpr int kRoundPhases = Scheme::kPhases / Scheme::kRounds;
  static constexpr int kPieceBytes = kPartLog2 == kWholeK ? 64 : kWidth * 4;
  // A pad of one line between matrices keeps their rows out of the same L1 set (power-of-two strides cost 25 %).
  static int64_t k_of(const Problem& p) { return (int64_t)Scheme::kSplit * (p.ci_stored[0] + p.ci_stored[1]); }
  static int64_t lines_of(const Problem& p) { return k_of(p) / E::kChunk; }
  static int64_t part_lines(const Problem& p) { return kPartLog2 == kWholeK ? lines_of(p) : 1ll << kPartLog2; }
  static int64_t position_bytes(const Problem& p, int64_t rows) { return rows * part_lines(p) * 64 + 64; }
  static int64_t part_bytes(const Problem& p, int64_t rows) { return Scheme::kPositions * position_bytes(p, rows); }
  static int64_t a_bytes(const Problem& p, int64_t rows) {
    return align64((lines_of(p) + part_lines(p) - 1) / part_lines(p) * part_bytes(p, rows));
  }
  static int64_t c_bytes(int64_t rows) { return align64(kOutputs * output_floats(rows, kPanel) * 4) + kBeside; }
  static int64_t output_floats(int64_t rows, int64_t panel) { return rows * panel + 16; }
  static int64_t product_bytes(const Problem& p, int32_t vecs) { return stream_bytes<E>(k_of(p) / E::kWord * vecs); }
  // Where the weights of a panel and phase begin, if one vector of a phase's columns takes `vec_bytes`.
  static int64_t weights_at(const Problem& p, int32_t panel, int32_t phase, int64_t vec_bytes) {
    const int64_t before = phase / kRoundPhases * (p.co_stored / kWidth) + panel * kPanelVecs;
    return (before * kRoundPhases + phase % kRoundPhases * panel_vecs(p.co_stored, panel)) * vec_bytes;
  }
  static int64_t scale_bytes(const Problem& p) { return kFixed<E> ? Scheme::kPhases * p.co_stored * 4 : 0; }
  // Of the columns of a phase, behind all other weights, where those are of 24 bits.
  static float* scales(const Problem& p, const void* weights, int32_t phase) {
    return (float*)((char*)weights + Scheme::kPhases * Scheme::kProducts * product_bytes(p, p.co_stored / kWidth)) +
           phase * p.co_stored;
  }
  // Rows that an item multiplies. In two phases: a part of them all, so that C (at most kOwnC bytes, vec.h) waits for its
  // transform in the core's own cache and no thread waits for another's long last item.
  static int32_t block_rows(const Problem& p, int32_t rows) {
    if (p.tile_block > 0) return p.tile_block < rows ? p.tile_block : rows;
    const int64_t fit = (kOwnC - c_bytes(0)) / (kOutputs * kPanel * 4), parts = (rows + fit - 1) / fit;
    return (int32_t)((rows + parts - 1) / parts);
  }

  // There is an A for each part of the rows and each round. They take turns in one place, which then stays in the shared cache.
  // As many as fit 2 MB share a turn: a small one is not worth two barriers. And as many as give every thread four items.
  static int32_t shared_turn(const Problem& p, int32_t block, int32_t blocks) {
    constexpr int64_t kTurnBytes = 2 << 20, kTurnItems = 4;
    const int64_t all = Scheme::kRounds * blocks, fit = kTurnBytes / a_bytes(p, block);
    const int64_t items = panels_of(p.co_stored) * kRoundPhases, busy = (kTurnItems * p.threads + items - 1) / items;
    const int64_t most = fit > busy ? fit : busy, turns = most < 1 ? all : (all + most - 1) / most;
    return (int32_t)((all + turns - 1) / turns);
  }

  static void geometry(const Problem& p, Geometry* g) {
    const int32_t rows = Scheme::rows(p), panels = panels_of(p.co_stored), block = block_rows(p, rows);
    const int32_t blocks = (rows + block - 1) / block;
    int32_t live = 0;
    int64_t live_rows = 0;
    for (int32_t phase = 0; phase < Scheme::kPhases; ++phase)
      for (int32_t product = 0; product < Scheme::kProducts; ++product) {
        if (!Scheme::live(p, phase, product)) continue;
        const Range range = Scheme::rows_at(p, product);
        live += range.end > range.first;
        live_rows += range.end - range.first;
      }
    const bool two_phases = p.tile_block == 0;
    const int32_t at_once = shared_turn(p, block, blocks), turns = (Scheme::kRounds * blocks + at_once - 1) / at_once;
    g->rows = rows;
    g->block_rows = RowBlocks(block).size(0);
    g->item_rows = block;
    g->phases = two_phases ? 2 * turns : 1;
    g->items[0] = two_phases ? at_once * block : blocks;
    g->items[1] = two_phases ? at_once * panels * kRoundPhases : 0;
    g->stat_blocks = blocks * Scheme::kPhases;
    g->pack_items = panels * Scheme::kPhases;
    const int64_t matrix = product_bytes(p, p.co_stored / kWidth);
    g->weight_bytes = Scheme::kPhases * Scheme::kProducts * matrix + scale_bytes(p);
    g->read_bytes = live * matrix;
    g->pass_bytes = two_phases ? g->read_bytes / Scheme::kRounds : g->read_bytes;
    g->shared_bytes = two_phases ? at_once * a_bytes(p, block) : 0;
    g->row_bytes = Scheme::kPositions * k_of(p) * E::kBytes;
    const int64_t product_rows = (int64_t)rows * panels * Scheme::kPhases * Scheme::kProducts;  // of A, as often as they are read
    g->shared_read_bytes = two_phases ? g->row_bytes / Scheme::kPositions * product_rows : 0;
    g->transform_bytes = (a_bytes(p, block) * Scheme::kRounds + (c_bytes(block) - kBeside) * panels * Scheme::kPhases) * blocks;
    g->scratch_bytes = c_bytes(block) + (two_phases ? 0 : a_bytes(p, block));
    g->macs = live_rows * k_of(p) * p.co_stored;
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t item) {
    const int32_t panel = item / Scheme::kPhases, phase = item % Scheme::kPhases;
    const int32_t width = panel_vecs(p.co_stored, panel) * kWidth, n0 = panel * kPanel;
    char* out = (char*)dst + weights_at(p, panel, phase, Scheme::kProducts * product_bytes(p, 1));
    const int32_t n_end = p.co - n0 < width ? p.co - n0 : width;
    const int64_t ci_stored = p.ci_stored[0] + p.ci_stored[1], product = product_bytes(p, width / kWidth);
    // A row of every product first, then each row in one go: the products' power-of-two distances share cache sets, and 25
    // interleaved streams miss every cache (4x the load time).
    float rows[Scheme::kProducts][kPanel];
    const auto for_each_k = [&](auto&& take) {
      for (int32_t s = 0; s < 2; ++s)
        for (int32_t c = 0; c < p.ci[s]; ++c)
          for (int32_t split = 0; split < Scheme::kSplit; ++split) {
            for (int32_t n = 0; n < n_end; ++n) {
              double u[Scheme::kProducts];
              Scheme::weights(p, raw, (s ? p.ci[0] : 0) + c, n0 + n, phase, split, u);
              for (int32_t q = 0; q < Scheme::kProducts; ++q) rows[q][n] = (float)u[q];
            }
            take(split * ci_stored + (s ? p.ci_stored[0] : 0) + c);
          }
    };
    if constexpr (kFixed<E>) {
      float largest[kPanel] = {};
      for_each_k([&](int64_t) {
        for (int32_t q = 0; q < Scheme::kProducts; ++q)
          for (int32_t n = 0; n < n_end; ++n) largest[n] = larger(largest[n], rows[q][n]);
      });
      Fixed24Column columns[kPanel];
      for (int32_t n = 0; n < width; ++n) {
        columns[n] = Fixed24Column(largest[n]);
        scales(p, dst, phase)[n0 + n] = columns[n].scale;
      }
      for_each_k([&](int64_t k) {
        for (int32_t q = 0; q < Scheme::kProducts; ++q)
          for (int32_t n = 0; n < n_end; ++n) put24(out + q * product, k * width + n, columns[n].whole(rows[q][n]));
      });
    } else {
      for_each_k([&](int64_t k) {
        const int64_t at = (k / E::kWord) * width * E::kWord + k % E::kWord;
        for (int32_t q = 0; q < Scheme::kProducts; ++q)
          for (int32_t n = 0; n < n_end; ++n)
            E::store_scalar(out + q * product, at + (int64_t)n * E::kWord, rows[q][n]);
      });
    }
  }

  // The rows of position q among [base, base + rows), counted from base.
  static Range held(const Problem& p, int32_t q, int32_t base, int32_t rows) {
    const Range all = Scheme::rows_at(p, q);
    const int32_t first = all.first > base ? all.first - base : 0, end = all.end < base + rows ? all.end - base : rows;
    return {first, end > first ? end : first};
  }

  // Rows [first, first + count) of a round's A into `a`, which holds the rows [base, base + rows_held).
  static void gather_rows(const Problem& p, const Args& args, int32_t round, char* a, int32_t base, int32_t rows_held,
                          int32_t first, int32_t count) {
    constexpr int kPlaces = W::kLeftOut < 0 ? 1 : 4;  // see gather_shape
    for (int32_t row = first; row < first + count; ++row) {
      RowPlace places[kPlaces];
      for (int k = 0; k < kPlaces; ++k) {
        const int32_t q = (k / 2 ? W::kLeftOut : 0) * W::kPoints + (k % 2 ? W::kLeftOut : 0);
        const Range range = held(p, q, base, rows_held);
        const int32_t at = row - base - range.first;
        if (at < 0 || row - base >= range.end) continue;
        places[k] = RowPlace(RowBlocks(range.end - range.first), at, part_lines(p), kPartLog2, part_bytes(p, rows_held), kPieceBytes,
                             kWidth * E::kBytes);
      }
      int64_t k0 = 0;
      for (int32_t s = 0; s < 2; ++s) {
        if (p.ci_stored[s] == 0) continue;
        Scheme::template gather_row<E>(p, args.src[s], p.ci_stored[s], args.slope, row, round, a, position_bytes(p, rows_held),
                                       places, k0);
        k0 += p.ci_stored[s];
      }
    }
  }

  // The lines of the picture that an item will write, asked for little by little while it multiplies: they come from
  // memory, and the stores of the output transform would wait for them.
  struct OutputLines {
    const Problem& p;
    const char* dst;
    int64_t column_step, row_step;  // bytes
    int32_t panel_bytes, base, rows, phase, row = 0, i = 0;
    OutputLines(const Problem& p, const Args& args, int32_t base, int32_t rows, int32_t panel, int32_t phase)
        : p(p), dst((const char*)args.dst + (int64_t)panel * kPanel * E::kBytes),
          column_step((int64_t)Scheme::kStep * p.co_stored * E::kBytes), row_step(column_step * p.wo),
          panel_bytes(panel_vecs(p.co_stored, panel) * kWidth * E::kBytes), base(base), rows(rows), phase(phase) {}
    // A row of a tile. What hangs over the picture is asked for too: a prefetch cannot fault.
    void ask() {
      if (row == rows) return;
      const Place place = Scheme::place(p, base + row, phase);
      const char* at = dst + ((int64_t)place.y * p.wo + place.x) * p.co_stored * E::kBytes + i * row_step;
      for (int j = 0; j < W::kTile; ++j)
        for (int offset = 0; offset < panel_bytes; offset += 64) __builtin_prefetch(at + j * column_step + offset, 1, 2);
      if (++i == W::kTile) i = 0, ++row;
    }
  };

  // C of one panel and phase over the rows held in `a`.
  struct Product {
    static void fill(const Problem& p, const Args& args, const char* a, float* c, int32_t base, int32_t rows,
                     int32_t panel, int32_t phase, OutputLines& output_lines) {
      const int32_t vecs = panel_vecs(p.co_stored, panel);
      const int64_t stride_c = vecs * kWidth, matrix = output_floats(rows, stride_c);
      const char* b = (const char*)args.weights + weights_at(p, panel, phase, Scheme::kProducts * product_bytes(p, 1));
      const int64_t chunks = lines_of(p), chunk_bytes = stream_bytes<E>(E::kChunk / E::kWord * vecs);
      bool started = false;
      for (int32_t q = 0; q < Scheme::kProducts; ++q, b += product_bytes(p, vecs)) {
        const Range range = held(p, q, base, rows);
        if (!Scheme::live(p, phase, q) || range.first == range.end) continue;
        const RowBlocks blocks(range.end - range.first);
        // One row block alone cannot hide the memory that it reads: the next product's weights are asked for by all of them.
        const int64_t ahead_bytes = blocks.count > 1 ? align64(chunk_bytes / blocks.count) : 0;
        const char* operand = a + Scheme::position(phase, q) * position_bytes(p, rows);
        float* out = c + (Scheme::kAccumulate ? 0 : q * matrix) + range.first * stride_c;
        const char* ahead = b + product_bytes(p, vecs);
        for (int32_t block = 0; block < blocks.count; ++block) {
          const int32_t start = blocks.start(block), size = blocks.size(block);
          output_lines.ask();
          multiply_block<E>(size, vecs, operand + start * k_of(p) * E::kBytes, b, chunks, out + start * stride_c, stride_c,
                            Scheme::kAccumulate && started, ahead, ahead_bytes);
          ahead += chunks * ahead_bytes;
        }
        started = true;
      }
    }
  };

  // One panel and phase over the rows held in `a`: products, output transform, bias, statistics, store.
  template <class P>
  static void multiply(const Problem& p, const Args& args, const char* a, float* c, int32_t base, int32_t rows,
                       int32_t panel, int32_t phase, int32_t stat_block) {
    OutputLines lines(p, args, base, rows, panel, phase);
    P::fill(p, args, a, c, base, rows, panel, phase, lines);
    if (panel_vecs(p.co_stored, panel) == kPanelVecs) emit<kPanelVecs>(p, args, c, base, rows, panel, phase, stat_block);
    else emit<1>(p, args, c, base, rows, panel, phase, stat_block);
  }

  // Output transform, scale, bias, statistics and stores of one panel.
  template <int kVecs>
  struct Emission {
    void* dst;
    int32_t ho, wo;
    int64_t co_stored, channel, column_step, row_step;  // in elements
    int64_t matrix;                                     // floats from position to position in C
    Vec bias[kVecs], scale[kVecs];
    Statistics statistics[kVecs];

    Emission(const Problem& p, const Args& args, int32_t rows, int32_t panel, int32_t phase)
        : dst(args.dst), ho(p.ho), wo(p.wo), co_stored(p.co_stored), channel((int64_t)panel * kPanel),
          column_step(Scheme::kStep * co_stored), row_step(column_step * p.wo),
          matrix(output_floats(rows, kVecs * kWidth)) {
      for (int v = 0; v < kVecs; ++v) bias[v] = args.bias ? load(args.bias + channel + v * kWidth) : zero();
      for (int v = 0; kFixed<E> && v < kVecs; ++v) scale[v] = load(scales(p, args.weights, phase) + channel + v * kWidth);
    }

    Vec finished(Vec y, int v) const { return kFixed<E> ? fma(y, scale[v], bias[v]) : add(y, bias[v]); }

    // points: the tile's row of C. WY, WX: W or W::Short.
    template <class WY, class WX>
    void tile(const float* points, int32_t y0, int32_t x0) {
      constexpr int n = WX::kPoints, high = WY::kTile, wide = WX::kTile;
      const Inside i_in(y0, Scheme::kStep, high, ho), j_in(x0, Scheme::kStep, wide, wo);
      if (i_in.first >= i_in.end || j_in.first >= j_in.end) return;
      const bool whole = i_in.end - i_in.first == high && j_in.end - j_in.first == wide;
      const int64_t first = ((int64_t)y0 * wo + x0) * co_stored + channel;
      for (int v = 0; v < kVecs; ++v, points += kWidth) {
        Statistics& all = statistics[v];
        Vec half[high * n];
#pragma GCC unroll kTileUnroll
        for (int j = 0; j < n; ++j) output_column<W, WY>(points + WX::point(j) * matrix, matrix, half + j, n);
        if (all.count == 0) {  // the shift is a value from the first tile's middle
          Vec y[wide];
          WX::output(half + (i_in.first + i_in.end) / 2 * n, y);
          all.shift = finished(y[(j_in.first + j_in.end) / 2], v);
        }
        all.count += (i_in.end - i_in.first) * (j_in.end - j_in.first);
        // Sums of their own for a tile and a row: thousands of equal deviations in one sum all round the same way.
        Vec sum = zero(), squares = zero();
        const auto emit_row = [&](int i, int j_first, int j_end) __attribute__((always_inline)) {
          Vec y[wide], row = zero(), row_squares = zero();
          WX::output(half + i * n, y);
#pragma GCC unroll 5
          for (int j = j_first; j < j_end; ++j) {
            const Vec value = finished(y[j], v);
            E::store(dst, first + i * row_step + j * column_step + v * kWidth, value);
            const Vec d = sub(value, all.shift);
            row = add(row, d);
            row_squares = fma(d, d, row_squares);
          }
          sum = add(sum, row);
          squares = add(squares, row_squares);
        };
        if (whole) {
#pragma GCC unroll kTileUnroll
          for (int i = 0; i < high; ++i) emit_row(i, 0, wide);
        } else {
          for (int i = i_in.first; i < i_in.end; ++i) emit_row(i, j_in.first, j_in.end);
        }
        all.sum = add(all.sum, sum);
        all.squares = add(all.squares, squares);
      }
    }
  };

  // Tile by tile, all channels of the panel, so that the halves of a line follow each other.
  template <int kVecs>
  static void emit(const Problem& p, const Args& args, const float* c, int32_t base, int32_t rows, int32_t panel,
                   int32_t phase, int32_t stat_block) {
    Emission<kVecs> emission(p, args, rows, panel, phase);
    // From the middle on, so that the shift is not a value of the picture's border, far from all others.
    for (int32_t k = 0, r = rows / 2; k < rows; ++k, r = r + 1 < rows ? r + 1 : 0) {
      const Place at = Scheme::place(p, base + r, phase);
      const float* points = c + (int64_t)r * kVecs * kWidth;
      by_shape<W>(at.short_y, at.short_x,
                  [&](auto y, auto x) { emission.template tile<decltype(y), decltype(x)>(points, at.y, at.x); });
    }
    if (args.stats)
      for (int v = 0; v < kVecs; ++v)
        emission.statistics[v].write(args.stats + ((int64_t)stat_block * 3 * p.co_stored + emission.channel + v * kWidth),
                                     p.co_stored);
  }

  static void run(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    run_with<Product>(p, args, phase, item, scratch);
  }

  template <class P>
  static void run_with(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    const int32_t rows = Scheme::rows(p), block = block_rows(p, rows);
    const auto held_from = [&](int32_t base) { return rows - base < block ? rows - base : block; };
    if (p.tile_block == 0) {
      const int32_t blocks = (rows + block - 1) / block, at_once = shared_turn(p, block, blocks);
      const int32_t place = phase % 2 ? item % at_once : item / block;
      const int32_t which = phase / 2 * at_once + place, round = which / blocks, part = which % blocks;
      if (which >= Scheme::kRounds * blocks) return;  // the last turn may be shorter
      const int32_t base = part * block, held = held_from(base);
      char* a = (char*)args.shared + place * a_bytes(p, block);
      if (phase % 2) {
        const int32_t panel = item / at_once / kRoundPhases, out_phase = round * kRoundPhases + item / at_once % kRoundPhases;
        multiply<P>(p, args, a, (float*)scratch, base, held, panel, out_phase, part * Scheme::kPhases + out_phase);
      } else if (item % block < held) {
        gather_rows(p, args, round, a, base, held, base + item % block, 1);
      }
    } else {
      const int32_t base = item * block, held = held_from(base);
      float* c = (float*)scratch;
      char* a = (char*)scratch + c_bytes(block);
      for (int32_t round = 0; round < Scheme::kRounds; ++round) {
        gather_rows(p, args, round, a, base, held, base, held);
        for (int32_t panel = 0; panel < panels_of(p.co_stored); ++panel)
          for (int32_t out_phase = round * kRoundPhases; out_phase < (round + 1) * kRoundPhases; ++out_phase)
            multiply<P>(p, args, a, c, base, held, panel, out_phase, item * Scheme::kPhases + out_phase);
      }
    }
  }
};
