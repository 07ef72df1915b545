// A network through the plan and the kernels of csrc/cuda on the host; a C function for ctypes (tests/test_cuda_host.py).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "network.h"
#include "run.h"

using namespace p2p;
using cuda::host::Memory;

// layers: 8 ints each (up, ci, co, norm, skip or -1, tanh, dropout, unused); slopes, eps: one each; tensors: 4 each
// (weight, bias, gamma, beta; null where absent); shared: of a block and a multiprocessor, 0: no clusters. Returns 0, or 1 with the reason in `error`.
extern "C" int p2p_host_network(int count, const int32_t* layers, const float* slopes, const float* eps,
                                const float* const* tensors, int dtype, int n, int h, int w, int pixel_bytes, void* in,
                                void* out, int sms, int shared, uint32_t seed, const uint64_t* dropout, char* error,
                                int error_size) {
  try {
    Network network;
    for (int i = 0; i < count; ++i) {
      const int32_t* l = layers + 8 * i;
      const bool up = l[0];
      Layer layer{(up ? "d" : "e") + std::to_string(up ? i - count / 2 + 1 : i + 1), up ? LayerOp::kDeconv4x4s2 : LayerOp::kConv4x4s2,
                  l[1], l[2], slopes[i], l[3] != 0, eps[i], l[4] >= 0 ? network.layers[l[4]].name : "", l[6] ? 0.5f : 0.0f, l[5] != 0};
      network.layers.push_back(layer);
    }
    validate(network);
    const auto type = (cuda::DType)dtype;
    std::vector<cuda::PackedLayer> packed;
    std::vector<cuda::LayerData> data;
    cuda::host::forbid_all();
    for (int i = 0; i < count; ++i)
      packed.push_back(cuda::pack_layer(network, i, type, {tensors[4 * i], tensors[4 * i + 1], tensors[4 * i + 2], tensors[4 * i + 3]}));
    const auto given = [](const std::vector<float>& v) {
      cuda::host::allow(v.data(), (int64_t)v.size() * 4, Memory::kConstant);
      return v.empty() ? nullptr : v.data();
    };
    for (const cuda::PackedLayer& p : packed) {
      cuda::host::allow(p.weights.data(), (int64_t)p.weights.size(), Memory::kConstant);
      data.push_back({p.weights.data(), given(p.bias), given(p.gamma), given(p.beta)});
    }
    cuda::Plan plan = cuda::make_plan(network, type, n, h, w, {sms, shared, shared});
    std::vector<uint32_t> counters(plan.counters);
    char* arena = (char*)aligned_alloc(256, (plan.arena_bytes + 255) / 256 * 256);
    std::fill_n((uint32_t*)arena, plan.arena_bytes / 4, 0x7FFF7FFFu);
    cuda::host::allow(counters.data(), plan.counters * 4, Memory::kOutput);
    if (dropout) cuda::host::allow(dropout, 16, Memory::kInput);
    const int32_t ci = network.channels_in(), co = network.channels_out();
    cuda::host::allow(in, (int64_t)n * h * w * ci * pixel_bytes, Memory::kInput);
    cuda::host::allow(out, (int64_t)n * h * w * co * pixel_bytes, Memory::kOutput);
    cuda::bind(plan, network, data, arena, counters.data(), {in, h, w, ci, pixel_bytes}, {out, h, w, co, pixel_bytes}, dropout);
    cuda::host::allow(arena, plan.arena_bytes, Memory::kOutput);
    for (size_t i = 0; i < plan.steps.size(); ++i) cuda::host::run(plan.steps[i].launch, seed + (uint32_t)i);
    const bool clean = std::all_of(counters.begin(), counters.end(), [](uint32_t c) { return c == 0; });
    free(arena);
    if (!clean) throw std::runtime_error("a counter is not zero after the run");
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
}
