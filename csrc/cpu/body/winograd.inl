// One-dimensional pieces of the minimal filtering F(m, 2): m outputs of a 2-tap filter from m + 1 inputs with m + 1
// products. The two-dimensional transforms apply them to columns, then to rows. Derivation: docs/winograd.md.
//
//   y[a] = d[a] g[0] + d[a + 1] g[1],  a < m   ==   output( weights(g) * input(d) )
//
// Every set of points holds 1. A flat area is what the point 1 alone sees: the other rows of the input transform are sums of
// differences, exactly zero there, and all outputs of a tile are the same product, the same bits. Without it a flat area
// would get a pattern of rounding errors, which a norm may blow up three hundredfold.
//
// kTile = m, kPoints = m + 1. F(1, 2) of no transform at all serves the direct kernels: kPoints = 1.

struct Identity {
  static constexpr int kTile = 1, kPoints = 1;
  template <int kGap> static inline void input(Vec*) {}
  template <int kGap> static inline void output(const Vec* m, Vec* y) { y[0] = m[0]; }
};

// Points 0, 1, infinity: neither transform multiplies.
struct Winograd2 {
  static constexpr int kTile = 2, kPoints = 3;
  // In place on d[0], d[gap], d[2 gap], ...
  template <int kGap> static inline void input(Vec* d) {
    d[0] = sub(d[0], d[kGap]);
    d[2 * kGap] = sub(d[2 * kGap], d[kGap]);
  }
  template <int kGap> static inline void output(const Vec* m, Vec* y) {
    y[0] = add(m[0], m[kGap]);
    y[1] = add(m[kGap], m[2 * kGap]);
  }
  static inline void weights(const double g[2], double u[3]) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[1];
  }
};

// Points 0, 1, -1, infinity.
struct Winograd3 {
  static constexpr int kTile = 3, kPoints = 4;
  template <int kGap> static inline void input(Vec* d) {
    const Vec d0 = d[0], d1 = d[kGap], d2 = d[2 * kGap], d3 = d[3 * kGap];
    d[0] = sub(d0, d2);
    d[kGap] = add(d1, d2);
    d[2 * kGap] = sub(d2, d1);
    d[3 * kGap] = sub(d3, d1);
  }
  template <int kGap> static inline void output(const Vec* m, Vec* y) {
    const Vec sum = add(m[kGap], m[2 * kGap]);
    y[0] = add(m[0], sum);
    y[1] = sub(m[kGap], m[2 * kGap]);
    y[2] = add(sum, m[3 * kGap]);
  }
  static inline void weights(const double g[2], double u[4]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) * 0.5;
    u[2] = (g[0] - g[1]) * 0.5;
    u[3] = g[1];
  }
};

// Points 0, 1, -1/2, -2, infinity: half the error of the usual 0, 1, -1, 1/2 (bench/winograd_error.py). The ninths sit in
// the weights, where they cost nothing per picture.
struct Winograd4 {
  static constexpr int kTile = 4, kPoints = 5;
  template <int kGap> static inline void input(Vec* d) {
    const Vec d0 = d[0], d1 = d[kGap], d2 = d[2 * kGap], d3 = d[3 * kGap], d4 = d[4 * kGap];
    const Vec step1 = sub(d2, d1), step2 = sub(d3, d2);
    d[0] = fma(broadcast(-1.5f), step1, sub(d0, d3));     // d0 + 3/2 d1 - 3/2 d2 - d3
    d[kGap] = fma(broadcast(2.5f), d2, add(d1, d3));      // d1 + 5/2 d2 + d3
    d[2 * kGap] = fma(broadcast(2.0f), step1, step2);     // -2 d1 + d2 + d3
    d[3 * kGap] = fma(broadcast(0.5f), step1, step2);     // -d1/2 - d2/2 + d3
    d[4 * kGap] = fma(broadcast(1.5f), step2, sub(d4, d1));  // -d1 - 3/2 d2 + 3/2 d3 + d4
  }
  template <int kGap> static inline void output(const Vec* m, Vec* y) {
    const Vec m1 = m[kGap], m2 = m[2 * kGap], m3 = m[3 * kGap];
    y[0] = add(add(m[0], m1), add(m2, m3));
    y[1] = fma(broadcast(-2.0f), m3, fma(broadcast(-0.5f), m2, m1));
    y[2] = fma(broadcast(4.0f), m3, fma(broadcast(0.25f), m2, m1));
    y[3] = fma(broadcast(-8.0f), m3, fma(broadcast(-0.125f), m2, add(m1, m[4 * kGap])));
  }
  static inline void weights(const double g[2], double u[5]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) * (2.0 / 9.0);
    u[2] = (g[0] - 0.5 * g[1]) * (8.0 / 9.0);
    u[3] = (g[0] - 2.0 * g[1]) / -9.0;
    u[4] = g[1];
  }
};

// Points 0, 1, -1, 1/2, -2, infinity. Thirteen tiles cover the 65 windows of a 64x64 map where F(3, 2) needs 22.
struct Winograd5 {
  static constexpr int kTile = 5, kPoints = 6;
  template <int kGap> static inline void input(Vec* d) {
    const Vec d1 = d[kGap], d2 = d[2 * kGap], d3 = d[3 * kGap], d4 = d[4 * kGap];
    const Vec even = sub(d4, d2), odd = sub(d3, d1);
    d[0] = fma(broadcast(1.5f), odd, add(even, sub(d[0], d2)));              // d0 - 3/2 d1 - 2 d2 + 3/2 d3 + d4
    d[kGap] = fma(broadcast(2.5f), d3, fma(broadcast(0.5f), d2, sub(d4, d1)));  // -d1 + d2/2 + 5/2 d3 + d4
    d[2 * kGap] = fma(broadcast(1.5f), sub(d3, d2), sub(even, odd));         // d1 - 5/2 d2 + d3/2 + d4
    d[3 * kGap] = fma(broadcast(2.0f), odd, even);                           // -2 d1 - d2 + 2 d3 + d4
    d[4 * kGap] = fma(broadcast(-0.5f), odd, even);                          // d1/2 - d2 - d3/2 + d4
    d[5 * kGap] = fma(broadcast(1.5f), even, sub(sub(d[5 * kGap], d3), odd));   // d1 - 3/2 d2 - 2 d3 + 3/2 d4 + d5
  }
  template <int kGap> static inline void output(const Vec* m, Vec* y) {
    const Vec m3 = m[3 * kGap], m4 = m[4 * kGap];
    const Vec sum = add(m[kGap], m[2 * kGap]), difference = sub(m[kGap], m[2 * kGap]);
    y[0] = add(add(m[0], sum), add(m3, m4));
    y[1] = fma(broadcast(-2.0f), m4, fma(broadcast(0.5f), m3, difference));
    y[2] = fma(broadcast(4.0f), m4, fma(broadcast(0.25f), m3, sum));
    y[3] = fma(broadcast(-8.0f), m4, fma(broadcast(0.125f), m3, difference));
    y[4] = fma(broadcast(16.0f), m4, fma(broadcast(0.0625f), m3, add(sum, m[5 * kGap])));
  }
  static inline void weights(const double g[2], double u[6]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1]) / 3.0;
    u[2] = (g[0] - g[1]) / -3.0;
    u[3] = (g[0] + 0.5 * g[1]) * (-16.0 / 15.0);
    u[4] = (g[0] - 2.0 * g[1]) / 15.0;
    u[5] = g[1];
  }
};

// d[kPoints][kPoints]: columns, then rows, in place.
template <class W> inline void transform_input(Vec* d) {
  constexpr int n = W::kPoints;
#pragma GCC unroll 6
  for (int j = 0; j < n; ++j) W::template input<n>(d + j);
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i) W::template input<1>(d + i * n);
}

// m[kPoints][kPoints] -> y[kTile][kTile].
template <class W> inline void transform_output(const Vec* m, Vec* y) {
  constexpr int n = W::kPoints, t = W::kTile;
  Vec half[n * t];  // half[column][row of the tile]
#pragma GCC unroll 6
  for (int j = 0; j < n; ++j) W::template output<n>(m + j, half + j * t);
#pragma GCC unroll 5
  for (int a = 0; a < t; ++a) W::template output<t>(half + a, y + a * t);
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
