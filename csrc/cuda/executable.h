// One size of one network on the device: plan, arena, staging and the graph that runs it all with one launch. Serves one
// call at a time; its siblings have streams and buffers of their own and share the weights.
#pragma once
#include <optional>
#include <vector>

#include "../backend.h"
#include "network.h"
#include "runtime.h"

namespace p2p::cuda {

// What a graph is made for.
struct Shape {
  int32_t n, h, w;
  int32_t in_bytes, out_bytes;  // of a pixel's channel: 1 = uint8, 4 = float32
  bool staged;                  // pictures pass through pinned buffers of its own; else they are the caller's device memory
  bool operator==(const Shape&) const = default;
};

// What all executables of a model share.
struct Shared {
  Network network;
  DType dtype;
  std::optional<uint64_t> dropout_seed;
  std::vector<LayerData> layers;  // addresses on the device
  Limits limits;
  bool dependent_launch;          // programmatic edges between the kernels
};

class Executable {
 public:
  // keep: every layer's output stays readable (activations).
  Executable(const Shared& shared, const Shape& shape, bool keep = false);
  ~Executable();

  const Shape& shape() const { return shape_; }
  const Plan& plan() const { return plan_; }
  int64_t bytes() const;

  // Staged: pictures [first, first + n) of host views; returns when they are done. step_us: one launch after the other,
  // timed by events, instead of the graph.
  void run(const ImageView& src, const ImageView& dst, int32_t first, uint64_t frame, bool tanh, std::vector<double>* step_us);
  // Not staged: views of device memory, on the caller's stream; does not wait.
  void run_on(const ImageView& src, const ImageView& dst, int32_t first, uint64_t frame, cudaStream_t stream,
              std::vector<double>* step_us);
  // Staged: microseconds of one launch of the kernels alone, `repeats` times, each after writing `flush_bytes`.
  std::vector<double> timed_graph(int32_t repeats, int64_t flush_bytes);
  // Staged: microseconds of each kernel, its weights from memory; the shortest of `repeats`.
  std::vector<double> timed_steps(int32_t repeats);

  // A raw layer output (keep), as float, without the padded channels; [h][w][co].
  std::vector<float> output(int32_t step) const;

 private:
  // A graph and what is launched of it. CUDA knows the nodes of `exec` by those of `graph`, which must live as long.
  struct Built {
    Graph graph;
    GraphExec exec;
    std::vector<cudaGraphNode_t> kernels;
  };
  Picture picture_of(const ImageView& view, int32_t first) const;
  void bind_pictures(const Picture& in, const Picture& out);
  void set_frame(uint64_t frame, cudaStream_t stream);
  Built build(bool copies) const;
  void upload_noise();
  void launch_steps(cudaStream_t stream, std::vector<double>* step_us);

  const Shared& shared_;
  Shape shape_;
  Plan plan_;
  Bytes arena_, counters_, dropout_, in_, out_;  // on the device
  Bytes pinned_in_, pinned_out_, pinned_dropout_;
  std::vector<float> row_;                       // one converted row with image.h's border
  std::vector<int32_t> same_;                    // 0, 1, 2, ...: padding is the kernels' business, not image.h's
  OwnStream stream_;
  OwnEvent done_;                                // the latest run_on
  Built graph_;
};

}  // namespace p2p::cuda
