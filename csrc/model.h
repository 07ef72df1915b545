// The network as data: encoder layers e1..eN and decoder layers d1..dN (d1 innermost), as Python lowers them from a model
// file. No weights, no kernels. Validated here, so that everything behind may trust it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace p2p {

enum class LayerOp : uint8_t { kConv4x4s2, kDeconv4x4s2 };

struct Layer {
  std::string name;
  LayerOp op;
  int32_t ci, co;      // input channels (skip and decoder together), output channels
  float slope;         // activation on the layer's input: 1 none, 0.2 LeakyReLU, 0 ReLU
  bool norm;           // per-image statistics after the convolution
  float eps;
  std::string skip;    // "" or the encoder layer concatenated in front: [skip, decoder]
  float dropout;       // probability after the norm; 0 or 0.5
  bool tanh;           // last layer only
  int32_t input = -1;  // index of the producing layer; -1 = the picture (filled by validate)
  int32_t skip_index = -1;
};

struct Network {
  std::vector<Layer> layers;
  int32_t depth() const { return (int32_t)layers.size() / 2; }
  int32_t multiple() const { return 1 << depth(); }  // heights and widths are padded to a multiple of this
  int32_t channels_in() const { return layers.front().ci; }
  int32_t channels_out() const { return layers.back().co; }
};

// Checks the U-Net shape and fills the indices. Throws std::invalid_argument naming the layer and the rule.
void validate(Network& network);

}  // namespace p2p
