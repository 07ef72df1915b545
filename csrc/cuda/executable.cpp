#include "executable.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "half.h"

namespace p2p::cuda {

namespace {

// Written twice before kernels are timed one by one: no weight is left in any L2, and the device is busy until all launches
// are queued, which take longer than the kernels.
constexpr int64_t kFlushBytes = 256ll << 20;

// The arguments' address is kept in `argument`, which must outlive the use of the result.
cudaKernelNodeParams params_of(Launch& launch, void** argument) {
  *argument = &launch.args;
  cudaKernelNodeParams params{};
  params.func = (void*)kernel_of(launch);
  P2P_ASSERT(params.func);
  params.gridDim = dim3(launch.grid_x, launch.grid_y, launch.grid_z);
  params.blockDim = dim3(kThreads, 1, 1);
  params.sharedMemBytes = (unsigned)shared_bytes(launch);
  params.kernelParams = argument;
  return params;
}

// Blocks of a row of the grid to a cluster.
cudaLaunchAttributeValue cluster_of(const Launch& launch) {
  cudaLaunchAttributeValue value{};
  value.clusterDim.x = (unsigned)launch.args.cluster;
  value.clusterDim.y = value.clusterDim.z = 1;
  return value;
}

// The kernel may begin when the one in front has asked for it, and waits for its end by grid_wait.
void add_dependent_edge(cudaGraph_t graph, cudaGraphNode_t from, cudaGraphNode_t to) {
  cudaGraphEdgeData edge{};
  edge.from_port = cudaGraphKernelNodePortProgrammatic;
  edge.type = cudaGraphDependencyTypeProgrammatic;
#if CUDART_VERSION >= 13000
  P2P_CUDA_CALL(cudaGraphAddDependencies, graph, &from, &to, &edge, 1);
#else
  P2P_CUDA_CALL(cudaGraphAddDependencies_v2, graph, &from, &to, &edge, 1);
#endif
}

int64_t pixel_bytes(PixelType type) { return type == PixelType::kU8 ? 1 : type == PixelType::kU16 ? 2 : 4; }

bool dense(const ImageView& v) {
  const int64_t b = pixel_bytes(v.type);
  return v.stride_c == b && v.stride_w == b * v.c && v.stride_h == v.stride_w * v.w;
}

// Rows of uint8 without arithmetic; only the strides differ.
void copy_u8(const ImageView& v, int32_t image, uint8_t* staged, bool out) {
  char* picture = v.data + image * v.stride_n;
  const int64_t row_bytes = (int64_t)v.w * v.c;
  if (dense(v)) {
    if (out) std::memcpy(picture, staged, v.h * row_bytes);
    else std::memcpy(staged, picture, v.h * row_bytes);
    return;
  }
  const bool packed = v.stride_c == 1 && v.stride_w == v.c;
  for (int32_t y = 0; y < v.h; ++y, staged += row_bytes) {
    char* row = picture + y * v.stride_h;
    if (packed) {
      if (out) std::memcpy(row, staged, row_bytes);
      else std::memcpy(staged, row, row_bytes);
      continue;
    }
    for (int32_t x = 0; x < v.w; ++x)
      for (int32_t c = 0; c < v.c; ++c) {
        char& pixel = row[x * v.stride_w + c * v.stride_c];
        if (out) pixel = (char)staged[x * v.c + c];
        else staged[x * v.c + c] = (uint8_t)pixel;
      }
  }
}

}  // namespace

Executable::Executable(const Shared& shared, const Shape& shape, bool keep) : shared_(shared), shape_(shape) {
  const Network& network = shared.network;
  plan_ = make_plan(network, shared.dtype, shape.n, shape.h, shape.w, shared.limits, keep);
  const std::string wrong = hazard(plan_);
  if (!wrong.empty()) throw std::logic_error("internal error: the CUDA plan: " + wrong);

  const auto picture_bytes = [&](int32_t channels, int32_t bytes) {
    return checked_product({shape.n, shape.h, shape.w, channels, bytes});
  };
  const int32_t ci = network.channels_in(), co = network.channels_out();
  arena_ = Bytes(Bytes::kDevice, plan_.arena_bytes);
  counters_ = Bytes(Bytes::kDevice, plan_.counters * 4);
  if (shared.dropout_seed) {
    dropout_ = Bytes(Bytes::kDevice, 16);
    pinned_dropout_ = Bytes(Bytes::kPinned, 16);
  }
  if (shape.staged) {
    in_ = Bytes(Bytes::kDevice, picture_bytes(ci, shape.in_bytes));
    out_ = Bytes(Bytes::kDevice, picture_bytes(co, shape.out_bytes));
    pinned_in_ = Bytes(Bytes::kPinned, in_.size());
    pinned_out_ = Bytes(Bytes::kPinned, out_.size());
    row_.resize((size_t)(shape.w + 2) * ci);
    same_.resize((size_t)std::max(shape.h, shape.w));
    std::iota(same_.begin(), same_.end(), 0);
  }
  stream_ = new_stream();
  done_ = new_event(false);
  // Once: a kernel's last block sets its counters back to zero.
  P2P_CUDA_CALL(cudaMemsetAsync, counters_.data(), 0, (size_t)counters_.size(), stream_.get());
  P2P_CUDA_CALL(cudaStreamSynchronize, stream_.get());

  const Picture in{in_.data(), shape.h, shape.w, ci, shape.in_bytes, 0, 0, 0, 0, 1.0f, 0.0f};
  const Picture out{out_.data(), shape.h, shape.w, co, shape.out_bytes, 0, 0, 0, 0, 1.0f, 0.0f};
  bind(plan_, network, shared.layers, arena_.data(), (uint32_t*)counters_.data(), in, out, (const uint64_t*)dropout_.data());
  graph_ = build(shape.staged);
}

Executable::~Executable() {
  // The caller's stream may still be at work in these buffers.
  if (done_.get()) cudaEventSynchronize(done_.get());
  if (stream_.get()) cudaStreamSynchronize(stream_.get());
}

int64_t Executable::bytes() const {
  return arena_.size() + counters_.size() + in_.size() + out_.size() + pinned_in_.size() + pinned_out_.size();
}

Executable::Built Executable::build(bool copies) const {
  cudaGraph_t made;
  P2P_CUDA_CALL(cudaGraphCreate, &made, 0);
  Built built{Graph(made), GraphExec(), std::vector<cudaGraphNode_t>(plan_.steps.size())};
  std::vector<cudaGraphNode_t>& nodes = built.kernels;
  cudaGraphNode_t copied_in = nullptr, copied_out;
  if (copies)
    P2P_CUDA_CALL(cudaGraphAddMemcpyNode1D, &copied_in, made, nullptr, 0, in_.data(), pinned_in_.data(), (size_t)in_.size(),
                  cudaMemcpyHostToDevice);
  for (size_t i = 0; i < nodes.size(); ++i) {
    Launch launch = plan_.steps[i].launch;
    void* argument;
    const cudaKernelNodeParams params = params_of(launch, &argument);
    const int32_t awaited = plan_.steps[i].waits_for;
    const bool dependent = shared_.dependent_launch && awaited >= 0;
    const cudaGraphNode_t* before = awaited >= 0 ? &nodes[awaited] : copies ? &copied_in : nullptr;
    P2P_CUDA_CALL(cudaGraphAddKernelNode, &nodes[i], made, dependent ? nullptr : before, dependent || !before ? 0 : 1, &params);
    if (launch.args.cluster) {
      const cudaLaunchAttributeValue cluster = cluster_of(launch);
      P2P_CUDA_CALL(cudaGraphKernelNodeSetAttribute, nodes[i], cudaLaunchAttributeClusterDimension, &cluster);
    }
    if (dependent) add_dependent_edge(made, nodes[awaited], nodes[i]);
  }
  if (copies)
    P2P_CUDA_CALL(cudaGraphAddMemcpyNode1D, &copied_out, made, &nodes.back(), 1, pinned_out_.data(), out_.data(),
                  (size_t)out_.size(), cudaMemcpyDeviceToHost);
  cudaGraphExec_t exec;
  P2P_CUDA_CALL(cudaGraphInstantiate, &exec, made, 0);
  built.exec = GraphExec(exec);
  return built;
}

void Executable::launch_steps(cudaStream_t stream, std::vector<double>* step_us) {
  std::vector<OwnEvent> marks;
  for (size_t i = 0; step_us && i <= plan_.steps.size(); ++i) marks.push_back(new_event(true));
  if (step_us) P2P_CUDA_CALL(cudaEventRecord, marks[0].get(), stream);
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    void* argument;
    const cudaKernelNodeParams params = params_of(plan_.steps[i].launch, &argument);
    const Launch& launch = plan_.steps[i].launch;
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val = cluster_of(launch);
    cudaLaunchConfig_t config{};
    config.gridDim = params.gridDim;
    config.blockDim = params.blockDim;
    config.dynamicSmemBytes = params.sharedMemBytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = launch.args.cluster ? 1 : 0;
    P2P_CUDA_CALL(cudaLaunchKernelExC, &config, params.func, params.kernelParams);
    if (step_us) P2P_CUDA_CALL(cudaEventRecord, marks[i + 1].get(), stream);
  }
  if (!step_us) return;
  P2P_CUDA_CALL(cudaEventSynchronize, marks.back().get());
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    float ms = 0;
    P2P_CUDA_CALL(cudaEventElapsedTime, &ms, marks[i].get(), marks[i + 1].get());
    (*step_us)[i] = ms * 1e3;
  }
}

void Executable::set_frame(uint64_t frame, cudaStream_t stream) {
  if (!shared_.dropout_seed) return;
  const uint64_t words[2] = {*shared_.dropout_seed, frame};
  P2P_CUDA_CALL(cudaEventSynchronize, done_.get());  // the previous copy may not have left the pinned words yet
  std::memcpy(pinned_dropout_.data(), words, 16);
  P2P_CUDA_CALL(cudaMemcpyAsync, dropout_.data(), pinned_dropout_.data(), 16, cudaMemcpyHostToDevice, stream);
}

void Executable::run(const ImageView& src, const ImageView& dst, int32_t first, uint64_t frame, bool tanh,
                     std::vector<double>* step_us) {
  P2P_ASSERT(shape_.staged);
  const int32_t h = shape_.h, w = shape_.w;
  for (int32_t i = 0; i < shape_.n; ++i) {
    const BoundPicture bound{&src, &dst, first + i, h, w, same_.data(), same_.data()};
    char* staged = pinned_in_.data() + i * (pinned_in_.size() / shape_.n);
    if (shape_.in_bytes == 1) {
      copy_u8(src, first + i, (uint8_t*)staged, false);
      continue;
    }
    const int64_t row_bytes = (int64_t)w * src.c * 4;
    for (int32_t y = 0; y < h; ++y) {
      load_rows(&bound, y, 1, row_.data());  // a pixel of border on either side
      std::memcpy(staged + y * row_bytes, row_.data() + src.c, row_bytes);
    }
  }
  set_frame(frame, stream_.get());
  if (step_us || !tanh) {
    plan_.steps.back().launch.args.tanh = tanh && shared_.network.layers.back().tanh;
    P2P_CUDA_CALL(cudaMemcpyAsync, in_.data(), pinned_in_.data(), (size_t)in_.size(), cudaMemcpyHostToDevice, stream_.get());
    launch_steps(stream_.get(), step_us);
    P2P_CUDA_CALL(cudaMemcpyAsync, pinned_out_.data(), out_.data(), (size_t)out_.size(), cudaMemcpyDeviceToHost, stream_.get());
  } else {
    P2P_CUDA_CALL(cudaGraphLaunch, graph_.exec.get(), stream_.get());
  }
  P2P_CUDA_CALL(cudaStreamSynchronize, stream_.get());
  for (int32_t i = 0; i < shape_.n; ++i) {
    const BoundPicture bound{&src, &dst, first + i, h, w, same_.data(), same_.data()};
    char* staged = pinned_out_.data() + i * (pinned_out_.size() / shape_.n);
    if (shape_.out_bytes == 1) {
      copy_u8(dst, first + i, (uint8_t*)staged, true);
      continue;
    }
    for (int32_t y = 0; y < h; ++y) store_row(&bound, y, (const float*)staged + (int64_t)y * w * dst.c);
  }
}

Picture Executable::picture_of(const ImageView& v, int32_t first) const {
  const int64_t b = pixel_bytes(v.type);
  Picture p{v.data + first * v.stride_n, v.h, v.w, v.c, (int32_t)b, v.stride_n / b, v.stride_h / b, v.stride_w / b,
            v.stride_c / b, 1.0f, 0.0f};
  return p;
}

void Executable::bind_pictures(const Picture& in, const Picture& out) {
  const auto set = [&](size_t step, const Picture& picture) {
    Launch& launch = plan_.steps[step].launch;
    if (std::memcmp(&launch.args.picture, &picture, sizeof(picture)) == 0) return;
    launch.args.picture = picture;
    void* argument;
    const cudaKernelNodeParams params = params_of(launch, &argument);
    P2P_CUDA_CALL(cudaGraphExecKernelNodeSetParams, graph_.exec.get(), graph_.kernels[step], &params);
  };
  set(0, in);
  set(plan_.steps.size() - 1, out);
}

void Executable::run_on(const ImageView& src, const ImageView& dst, int32_t first, uint64_t frame, cudaStream_t stream,
                        std::vector<double>* step_us) {
  P2P_ASSERT(!shape_.staged);
  Picture in = picture_of(src, first), out = picture_of(dst, first);
  if (src.type == PixelType::kF32) {  // [low, high] -> [-1, 1], as image.cpp does it
    const double width = (double)src.high - src.low;
    in.scale = (float)(2.0 / width);
    in.offset = (float)(-1.0 - 2.0 * src.low / width);
  }
  if (dst.type == PixelType::kF32) {  // (y + 1) * half + low
    const double half = ((double)dst.high - dst.low) / 2;
    out.scale = (float)half;
    out.offset = (float)(dst.low + half);
  }
  P2P_CUDA_CALL(cudaStreamWaitEvent, stream, done_.get(), 0);  // these buffers' latest user may have had another stream
  bind_pictures(in, out);
  set_frame(frame, stream);
  if (step_us) launch_steps(stream, step_us);
  else P2P_CUDA_CALL(cudaGraphLaunch, graph_.exec.get(), stream);
  P2P_CUDA_CALL(cudaEventRecord, done_.get(), stream);
}

// Noise: a flat picture's maps are zeros behind the norms, and tensor cores run faster on zeros.
void Executable::upload_noise() {
  P2P_ASSERT(shape_.staged);
  uint32_t bits = 1;
  for (int64_t i = 0; i < pinned_in_.size(); ++i) pinned_in_.data()[i] = (char)((bits = bits * 1664525u + 1013904223u) >> 24);
  P2P_CUDA_CALL(cudaMemcpyAsync, in_.data(), pinned_in_.data(), (size_t)in_.size(), cudaMemcpyHostToDevice, stream_.get());
  set_frame(0, stream_.get());
}

std::vector<double> Executable::timed_graph(int32_t repeats, int64_t flush_bytes) {
  upload_noise();
  const Built kernels = build(false);
  const Bytes flush(Bytes::kDevice, flush_bytes);
  // All passes are queued before anybody waits, so that what lies between two events is the device's time, not a launch's.
  std::vector<OwnEvent> marks;
  for (int32_t r = -1; r < repeats; ++r) {  // the first one warms up
    if (flush_bytes) P2P_CUDA_CALL(cudaMemsetAsync, flush.data(), r & 255, (size_t)flush_bytes, stream_.get());
    P2P_CUDA_CALL(cudaEventRecord, marks.emplace_back(new_event(true)).get(), stream_.get());
    P2P_CUDA_CALL(cudaGraphLaunch, kernels.exec.get(), stream_.get());
    P2P_CUDA_CALL(cudaEventRecord, marks.emplace_back(new_event(true)).get(), stream_.get());
  }
  P2P_CUDA_CALL(cudaStreamSynchronize, stream_.get());
  std::vector<double> us;
  for (size_t i = 2; i < marks.size(); i += 2) {
    float ms = 0;
    P2P_CUDA_CALL(cudaEventElapsedTime, &ms, marks[i].get(), marks[i + 1].get());
    us.push_back(ms * 1e3);
  }
  return us;
}

std::vector<double> Executable::timed_steps(int32_t repeats) {
  upload_noise();
  const Bytes flush(Bytes::kDevice, kFlushBytes);
  std::vector<double> best, step_us(plan_.steps.size());
  for (int32_t r = 0; r <= repeats; ++r) {  // the first one warms up
    for (int32_t twice : {0, 1}) P2P_CUDA_CALL(cudaMemsetAsync, flush.data(), twice, (size_t)flush.size(), stream_.get());
    launch_steps(stream_.get(), &step_us);
    if (r <= 1) best = step_us;
    for (size_t i = 0; i < best.size(); ++i) best[i] = std::min(best[i], step_us[i]);
  }
  return best;
}

std::vector<float> Executable::output(int32_t step) const {
  const Launch& launch = plan_.steps[step].launch;
  const LayerArgs& a = launch.args;
  P2P_ASSERT(plan_.steps[step].dst >= 0);
  const int64_t pixels = (int64_t)a.mh * a.mw * a.phases, values = pixels * a.co_stored;
  std::vector<char> raw((size_t)(values * value_bytes(launch.dtype)));
  P2P_CUDA_CALL(cudaMemcpy, raw.data(), a.dst, raw.size(), cudaMemcpyDeviceToHost);
  std::vector<float> found;
  found.reserve((size_t)(pixels * a.co));
  for (int64_t p = 0; p < pixels; ++p)
    for (int32_t c = 0; c < a.co; ++c) {
      const int64_t i = p * a.co_stored + c;
      found.push_back(launch.dtype == DType::kF32   ? ((const float*)raw.data())[i]
                      : launch.dtype == DType::kF16 ? from_f16(((const uint16_t*)raw.data())[i])
                                                    : from_bf16(((const uint16_t*)raw.data())[i]));
    }
  return found;
}

}  // namespace p2p::cuda
