// hazard() of csrc/cuda/network.cpp on plans that are as they should be, or not; for ctypes (tests/test_cuda_backend.py).
#include <cstdio>
#include <string>

#include "network.h"

using namespace p2p;

namespace {

Network net(int32_t depth, int32_t ngf) {
  Network network;
  const auto channels = [&](int32_t level) { return ngf << (level < 3 ? level : 3); };
  for (int32_t i = 0; i < depth; ++i)
    network.layers.push_back({"e" + std::to_string(i + 1), LayerOp::kConv4x4s2, i ? channels(i - 1) : 3, channels(i), i ? 0.2f : 1.0f,
                              i > 0 && i < depth - 1, 1e-5f, "", 0.0f, false});
  for (int32_t i = 0; i < depth; ++i) {
    const int32_t level = depth - 1 - i;  // of the map that it reads
    network.layers.push_back({"d" + std::to_string(i + 1), LayerOp::kDeconv4x4s2, channels(level) * (i ? 2 : 1),
                              level ? channels(level - 1) : 3, 0.0f, level > 0, 1e-5f, i ? "e" + std::to_string(level + 1) : "",
                              0.0f, level == 0});
  }
  validate(network);
  return network;
}

}  // namespace

extern "C" void p2p_plan_of(int depth, int ngf, int dtype, int n, int h, int w, int sms, int shared, char* said, int size) {
  const cuda::Limits limits{sms, shared, shared};
  std::snprintf(said, size, "%s", cuda::hazard(cuda::make_plan(net(depth, ngf), (cuda::DType)dtype, n, h, w, limits)).c_str());
}

extern "C" void p2p_plan_check(const char* planted, char* said, int size) {
  const std::string fault = planted;
  // Without clusters all buffers are there to go wrong; with them steps 2 to 7 store normalised maps.
  const bool clusters = fault.find("cluster") != std::string::npos;
  const cuda::Limits limits = clusters ? cuda::Limits{132, 228 << 10, 227 << 10} : cuda::Limits{132};
  cuda::Plan plan = cuda::make_plan(net(5, 64), cuda::DType::kF16, 1, 64, 64, limits);
  std::vector<cuda::Step>& steps = plan.steps;
  if (fault == "a kernel that waits for none") steps[4].waits_for = -1;
  if (fault == "a kernel that waits too early") steps[6].waits_for = 4;
  if (fault == "a map over a skip") steps[3].dst = steps[1].dst;
  if (fault == "a map over its own input") steps[2].dst = steps[1].dst;
  if (fault == "two kernels at once") {  // each reads step 0 alone, but their buffers were placed one after the other
    steps[2].waits_for = 0;
    steps[2].input = 0;
  }
  if (fault == "a cluster's map over a skip") steps[4].dst = steps[2].dst;
  if (fault == "a cluster's map normed again") steps[4].affine = 0;
  std::snprintf(said, size, "%s", cuda::hazard(plan).c_str());
}
