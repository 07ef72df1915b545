#include "cuda_model.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <list>
#include <mutex>

#include "../options.h"
#include "driver_state.h"
#include "executable.h"

namespace p2p::cuda {

namespace {

constexpr int kDevice = 0;                     // the first of CUDA_VISIBLE_DEVICES
constexpr size_t kIdleExecutables = 4;         // sizes that stay warm ...
constexpr int64_t kIdleBytes = 2ll << 30;      // ... as long as their buffers take no more than this
constexpr int64_t kPixelsMax = 1ll << 28;      // of a picture
constexpr int64_t kBatchPixels = 1ll << 22;    // of one launch: a batch's buffers stay at about 1.5 GB

DType dtype_of(Precision precision) {
  return precision == Precision::kF16 ? DType::kF16 : precision == Precision::kBF16 ? DType::kBF16 : DType::kF32;
}

std::string kernel_id(const Launch& launch) {
  constexpr const char* kKinds[] = {"first", "conv", "deconv", "last"};
  constexpr const char* kTypes[] = {"f32", "f16", "bf16"};
  const TileShape tile = tile_shape(launch.tile);
  const char* form = launch.args.cluster ? "_stream_" : launch.args.tiles_across ? "_patch_" : "_";
  return text("cuda/", kKinds[(int)launch.kind], form, tile.bm, "x", tile.bn, "_", kTypes[(int)launch.dtype]);
}

// Stream kernels where the device has clusters and this build's kernels were made for them: what was made for an older
// architecture and finished by the driver has none. Their blocks are allowed the shared memory that they ask for.
Limits limits_of(const DeviceInfo& device, DType dtype) {
  const Limits plain{device.sms};
  if (!environment().cuda_cluster || !device.clusters || device.major < 9 || dtype == DType::kF32) return plain;
  for (Kind kind : {Kind::kConv, Kind::kDeconv})
    for (Tile tile : {Tile::k64x32, Tile::k16x32}) {
      const auto* kernel = (const void*)(dtype == DType::kF16 ? stream_f16(kind, tile) : stream_bf16(kind, tile));
      cudaFuncAttributes attributes;
      P2P_CUDA_CALL(cudaFuncGetAttributes, &attributes, kernel);
      if (attributes.ptxVersion < 90) return plain;
      P2P_CUDA_CALL(cudaFuncSetAttribute, kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.block_shared);
    }
  return {device.sms, device.sm_shared, device.block_shared};
}

class CudaModel final : public CompiledModel {
 public:
  CudaModel(Network network, WeightSource& weights, const CompileOptions& options);
  ~CudaModel() override;

  bool run(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) override;
  std::vector<StepReport> plan(int32_t h, int32_t w) override;
  std::vector<StepReport> timed(int32_t h, int32_t w, int32_t repeats) override;
  std::vector<Activation> activations(const ImageView& src) override;
  ModelStats stats() const override;
  int device() const override { return kDevice; }
  uintptr_t stream() const override { return (uintptr_t)runtime_->stream.get(); }
  void run_on(const ImageView& src, const ImageView& dst, uint64_t frame, std::optional<uintptr_t> stream) override;
  std::vector<double> timed_graph(int32_t n, int32_t h, int32_t w, int32_t repeats, int64_t flush_bytes) override;

 private:
  // A list of one node, moved by splicing.
  using Slots = std::list<Executable>;
  // What every call does first: a forked child has none of the parent's CUDA, and touching it may hang.
  void check_process() const;
  void check_size(int32_t h, int32_t w) const;
  void check_pointer(const void* at, const char* name) const;
  Slots acquire(const Shape& shape);
  void release(Slots slot);
  template <class Stop, class Work>
  bool in_parts(const ImageView& src, const ImageView& dst, bool staged, Stop&& stop, Work&& work);
  void upload(int32_t index, const LayerTensors& tensors);
  std::vector<StepReport> report(const Plan& plan, const std::vector<double>* step_us) const;
  void trace(const Executable& executable, const std::vector<double>& step_us) const;
  int32_t pictures_at_once(int32_t n, int32_t h, int32_t w) const;

  const pid_t process_ = getpid();
  DeviceInfo info_;
  std::string isa_;
  // What CUDA owns, in one piece that a forked child leaves alone.
  struct Runtime {
    Shared shared;
    std::vector<Bytes> weights;   // a layer each
    std::mutex idle_lock;
    Slots idle;                   // most recent first
    OwnStream stream;             // of run_on without a caller's
  };
  Runtime* runtime_;
  std::atomic<int64_t> calls_{0}, workspace_bytes_{0};
  int64_t weight_bytes_ = 0;
  Precision precision_;
  double load_seconds_ = 0;
};

CudaModel::CudaModel(Network network, WeightSource& weights, const CompileOptions& options) : precision_(options.precision) {
  const auto start = std::chrono::steady_clock::now();
  const DriverState state = driver_state();
  if (!state.missing.empty()) throw BackendUnavailable(state.missing);
  info_ = state.devices[kDevice];
  isa_ = text("sm_", info_.major, info_.minor, " ", info_.name);
  if (options.precision == Precision::kBF16 && info_.major < 8)
    throw BackendUnavailable(text("precision='bf16' needs compute capability 8.0 or newer (Ampere); '", info_.name, "' has ",
                                  info_.major, ".", info_.minor, ". Use precision='f16'"));
  P2P_REQUIRE(options.isa.empty() && options.kernels.empty(), "isa and kernels are for the cpu back-end");

  const OnDevice current(kDevice);
  cudaFuncAttributes attributes;
  const cudaError_t image = cudaFuncGetAttributes(&attributes, (const void*)layer_f32(Kind::kFirst, Tile::k64x64));
  if (image != cudaSuccess) cudaGetLastError();
  if (image == cudaErrorNoKernelImageForDevice || image == cudaErrorInvalidDeviceFunction ||
      image == cudaErrorUnsupportedPtxVersion)
    throw BackendUnavailable(text("this build has no kernels for '", info_.name, "' (sm_", info_.major, info_.minor,
                                  "); install it with P2P_CUDA_ARCHITECTURES=", info_.major, info_.minor,
                                  ", or use backend='cpu'"));
  check(image, "cudaFuncGetAttributes");

  runtime_ = new Runtime;
  try {
    Shared& shared = runtime_->shared;
    shared.network = std::move(network);
    shared.dtype = dtype_of(options.precision);
    shared.dropout_seed = options.dropout_seed;
    shared.limits = limits_of(info_, shared.dtype);
    shared.dependent_launch = environment().cuda_pdl && info_.major >= 9;
    for (int32_t i = 0; i < (int32_t)shared.network.layers.size(); ++i)
      upload(i, weights.fetch(shared.network.layers[i]));
    // A copy from pageable memory may return while its last bytes are still on their way, and our streams do not wait for them.
    P2P_CUDA_CALL(cudaStreamSynchronize, nullptr);
    runtime_->stream = new_stream();
    check_size(options.h, options.w);
    // Warm: the first launch of a graph uploads it.
    const int32_t ci = shared.network.channels_in(), co = shared.network.channels_out();
    std::vector<uint8_t> in((size_t)options.h * options.w * ci), out((size_t)options.h * options.w * co);
    const auto view = [&](std::vector<uint8_t>& pixels, int32_t c) {
      return ImageView{(char*)pixels.data(), PixelType::kU8, 1, options.h, options.w, c, 0, (int64_t)options.w * c, c, 1, 0, 1};
    };
    run(view(in, ci), view(out, co), 0, nullptr);
  } catch (...) {
    delete runtime_;
    throw;
  }
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

CudaModel::~CudaModel() {
  if (getpid() != process_) return;  // a forked child: the memory is the parent's
  try {
    const OnDevice current(kDevice);
    delete runtime_;
  } catch (const std::exception&) {  // CUDA is gone already, as at the end of the process
  }
}

void CudaModel::check_process() const {
  if (getpid() != process_)
    throw ForkError("a CUDA engine belongs to the process that opened it; CUDA does not survive a fork: open the engine in the "
                    "child, and start children by 'spawn'");
}

void CudaModel::check_size(int32_t h, int32_t w) const {
  P2P_REQUIRE(h >= 1 && w >= 1 && (int64_t)h * w <= kPixelsMax, "picture size ", h, "x", w, " is out of range");
}

void CudaModel::check_pointer(const void* at, const char* name) const {
  if (!at) return;  // an empty batch
  cudaPointerAttributes found;
  P2P_CUDA_CALL(cudaPointerGetAttributes, &found, at);
  P2P_REQUIRE(found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged, name,
              ": expected memory of a GPU, got memory of the host");
  P2P_REQUIRE(found.type == cudaMemoryTypeManaged || found.device == kDevice, name, ": expected memory of device ", kDevice,
              ", where this engine runs, got device ", found.device);
}

void CudaModel::upload(int32_t index, const LayerTensors& tensors) {
  Shared& shared = runtime_->shared;
  const PackedLayer packed = pack_layer(shared.network, index, shared.dtype, tensors);
  // Weights, bias, gamma, beta one behind the other, each at a multiple of 256 bytes.
  std::vector<char> all = packed.weights;
  const auto append = [&](const std::vector<float>& values) {
    const size_t at = (size_t)round_up((int64_t)all.size(), 256);
    all.resize(at + values.size() * sizeof(float));
    if (!values.empty()) std::memcpy(all.data() + at, values.data(), values.size() * sizeof(float));
    return at;
  };
  const size_t bias = append(packed.bias), gamma = append(packed.gamma), beta = append(packed.beta);
  Bytes device(Bytes::kDevice, (int64_t)all.size());
  P2P_CUDA_CALL(cudaMemcpy, device.data(), all.data(), all.size(), cudaMemcpyHostToDevice);
  const auto at = [&](const std::vector<float>& values, size_t offset) {
    return values.empty() ? nullptr : (const float*)(device.data() + offset);
  };
  shared.layers.push_back({device.data(), at(packed.bias, bias), at(packed.gamma, gamma), at(packed.beta, beta)});
  weight_bytes_ += (int64_t)packed.weights.size();
  runtime_->weights.push_back(std::move(device));
}

CudaModel::Slots CudaModel::acquire(const Shape& shape) {
  Runtime& runtime = *runtime_;
  Slots found;
  {
    std::lock_guard<std::mutex> guard(runtime.idle_lock);
    const auto it = std::find_if(runtime.idle.begin(), runtime.idle.end(), [&](const Executable& e) { return e.shape() == shape; });
    if (it != runtime.idle.end()) {
      found.splice(found.begin(), runtime.idle, it);
      return found;
    }
  }
  try {
    found.emplace_back(runtime.shared, shape);
  } catch (const OutOfMemory&) {  // once more without the sizes that are kept warm
    Slots gone;
    {
      std::lock_guard<std::mutex> guard(runtime.idle_lock);
      gone.swap(runtime.idle);
    }
    for (const Executable& e : gone) workspace_bytes_ -= e.bytes();
    gone.clear();
    found.emplace_back(runtime.shared, shape);
  }
  workspace_bytes_ += found.front().bytes();
  return found;
}

void CudaModel::release(Slots slot) {
  Slots gone;
  std::lock_guard<std::mutex> guard(runtime_->idle_lock);
  Slots& idle = runtime_->idle;
  idle.splice(idle.begin(), slot);
  int64_t bytes = 0;
  size_t kept = 0;
  for (auto it = idle.begin(); it != idle.end();) {
    bytes += it->bytes();
    const auto next = std::next(it);
    if (kept > 0 && (kept >= kIdleExecutables || bytes > kIdleBytes)) {
      workspace_bytes_ -= it->bytes();
      gone.splice(gone.begin(), idle, it);
    } else {
      ++kept;
    }
    it = next;
  }
}

int32_t CudaModel::pictures_at_once(int32_t n, int32_t h, int32_t w) const {
  const int64_t multiple = runtime_->shared.network.multiple(), pixels = round_up(h, multiple) * round_up(w, multiple);
  return (int32_t)std::clamp<int64_t>(kBatchPixels / pixels, 1, n);
}

// work(executable, first picture, step_us) for as many pictures at once as fit; step_us is null unless traced.
template <class Stop, class Work>
bool CudaModel::in_parts(const ImageView& src, const ImageView& dst, bool staged, Stop&& stop, Work&& work) {
  const int32_t most = src.n > 0 ? pictures_at_once(src.n, src.h, src.w) : 1;
  const auto bytes = [](const ImageView& v) { return v.type == PixelType::kU8 ? 1 : 4; };
  for (int32_t first = 0; first < src.n; first += most) {
    if (first > 0 && stop()) return false;
    // A launch that fails takes its executable along: nobody knows what state its counters are in.
    Slots slot = acquire({std::min(most, src.n - first), src.h, src.w, bytes(src), bytes(dst), staged});
    Executable& executable = slot.front();
    std::vector<double> step_us(environment().trace ? executable.plan().steps.size() : 0);
    workspace_bytes_ -= executable.bytes();
    work(executable, first, step_us.empty() ? nullptr : &step_us);
    workspace_bytes_ += executable.bytes();
    if (!step_us.empty()) trace(executable, step_us);
    release(std::move(slot));
  }
  return true;
}

bool CudaModel::run(const ImageView& src, const ImageView& dst, uint64_t frame, Interrupt* interrupt) {
  check_process();
  check_size(src.h, src.w);
  const OnDevice current(kDevice);
  const bool finished = in_parts(
      src, dst, true, [&] { return interrupt && interrupt->requested(); },
      [&](Executable& executable, int32_t first, std::vector<double>* step_us) {
        executable.run(src, dst, first, frame + first, true, step_us);
      });
  if (finished) ++calls_;
  return finished;
}

void CudaModel::run_on(const ImageView& src, const ImageView& dst, uint64_t frame, std::optional<uintptr_t> stream) {
  check_process();
  check_size(src.h, src.w);
  P2P_REQUIRE(src.type != PixelType::kU16 && dst.type != PixelType::kU16, "on the device pictures are uint8 or float32, got uint16");
  const OnDevice current(kDevice);
  check_pointer(src.data, "src");
  check_pointer(dst.data, "dst");
  const cudaStream_t on = stream ? (cudaStream_t)*stream : runtime_->stream.get();
  in_parts(
      src, dst, false, [] { return false; },
      [&](Executable& executable, int32_t first, std::vector<double>* step_us) {
        executable.run_on(src, dst, first, frame + first, on, step_us);
      });
  if (!stream) P2P_CUDA_CALL(cudaStreamSynchronize, on);
  ++calls_;
}

std::vector<StepReport> CudaModel::report(const Plan& plan, const std::vector<double>* step_us) const {
  std::vector<StepReport> steps;
  const Network& network = runtime_->shared.network;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Launch& launch = plan.steps[i].launch;
    const LayerArgs& a = launch.args;
    const Layer& layer = network.layers[i];
    const bool up = layer.op == LayerOp::kDeconv4x4s2;
    const int32_t ho = up ? 2 * a.hi : a.hi / 2, wo = up ? 2 * a.wi : a.wi / 2;
    int64_t live = 0;  // taps that are multiplied and whose weights are read, summed over phases
    for (int32_t phase = 0; phase < a.phases; ++phase)
      live += (int64_t)(a.live_h[phase / 2][1] - a.live_h[phase / 2][0]) * (a.live_w[phase % 2][1] - a.live_w[phase % 2][0]);
    const int64_t depth = (int64_t)a.chunks_per_tap * 16 / value_bytes(launch.dtype);
    steps.push_back({layer.name, kernel_id(launch), a.hi, a.wi, layer.ci, ho, wo, layer.co, tile_shape(launch.tile).bm, 0,
                     (int64_t)a.n * a.mh * a.mw * live * depth * a.columns,
                     (int64_t)a.n * ho * wo * (up ? 4 : 16) * layer.ci * layer.co,
                     live * depth * a.columns * value_bytes(launch.dtype), shared_bytes(launch), 0.0,
                     step_us ? (*step_us)[i] : 0.0});
  }
  return steps;
}

void CudaModel::trace(const Executable& executable, const std::vector<double>& step_us) const {
  const Shape& shape = executable.shape();
  std::string out = text("p2p trace: ", isa_, ", ", shape.n, " x ", shape.h, "x", shape.w, ", launch by launch\n");
  char line[200];
  double sum = 0;
  for (const StepReport& s : report(executable.plan(), &step_us)) {
    std::snprintf(line, sizeof(line), "%-4s %-24s %4dx%-4d %4d>%-4d %9.1f MMAC %7.2f MB %8.1f us %8.0f GFLOP/s %6.0f GB/s\n",
                  s.layer.c_str(), s.kernel.c_str(), s.hi, s.wi, s.ci, s.co, s.macs / 1e6, s.weight_bytes / 1e6,
                  s.measured_us, 2e-3 * s.macs / s.measured_us, 1e-3 * s.weight_bytes / s.measured_us);
    out += line;
    sum += s.measured_us;
  }
  std::snprintf(line, sizeof(line), "sum  %.1f us\n", sum);
  std::fputs((out + line).c_str(), stderr);
}

std::vector<StepReport> CudaModel::plan(int32_t h, int32_t w) {
  check_process();
  check_size(h, w);
  const Shared& shared = runtime_->shared;
  return report(make_plan(shared.network, shared.dtype, 1, h, w, shared.limits), nullptr);
}

std::vector<StepReport> CudaModel::timed(int32_t h, int32_t w, int32_t repeats) {
  check_process();
  check_size(h, w);
  const OnDevice current(kDevice);
  Executable executable(runtime_->shared, {1, h, w, 1, 1, true});
  const std::vector<double> best = executable.timed_steps(repeats);
  return report(executable.plan(), &best);
}

std::vector<double> CudaModel::timed_graph(int32_t n, int32_t h, int32_t w, int32_t repeats, int64_t flush_bytes) {
  check_process();
  check_size(h, w);
  P2P_REQUIRE(n >= 1 && pictures_at_once(n, h, w) == n, "n: ", n, " pictures of ", h, "x", w, " are more than one launch takes");
  const OnDevice current(kDevice);
  return Executable(runtime_->shared, {n, h, w, 1, 1, true}).timed_graph(repeats, flush_bytes);
}

std::vector<Activation> CudaModel::activations(const ImageView& src) {
  check_process();
  check_size(src.h, src.w);
  const OnDevice current(kDevice);
  const Network& network = runtime_->shared.network;
  const int32_t h = (int32_t)round_up(src.h, network.multiple()), w = (int32_t)round_up(src.w, network.multiple());
  // The padded picture, so that the last layer comes out whole.
  const std::vector<int32_t> rows = reflect_indices(src.h, h), columns = reflect_indices(src.w, w);
  const BoundPicture bound{&src, &src, 0, h, w, rows.data(), columns.data()};
  std::vector<float> row((size_t)(w + 2) * src.c), in, out((size_t)h * w * network.channels_out());
  for (int32_t y = 0; y < h; ++y) {
    load_rows(&bound, y, 1, row.data());
    in.insert(in.end(), row.begin() + src.c, row.end() - src.c);
  }
  const auto view = [&](std::vector<float>& pixels, int32_t c) {
    return ImageView{(char*)pixels.data(), PixelType::kF32, 1, h, w, c, 0, (int64_t)w * c * 4, (int64_t)c * 4, 4, -1.0f, 1.0f};
  };
  Executable executable(runtime_->shared, {1, h, w, 4, 4, true}, true);
  executable.run(view(in, src.c), view(out, network.channels_out()), 0, 0, false, nullptr);
  std::vector<Activation> found;
  for (size_t i = 0; i < network.layers.size(); ++i) {
    const LayerArgs& a = executable.plan().steps[i].launch.args;
    const bool up = network.layers[i].op == LayerOp::kDeconv4x4s2;
    found.push_back({network.layers[i].name, up ? 2 * a.hi : a.hi / 2, up ? 2 * a.wi : a.wi / 2, network.layers[i].co,
                     i + 1 < network.layers.size() ? executable.output((int32_t)i) : out});
  }
  return found;
}

ModelStats CudaModel::stats() const {
  return {calls_, workspace_bytes_, weight_bytes_, load_seconds_, isa_, 0, precision_};
}

}  // namespace

std::unique_ptr<CompiledModel> compile(Network network, WeightSource& weights, const CompileOptions& options) {
  return std::make_unique<CudaModel>(std::move(network), weights, options);
}

}  // namespace p2p::cuda
