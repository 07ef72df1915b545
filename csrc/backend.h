// The one door to native back-ends: compile(network, weights, options) -> CompiledModel. Back-ends meet here and not at the
// step, because some want the whole graph. To add one: a folder, a line in backend.cpp, an option in CMakeLists.txt.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image.h"
#include "model.h"

namespace p2p {

enum class Precision : uint8_t { kF32, kBF16, kF16 };
const char* precision_name(Precision precision);

inline constexpr const char* kNoCuda =
    "this build of pix2pix_fast has no CUDA kernels; install it with P2P_CUDA=on where nvcc is, or use backend='cpu'";

enum class Device : uint8_t { kCpu, kCuda };

struct CompileOptions {
  Device device = Device::kCpu;
  Precision precision = Precision::kF32;  // f16 on a GPU only
  // The CPU's alone: threads, isa, kernels.
  int threads = 0;                        // 0: the CPUs that this process may use
  std::string isa;                        // "" = P2P_ISA or the best room
  std::optional<uint64_t> dropout_seed;   // none: dropout off
  int32_t h = 256, w = 256;               // weights are packed for this size, which is also warmed up
  std::map<std::string, std::string> kernels;  // layer -> kernel id, instead of the cost model's choice
};

// float32, PyTorch order; null where absent. Valid until the next fetch.
struct LayerTensors {
  const float *weight, *bias, *gamma, *beta;
};

// Weights are fetched layer by layer, in order, once: only one raw layer is alive at a time.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual LayerTensors fetch(const Layer& layer) = 0;
};

// Called now and then from the calling thread while it works; true stops the call.
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  virtual bool requested() = 0;
};

// What one step of a plan is and costs.
struct StepReport {
  std::string layer, kernel;
  int32_t hi, wi, ci, ho, wo, co, rows, tile_block;
  int64_t macs, direct_macs, weight_bytes, shared_bytes;
  double estimate_us, measured_us;  // measured: 0 where nothing was timed
};

struct ModelStats {
  int64_t calls, workspace_bytes, weight_bytes;
  double load_seconds;
  std::string isa;
  int threads;
  Precision precision;
};

// A raw layer output of one run, NHWC without the batch.
struct Activation {
  std::string layer;
  int32_t h, w, c;
  std::vector<float> values;
};

class CompiledModel {
 public:
  virtual ~CompiledModel() = default;
  // Thread-safe. False when the interrupt stopped it.
  virtual bool run(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) = 0;
  // The same bits, computed by the calling thread alone, beside other such calls: for who has many pictures and other work
  // between them. Where that means nothing, an ordinary call.
  virtual bool run_alone(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) {
    return run(src, dst, frame, interrupt);
  }
  virtual std::vector<StepReport> plan(int32_t h, int32_t w) = 0;
  // The steps with the shortest measured_us of `repeats` runs on a grey picture.
  virtual std::vector<StepReport> timed(int32_t h, int32_t w, int32_t repeats) = 0;
  virtual std::vector<Activation> activations(const ImageView& src) = 0;
  virtual ModelStats stats() const = 0;

  // Where the pictures of run_on must lie: the number of a CUDA device, or -1 where there is no run_on.
  virtual int device() const { return -1; }
  virtual uintptr_t stream() const { return 0; }  // of its own; the one that run_on takes without a caller's
  // run() on the device's own memory and the caller's stream (null: a stream of the model's own, and the call returns when
  // the result is there; else it does not wait). uint8 or float32 only.
  virtual void run_on(const ImageView& src, const ImageView& dst, uint64_t frame, std::optional<uintptr_t> stream);
  // Microseconds of the kernels alone on n pictures, `repeats` times; flush_bytes are written before each.
  virtual std::vector<double> timed_graph(int32_t n, int32_t h, int32_t w, int32_t repeats, int64_t flush_bytes);
};

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options);

}  // namespace p2p
