// One layer through one kernel of csrc/cuda on the host; a C function for ctypes (tests/cuda_shim.py). Every buffer is an
// allocation of its own size, so that a sanitizer sees its ends.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>

#include "half.h"
#include "layer.h"
#include "network.h"
#include "run.h"

using namespace p2p;
using cuda::host::Memory;

namespace {

float read(cuda::DType dtype, const char* from, int64_t index) {
  if (dtype == cuda::DType::kF32) return ((const float*)from)[index];
  const uint16_t bits = ((const uint16_t*)from)[index];
  return dtype == cuda::DType::kF16 ? cuda::from_f16(bits) : cuda::from_bf16(bits);
}

void write(cuda::DType dtype, char* to, int64_t index, float value) {
  if (dtype == cuda::DType::kF32) ((float*)to)[index] = value;
  else ((uint16_t*)to)[index] = dtype == cuda::DType::kF16 ? cuda::to_f16(value) : cuda::to_bf16(value);
}

// Memory of a test: `bytes` of NaN, which kernels may use as `memory` says.
struct Buffer {
  std::unique_ptr<char[]> data;
  Buffer(int64_t bytes, Memory memory) : data(new char[bytes]) {
    for (int64_t i = 0; i < bytes; ++i) data[i] = i % 2 ? 0x7F : (char)0xFF;  // NaN as f32, f16 and bf16
    cuda::host::allow(data.get(), bytes, memory);
  }
  float* floats() const { return (float*)data.get(); }
};

// [n][pixels][c] floats to the stored form, padded channels zero.
void store_map(cuda::DType dtype, const Buffer& to, const float* from, int64_t pixels, int32_t c) {
  const int32_t stored = cuda::stored(c);
  for (int64_t p = 0; p < pixels; ++p)
    for (int32_t i = 0; i < stored; ++i) write(dtype, to.data.get(), p * stored + i, i < c ? from[p * c + i] : 0.0f);
}

// Weights of taps that meet only padding become NaN: the kernel must not look at them.
void poison_dead_taps(const cuda::Launch& launch, std::vector<char>& weights) {
  const cuda::LayerArgs& a = launch.args;
  const int32_t vec = 16 / cuda::value_bytes(launch.dtype), depth = a.chunks_per_tap * vec;
  for (int32_t phase = 0; phase < a.phases; ++phase)
    for (int32_t column = 0; column < a.columns; ++column)
      for (int32_t th = 0; th < a.taps_h; ++th)
        for (int32_t tw = 0; tw < a.taps_w; ++tw) {
          const int32_t *h = a.live_h[phase / 2], *w = a.live_w[phase % 2];
          if (th >= h[0] && th < h[1] && tw >= w[0] && tw < w[1]) continue;
          const int64_t at = (((int64_t)phase * a.columns + column) * a.taps_h + th) * a.taps_w + tw;
          for (int32_t c = 0; c < depth; ++c) write(launch.dtype, weights.data(), at * depth + c, NAN);
        }
}

cuda::Picture dense(void* data, int32_t h, int32_t w, int32_t c, int32_t bytes) {
  cuda::Picture p{};
  p.data = data;
  p.h = h;
  p.w = w;
  p.c = c;
  p.bytes = bytes;
  return cuda::completed(p);
}

}  // namespace

extern "C" int p2p_host_layer(HostLayer* layer, char* error, int error_size) {
  try {
    HostLayer& l = *layer;
    const auto dtype = (cuda::DType)l.dtype;
    cuda::LayerShape shape{(cuda::Kind)l.kind, dtype, (cuda::Tile)l.tile, l.n, l.hi, l.wi, l.c0, l.c1, l.co, l.splits,
                           l.cluster, l.stage_slices, l.patch != 0};
    if (l.tile < 0) cuda::choose_tile(shape, {l.splits, l.cluster, l.stage_slices});
    cuda::Launch launch = cuda::launch_of(shape);
    l.ran_splits = shape.splits;
    l.ran_tile = (int32_t)shape.tile;
    l.ran_cluster = shape.cluster;
    l.ran_patch = shape.patch;
    l.ran_stage_slices = launch.args.stage_slices;
    cuda::LayerArgs& a = launch.args;
    cuda::host::forbid_all();
    std::vector<Buffer> buffers;
    const auto buffer = [&](int64_t bytes, Memory memory) -> Buffer& { return buffers.emplace_back(bytes, memory); };
    buffers.reserve(16);

    const int64_t pixels = (int64_t)l.n * l.hi * l.wi;
    const auto source = [&](cuda::Source& s, const float* map, const float* affine, int32_t c, int32_t dropout) {
      if (!map) return;
      Buffer& data = buffer(pixels * s.channels * cuda::value_bytes(dtype), Memory::kInput);
      store_map(dtype, data, map, pixels, c);
      s.data = data.data.get();
      s.dropout_layer = dropout;
      s.dropout_channels = c;
      if (!affine) return;
      Buffer& pairs = buffer((int64_t)l.n * 2 * s.channels * 4, Memory::kInput);
      store_map(cuda::DType::kF32, pairs, affine, l.n * 2, c);
      s.affine = pairs.floats();
    };
    source(a.src[0], l.src0, l.affine0, l.c0, l.dropout0);
    source(a.src[1], l.src1, l.affine1, l.c1, l.dropout1);

    std::vector<char> packed = cuda::pack_weights(shape.kind, dtype, l.c0, l.c1, l.co, l.weights);
    if (shape.kind != cuda::Kind::kFirst) poison_dead_taps(launch, packed);
    Buffer& weights = buffer((int64_t)packed.size(), Memory::kConstant);
    std::copy(packed.begin(), packed.end(), weights.data.get());
    a.weights = weights.data.get();
    const auto given = [&](const float* values) -> const float* {
      if (!values) return nullptr;
      Buffer& b = buffer(l.co * 4, Memory::kConstant);
      std::copy_n(values, l.co, b.floats());
      return b.floats();
    };
    a.bias = given(l.bias);
    a.gamma = given(l.gamma);
    a.beta = given(l.beta);
    a.slope = l.slope;
    a.eps = l.eps;
    a.tanh = l.tanh;

    const cuda::LayerNeeds needs = cuda::needs_of(launch);
    Buffer* dst = nullptr;
    if (shape.kind == cuda::Kind::kFirst || shape.kind == cuda::Kind::kLast) {
      const bool first = shape.kind == cuda::Kind::kFirst;
      const int32_t c = first ? l.c0 : l.co;
      cuda::host::allow(l.picture, (int64_t)l.n * l.picture_h * l.picture_w * c * l.pixel_bytes,
                        first ? Memory::kInput : Memory::kOutput);
      a.picture = dense(l.picture, l.picture_h, l.picture_w, c, l.pixel_bytes);
    }
    if (needs.dst_bytes) {
      dst = &buffer(needs.dst_bytes, Memory::kOutput);
      a.dst = dst->data.get();
    }
    if (needs.partial_bytes) a.partial = buffer(needs.partial_bytes, Memory::kOutput).floats();
    const int32_t counters = needs.split_counters + needs.stats_counters;
    auto* count = (uint32_t*)buffer(counters * 4, Memory::kOutput).data.get();
    std::fill_n(count, counters, 0u);
    a.split_done = count;
    a.stats_done = count + needs.split_counters;
    if (l.norm && needs.affine_bytes) {
      a.stats = buffer(needs.stats_bytes, Memory::kOutput).floats();
      a.affine = buffer(needs.affine_bytes, Memory::kOutput).floats();
    }
    if (l.dropout) cuda::host::allow(l.dropout, 16, Memory::kInput);
    a.dropout = l.dropout;

    cuda::host::run(launch, (uint32_t)l.seed);
    for (int32_t i = 0; i < counters; ++i)
      if (count[i]) throw std::runtime_error("a counter is not zero after the run");
    if (dst)
      for (int64_t i = 0; i < needs.dst_bytes / cuda::value_bytes(dtype); ++i) l.out[i] = read(dtype, dst->data.get(), i);
    if (a.affine) std::copy_n(a.affine, (int64_t)l.n * 2 * a.co_stored, l.affine);
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
}
