// What a kernel of this back-end is told. Plain data, shared by the plan (network.cpp), the kernels, the back-end and the
// host shim of the tests; no CUDA header.
//
// Every layer is one matrix product per output phase: rows are output pixels, columns output channels, depth is (tap,
// channel). Maps are NHWC with channels stored up to a multiple of 8, so that 16-byte accesses always fit.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define P2P_BOTH __host__ __device__
#else
#define P2P_BOTH
#endif

namespace p2p::cuda {

constexpr int32_t kThreads = 128;

enum class DType : uint8_t { kF32, kF16, kBF16 };

// What the rows are gathered from, and where they go.
enum class Kind : uint8_t {
  kFirst,   // the picture (reflected at the bottom and the right) -> map; depth is (tap, channel) without padding
  kConv,    // map -> map of half the size: 4x4 taps, stride 2
  kDeconv,  // map -> map of twice the size: four phases (ph, pw) of 2x2 taps; a block works on one
  kLast,    // map -> picture: the four phases side by side as columns phase * co + c over 3x3 taps, tanh, uint8
};

// The tile of a block: bm rows x bn columns; depth in slices of 128 bytes.
enum class Tile : uint8_t { k64x64, k64x32, k16x32, k64x16 };

// A stored map, read as max(x, slope * x) of x * scale + shift; zero outside the map.
struct Source {
  const void* data;       // [n][hi][wi][channels]; null: there is none
  const float* affine;    // [n][2][channels] scale and shift of the norm behind it; null: 1 and 0
  int32_t channels;       // stored
  int32_t dropout_layer;  // place in e1..dN if dropout follows the norm, else -1
  int32_t dropout_channels;  // not padded: an element's number is (y * wi + x) * dropout_channels + c
};

struct Picture {
  void* data;
  int32_t h, w;   // before padding / after cropping
  int32_t c;
  int32_t bytes;  // of a pixel's channel: 1 = uint8, 4 = float32
  // The rest may stay zero for [n][h][w][c] in one piece and floats in [-1, 1]; bind() fills it in.
  int64_t stride_n, stride_h, stride_w, stride_c;  // in elements; 0 and negative are allowed
  float scale, offset;                             // of floats: read as x * scale + offset, written as y * scale + offset
};

struct LayerArgs {
  Source src[2];         // [skip, decoder] or [input, none]
  Picture picture;       // kFirst reads it, kLast writes it
  const void* weights;   // [phase][column][tap][channel of src 0, then 1]
  const float* bias;     // [co] or null
  void* dst;             // [n][.][.][co_stored]; null for kLast
  float slope;
  int32_t tanh;

  int32_t n, hi, wi;     // images; the input map
  int32_t mh, mw;        // the map of rows: the output of a convolution, the input of a deconvolution
  int32_t co, co_stored, columns;
  int32_t chunks_per_tap;           // 16-byte pieces of depth
  int32_t taps_h, taps_w;
  int32_t live_h[2][2], live_w[2][2];  // [phase parity][begin, end): taps that meet more than padding somewhere
  int32_t images_per_tile;          // > 1: a tile holds whole images
  int32_t tiles_per_image;          // > 1: an image has several tiles
  int32_t tiles_across;             // > 0: a kernel of patch.cuh, whose tiles are squares
  int32_t phases, splits;           // grid z = phases * splits; a split sums a part of the depth

  float* partial;        // [tile][split][bm * bn]; null without splits
  uint32_t* split_done;  // [tile], zero between runs
  // Norm of this layer's output; null without one.
  const float* gamma;
  const float* beta;
  float eps;
  float* stats;          // [n][entry][2][co_stored]: mean and squared deviations of each tile and phase
  uint32_t* stats_done;  // [image group][column tile], zero between runs
  float* affine;         // [n][2][co_stored]

  const uint64_t* dropout;  // {seed, frame of the first image}; null: off

  // A stream kernel (stream.cuh): `cluster` blocks share the depth by channels, and dst becomes the normalised map. 0: a
  // kernel of layer.cuh, and dst the raw one.
  int32_t cluster;
  int32_t planes;        // slices of 64 channels that a block has at most
  int32_t stage_slices;  // slices of weights that arrive together
};

struct TileShape {
  int32_t bm, bn, warps_m, stages;
};
P2P_BOTH constexpr TileShape tile_shape(Tile tile) {
  switch (tile) {
    case Tile::k64x64: return {64, 64, 2, 3};
    case Tile::k64x32: return {64, 32, 2, 6};
    case Tile::k16x32: return {16, 32, 1, 8};
    case Tile::k64x16: return {64, 16, 4, 4};
  }
  return {};
}
constexpr int32_t kSliceBytes = 128;  // of depth: 64 16-bit values or 32 floats

// Of a kernel of layer.cuh.
constexpr int32_t shared_bytes(Tile tile) {
  const TileShape s = tile_shape(tile);
  const int32_t loop = (2 * s.bm + s.stages * s.bn) * kSliceBytes;
  const int32_t end = (s.bm * (s.bn + 4) + kThreads) * 4;
  return loop > end ? loop : end;
}

// A kernel of patch.cuh: a tile's rows are a square of pixels, its patch that and what the taps see around it. The taps of a
// convolution fall into four groups of 2x2, each of which sees every other pixel of every other row.
constexpr int32_t kPatchSide = 8;
P2P_BOTH constexpr int32_t patch_pixels(Kind kind) {
  const int32_t side = kPatchSide + (kind == Kind::kLast ? 2 : 1);
  return side * side;
}
constexpr int32_t patch_shared_bytes(Kind kind, Tile tile) {
  const TileShape s = tile_shape(tile);
  const int32_t loop = (2 * patch_pixels(kind) + s.stages * s.bn) * kSliceBytes, end = (s.bm * (s.bn + 4) + kThreads) * 4;
  return loop > end ? loop : end;
}

// Where things lie in the shared memory of a stream kernel; its ring of weights comes first.
constexpr int32_t kStreamStages = 4;
struct StreamShared {
  int32_t patch;    // [plane][pixel of the input maps] slices, and one of zeros
  int32_t inbox;    // [rank][phase][pixel][bn / cluster] f32: what the cluster's blocks found for this block's columns
  int32_t scratch;  // a float a thread
  int32_t end;
};
P2P_BOTH constexpr StreamShared stream_shared(const LayerArgs& a, Tile tile) {
  const int32_t bn = tile_shape(tile).bn;
  StreamShared s{};
  s.patch = kStreamStages * a.stage_slices * bn * kSliceBytes;
  s.inbox = s.patch + (a.planes * a.n * a.hi * a.wi + 1) * kSliceBytes;
  s.scratch = s.inbox + a.phases * a.n * a.mh * a.mw * bn * 4;
  s.end = s.scratch + kThreads * 4;
  return s;
}

// A kernel of layer.cuh, patch.cuh or stream.cuh; called by the launch of cudart or of the host shim. Null where there is none.
using LayerKernel = void (*)(const LayerArgs);
LayerKernel layer_f32(Kind kind, Tile tile);
LayerKernel layer_f16(Kind kind, Tile tile);
LayerKernel layer_bf16(Kind kind, Tile tile);
LayerKernel patch_f16(Kind kind, Tile tile);
LayerKernel patch_bf16(Kind kind, Tile tile);
LayerKernel stream_f16(Kind kind, Tile tile);
LayerKernel stream_bf16(Kind kind, Tile tile);

struct Launch {
  Kind kind;
  DType dtype;
  Tile tile;
  int32_t grid_x, grid_y, grid_z;  // row tiles, column tiles, phases * splits; of a stream kernel: cluster, column tiles, 1
  LayerArgs args;
};

inline LayerKernel kernel_of(const Launch& launch) {
  const bool half = launch.dtype == DType::kF16;
  if (launch.dtype == DType::kF32)
    return launch.args.cluster || launch.args.tiles_across ? nullptr : layer_f32(launch.kind, launch.tile);
  if (launch.args.cluster) return half ? stream_f16(launch.kind, launch.tile) : stream_bf16(launch.kind, launch.tile);
  if (launch.args.tiles_across) return half ? patch_f16(launch.kind, launch.tile) : patch_bf16(launch.kind, launch.tile);
  return half ? layer_f16(launch.kind, launch.tile) : layer_bf16(launch.kind, launch.tile);
}
inline int32_t shared_bytes(const Launch& launch) {
  return launch.args.cluster        ? stream_shared(launch.args, launch.tile).end
         : launch.args.tiles_across ? patch_shared_bytes(launch.kind, launch.tile)
                                    : shared_bytes(launch.tile);
}

}  // namespace p2p::cuda
