// One deep layer in one kernel, for maps of at most 64 pixels in all: there a layer is its weights, and time is what it takes
// to read them. The blocks of a cluster share the depth and finish the norm among themselves:
//
//   block (rank, column tile): its share of the input channels, all taps and phases, all pixels, 32 output channels
//   before grid_wait   weights --copy_async--> ring, as many as fit; "I have begun" to the cluster
//   after it           its channels of the whole input map, once: norm, dropout, activation --> patch; taps are rows of it
//   loop               patch, ring --ldmatrix--> mma.sync; a phase's sums --cluster_set2--> the inboxes of the ranks that own
//                      the columns
//   cluster barrier    each rank adds what all ranks sent for its 32 / cluster channels, in their order; mean and variance over
//                      a picture's pixels; stores the normalised map, which needs no scale and shift when it is read
//
// A block's shared memory is written by others from its first cluster_arrive to its last cluster_wait, so nobody writes to a
// block that has not begun or has ended. No atomics, no partial sums in global memory.
// Read first: layer.cuh, whose fragments and activation these are.
#pragma once
#include "layer.cuh"

namespace p2p::cuda {
namespace {

#if P2P_CLUSTERS

// 64 channels of one tap of one phase.
struct Slice {
  int32_t phase, th, tw, plane;
};

P2P_DEVICE Slice first_slice(const LayerArgs& a) { return {0, a.live_h[0][0], a.live_w[0][0], 0}; }
P2P_DEVICE void next(const LayerArgs& a, Slice& s) {
  if (++s.plane < a.planes) return;
  s.plane = 0;
  const LiveTaps live = live_of(a, s.phase);
  if (++s.tw < live.w1) return;
  s.tw = live.w0;
  if (++s.th < live.h1) return;
  if (++s.phase == a.phases) return;
  const LiveTaps begun = live_of(a, s.phase);
  s.th = begun.h0;
  s.tw = begun.w0;
}

// Pieces of the depth's channels that a rank takes.
struct Share {
  int32_t begin, count;
};
P2P_DEVICE Share share_of(const LayerArgs& a, int32_t rank) {
  const int32_t begin = a.chunks_per_tap * rank / a.cluster;
  return {begin, a.chunks_per_tap * (rank + 1) / a.cluster - begin};
}

// Pixels that a tap's rows name lie kStride apart: their pieces are permuted so that ldmatrix meets no bank conflict.
template <Kind kKind>
P2P_DEVICE int32_t patch_offset(int32_t pixel, int32_t piece) {
  return pixel * kSliceBytes + ((piece ^ (pixel / kStride<kKind> & 7)) << 4);
}

// This rank's channels of all input pixels, ready to be multiplied; where there are none, and in the pixel behind the last,
// zeros.
template <DType kType, Kind kKind>
P2P_DEVICE void load_patch(const LayerArgs& a, const Share& share, char* patch) {
  constexpr int32_t kAtOnce = 8, kRows = kThreads / kPieces;
  const int32_t piece = thread_index() % kPieces, row0 = thread_index() / kPieces;
  const int32_t in_image = a.hi * a.wi, pixels = a.n * in_image, pieces0 = a.src[0].channels / kVec<kType>;
  for (int32_t plane = 0; plane < a.planes; ++plane) {
    const int32_t mine = plane * kPieces + piece, at = share.begin + mine;
    const bool second = at >= pieces0, any = mine < share.count;
    const Source& s = a.src[second];
    const int32_t c = (at - (second ? pieces0 : 0)) * kVec<kType>;
    const auto fetched = [&](int32_t pixel) {
      if (!any || pixel >= pixels) return Vec16{};
      return load16((const char*)s.data + ((int64_t)pixel * s.channels + c) * (16 / kVec<kType>));
    };
    const auto put = [&](int32_t pixel, const Vec16& raw, bool dropout) {
      if (pixel >= pixels) return;
      const int32_t image = pixel / in_image, y = (pixel - image * in_image) / a.wi, x = pixel % a.wi;
      shared_store16(patch + patch_offset<kKind>(plane * pixels + pixel, piece),
                     any ? prepared<kType>(a, s, image, y, x, c, raw, dropout) : raw);
    };
    if (drops(a, s)) {  // rare and long: one by one
#pragma unroll 1
      for (int32_t pixel = row0; pixel < pixels; pixel += kRows) put(pixel, fetched(pixel), true);
      continue;
    }
#pragma unroll 1
    for (int32_t first = row0; first < pixels; first += kAtOnce * kRows) {
      Vec16 raw[kAtOnce];
#pragma unroll
      for (int32_t i = 0; i < kAtOnce; ++i) raw[i] = fetched(first + i * kRows);
#pragma unroll
      for (int32_t i = 0; i < kAtOnce; ++i) put(first + i * kRows, raw[i], false);
    }
  }
  if (row0 == 0) shared_store16(patch + patch_offset<kKind>(a.planes * pixels, piece), {});
}

// The norm of this rank's columns in place: values[phase * rows + row][columns].
P2P_DEVICE void normalise(const LayerArgs& a, float* values, float* scratch, int32_t columns, int32_t channel0) {
  const int32_t pixels = a.mh * a.mw, rows = a.n * pixels, count = a.phases * pixels;
  // A column of an image is shared by `parts` threads; as many images at once as that leaves room for.
  const int32_t lanes = kThreads / columns;
  int32_t parts = lanes;
  while (parts > 1 && parts * a.n > lanes) parts /= 2;
  const int32_t column = thread_index() % columns, lane = thread_index() / columns, part = lane % parts;
  const auto sum_of = [&](float value) {
    shared_set(scratch + thread_index(), value);
    sync_block();
    float sum = 0.0f;
    for (int32_t p = 0; p < parts; ++p) sum += shared_get(scratch + (lane - part + p) * columns + column);
    sync_block();
    return sum;
  };
  for (int32_t first = 0; first < a.n; first += lanes / parts) {
    const int32_t image = first + lane / parts, end = image < a.n ? count : 0;
    const auto place = [&](int32_t e) {
      const int32_t phase = e / pixels;
      return values + (phase * rows + image * pixels + e - phase * pixels) * columns + column;
    };
    float sum = 0.0f, squares = 0.0f;
    for (int32_t e = part; e < end; e += parts) sum += shared_get(place(e));
    const float mean = sum_of(sum) / (float)count;
    for (int32_t e = part; e < end; e += parts) {
      const float d = shared_get(place(e)) - mean;
      squares = fused(d, d, squares);
    }
    const ScaleShift norm = norm_of(a, channel0 + column, mean, sum_of(squares) / (float)count);
    for (int32_t e = part; e < end; e += parts) {
      float* const at = place(e);
      shared_set(at, fused(shared_get(at), norm.scale, norm.shift));
    }
  }
  sync_block();
}

template <DType kType, Kind kKind>
P2P_DEVICE void store_columns(const LayerArgs& a, const float* values, int32_t columns, int32_t channel0) {
  const int32_t pixels = a.mh * a.mw, rows = a.n * pixels, fours = columns / 4;
  for (int32_t item = thread_index(); item < a.phases * rows * fours; item += kThreads) {
    const int32_t four = item % fours, row = item / fours, phase = row / rows;
    const int32_t image = row % rows / pixels, pixel = row % rows % pixels, channel = channel0 + 4 * four;
    if (channel >= a.co_stored) continue;
    const Vec16 v = shared_load16((const char*)(values + 4 * item));
    float f[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) f[j] = in_range<kType>(bits_float(v.word[j]));
    const int32_t my = pixel / a.mw, mx = pixel - my * a.mw;
    const int64_t at = output_pixel<kKind>(a, image, my, mx, phase / 2, phase % 2);
    store((uint64_t*)((char*)a.dst + (at * a.co_stored + channel) * 2),
          pack<kType>(f[0], f[1]) | (uint64_t)pack<kType>(f[2], f[3]) << 32);
  }
}

template <DType kType, Tile kTile, Kind kKind>
P2P_DEVICE void stream_layer(const LayerArgs& a) {
  constexpr TileShape shape = tile_shape(kTile);
  constexpr int32_t kSlice = shape.bn * kSliceBytes;
  using Sums = Accumulators<kType, kTile>;
  const StreamShared places = stream_shared(a, kTile);
  char* const ring = shared_memory();
  char* const patch = ring + places.patch;
  float* const inbox = (float*)(ring + places.inbox);
  float* const scratch = (float*)(ring + places.scratch);
  const int32_t rank = cluster_rank();
  const Share share = share_of(a, rank);
  const int32_t rows = a.n * a.mh * a.mw, columns = shape.bn / a.cluster;  // rows of a phase; columns of a rank

  // Stage s is stage_slices slices of weights, into the ring's place s % kStreamStages.
  Slice asked = first_slice(a);
  const auto ask_for_weights = [&](int32_t stage) {
    char* to = ring + stage % kStreamStages * a.stage_slices * kSlice;
    for (int32_t i = 0; i < a.stage_slices && asked.phase < a.phases; ++i, to += kSlice) {
      const int32_t mine = asked.plane * kPieces + thread_index() % kPieces;
      ask_for_slice<kTile>(a, to, asked.phase, asked.th, asked.tw, share.begin + mine, mine < share.count);
      next(a, asked);
    }
    copy_commit();
  };

  grid_release();
  cluster_arrive();
#pragma unroll 1
  for (int32_t stage = 0; stage < kStreamStages; ++stage) ask_for_weights(stage);

  // The rows that this thread names to ldmatrix: their first pixel of the input for tap (0, 0) of phase (0, 0).
  int32_t image_at[Sums::kMT], y[Sums::kMT], x[Sums::kMT];
#pragma unroll
  for (int32_t m = 0; m < Sums::kMT; ++m) {
    const int32_t row = Sums::first_row() + 16 * m + thread_index() % 16, image = row / (a.mh * a.mw);
    const int32_t pixel = row - image * a.mh * a.mw, my = pixel / a.mw;
    image_at[m] = image * a.hi * a.wi;
    y[m] = row < rows ? kStride<kKind> * my - 1 : -(1 << 28);
    x[m] = kStride<kKind> * (pixel - my * a.mw) - 1;
  }
  Sums sums;
  sums.clear();
  grid_wait();  // nothing but weights was read, and nothing written, before this line
  load_patch<kType, kKind>(a, share, patch);
  cluster_wait();  // all blocks of the cluster have begun: their inboxes may be written

  Slice at = first_slice(a);
#pragma unroll 1
  for (int32_t stage = 0; at.phase < a.phases; ++stage) {
    copy_wait<kStreamStages - 1>();
    sync_block();  // the stage, and with the first one the patch, is whole
    const char* weights = ring + stage % kStreamStages * a.stage_slices * kSlice;
#pragma unroll 1
    for (int32_t i = 0; i < a.stage_slices && at.phase < a.phases; ++i, weights += kSlice) {
      const int32_t phase = at.phase, ph = kKind == Kind::kDeconv ? phase / 2 : 0, pw = kKind == Kind::kDeconv ? phase % 2 : 0;
      int32_t pixel[Sums::kMT];
#pragma unroll
      for (int32_t m = 0; m < Sums::kMT; ++m) {
        const int32_t yy = y[m] + ph + at.th, xx = x[m] + pw + at.tw;
        const bool inside = (uint32_t)yy < (uint32_t)a.hi && (uint32_t)xx < (uint32_t)a.wi;
        pixel[m] = inside ? at.plane * a.n * a.hi * a.wi + image_at[m] + yy * a.wi + xx : a.planes * a.n * a.hi * a.wi;
      }
      sums.multiply([&](int32_t m, int32_t, int32_t of) { return patch + patch_offset<kKind>(pixel[m], of); }, weights);
      next(a, at);
      if (at.phase == phase) continue;
      sums.each_two([&](int32_t row, int32_t column, float first, float second) {
        if (row >= rows) return;
        float* const slot = inbox + rank * a.phases * rows * columns;
        cluster_set2(slot + (phase * rows + row) * columns + column % columns, column / columns, first, second);
      });
      sums.clear();
    }
    if (asked.phase < a.phases) sync_block();  // nobody reads this stage's place any more
    ask_for_weights(stage + kStreamStages);
  }
  cluster_arrive();
  cluster_wait();  // the inbox is full, and nobody writes to this block any more

  const int32_t size = a.phases * rows * columns, channel0 = block_y() * shape.bn + rank * columns;
  for (int32_t i = 4 * thread_index(); i < size; i += 4 * kThreads) {
    float sum[4] = {};
    for (int32_t from = 0; from < a.cluster; ++from) {
      const Vec16 part = shared_load16((const char*)(inbox + from * size + i));
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) sum[j] += bits_float(part.word[j]);
    }
    Vec16 v;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      const int32_t channel = channel0 + (i + j) % columns;
      v.word[j] = float_bits(a.bias && channel < a.columns ? sum[j] + load(a.bias + channel) : sum[j]);
    }
    shared_store16((char*)(inbox + i), v);
  }
  sync_block();
  if (a.gamma) normalise(a, inbox, scratch, columns, channel0);
  store_columns<kType, kKind>(a, inbox, columns, channel0);
}

#endif

template <DType kType, Tile kTile, Kind kKind>
P2P_KERNEL stream_kernel(const LayerArgs a) {
#if P2P_CLUSTERS
  stream_layer<kType, kTile, kKind>(a);
#endif
}

// The stream kernels of a 16-bit precision; null where there is none.
template <DType kType>
LayerKernel stream_kernels_of(Kind kind, Tile tile) {
  if (kind != Kind::kConv && kind != Kind::kDeconv) return nullptr;
  const bool down = kind == Kind::kConv;
  if (tile == Tile::k64x32)
    return down ? &stream_kernel<kType, Tile::k64x32, Kind::kConv> : &stream_kernel<kType, Tile::k64x32, Kind::kDeconv>;
  if (tile == Tile::k16x32)
    return down ? &stream_kernel<kType, Tile::k16x32, Kind::kConv> : &stream_kernel<kType, Tile::k16x32, Kind::kDeconv>;
  return nullptr;
}

}  // namespace
}  // namespace p2p::cuda
