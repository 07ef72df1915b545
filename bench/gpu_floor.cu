// First facts about a GPU, which say what the kernels of csrc/cuda can reach on it. One JSON line per measurement.
//
//     nvcc -O3 -std=c++20 -arch=native bench/gpu_floor.cu -o gpu_floor && ./gpu_floor
//
// Every figure is the shortest of several repeats; a measurement that fails says so on stderr and leaves the others.
// Exit status 3 without a device.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kBlocks = 128;  // of a layer of U-Net-256 at batch 1, about one for each multiprocessor

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
#define CHECK(call) check(call, #call)

cudaStream_t stream;

struct Memory {
  char* data = nullptr;
  explicit Memory(size_t bytes) {
    CHECK(cudaMalloc(&data, bytes));
    CHECK(cudaMemset(data, 1, bytes));
    CHECK(cudaDeviceSynchronize());  // our stream does not wait for the default one, where that runs
  }
  ~Memory() { cudaFree(data); }
};

// Microseconds on the device, the shortest of `repeats`.
double device_us(const std::function<void()>& run, int repeats = 10, const std::function<void()>& before = [] {}) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  double shortest = 1e30;
  for (int i = 0; i < repeats + 2; ++i) {
    before();
    CHECK(cudaEventRecord(begin, stream));
    run();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaGetLastError());
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) shortest = std::min(shortest, ms * 1e3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return shortest;
}

// Microseconds on the host until the device is done, the median of `repeats`.
double host_us(const std::function<void()>& run, int repeats = 50) {
  std::vector<double> times;
  for (int i = 0; i < repeats + 5; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    CHECK(cudaStreamSynchronize(stream));
    const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
    if (i >= 5) times.push_back(us.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void line(const char* name, const std::string& fields) {
  std::printf("{\"floor\": \"%s\", %s}\n", name, fields.c_str());
  std::fflush(stdout);
}
std::string text(const char* format, auto... values) {
  char buffer[300];
  std::snprintf(buffer, sizeof buffer, format, values...);
  return buffer;
}

// ---- a: what a node of a graph costs ----

__global__ void empty_kernel(int dependent) {
#if __CUDA_ARCH__ >= 900
  if (dependent) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
  }
#endif
}

// kBlocks blocks of 128 threads; `attribute` may be null.
void launch(void (*kernel)(int), int argument, cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = kBlocks;
  config.blockDim = 128;
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = attribute ? 1 : 0;
  CHECK(cudaLaunchKernelEx(&config, kernel, argument));
}

void launch_empty(bool dependent) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  launch(empty_kernel, dependent, dependent ? &attribute : nullptr);
}

struct Graph {
  cudaGraphExec_t exec = nullptr;
  explicit Graph(const std::function<void()>& work) {
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    work();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaGraphDestroy(graph);
  }
  ~Graph() { cudaGraphExecDestroy(exec); }
  void launch() const { CHECK(cudaGraphLaunch(exec, stream)); }
};

void graph_nodes(bool dependent) {
  double us[2];
  const int nodes[2] = {16, 144};
  for (int i = 0; i < 2; ++i) {
    Graph graph([&] { for (int k = 0; k < nodes[i]; ++k) launch_empty(dependent); });
    us[i] = device_us([&] { graph.launch(); }, 20);
  }
  line("graph_node", text("\"programmatic\": %s, \"blocks\": %d, \"us_16_nodes\": %.2f, \"us_per_node\": %.3f",
                          dependent ? "true" : "false", kBlocks, us[0], (us[1] - us[0]) / (nodes[1] - nodes[0])));
}

void launches() {
  const double plain = device_us([] { for (int k = 0; k < 144; ++k) launch_empty(false); });
  line("stream_launch", text("\"us_per_launch\": %.3f", plain / 144));
  Graph one([] { launch_empty(false); });
  Graph sixteen([] { for (int k = 0; k < 16; ++k) launch_empty(false); });
  line("graph_launch_and_sync", text("\"host_us_1_node\": %.2f, \"host_us_16_nodes\": %.2f", host_us([&] { one.launch(); }),
                                     host_us([&] { sixteen.launch(); })));
}

// ---- b: barriers ----

__global__ void grid_barriers(unsigned* counter, int count) {
  for (int i = 1; i <= count; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1u);
      while (*(volatile unsigned*)counter < (unsigned)i * gridDim.x) {
      }
      __threadfence();
    }
    __syncthreads();
  }
}

__global__ void library_barriers(int count) {
  const auto grid = cooperative_groups::this_grid();
  for (int i = 0; i < count; ++i) grid.sync();
}

__global__ void cluster_barriers(int count) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < count; ++i) {
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  }
#endif
}

void grid_barrier(int multiprocessors) {
  const int blocks = std::min(kBlocks, multiprocessors);  // more would wait for each other for ever
  Memory counter(4);
  const auto time = [&](int count) {
    return device_us([&] {
      CHECK(cudaMemsetAsync(counter.data, 0, 4, stream));
      void* arguments[] = {&counter.data, &count};
      CHECK(cudaLaunchCooperativeKernel((const void*)grid_barriers, dim3(blocks), dim3(128), arguments, 0, stream));
    });
  };
  const auto library = [&](int count) {
    return device_us([&] {
      void* arguments[] = {&count};
      CHECK(cudaLaunchCooperativeKernel((const void*)library_barriers, dim3(blocks), dim3(128), arguments, 0, stream));
    });
  };
  line("grid_barrier", text("\"blocks\": %d, \"us_atomics\": %.3f, \"us_cooperative_groups\": %.3f", blocks,
                            (time(1100) - time(100)) / 1000, (library(1100) - library(100)) / 1000));
}

void cluster_barrier() {
  const auto time = [&](int count) {
    return device_us([&] {
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {8, 1, 1};
      launch(cluster_barriers, count, &attribute);
    });
  };
  line("cluster_barrier", text("\"blocks\": %d, \"cluster\": 8, \"us\": %.4f", kBlocks, (time(1100) - time(100)) / 1000));
}

// ---- c, d: reading ----

enum class Way { kLoads, kAsync };

// Each block reads its share of `count` 16-byte pieces in turn; with kAsync into shared memory, eight pieces a thread ahead.
template <Way kWay>
__global__ void read(const uint4* from, int64_t count, int repeats, unsigned* sink) {
  constexpr int kAhead = 8;
  unsigned sum = 0;
  const int64_t stride = (int64_t)gridDim.x * blockDim.x, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (int r = 0; r < repeats; ++r) {
    if constexpr (kWay == Way::kLoads) {
      for (int64_t i = first; i < count; i += kAhead * stride) {
        uint4 v[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) v[k] = i + k * stride < count ? __ldcg(from + i + k * stride) : uint4{};
#pragma unroll
        for (int k = 0; k < kAhead; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
      }
    } else {
#if __CUDA_ARCH__ >= 800
      __shared__ uint4 landing[kAhead][256];
      int64_t i = first;
      const auto ask = [&](int k) {
        const unsigned to = (unsigned)__cvta_generic_to_shared(&landing[k][threadIdx.x]);
        if (i < count) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from + i) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        i += stride;
      };
#pragma unroll
      for (int k = 0; k < kAhead; ++k) ask(k);
      for (int64_t left = first; left < count; left += kAhead * stride)
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
          sum += landing[k][threadIdx.x].x;
          ask(k);
        }
      asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    }
  }
  if (sum == 0x12345678u) *sink = sum;
}

template <Way kWay>
void launch_read(int blocks, const char* from, size_t bytes, int repeats, char* sink) {
  read<kWay><<<blocks, 256, 0, stream>>>((const uint4*)from, (int64_t)(bytes / 16), repeats, (unsigned*)sink);
}

void read_sweep(int multiprocessors) {
  Memory memory(size_t(100) << 20), sink(4);
  for (int mb : {8, 16, 24, 32, 40, 50, 64, 80, 100}) {
    const size_t bytes = size_t(mb) << 20;
    const auto time = [&](int repeats) {
      return device_us([&] { launch_read<Way::kLoads>(4 * multiprocessors, memory.data, bytes, repeats, sink.data); }, 5);
    };
    const double us = (time(11) - time(1)) / 10;
    line("repeated_read", text("\"mb\": %d, \"us\": %.2f, \"gb_per_s\": %.0f", mb, us, bytes / us * 1e-3));
  }
}

// A layer's weights that no cache has seen: each launch reads the next piece of two gigabytes.
template <Way kWay>
void cold_read(const char* way, int blocks, size_t megabytes) {
  const size_t total = size_t(2) << 30, bytes = megabytes << 20;
  Memory memory(total), sink(4);
  size_t at = 0;
  const double us = device_us(
      [&] {
        launch_read<kWay>(blocks, memory.data + at, bytes, 1, sink.data);
        at = at + 2 * bytes <= total ? at + bytes : 0;
      },
      20);
  line("cold_read", text("\"way\": \"%s\", \"blocks\": %d, \"mb\": %zu, \"us\": %.2f, \"gb_per_s\": %.0f", way, blocks, megabytes,
                         us, bytes / us * 1e-3));
}

// ---- e: arithmetic ----

__global__ void products(int count, float* sink) {
  float d[8][4] = {};
  // Numbers in [1, 2) with varied bits: a tensor core that multiplies zeros draws less and runs faster.
  unsigned a[4], b[2], bits = threadIdx.x * 2654435761u + blockIdx.x;
  for (unsigned& v : a) v = 0x3C003C00u | ((bits = bits * 1664525u + 1013904223u) & 0x03FF03FFu);
  for (unsigned& v : b) v = 0x3C003C00u | ((bits = bits * 1664525u + 1013904223u) & 0x03FF03FFu);
  for (int i = 0; i < count; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#if __CUDA_ARCH__ >= 800
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[k][0]), "+f"(d[k][1]), "+f"(d[k][2]), "+f"(d[k][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
      for (int half = 0; half < 2; ++half)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(d[k][0]), "+f"(d[k][1]), "+f"(d[k][2]), "+f"(d[k][3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
    }
  float sum = 0;
  for (auto& row : d)
    for (float v : row) sum += v;
  if (sum == 1234.5f) *sink = sum;
}

void mma_peak(int multiprocessors) {
  Memory sink(4);
  double best = 0;
  int best_warps = 0;
  for (int warps : {4, 8, 16}) {
    constexpr int count = 4000;
    const double us = device_us([&] { products<<<multiprocessors * 2, warps * 32, 0, stream>>>(count, (float*)sink.data); }, 5);
    const double tflops = 2.0 * 16 * 8 * 16 * 8 * count * warps * 2 * multiprocessors / us * 1e-6;
    if (tflops > best) best = tflops, best_warps = warps;
  }
  line("mma_sync_f16", text("\"warps_per_block\": %d, \"tflop_per_s\": %.0f", best_warps, best));
}

__global__ void multiply_adds(int count, float* sink) {
  float d[32], a = 1.0f + threadIdx.x * 1e-7f;
#pragma unroll
  for (int k = 0; k < 32; ++k) d[k] = k * 1e-3f + threadIdx.x;
  for (int i = 0; i < count; ++i)
#pragma unroll
    for (float& v : d) v = fmaf(v, a, 0.5f);
  float sum = 0;
  for (float v : d) sum += v;
  if (sum == 1234.5f) *sink = sum;
}

void fma_peak(int multiprocessors) {
  Memory sink(4);
  constexpr int count = 4000, threads = 512;
  const double us = device_us([&] { multiply_adds<<<multiprocessors * 4, threads, 0, stream>>>(count, (float*)sink.data); }, 5);
  line("fma_f32", text("\"tflop_per_s\": %.1f", 2.0 * 32 * count * threads * 4 * multiprocessors / us * 1e-6));
}

// ---- g: the way to the host ----

void pinned_copies() {
  constexpr size_t bytes = 256 * 256 * 3;
  char* host;
  CHECK(cudaMallocHost(&host, bytes));
  Memory device(bytes);
  for (const bool up : {true, false}) {
    const auto copy = [&] {
      CHECK(cudaMemcpyAsync(up ? device.data : host, up ? host : device.data, bytes,
                            up ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream));
    };
    line("pinned_copy", text("\"to\": \"%s\", \"bytes\": %zu, \"device_us\": %.2f, \"host_us\": %.2f", up ? "device" : "host", bytes,
                             device_us(copy, 30), host_us(copy)));
  }
  cudaFreeHost(host);
}

}  // namespace

int main() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    std::fprintf(stderr, "gpu_floor: no CUDA device (%s)\n", cudaGetErrorString(status));
    return 3;
  }
  cudaDeviceProp device{};
  int failed = 0;
  try {
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_floor: %s\n", error.what());
    return 3;
  }
  const bool hopper = device.major >= 9;
  const int sms = device.multiProcessorCount;
  line("device", text("\"name\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"l2_mb\": %.1f", device.name,
                      device.major, device.minor, sms, device.l2CacheSize / 1048576.0));
  const auto stage = [&](const char* name, const std::function<void()>& measure) {
    try {
      measure();
    } catch (const std::exception& error) {
      ++failed;
      std::fprintf(stderr, "gpu_floor: %s failed: %s\n", name, error.what());
    }
  };
  stage("graph nodes", [] { graph_nodes(false); });
  if (hopper) stage("graph nodes with programmatic edges", [] { graph_nodes(true); });
  stage("launches", launches);
  stage("pinned copies", pinned_copies);
  stage("grid barrier", [&] { grid_barrier(sms); });
  if (hopper) stage("cluster barrier", cluster_barrier);
  stage("repeated reads", [&] { read_sweep(sms); });
  for (const size_t mb : {8, 16, 256}) {
    const int blocks = mb == 256 ? 8 * sms : kBlocks;
    stage("cold reads by loads", [&] { cold_read<Way::kLoads>("loads", blocks, mb); });
    if (device.major >= 8) stage("cold reads by cp.async", [&] { cold_read<Way::kAsync>("cp.async", blocks, mb); });
  }
  stage("mma.sync", [&] { mma_peak(sms); });
  stage("fma", [&] { fma_peak(sms); });
  return failed > 0;
}
