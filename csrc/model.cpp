#include "model.h"

#include <cmath>
#include <unordered_map>

#include "check.h"

namespace p2p {

namespace {
constexpr int32_t kMaxDepth = 12;
constexpr int32_t kMaxChannels = 1 << 16;
}  // namespace

void validate(Network& network) {
  std::vector<Layer>& layers = network.layers;
  const int32_t count = (int32_t)layers.size(), depth = count / 2;
  P2P_REQUIRE(count % 2 == 0 && depth >= 2 && depth <= kMaxDepth, "layers: expected 2 x depth with depth 2..", kMaxDepth,
              ", got ", count);
  std::unordered_map<std::string, int32_t> index;
  for (int32_t i = 0; i < count; ++i) {
    Layer& l = layers[i];
    const bool encoder = i < depth;
    P2P_REQUIRE(index.emplace(l.name, i).second, "layer '", l.name, "': the name occurs twice");
    P2P_REQUIRE((l.op == LayerOp::kConv4x4s2) == encoder, "layer '", l.name, "': expected ",
                encoder ? "conv4x4s2" : "deconv4x4s2", " at place ", i, " of ", count);
    P2P_REQUIRE(l.ci >= 1 && l.ci <= kMaxChannels && l.co >= 1 && l.co <= kMaxChannels, "layer '", l.name,
                "': channels must be 1..", kMaxChannels, ", got ci ", l.ci, ", co ", l.co);
    P2P_REQUIRE(l.slope >= 0 && l.slope <= 1, "layer '", l.name,
                "': slope must be in [0, 1], got ", l.slope);
    P2P_REQUIRE(!l.norm || (std::isfinite(l.eps) && l.eps > 0), "layer '", l.name, "': eps must be positive, got ", l.eps);
    P2P_REQUIRE(l.dropout == 0.0f || l.dropout == 0.5f, "layer '", l.name, "': dropout must be 0 or 0.5, got ", l.dropout);
    P2P_REQUIRE(!l.tanh || i == count - 1, "layer '", l.name, "': tanh is for the last layer");
    l.input = i - 1;
    l.skip_index = -1;
    int32_t channels = i == 0 ? l.ci : layers[i - 1].co;
    if (!l.skip.empty()) {
      const auto found = index.find(l.skip);
      const int32_t expected = count - 1 - i;
      P2P_REQUIRE(i > depth && found != index.end() && found->second == expected, "layer '", l.name,
                  "': its skip must be the encoder layer of the same size, got '", l.skip, "'");
      l.skip_index = expected;
      channels += layers[expected].co;
    }
    P2P_REQUIRE(l.ci == channels, "layer '", l.name, "': ci is ", l.ci, ", but its inputs have ", channels, " channels");
  }
  const Layer &first = layers.front(), &last = layers.back();
  P2P_REQUIRE(!first.norm && first.slope == 1.0f && first.dropout == 0.0f, "layer '", first.name,
              "': the first layer has no norm, no activation and no dropout");
  P2P_REQUIRE(!last.norm && last.dropout == 0.0f, "layer '", last.name, "': the last layer has no norm and no dropout");
}

}  // namespace p2p
