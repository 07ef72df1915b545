// The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, without Python: a tiny net in every precision and
// single layers of every kind and tile; prints "ran N kernels". With an argument, one layer in f32 with the shim's own check
// of bounds off, so that the sanitizer may be the one to find what is wrong. Any failure is an exit status.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"
#include "layer.h"
#include "run.h"

extern "C" int p2p_host_network(int count, const int32_t* layers, const float* slopes, const float* eps,
                                const float* const* tensors, int dtype, int n, int h, int w, int pixel_bytes, void* in,
                                void* out, int sms, int shared, uint32_t seed, const uint64_t* dropout, char* error,
                                int error_size);

namespace {

std::mt19937 random_bits(1);
int runs = 0;

std::vector<float> noise(size_t count) {
  std::vector<float> v(count);
  for (float& x : v) x = std::normal_distribution<float>(0.0f, 0.3f)(random_bits);
  return v;
}

// A U-Net of depth 3: e1, e2, e3, d1, d2, d3.
void network(int dtype, int pixel_bytes, int shared) {
  const int32_t layers[6][8] = {{0, 3, 8, 0, -1, 0, 0, 0},  {0, 8, 13, 1, -1, 0, 0, 0},  {0, 13, 16, 0, -1, 0, 0, 0},
                                {1, 16, 13, 1, -1, 0, 1, 0}, {1, 26, 8, 1, 1, 0, 0, 0}, {1, 16, 3, 0, 0, 1, 0, 0}};
  const float slopes[6] = {1.0f, 0.2f, 0.2f, 0.0f, 0.0f, 0.0f}, eps[6] = {1e-5f, 1e-5f, 1e-5f, 1e-5f, 1e-5f, 1e-5f};
  std::vector<std::vector<float>> values;
  for (const auto& l : layers) {
    values.push_back(noise((size_t)l[1] * l[2] * 16));
    for (int i = 0; i < 3; ++i) values.push_back(noise(l[2]));
  }
  std::vector<const float*> tensors;
  for (size_t i = 0; i < values.size(); ++i) tensors.push_back(values[i].data());
  const int n = 2, h = 18, w = 13;
  std::vector<char> in(n * h * w * 3 * pixel_bytes), out(in.size());
  if (pixel_bytes == 4) {
    const std::vector<float> x = noise(n * h * w * 3);
    std::memcpy(in.data(), x.data(), in.size());
  }
  const uint64_t dropout[2] = {5, 6};
  char error[500] = "";
  if (p2p_host_network(6, layers[0], slopes, eps, tensors.data(), dtype, n, h, w, pixel_bytes, in.data(), out.data(), 132, shared, 7,
                       dropout, error, 500)) {
    std::fprintf(stderr, "net of dtype %d: %s\n", dtype, error);
    std::exit(3);
  }
  runs += 6;
}

// Two images of 3x5 pixels, two sources of 9 and 5 channels, splits, statistics, channels to spare.
void layer(p2p::cuda::Kind kind, p2p::cuda::Tile tile, int dtype, int cluster, bool patch = false) {
  HostLayer l{};
  const bool up = kind == p2p::cuda::Kind::kDeconv;
  l.kind = (int32_t)kind;
  l.tile = (int32_t)tile;
  l.dtype = dtype;
  l.n = 2;
  l.hi = up ? 3 : 6;
  l.wi = up ? 5 : 10;
  l.c0 = 9;
  l.c1 = 5;
  l.co = 11;
  l.splits = 2;
  l.cluster = cluster;
  l.patch = patch;
  l.norm = 1;
  l.dropout0 = l.dropout1 = -1;
  l.slope = 0.2f;
  l.eps = 1e-5f;
  const int32_t pixels = l.n * l.hi * l.wi;
  const auto src0 = noise(pixels * l.c0), src1 = noise(pixels * l.c1), affine0 = noise(l.n * 2 * l.c0), affine1 = noise(l.n * 2 * l.c1);
  const auto weights = noise((l.c0 + l.c1) * l.co * 16), gamma = noise(l.co), beta = noise(l.co);
  std::vector<float> out(pixels * 4 * 16), affine(l.n * 2 * 16);
  l.src0 = src0.data();
  l.src1 = src1.data();
  l.affine0 = affine0.data();
  l.affine1 = affine1.data();
  l.weights = weights.data();
  l.gamma = gamma.data();
  l.beta = beta.data();
  l.out = out.data();
  l.affine = affine.data();
  char error[500] = "";
  if (p2p_host_layer(&l, error, 500)) {
    std::fprintf(stderr, "layer of kind %d, tile %d, dtype %d, cluster %d: %s\n", l.kind, l.tile, dtype, cluster, error);
    std::exit(3);
  }
  ++runs;
}

}  // namespace

int main(int argc, char**) {
  using p2p::cuda::Kind, p2p::cuda::Tile;
  if (argc > 1) {
    p2p::cuda::host::trust(true);
    layer(Kind::kConv, Tile::k64x64, 0, 0);
    return 0;
  }
  for (int dtype : {0, 1, 2}) {
    for (int pixel_bytes : {1, 4}) network(dtype, pixel_bytes, 0);
    if (dtype != 0) network(dtype, 1, 99 << 10);
    for (Kind kind : {Kind::kConv, Kind::kDeconv})
      for (Tile tile : {Tile::k64x64, Tile::k64x32, Tile::k16x32})
        if (dtype != 0 || tile == Tile::k64x64) layer(kind, tile, dtype, 0);
    if (dtype != 0)
      for (Kind kind : {Kind::kConv, Kind::kDeconv}) layer(kind, Tile::k64x32, dtype, 2);
    if (dtype != 0)
      for (Kind kind : {Kind::kConv, Kind::kDeconv}) layer(kind, Tile::k64x64, dtype, 0, true);
  }
  std::printf("ran %d kernels\n", runs);
}
