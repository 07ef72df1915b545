// One-dimensional pieces of the minimal filtering F(m, 2): m outputs of a 2-tap filter from m + 1 inputs with m + 1
// products. The two-dimensional transforms apply them to columns, then to rows. Derivation: docs/winograd.md.
//
//   y[a] = d[a] g[0] + d[a + 1] g[1],  a < m   ==   output( weights(g) * input(d) )
//
// Every set of points holds 1. A flat area is what the point 1 alone sees: the other rows of the input transform are sums of
// differences, exactly zero there, and all outputs of a tile are the same product, the same bits. Without it a flat area
// would get a pattern of rounding errors, which a norm may blow up three hundredfold.
//
// kTile = m, kPoints = m + 1. Short: F(m - 1, 2) at the same points but one, kLeftOut, on the same weights (Tiling below).

inline double add(double a, double b) { return a + b; }
inline double sub(double a, double b) { return a - b; }

struct OneShape {  // without a Short
  static constexpr bool kTransforms = true;
  static constexpr int kLeftOut = -1;
  static constexpr int point(int k) { return k; }
};

// No transform at all, for the direct kernels: windows of kSide inputs, one output.
template <int kSide> struct Window : OneShape {
  static constexpr bool kTransforms = false;
  static constexpr int kTile = 1, kPoints = kSide;
  static inline void input(Vec*) {}
  static inline void output(const Vec* m, Vec* y) { y[0] = m[0]; }
};
using Identity = Window<1>;

// For weights that are formed from plain taps on the way (taps.inl): points 0, infinity, 1. The two that take a tap as it is
// come first. Neither transform multiplies.
struct Winograd2Taps : OneShape {
  static constexpr int kTile = 2, kPoints = 3;
  // In place.
  static inline void input(Vec* d) {
    const Vec d0 = d[0], d1 = d[1], d2 = d[2];
    d[0] = sub(d0, d1);
    d[1] = sub(d2, d1);
    d[2] = d1;
  }
  static inline void output(const Vec* m, Vec* y) {
    y[0] = add(m[0], m[2]);
    y[1] = add(m[2], m[1]);
  }
  template <int kPoint, class T> static inline T combine(T g0, T g1) {
    if constexpr (kPoint == 0) return g0;
    else if constexpr (kPoint == 1) return g1;
    else return add(g0, g1);
  }
};

// Points 0, 1, -1, infinity.
struct Winograd3 : OneShape {
  static constexpr int kTile = 3, kPoints = 4;
  static inline void input(Vec* d) {
    const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    d[0] = sub(d0, d2);
    d[1] = add(d1, d2);
    d[2] = sub(d2, d1);
    d[3] = sub(d3, d1);
  }
  static inline void output(const Vec* m, Vec* y) {
    const Vec sum = add(m[1], m[2]);
    y[0] = add(m[0], sum);
    y[1] = sub(m[1], m[2]);
    y[2] = add(sum, m[3]);
  }
  static inline void weights(const double g[2], double u[4]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) * 0.5;
    u[2] = (g[0] - g[1]) * 0.5;
    u[3] = g[1];
  }
};

// Points 0, 1, -1/2, -2, infinity: two thirds of the error of the usual 0, 1, -1, 1/2 (bench/winograd_error.py). The ninths sit in
// the weights, where they cost nothing per picture.
struct Winograd4 : OneShape {
  static constexpr int kTile = 4, kPoints = 5;
  static inline void input(Vec* d) {
    const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
    const Vec step1 = sub(d2, d1), step2 = sub(d3, d2);
    d[0] = fma(broadcast(-1.5f), step1, sub(d0, d3));     // d0 + 3/2 d1 - 3/2 d2 - d3
    d[1] = fma(broadcast(2.5f), d2, add(d1, d3));      // d1 + 5/2 d2 + d3
    d[2] = fma(broadcast(2.0f), step1, step2);     // -2 d1 + d2 + d3
    d[3] = fma(broadcast(0.5f), step1, step2);     // -d1/2 - d2/2 + d3
    d[4] = fma(broadcast(1.5f), step2, sub(d4, d1));  // -d1 - 3/2 d2 + 3/2 d3 + d4
  }
  static inline void output(const Vec* m, Vec* y) {
    const Vec m1 = m[1], m2 = m[2], m3 = m[3];
    y[0] = add(add(m[0], m1), add(m2, m3));
    y[1] = fma(broadcast(-2.0f), m3, fma(broadcast(-0.5f), m2, m1));
    y[2] = fma(broadcast(4.0f), m3, fma(broadcast(0.25f), m2, m1));
    y[3] = fma(broadcast(-8.0f), m3, fma(broadcast(-0.125f), m2, add(m1, m[4])));
  }
  static inline void weights(const double g[2], double u[5]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) * (2.0 / 9.0);
    u[2] = (g[0] - 0.5 * g[1]) * (8.0 / 9.0);
    u[3] = (g[0] - 2.0 * g[1]) / -9.0;
    u[4] = g[1];
  }
};

// The same for weights that are formed on the way, from plain taps or from columns of them: points 0, infinity, 1, -1/2, -2,
// and the ninths in the input transform.
struct Winograd4Taps : OneShape {
  static constexpr int kTile = Winograd4::kTile, kPoints = Winograd4::kPoints;
  static inline void input(Vec* d) {
    Winograd4::input(d);
    const Vec d1 = d[1], d2 = d[2], d3 = d[3];
    d[1] = d[4];
    d[2] = mul(d1, broadcast(2.0f / 9.0f));
    d[3] = mul(d2, broadcast(4.0f / 9.0f));
    d[4] = mul(d3, broadcast(-1.0f / 9.0f));
  }
  static inline void output(const Vec* m, Vec* y) {
    const Vec ordered[kPoints] = {m[0], m[2], m[3], m[4], m[1]};
    Winograd4::output(ordered, y);
  }
  template <int kPoint, class T> static inline T combine(T g0, T g1) {
    if constexpr (kPoint == 0) return g0;
    else if constexpr (kPoint == 1) return g1;
    else if constexpr (kPoint == 2) return add(g0, g1);
    else if constexpr (kPoint == 3) return sub(add(g0, g0), g1);
    else return sub(g0, add(g1, g1));
  }
};

// Points 0, 1, -1, 1/2, -2, infinity. Thirteen tiles cover the 65 windows of a 64x64 map where F(3, 2) needs 22.
struct Winograd5 {
  static constexpr int kTile = 5, kPoints = 6;
  static inline void input(Vec* d) {
    const Vec d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
    const Vec even = sub(d4, d2), odd = sub(d3, d1);
    d[0] = fma(broadcast(1.5f), odd, add(even, sub(d[0], d2)));              // d0 - 3/2 d1 - 2 d2 + 3/2 d3 + d4
    d[1] = fma(broadcast(2.5f), d3, fma(broadcast(0.5f), d2, sub(d4, d1)));  // -d1 + d2/2 + 5/2 d3 + d4
    d[2] = fma(broadcast(1.5f), sub(d3, d2), sub(even, odd));         // d1 - 5/2 d2 + d3/2 + d4
    d[3] = fma(broadcast(2.0f), odd, even);                           // -2 d1 - d2 + 2 d3 + d4
    d[4] = fma(broadcast(-0.5f), odd, even);                          // d1/2 - d2 - d3/2 + d4
    d[5] = fma(broadcast(1.5f), even, sub(sub(d[5], d3), odd));   // d1 - 3/2 d2 - 2 d3 + 3/2 d4 + d5
  }
  static inline void output(const Vec* m, Vec* y) {
    const Vec m3 = m[3], m4 = m[4];
    const Vec sum = add(m[1], m[2]), difference = sub(m[1], m[2]);
    y[0] = add(add(m[0], sum), add(m3, m4));
    y[1] = fma(broadcast(-2.0f), m4, fma(broadcast(0.5f), m3, difference));
    y[2] = fma(broadcast(4.0f), m4, fma(broadcast(0.25f), m3, sum));
    y[3] = fma(broadcast(-8.0f), m4, fma(broadcast(0.125f), m3, difference));
    y[4] = fma(broadcast(16.0f), m4, fma(broadcast(0.0625f), m3, add(sum, m[5])));
  }
  static inline void weights(const double g[2], double u[6]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) / 3.0;
    u[2] = (g[0] - g[1]) / -3.0;
    u[3] = (g[0] + 0.5 * g[1]) * (-16.0 / 15.0);
    u[4] = (g[0] - 2.0 * g[1]) / 15.0;
    u[5] = g[1];
  }

  static constexpr bool kTransforms = true;
  static constexpr int kLeftOut = 4;
  static constexpr int point(int k) { return k; }
  // F(4, 2) without the point -2: rows of its own input transform, times the distance of their point from -2.
  struct Short {
    static constexpr int kTile = 4, kPoints = 5;
    static constexpr int point(int k) { return k < 4 ? k : 5; }
    static inline void input(Vec* d) {
      const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4];
      const Vec odd = sub(d3, d1), step = sub(d2, d1);
      d[0] = fma(broadcast(2.0f), odd, sub(d0, d2));                    // d0 - 2 d1 - d2 + 2 d3
      d[1] = fma(broadcast(3.0f), d3, mul(broadcast(1.5f), step));      // -3/2 d1 + 3/2 d2 + 3 d3
      d[2] = fma(broadcast(-0.5f), step, sub(d3, d2));                  // d1/2 - 3/2 d2 + d3
      d[3] = mul(broadcast(2.5f), odd);                                 // -5/2 d1 + 5/2 d3
      d[4] = fma(broadcast(-0.5f), odd, sub(d4, d2));                   // d1/2 - d2 - d3/2 + d4
    }
    static inline void output(const Vec* m, Vec* y) {
      const Vec sum = add(m[1], m[2]), difference = sub(m[1], m[2]);
      y[0] = add(add(m[0], sum), m[3]);
      y[1] = fma(broadcast(0.5f), m[3], difference);
      y[2] = fma(broadcast(0.25f), m[3], sum);
      y[3] = fma(broadcast(0.125f), m[3], add(difference, m[4]));
    }
  };
};

// Calls f with a W or a W::Short for each axis.
template <class W, class F> inline void by_shape(bool short_y, bool short_x, F&& f) {
  if constexpr (W::kLeftOut < 0) {
    f(W{}, W{});
  } else {
    using S = typename W::Short;
    if (short_y && short_x) f(S{}, S{});
    else if (short_y) f(S{}, W{});
    else if (short_x) f(W{}, S{});
    else f(W{}, W{});
  }
}

// The tiles of one axis. Where W has a Short, as many of the last tiles are short as make them fit the windows: 33 windows
// are five tiles of 5 and two of 4.
template <class W> struct Axis {
  int32_t tiles, whole;  // whole: those of kTile windows, which come first
  explicit Axis(int32_t windows) {
    tiles = (windows + W::kTile - 1) / W::kTile;
    const int32_t spare = tiles * W::kTile - windows;
    whole = W::kLeftOut < 0 ? tiles : (spare < tiles ? tiles - spare : 0);
  }
  int32_t start(int32_t tile) const { return W::kTile * tile - (tile > whole ? tile - whole : 0); }
};

struct Range {
  int32_t first, end;
};

// The tiles of a map as rows of A. A tile that is short in y has no product at the positions (kLeftOut, j), one that is short
// in x none at (i, kLeftOut). In this order the rows of every position are one range:
//
//   [whole in y, short in x] [whole, whole] [short, whole] [short, short]
template <class W> struct Tiling {
  Axis<W> y, x;
  int32_t rows() const { return y.tiles * x.tiles; }
  Range rows_at(int32_t i, int32_t j) const {
    const bool not_short_y = i == W::kLeftOut, not_short_x = j == W::kLeftOut;
    const int32_t first = not_short_x ? y.whole * (x.tiles - x.whole) : 0;
    return {first, first + (not_short_y ? y.whole : y.tiles) * (not_short_x ? x.whole : x.tiles)};
  }
  struct Tile {
    int32_t y, x;
    bool short_y, short_x;
  };
  Tile tile(int32_t row) const {
    int32_t y0 = 0, x0 = 0, width = x.whole;
    const int32_t short_x = x.tiles - x.whole, right = y.whole * short_x, left = y.tiles * x.whole;
    if (row < right) {
      x0 = x.whole, width = short_x;
    } else if (row < right + left) {
      row -= right;
    } else {
      row -= right + left;
      y0 = y.whole, x0 = x.whole, width = short_x;
    }
    const int32_t ty = y0 + row / width, tx = x0 + row % width;
    return {ty, tx, ty >= y.whole, tx >= x.whole};
  }
};

// The first half of the output transform, of one column: m is its point 0, `matrix` floats lie between neighbouring points of
// a row of W. Gives WY::kTile values, `stride` apart; WX::output of a row of those is a row of outputs. WY, WX: W, W::Short.
template <class W, class WY> inline void output_column(const float* m, int64_t matrix, Vec* half, int stride) {
  Vec column[WY::kPoints], y[WY::kTile];
#pragma GCC unroll 6
  for (int i = 0; i < WY::kPoints; ++i) column[i] = load(m + WY::point(i) * W::kPoints * matrix);
  WY::output(column, y);
#pragma GCC unroll 5
  for (int i = 0; i < WY::kTile; ++i) half[i * stride] = y[i];
}

// u[kPoints][kPoints] from g[2][2].
template <class W> inline void transform_weights(const double g[2][2], double* u) {
  constexpr int n = W::kPoints;
  double half[2][n];
  for (int j = 0; j < 2; ++j) {
    const double column[2] = {g[0][j], g[1][j]};
    W::weights(column, half[j]);
  }
  for (int i = 0; i < n; ++i) {
    const double row[2] = {half[0][i], half[1][i]};
    W::weights(row, u + i * n);
  }
}
