// Convolutions as products on AMX tiles, straight from a padded picture: no operand is gathered, no tap is copied.
//
//   phase 0   normalise: read NHWC sources, apply norm and activation, write bf16 pixels into a frame of zeros
//   phase 1   products of tiles, bias, statistics, store
//
// A tile holds 16 rows of 64 bytes at one constant stride. So the outputs are counted in one flat line, f = y (w + border) + x,
// in which a step of f is a step of constant length in the padded picture for every tap; the few f that fall on the border
// are computed and thrown away. A stride-2 convolution keeps even and odd rows apart, which makes its step constant too:
//
//   conv     row r of the padded picture lies in plane r % 2, line r / 2;  f = y (wo + 1) + x, step = two pixels
//   deconv   one plane; phase (py, px) reads taps at (py + ty, px + tx);   f = y (wi + 2) + x, step = one pixel
//
// Weights: [panel of 16 output channels][phase][chunk of 32 channels][tap][16 pairs of channels][16 columns of 2], 1 KB a
// tile, in the order of use. Taps are inner to channel chunks: the 16 taps of a chunk read each line of the picture 4 times
// while it is in L1. Winograd would trade multiplications, which AMX has to spare, for transforms, which it has not.

constexpr int kRowsOfTile = 16, kColumnsOfTile = 16;
constexpr int64_t kTileBytes = 1024;
constexpr int kStreamTiles = 6;               // as many row tiles share each weight tile: 6 sums + A + B = all 8 registers
constexpr int64_t kWeightsInL2 = 1 << 19;     // above, an item takes a panel and all rows; else rows and all panels
constexpr int64_t kPictureInL2 = 1 << 20;     // rows of an item that streams panels
constexpr int kPairsMax = 4, kItemsWanted = 32;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tile registers are taken for one item and given back: the caller's thread may use them for something else.
struct Tiles {
  Tiles() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

struct NoEmission {
  bool left() const { return false; }
  void row() {}
};

// Offsets of the live taps of one output phase.
struct Taps {
  int32_t count = 0;
  int64_t a[16], b[16];
};

// Two row tiles by two column tiles: c[row tile][column tile][16][16].
// kCold: the weights are not in this core's cache yet, so memory is asked for them ahead.
// before: the sums of the block before, stored row by row in the shade of this product: the tile unit works on its own.
template <bool kCold, class Emission>
inline void product_2x2(const char* a, int64_t step, const Taps& taps, int64_t chunks, int64_t chunk_bytes, const char* b0,
                        const char* b1, float* c, Emission& before) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t next = kRowsOfTile * step;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += 64, b0 += chunk_bytes, b1 += chunk_bytes)
    for (int32_t t = 0; t < taps.count; ++t) {
      const char* x = a + taps.a[t];
      if constexpr (kCold)
        for (int line = 0; line < kTileBytes; line += 64) {
          __builtin_prefetch(b0 + taps.b[t] + line + kColdAhead, 0, kStreamLocality);
          __builtin_prefetch(b1 + taps.b[t] + line + kColdAhead, 0, kStreamLocality);
        }
      _tile_loadd(4, x, step);
      _tile_loadd(6, b0 + taps.b[t], 64);
      _tile_loadd(7, b1 + taps.b[t], 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + next, step);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      if (before.left()) before.row();
    }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
  _tile_stored(2, c + 512, 64);
  _tile_stored(3, c + 768, 64);
}

// kTiles row tiles by one column tile: weights are read once, at the speed of memory. c[row tile][16][16].
template <int kTiles>
inline void product_stream(const char* a, int64_t step, const Taps& taps, int64_t chunks, int64_t chunk_bytes,
                           const char* b, float* c) {
  _tile_zero(0);
  if constexpr (kTiles > 1) _tile_zero(1);
  if constexpr (kTiles > 2) _tile_zero(2);
  if constexpr (kTiles > 3) _tile_zero(3);
  if constexpr (kTiles > 4) _tile_zero(4);
  if constexpr (kTiles > 5) _tile_zero(5);
  const int64_t next = kRowsOfTile * step, ahead = kStreamAhead / chunk_bytes * chunk_bytes;  // the same tap, later
  for (int64_t chunk = 0; chunk < chunks; ++chunk, a += 64, b += chunk_bytes)
    for (int32_t t = 0; t < taps.count; ++t) {
      const char* x = a + taps.a[t];
      const char* w = b + taps.b[t];
      for (int line = 0; line < kTileBytes; line += 64) __builtin_prefetch(w + line + ahead, 0, kStreamLocality);
      _tile_loadd(7, w, 64);
      _tile_loadd(6, x, step);
      _tile_dpbf16ps(0, 6, 7);
      if constexpr (kTiles > 1) {
        _tile_loadd(6, x + next, step);
        _tile_dpbf16ps(1, 6, 7);
      }
      if constexpr (kTiles > 2) {
        _tile_loadd(6, x + 2 * next, step);
        _tile_dpbf16ps(2, 6, 7);
      }
      if constexpr (kTiles > 3) {
        _tile_loadd(6, x + 3 * next, step);
        _tile_dpbf16ps(3, 6, 7);
      }
      if constexpr (kTiles > 4) {
        _tile_loadd(6, x + 4 * next, step);
        _tile_dpbf16ps(4, 6, 7);
      }
      if constexpr (kTiles > 5) {
        _tile_loadd(6, x + 5 * next, step);
        _tile_dpbf16ps(5, 6, 7);
      }
    }
  _tile_stored(0, c, 64);
  if constexpr (kTiles > 1) _tile_stored(1, c + 256, 64);
  if constexpr (kTiles > 2) _tile_stored(2, c + 512, 64);
  if constexpr (kTiles > 3) _tile_stored(3, c + 768, 64);
  if constexpr (kTiles > 4) _tile_stored(4, c + 1024, 64);
  if constexpr (kTiles > 5) _tile_stored(5, c + 1280, 64);
}

inline void product_stream_of(int32_t tiles, const char* a, int64_t step, const Taps& taps, int64_t chunks,
                              int64_t chunk_bytes, const char* b, float* c) {
  switch (tiles) {
    case 1: return product_stream<1>(a, step, taps, chunks, chunk_bytes, b, c);
    case 2: return product_stream<2>(a, step, taps, chunks, chunk_bytes, b, c);
    case 3: return product_stream<3>(a, step, taps, chunks, chunk_bytes, b, c);
    case 4: return product_stream<4>(a, step, taps, chunks, chunk_bytes, b, c);
    case 5: return product_stream<5>(a, step, taps, chunks, chunk_bytes, b, c);
    default: return product_stream<6>(a, step, taps, chunks, chunk_bytes, b, c);
  }
}

// What a layer's sizes come to. kDown: convolution, else transposed.
template <bool kDown>
struct Flat {
  int32_t line;        // flat positions of one row of outputs (deconv: of one phase)
  int32_t valid;       // of which real
  int32_t rows;        // flat positions in all
  int32_t tiles;       // row tiles
  int64_t pixel;       // bytes of a pixel of the padded picture: 64 more than it needs, lest power-of-two steps share L1 sets
  int64_t step;        // bytes of a step of f
  int64_t plane;       // bytes of a plane
  int64_t chunks;      // of 32 input channels
  explicit Flat(const Problem& p) {
    line = kDown ? p.wo + 1 : p.wi + 2;
    valid = kDown ? p.wo : p.wi;
    rows = (kDown ? p.ho : p.hi) * line - (kDown ? 1 : 2);
    tiles = (rows + kRowsOfTile - 1) / kRowsOfTile;
    chunks = (p.ci_stored[0] + p.ci_stored[1]) / 32;
    pixel = chunks * 64 + 64;
    step = (kDown ? 2 : 1) * pixel;
    plane = (int64_t)(kDown ? p.ho + 1 : p.hi + 2) * (p.wi + 2) * pixel;
  }
  int64_t bytes() const { return (kDown ? 2 : 1) * plane + 2 * kRowsOfTile * step; }  // the last tiles run over the end
  char* padded_row(char* base, const Problem& p, int32_t r) const {
    const int64_t width = (p.wi + 2) * pixel;
    return kDown ? base + (r % 2) * plane + (r / 2) * width : base + r * width;
  }
  int64_t tap(const Problem& p, int32_t phase, int32_t t) const {
    if (kDown) return (t / 4 % 2) * plane + ((int64_t)(t / 8) * (p.wi + 2) + t % 4) * pixel;
    return ((int64_t)(phase / 2 + t / 2) * (p.wi + 2) + phase % 2 + t % 2) * pixel;
  }
};

template <class Scheme, bool kDown>
struct TileConvolution {
  static constexpr int kPhases = Scheme::kPhases, kTaps = Scheme::kProducts;
  static constexpr int64_t kChunkBytes = kTaps * kTileBytes;
  using Layout = Flat<kDown>;

  // How phase 1 is cut into items: row groups of `pairs` pairs of row tiles; each with all panels, or panel by panel.
  struct Cut {
    bool stream, panels;
    int32_t groups, pairs, units;  // units: (panel pair, phase) of a group, 1 where an item takes all of them
    Cut(const Problem& p, const Layout& f) {
      const int32_t all_pairs = (f.tiles + 1) / 2;
      const int64_t weights = kPhases * f.chunks * kChunkBytes * (p.co_stored / kColumnsOfTile);
      stream = f.tiles <= kStreamTiles;
      panels = stream || weights > kWeightsInL2;
      if (stream) {
        pairs = all_pairs;
      } else if (panels) {
        const int64_t fit = kPictureInL2 / (2 * kRowsOfTile * f.step);
        pairs = fit < 1 ? 1 : fit > all_pairs ? all_pairs : (int32_t)fit;
      } else {
        pairs = all_pairs / kItemsWanted;
        pairs = pairs < 1 ? 1 : pairs > kPairsMax ? kPairsMax : pairs;
      }
      groups = (all_pairs + pairs - 1) / pairs;
      units = !panels ? 1 : kPhases * p.co_stored / (stream ? kColumnsOfTile : 2 * kColumnsOfTile);
    }
  };

  static void geometry(const Problem& p, Geometry* g) {
    const Layout f(p);
    const Cut cut(p, f);
    int32_t live = 0;
    for (int32_t phase = 0; phase < kPhases; ++phase)
      for (int32_t t = 0; t < kTaps; ++t) live += Scheme::live(p, phase, t);
    const int64_t k = f.chunks * 32;
    g->rows = f.rows;
    g->phases = 2;
    g->items[0] = p.hi + 2;
    g->items[1] = cut.groups * cut.units;
    g->stat_blocks = cut.groups * kPhases;
    g->pack_items = kPhases * p.co_stored / kColumnsOfTile;
    g->weight_bytes = (int64_t)kPhases * kTaps * k * p.co_stored * 2;
    g->read_bytes = (int64_t)live * k * p.co_stored * 2;
    g->shared_bytes = align64(f.bytes());
    g->shared_read_bytes = g->shared_bytes * cut.units;
    g->transform_bytes = g->shared_bytes;  // C stays in tiles
    g->scratch_bytes = 8 * kTileBytes;  // two blocks of 2 x 2, or kStreamTiles
    g->macs = (int64_t)live * f.tiles * kRowsOfTile * k * p.co_stored;
  }

  static void pack(const Problem& p, const float* raw, void* dst, int32_t item) {
    const int32_t panel = item / kPhases, phase = item % kPhases, n0 = panel * kColumnsOfTile;
    const int32_t n_end = p.co - n0 < kColumnsOfTile ? p.co - n0 : kColumnsOfTile;
    const int64_t chunks = (p.ci_stored[0] + p.ci_stored[1]) / 32;
    char* out = (char*)dst + item * chunks * kChunkBytes;
    for (int32_t s = 0; s < 2; ++s)
      for (int32_t c = 0; c < p.ci[s]; ++c) {
        const int64_t k = (s ? p.ci_stored[0] : 0) + c;
        char* line = out + k / 32 * kChunkBytes + k % 32 / 2 * 64 + k % 2 * 2;
        for (int32_t n = 0; n < n_end; ++n) {
          double w[kTaps];
          Scheme::weights(p, raw, (s ? p.ci[0] : 0) + c, n0 + n, phase, 0, w);
          for (int32_t t = 0; t < kTaps; ++t) BF16::store_scalar(line + t * kTileBytes, n * 2, (float)w[t]);
        }
      }
  }

  // Row r of the padded picture.
  static void normalise(const Problem& p, const Args& args, const Layout& f, int32_t r) {
    char* row = f.padded_row((char*)args.shared, p, r);
    const int64_t used = f.chunks * 64;
    if (r == 0 || r == p.hi + 1) {
      for (int32_t x = 0; x < p.wi + 2; ++x) clear(row + x * f.pixel, used);
      return;
    }
    clear(row, used);
    clear(row + (p.wi + 1) * f.pixel, used);
    normalise_row<BF16>(p, args, r - 1, row + f.pixel, f.pixel);
  }

  static void run(const Problem& p, const Args& args, int32_t phase, int32_t item, void* scratch) {
    const Layout f(p);
    if (phase == 0) return normalise(p, args, f, item);
    const Cut cut(p, f);
    const Tiles tiles;
    float* c = (float*)scratch;
    const int32_t group = item / cut.units, unit = item % cut.units;
    if (cut.stream) {
      stream(p, args, f, unit / kPhases, unit % kPhases, c);
    } else if (cut.panels) {
      block(p, args, f, group, group * cut.pairs, cut.pairs, unit / kPhases, unit % kPhases, c);
    } else {
      for (int32_t panel = 0; panel < p.co_stored / (2 * kColumnsOfTile); ++panel)
        for (int32_t out = 0; out < kPhases; ++out)
          block(p, args, f, group, group * cut.pairs, cut.pairs, panel, out, c);
    }
  }

  static Taps live_taps(const Problem& p, const Layout& f, int32_t phase) {
    Taps taps;
    for (int32_t t = 0; t < kTaps; ++t) {
      if (!Scheme::live(p, phase, t)) continue;
      taps.a[taps.count] = f.tap(p, phase, t);
      taps.b[taps.count++] = t * kTileBytes;
    }
    return taps;
  }

  static const char* panel_weights(const Args& args, const Layout& f, int32_t panel, int32_t phase) {
    return (const char*)args.weights + (panel * kPhases + phase) * f.chunks * kChunkBytes;
  }

  static void stream(const Problem& p, const Args& args, const Layout& f, int32_t panel, int32_t phase, float* c) {
    product_stream_of(f.tiles, (const char*)args.shared, f.step, live_taps(p, f, phase), f.chunks, kChunkBytes,
                      panel_weights(args, f, panel, phase), c);
    Statistics statistics;
    Emission<1> emission(p, args, f, c, 0, f.tiles * kRowsOfTile, panel * kColumnsOfTile, phase, &statistics);
    while (emission.left()) emission.row();
    if (args.stats) statistics.write(stats_of(p, args, phase, panel * kColumnsOfTile), p.co_stored);
  }

  // `pairs` pairs of row tiles from `first` on, by one pair of panels.
  static void block(const Problem& p, const Args& args, const Layout& f, int32_t group, int32_t first, int32_t pairs,
                    int32_t panel_pair, int32_t phase, float* c) {
    const Taps taps = live_taps(p, f, phase);
    const int32_t channel = panel_pair * 2 * kColumnsOfTile;
    const char* b0 = panel_weights(args, f, 2 * panel_pair, phase);
    const char* b1 = panel_weights(args, f, 2 * panel_pair + 1, phase);
    Statistics statistics[2];
    Emission<2> before(p, args, f, c, 0, 0, channel, phase, statistics);  // nothing yet
    for (int32_t pair = first; pair < first + pairs && 2 * pair < f.tiles; ++pair) {
      const int32_t row = pair * 2 * kRowsOfTile;
      float* here = c + (pair % 2) * 1024;
      const char* a = (const char*)args.shared + row * f.step;
      if (pair == first) product_2x2<true>(a, f.step, taps, f.chunks, kChunkBytes, b0, b1, here, before);
      else product_2x2<false>(a, f.step, taps, f.chunks, kChunkBytes, b0, b1, here, before);
      while (before.left()) before.row();
      before = Emission<2>(p, args, f, here, row, 2 * kRowsOfTile, channel, phase, statistics);
    }
    while (before.left()) before.row();
    if (args.stats)
      for (int half = 0; half < 2; ++half)
        statistics[half].write(stats_of(p, args, group * kPhases + phase, channel + half * kColumnsOfTile), p.co_stored);
  }

  static float* stats_of(const Problem& p, const Args& args, int32_t stat_block, int32_t channel) {
    return args.stats + (int64_t)stat_block * 3 * p.co_stored + channel;
  }

  // Flat rows [first, first + count) of C, one at a time: bias, statistics, store. Tiles lie [row tile][kVecs][16][16].
  template <int kVecs>
  struct Emission {
    const Problem* p;
    const Args* args;
    const Layout* f;
    const float* c;
    Statistics* statistics;
    int32_t next, end, x, y, in_tile = 0, channel, phase;
    Vec bias[kVecs];

    Emission(const Problem& problem, const Args& arguments, const Layout& layout, const float* sums, int32_t first,
             int32_t count, int32_t channel, int32_t phase, Statistics* statistics)
        : p(&problem), args(&arguments), f(&layout), c(sums), statistics(statistics), next(first),
          end(first + count < layout.rows ? first + count : layout.rows), x(first % layout.line), y(first / layout.line),
          channel(channel), phase(phase) {
      for (int v = 0; v < kVecs; ++v) bias[v] = args->bias ? load(args->bias + channel + v * kWidth) : zero();
    }
    bool left() const { return next < end; }
    inline void row() {
      if (x < f->valid) {
        const int64_t pixel =
            kDown ? (int64_t)y * p->wo + x : (int64_t)(2 * y + phase / 2) * p->wo + 2 * x + phase % 2;
        for (int v = 0; v < kVecs; ++v) {
          const Vec value = add(load(c + v * 256), bias[v]);
          BF16::store(args->dst, pixel * p->co_stored + channel + v * kWidth, value);
          if (args->stats) statistics[v].take(value);
        }
      }
      ++next;
      c += kColumnsOfTile;
      if (++in_tile == kRowsOfTile) {
        in_tile = 0;
        c += (kVecs - 1) * 256;
      }
      if (++x == f->line) {
        x = 0;
        ++y;
      }
    }
  };
};
