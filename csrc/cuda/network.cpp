#include "network.h"

#include <algorithm>
#include <cstring>

#include "../arena.h"
#include "../check.h"
#include "half.h"

namespace p2p::cuda {

namespace {

constexpr int32_t kSplitsMax = 16;
constexpr int32_t kSlicesPerSplit = 4;  // fewer would not fill the pipeline
constexpr int32_t kClusterMax = 8;      // what every device with clusters takes
constexpr int32_t kPiecesPerRank = 4;   // half a slice: fewer would multiply zeros
constexpr int32_t kSmReserved = 1 << 10;  // shared memory of a multiprocessor that each block costs beside its own

bool up(Kind kind) { return kind == Kind::kDeconv || kind == Kind::kLast; }

// Taps [begin, end) of a layer that meet the map somewhere: row m reads stride * m + first + tap.
void live_taps(int32_t taps, int32_t stride, int32_t first, int32_t rows, int32_t size, int32_t (&live)[2]) {
  const auto alive = [&](int32_t t) {
    for (int32_t m : {0, rows - 1}) {
      const int32_t at = stride * m + first + t;
      if (at >= 0 && at < size) return true;
    }
    return rows > 2;
  };
  live[0] = 0;
  live[1] = taps;
  while (live[0] < taps && !alive(live[0])) ++live[0];
  while (live[1] > live[0] + 1 && !alive(live[1] - 1)) --live[1];
}

// Slices of weights that a block of a stream kernel reads.
int32_t stream_slices(const LayerArgs& a) {
  int32_t taps = 0;
  for (int32_t phase = 0; phase < a.phases; ++phase)
    taps += (a.live_h[phase / 2][1] - a.live_h[phase / 2][0]) * (a.live_w[phase % 2][1] - a.live_w[phase % 2][0]);
  return taps * a.planes;
}

void write(DType dtype, char* to, int64_t index, float value) {
  if (dtype == DType::kF32) std::memcpy(to + index * 4, &value, 4);
  else {
    const uint16_t bits = dtype == DType::kF16 ? to_f16(value) : to_bf16(value);
    std::memcpy(to + index * 2, &bits, 2);
  }
}

}  // namespace

int32_t stored(int32_t channels) { return (int32_t)round_up(channels, 8); }
int32_t value_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

Launch launch_of(const LayerShape& s) {
  Launch launch{};
  launch.kind = s.kind;
  launch.dtype = s.dtype;
  launch.tile = s.tile;
  LayerArgs& a = launch.args;
  const int32_t vec = 16 / value_bytes(s.dtype);
  const TileShape tile = tile_shape(s.tile);
  a.n = s.n;
  a.hi = s.hi;
  a.wi = s.wi;
  a.mh = up(s.kind) ? s.hi : s.hi / 2;
  a.mw = up(s.kind) ? s.wi : s.wi / 2;
  a.co = s.co;
  a.co_stored = stored(s.co);
  a.columns = s.kind == Kind::kLast ? 4 * s.co : s.co;
  a.src[0].channels = s.kind == Kind::kFirst ? 0 : stored(s.c0);
  a.src[1].channels = s.c1 ? stored(s.c1) : 0;
  a.src[0].dropout_layer = a.src[1].dropout_layer = -1;
  a.slope = 1.0f;
  a.phases = s.kind == Kind::kDeconv ? 4 : 1;
  a.splits = s.splits;
  if (s.kind == Kind::kFirst) {
    a.taps_h = a.taps_w = 1;
    a.chunks_per_tap = divide_up(16 * s.c0, vec);
  } else {
    a.taps_h = a.taps_w = s.kind == Kind::kConv ? 4 : s.kind == Kind::kDeconv ? 2 : 3;
    a.chunks_per_tap = (a.src[0].channels + a.src[1].channels) / vec;
  }
  for (int32_t parity = 0; parity < 2; ++parity) {
    const int32_t stride = up(s.kind) ? 1 : 2, first = s.kind == Kind::kDeconv ? parity - 1 : -1;
    if (s.kind == Kind::kFirst) {
      a.live_h[parity][1] = a.live_w[parity][1] = 1;
      continue;
    }
    live_taps(a.taps_h, stride, first, a.mh, a.hi, a.live_h[parity]);
    live_taps(a.taps_w, stride, first, a.mw, a.wi, a.live_w[parity]);
  }

  P2P_REQUIRE((int64_t)s.hi * s.wi <= 1 << 28, "picture of ", s.hi, "x", s.wi, " is out of range");
  const int32_t pixels = a.mh * a.mw;
  if (s.cluster) {
    P2P_ASSERT(s.n * pixels <= tile.bm && tile.bn % (4 * s.cluster) == 0);
    a.cluster = s.cluster;
    a.splits = a.images_per_tile = a.tiles_per_image = 1;
    a.planes = divide_up(divide_up(a.chunks_per_tap, s.cluster), kSliceBytes / 16);
    a.stage_slices = s.stage_slices ? s.stage_slices : divide_up(stream_slices(a), kStreamStages);
    launch.grid_x = s.cluster;
    launch.grid_y = divide_up(a.co_stored, tile.bn);
    launch.grid_z = 1;
    return launch;
  }
  a.images_per_tile = pixels <= tile.bm / 2 ? std::min(s.n, tile.bm / pixels) : 1;
  a.tiles_per_image = a.images_per_tile > 1 ? 1 : divide_up(pixels, tile.bm);
  if (s.patch) {
    a.images_per_tile = 1;
    a.tiles_across = divide_up(a.mw, kPatchSide);
    a.tiles_per_image = a.tiles_across * divide_up(a.mh, kPatchSide);
  }
  launch.grid_x = a.images_per_tile > 1 ? divide_up(s.n, a.images_per_tile) : s.n * a.tiles_per_image;
  launch.grid_y = divide_up(s.kind == Kind::kLast ? a.columns : a.co_stored, tile.bn);
  launch.grid_z = a.phases * a.splits;
  return launch;
}

namespace {

// Whether a kernel of patch.cuh serves the layer: where there are hardly more square tiles than others.
bool patch_fits(LayerShape s) {
  if (s.dtype == DType::kF32 || !(s.kind == Kind::kLast || s.tile == Tile::k64x64)) return false;
  const Launch rows = launch_of(s);
  s.patch = true;
  return rows.args.images_per_tile == 1 && 4 * launch_of(s).grid_x <= 5 * rows.grid_x;
}

// Whether a stream kernel serves the layer; then its cluster and ring are set. The ring takes what is left of half a
// multiprocessor, so that the next layer's blocks fit beside these and fetch their weights; where that is less than half of
// the weights, of a whole block's.
bool choose_stream(LayerShape& s, const Limits& limits) {
  if (!limits.block_shared || s.dtype == DType::kF32) return false;
  const TileShape tile = tile_shape(s.tile);
  s.splits = 1;
  s.cluster = 1;
  s.stage_slices = 0;
  const Launch one = launch_of(s);
  while (s.cluster < kClusterMax && 2 * s.cluster * one.grid_y <= limits.sms &&
         2 * s.cluster * kPiecesPerRank <= one.args.chunks_per_tap)
    s.cluster *= 2;
  Launch launch = launch_of(s);
  const int32_t wanted = launch.args.stage_slices;
  launch.args.stage_slices = 0;
  const int32_t others = shared_bytes(launch), stage = kStreamStages * tile.bn * kSliceBytes;
  const auto fitting = [&](int32_t bytes) { return std::min(wanted, (std::min(bytes, limits.block_shared) - others) / stage); };
  s.stage_slices = fitting(limits.sm_shared / 2 - kSmReserved);
  if (2 * s.stage_slices < wanted) s.stage_slices = fitting(limits.block_shared);
  if (s.stage_slices > 0) return true;
  s.cluster = s.stage_slices = 0;
  return false;
}

}  // namespace

void choose_tile(LayerShape& s, const Limits& limits) {
  s.splits = 1;
  s.cluster = s.stage_slices = 0;
  s.tile = s.kind == Kind::kLast ? Tile::k64x16 : Tile::k64x64;
  s.patch = false;
  if (s.kind == Kind::kFirst) return;
  const int64_t rows = (int64_t)s.n * (s.kind == Kind::kConv ? s.hi / 2 * (s.wi / 2) : s.hi * s.wi);
  if (s.dtype != DType::kF32 && s.kind != Kind::kLast && rows <= 64) {
    s.tile = rows <= 16 ? Tile::k16x32 : Tile::k64x32;
    if (choose_stream(s, limits)) return;
  }
  s.patch = patch_fits(s);
  if (s.kind == Kind::kLast) return;
  const Launch one = launch_of(s);
  const LayerArgs& a = one.args;
  const int64_t blocks = (int64_t)one.grid_x * one.grid_y * one.grid_z;
  const int32_t live = (a.live_h[0][1] - a.live_h[0][0]) * (a.live_w[0][1] - a.live_w[0][0]);
  const int32_t slices = divide_up(live * a.chunks_per_tap, kSliceBytes / 16);
  s.splits = (int32_t)std::clamp<int64_t>(limits.sms / blocks, 1, std::clamp(slices / kSlicesPerSplit, 1, kSplitsMax));
}

LayerNeeds needs_of(const Launch& launch) {
  const LayerArgs& a = launch.args;
  const TileShape tile = tile_shape(launch.tile);
  LayerNeeds needs{};
  if (launch.kind != Kind::kLast)
    needs.dst_bytes = checked_product({a.n, a.mh, a.mw, a.phases, a.co_stored, value_bytes(launch.dtype)});
  if (a.cluster) return needs;  // all else stays in the cluster
  needs.stats_bytes = checked_product({a.n, a.phases, a.tiles_per_image, 2, a.co_stored, 4});
  needs.affine_bytes = checked_product({a.n, 2, a.co_stored, 4});
  const int64_t tiles = checked_product({launch.grid_x, launch.grid_y, a.phases});
  if (a.splits > 1) {
    needs.partial_bytes = checked_product({tiles, a.splits, tile.bm, tile.bn, 4});
    needs.split_counters = (int32_t)tiles;
  }
  const int32_t groups = a.images_per_tile > 1 ? launch.grid_x : a.n;
  needs.stats_counters = groups * launch.grid_y;
  return needs;
}

std::vector<char> pack_weights(Kind kind, DType dtype, int32_t c0, int32_t c1, int32_t co, const float* raw) {
  const int32_t ci = c0 + c1, cs = stored(c0) + (c1 ? stored(c1) : 0), vec = 16 / value_bytes(dtype);
  const auto place_of = [&](int32_t c) { return c < c0 ? c : stored(c0) + c - c0; };
  const auto conv = [&](int32_t n, int32_t c, int32_t kh, int32_t kw) { return raw[((int64_t)n * ci + c) * 16 + kh * 4 + kw]; };
  const auto deconv = [&](int32_t n, int32_t c, int32_t kh, int32_t kw) { return raw[((int64_t)c * co + n) * 16 + kh * 4 + kw]; };
  std::vector<char> packed;
  if (kind == Kind::kFirst) {
    const int64_t depth = round_up(16 * ci, vec);
    packed.resize(checked_product({co, depth, value_bytes(dtype)}));
    for (int32_t n = 0; n < co; ++n)
      for (int32_t tap = 0; tap < 16; ++tap)
        for (int32_t c = 0; c < ci; ++c) write(dtype, packed.data(), n * depth + tap * ci + c, conv(n, c, tap / 4, tap % 4));
    return packed;
  }
  const int32_t taps = kind == Kind::kConv ? 4 : kind == Kind::kDeconv ? 2 : 3;
  const int32_t phases = kind == Kind::kConv ? 1 : 4;  // kLast: phases are columns, in the same place
  packed.resize(checked_product({phases, co, taps * taps, cs, value_bytes(dtype)}));
  for (int32_t phase = 0; phase < phases; ++phase)
    for (int32_t n = 0; n < co; ++n)
      for (int32_t th = 0; th < taps; ++th)
        for (int32_t tw = 0; tw < taps; ++tw) {
          const int32_t ph = phase / 2, pw = phase % 2;
          // The kernel row that output row 2y + ph reads through input row y + th - 1 (kLast) or y + ph - 1 + th.
          const int32_t kh = kind == Kind::kConv ? th : kind == Kind::kDeconv ? 3 - ph - 2 * th : ph + 3 - 2 * th;
          const int32_t kw = kind == Kind::kConv ? tw : kind == Kind::kDeconv ? 3 - pw - 2 * tw : pw + 3 - 2 * tw;
          if (kh < 0 || kh > 3 || kw < 0 || kw > 3) continue;
          const int64_t at = (((int64_t)phase * co + n) * taps * taps + th * taps + tw) * cs;
          for (int32_t c = 0; c < ci; ++c)
            write(dtype, packed.data(), at + place_of(c), kind == Kind::kConv ? conv(n, c, kh, kw) : deconv(n, c, kh, kw));
        }
  return packed;
}

Kind kind_of(const Network& network, int32_t layer) {
  if (layer == 0) return Kind::kFirst;
  if (layer == (int32_t)network.layers.size() - 1) return Kind::kLast;
  return network.layers[layer].op == LayerOp::kConv4x4s2 ? Kind::kConv : Kind::kDeconv;
}

namespace {

// Channels in front (skip, or the only input) and behind.
void split_channels(const Network& network, const Layer& layer, int32_t& c0, int32_t& c1) {
  c1 = layer.skip_index >= 0 ? network.layers[layer.input].co : 0;
  c0 = layer.ci - c1;
}

}  // namespace

PackedLayer pack_layer(const Network& network, int32_t index, DType dtype, const LayerTensors& tensors) {
  const Layer& layer = network.layers[index];
  int32_t c0, c1;
  split_channels(network, layer, c0, c1);
  PackedLayer packed;
  packed.weights = pack_weights(kind_of(network, index), dtype, c0, c1, layer.co, tensors.weight);
  const auto copy = [&](const float* values, float otherwise) {
    std::vector<float> v(layer.co, otherwise);
    if (values) std::copy_n(values, layer.co, v.begin());
    return v;
  };
  // A bias in front of a per-image norm cancels exactly: dropped.
  if (tensors.bias && !layer.norm) packed.bias = copy(tensors.bias, 0.0f);
  if (layer.norm) {
    packed.gamma = copy(tensors.gamma, 1.0f);
    packed.beta = copy(tensors.beta, 0.0f);
  }
  return packed;
}

Plan make_plan(const Network& network, DType dtype, int32_t n, int32_t h, int32_t w, const Limits& limits, bool keep) {
  Plan plan;
  plan.n = n;
  plan.h = h;
  plan.w = w;
  const int32_t count = (int32_t)network.layers.size();
  int32_t hi = (int32_t)round_up(h, network.multiple()), wi = (int32_t)round_up(w, network.multiple());
  std::vector<int32_t> last_use(count);
  for (int32_t i = 0; i < count; ++i) {
    const Layer& layer = network.layers[i];
    LayerShape shape{kind_of(network, i), dtype, Tile::k64x64, n, hi, wi, 0, 0, layer.co, 1};
    split_channels(network, layer, shape.c0, shape.c1);
    choose_tile(shape, keep ? Limits{limits.sms} : limits);
    Step step;
    step.launch = launch_of(shape);
    step.launch.args.slope = layer.slope;
    step.launch.args.eps = layer.eps;
    step.launch.args.tanh = layer.tanh;
    step.input = layer.input;
    step.skip = layer.skip_index;
    step.waits_for = i - 1;
    if (step.input >= 0) last_use[step.input] = i;
    if (step.skip >= 0) last_use[step.skip] = i;
    plan.steps.push_back(step);
    const bool down = layer.op == LayerOp::kConv4x4s2;
    hi = down ? hi / 2 : hi * 2;
    wi = down ? wi / 2 : wi * 2;
  }

  std::vector<Lifetime> lifetimes;
  std::vector<int64_t*> offsets;
  const auto want = [&](int64_t bytes, int32_t first, int32_t last, int64_t* offset) {
    if (bytes == 0) return;
    lifetimes.push_back({bytes, keep ? 0 : first, keep ? count - 1 : last});
    offsets.push_back(offset);
  };
  for (int32_t i = 0; i < count; ++i) {
    Step& step = plan.steps[i];
    const LayerNeeds needs = needs_of(step.launch);
    want(needs.dst_bytes, i, last_use[i], &step.dst);
    if (network.layers[i].norm) {
      want(needs.stats_bytes, i, i, &step.stats);
      want(needs.affine_bytes, i, last_use[i], &step.affine);
    }
    want(needs.partial_bytes, i, i, &step.partial);
    step.counters = plan.counters;
    plan.counters += needs.split_counters + needs.stats_counters;
  }
  const std::vector<int64_t> placed = place(lifetimes, 256, &plan.arena_bytes);
  for (size_t i = 0; i < placed.size(); ++i) *offsets[i] = placed[i];
  return plan;
}

Picture completed(Picture p) {
  if (p.stride_n == 0 && p.stride_h == 0 && p.stride_w == 0 && p.stride_c == 0) {
    p.stride_c = 1;
    p.stride_w = p.c;
    p.stride_h = (int64_t)p.w * p.c;
    p.stride_n = p.h * p.stride_h;
  }
  if (p.scale == 0.0f) p.scale = 1.0f;
  return p;
}

void bind(Plan& plan, const Network& network, const std::vector<LayerData>& layers, char* arena, uint32_t* counters,
          const Picture& in, const Picture& out, const uint64_t* dropout) {
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    Step& step = plan.steps[i];
    LayerArgs& a = step.launch.args;
    const auto source = [&](Source& s, int32_t producer) {
      const Step& p = plan.steps[producer];
      s.data = arena + p.dst;
      s.affine = p.affine >= 0 ? (const float*)(arena + p.affine) : nullptr;
      s.dropout_layer = dropout && network.layers[producer].dropout > 0 ? producer : -1;
      s.dropout_channels = network.layers[producer].co;
    };
    if (step.skip >= 0) {
      source(a.src[0], step.skip);
      source(a.src[1], step.input);
    } else if (step.input >= 0) {
      source(a.src[0], step.input);
    }
    a.weights = layers[i].weights;
    a.bias = layers[i].bias;
    a.gamma = layers[i].gamma;
    a.beta = layers[i].beta;
    a.dst = step.dst >= 0 ? arena + step.dst : nullptr;
    a.stats = step.stats >= 0 ? (float*)(arena + step.stats) : nullptr;
    a.affine = step.affine >= 0 ? (float*)(arena + step.affine) : nullptr;
    a.partial = step.partial >= 0 ? (float*)(arena + step.partial) : nullptr;
    a.split_done = counters + step.counters;
    a.stats_done = counters + step.counters + needs_of(step.launch).split_counters;
    a.dropout = dropout;
    if (step.launch.kind == Kind::kFirst) a.picture = completed(in);
    if (step.launch.kind == Kind::kLast) a.picture = completed(out);
  }
}

namespace {

// A piece of the arena, or of the counters behind it, that a step uses.
struct Use {
  int64_t begin, end;
  bool write;
  int32_t owner;     // the step whose buffer it is
  const char* what;
};

std::vector<Use> uses_of(const Plan& plan, int32_t index) {
  std::vector<Use> uses;
  const auto add = [&](int64_t at, int64_t bytes, bool write, int32_t owner, const char* what) {
    if (at >= 0 && bytes > 0) uses.push_back({at, at + bytes, write, owner, what});
  };
  const Step& step = plan.steps[index];
  const LayerNeeds needs = needs_of(step.launch);
  add(step.dst, needs.dst_bytes, true, index, "map");
  add(step.stats, needs.stats_bytes, true, index, "statistics");
  add(step.affine, needs.affine_bytes, true, index, "scale and shift");
  add(step.partial, needs.partial_bytes, true, index, "partial sums");
  add(plan.arena_bytes + step.counters * 4, (needs.split_counters + needs.stats_counters) * 4, true, index, "counters");
  for (int32_t producer : {step.input, step.skip}) {
    if (producer < 0) continue;
    const LayerNeeds made = needs_of(plan.steps[producer].launch);
    add(plan.steps[producer].dst, made.dst_bytes, false, producer, "map");
    add(plan.steps[producer].affine, made.affine_bytes, false, producer, "scale and shift");
  }
  return uses;
}

}  // namespace

std::string hazard(const Plan& plan) {
  const int32_t count = (int32_t)plan.steps.size();
  std::vector<std::vector<Use>> uses;
  for (int32_t i = 0; i < count; ++i) {
    const Step& step = plan.steps[i];
    if (step.launch.args.cluster && (step.stats >= 0 || step.affine >= 0 || step.partial >= 0))
      return text("step ", i, " stores a normalised map, and its readers would norm it again");
    uses.push_back(uses_of(plan, i));
  }
  const auto meet = [](const Use& a, const Use& b) { return a.begin < b.end && b.begin < a.end; };

  std::vector<std::vector<bool>> ended(count, std::vector<bool>(count));  // [step][another]: has ended when step touches memory
  for (int32_t j = 0; j < count; ++j) {
    const int32_t awaited = plan.steps[j].waits_for;
    P2P_REQUIRE(awaited < j, "step ", j, " waits for step ", awaited, ", which comes later");
    if (awaited >= 0) {
      ended[j] = ended[awaited];
      ended[j][awaited] = true;
    }
    for (int32_t i = 0; i < j; ++i) {
      if (ended[j][i]) continue;
      for (const Use& a : uses[i])
        for (const Use& b : uses[j])
          if (meet(a, b) && (a.write || b.write))
            return text("step ", j, (b.write ? " writes the " : " reads the "), b.what, " of step ", b.owner, " while step ", i,
                        ", which it has not waited for, may still ", (a.write ? "write" : "read"), " the ", a.what, " of step ",
                        a.owner);
    }
    for (const Use& a : uses[j])
      for (const Use& b : uses[j])
        if (&a != &b && meet(a, b) && b.write) return text("step ", j, " overwrites its own ", a.what, " of step ", a.owner);
    // What it reads is still what its owner wrote.
    for (const Use& read : uses[j]) {
      if (read.write) continue;
      for (int32_t k = read.owner + 1; k < j; ++k)
        for (const Use& b : uses[k])
          if (b.write && meet(read, b))
            return text("step ", k, " overwrites the ", read.what, " of step ", read.owner, " that step ", j, " is to read");
    }
  }
  return "";
}

}  // namespace p2p::cuda
