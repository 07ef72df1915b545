// See runtime/cuda_runtime_api.h. One device; kernels run on the fibers of fibers.cpp, one at a time, under one lock.
//
// The environment sets the stage: P2P_FAKE_ERROR (what cudaGetDeviceCount answers), P2P_FAKE_DRIVER (13000), P2P_FAKE_CAPABILITY
// (90), P2P_FAKE_MEMORY (bytes, 4 GB), P2P_FAKE_IMAGE (what cudaFuncGetAttributes answers), P2P_FAKE_PTX (the architecture that kernels were compiled
// for; the capability), P2P_FAKE_SHARED (KB of shared memory of a block, 227; a multiprocessor has one more). What the caller does wrong
// (memory freed while in use, a stream that is gone) ends the process with a sentence.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "run.h"

using p2p::cuda::Launch;

namespace {

constexpr size_t kPage = 4096;
constexpr int kDevicePoison = 0xFF, kPinnedPoison = 0xEE;  // 0xFF..: a NaN in every float format

std::recursive_mutex& lock() {
  static auto* made = new std::recursive_mutex;
  return *made;
}
using Guard = std::lock_guard<std::recursive_mutex>;

[[noreturn]] void wrong(const std::string& what) {
  std::fprintf(stderr, "fake CUDA runtime: %s\n", what.c_str());
  std::abort();
}

long setting(const char* name, long otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? std::atol(value) : otherwise;
}

struct Block {
  size_t bytes, mapped;
};
std::map<char*, Block> device_blocks, pinned_blocks;
size_t device_bytes = 0;
cudaError_t latest = cudaSuccess;
int open_depth = 0;  // > 0: the device is at work and its memory may be touched
const pid_t process = getpid();
struct Counts {
  long launches, graphs, graph_launches, updates, programmatic, clusters, waits;
} counts;

cudaError_t fails(cudaError_t error) { return latest = error; }

// Device memory may be touched while one of these lives.
struct Open {
  Open() {
    if (open_depth++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  ~Open() {
    if (--open_depth == 0) protect(PROT_NONE);
  }
  static void protect(int how) {
    for (const auto& [at, block] : device_blocks) mprotect(at, block.mapped, how);
  }
};

const std::pair<char* const, Block>* holder(std::map<char*, Block>& blocks, const void* at, size_t bytes) {
  auto it = blocks.upper_bound((char*)at);
  if (it == blocks.begin()) return nullptr;
  --it;
  return (char*)at + bytes <= it->first + it->second.bytes ? &*it : nullptr;
}

}  // namespace

struct Record {
  FakeStream* stream;
  bool passed = false;
  std::chrono::steady_clock::time_point when;
};
struct FakeEvent {
  std::shared_ptr<Record> latest;  // none: counts as passed
};
struct Work {
  std::function<void()> run;
  std::shared_ptr<Record> awaited = nullptr;  // first let this one pass
};
struct FakeStream {
  std::deque<Work> work;
  bool running = false;
};
struct FakeNode {
  Launch launch{};
  std::function<void()> copy;        // empty: a kernel
  std::vector<FakeNode*> before;
  int cluster = 0;                   // its attribute
  bool gone = false;                 // with its graph
};
struct FakeGraph {
  std::vector<FakeNode*> nodes;
};
struct FakeGraphExec {
  std::map<FakeNode*, FakeNode> nodes;  // keys are the graph's nodes, which nobody frees, so that old ones are known
  std::vector<FakeNode*> order;
};

namespace {

std::set<FakeStream*>& streams() {
  static auto* all = new std::set<FakeStream*>;
  return *all;
}
FakeStream* known(FakeStream* stream) {
  static auto* legacy = new FakeStream;
  if (stream == nullptr || stream == (FakeStream*)1 || stream == (FakeStream*)2) return legacy;
  if (!streams().count(stream)) wrong("a stream that does not exist");
  return stream;
}

void finish(FakeStream* stream) {
  if (stream->running) wrong("streams wait for each other in a circle");
  stream->running = true;
  while (!stream->work.empty()) {
    Work work = std::move(stream->work.front());
    stream->work.pop_front();
    if (work.awaited && !work.awaited->passed) finish(work.awaited->stream);
    if (work.run) work.run();
  }
  stream->running = false;
}

int capability() { return (int)setting("P2P_FAKE_CAPABILITY", 90); }
long shared_of_block() { return setting("P2P_FAKE_SHARED", 227) << 10; }

// Shared memory that a kernel was allowed beyond 48 KB.
std::map<const void*, int>& allowed() {
  static auto* all = new std::map<const void*, int>;
  return *all;
}

Launch launch_of(const void* function, dim3 grid, dim3 block, size_t shared, void** arguments) {
  using namespace p2p::cuda;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    for (Kind kind : {Kind::kFirst, Kind::kConv, Kind::kDeconv, Kind::kLast})
      for (Tile tile : {Tile::k64x64, Tile::k64x32, Tile::k16x32, Tile::k64x16}) {
        const LayerArgs& args = *(const LayerArgs*)arguments[0];
        const Launch launch{kind, dtype, tile, (int32_t)grid.x, (int32_t)grid.y, (int32_t)grid.z, args};
        const LayerKernel kernel = kernel_of(launch);
        if (!kernel || (const void*)kernel != function) continue;
        if (block.x != kThreads || block.y != 1 || block.z != 1) wrong("a block of another size than kThreads");
        if (shared != (size_t)shared_bytes(launch)) wrong("a launch with the shared memory of another one");
        if (shared > (48u << 10) && (int)shared > allowed()[function]) wrong("more shared memory than the kernel was allowed");
        if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) wrong("a grid out of range");
        if (args.cluster && capability() < 90) wrong("a cluster on a device that has none");
        return launch;
      }
  wrong("a launch of what is no kernel");
}

// cluster: the launch's attribute, 0 without one.
void run_kernel(const Launch& launch, int cluster) {
  static uint32_t seed = 0;
  if (cluster != launch.args.cluster) wrong("a kernel in clusters of another size than its arguments say");
  counts.clusters += cluster > 0;
  p2p::cuda::host::forbid_all();
  using p2p::cuda::host::Memory;
  for (const auto& [at, block] : device_blocks) {
    const bool weights = (char*)launch.args.weights >= at && (char*)launch.args.weights < at + block.bytes;
    p2p::cuda::host::allow(at, (int64_t)block.bytes, weights ? Memory::kConstant : Memory::kOutput);
  }
  ++counts.launches;
  try {
    p2p::cuda::host::run(launch, ++seed);
  } catch (const std::exception& e) {
    wrong(std::string("a kernel failed: ") + e.what());
  }
}

void run_graph(const FakeGraphExec& exec) {
  static std::mt19937 random(1);
  std::set<FakeNode*> done;
  while (done.size() < exec.order.size()) {
    std::vector<FakeNode*> ready;  // any of these may be next
    for (FakeNode* key : exec.order) {
      const FakeNode& node = exec.nodes.at(key);
      if (!done.count(key) && std::all_of(node.before.begin(), node.before.end(), [&](FakeNode* b) { return done.count(b); }))
        ready.push_back(key);
    }
    if (ready.empty()) wrong("a graph with a circle");
    FakeNode* next = ready[random() % ready.size()];
    const FakeNode& node = exec.nodes.at(next);
    if (node.copy) node.copy();
    else run_kernel(node.launch, node.cluster);
    done.insert(next);
  }
}

void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, bool async) {
  const bool up = kind == cudaMemcpyHostToDevice;
  if (!holder(device_blocks, up ? to : from, bytes)) wrong("a copy whose device side is no device memory");
  if (holder(device_blocks, up ? from : to, 1)) wrong("a copy whose host side is device memory");
  if (async && !holder(pinned_blocks, up ? from : to, bytes)) wrong("an asynchronous copy of memory that is not pinned");
  const Open open;
  std::memcpy(to, from, bytes);
}

cudaError_t allocate(std::map<char*, Block>& blocks, void** result, size_t bytes, int poison) {
  const size_t mapped = (bytes + kPage - 1) / kPage * kPage;
  // The end of the block is the end of its pages but for alignment, and a page that nobody may touch follows.
  char* base = (char*)mmap(nullptr, mapped + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return fails(cudaErrorMemoryAllocation);
  mprotect(base + mapped, kPage, PROT_NONE);
  std::memset(base, poison, mapped);
  blocks[base] = {bytes, mapped};
  *result = base;
  return cudaSuccess;
}

void release(std::map<char*, Block>& blocks, void* at) {
  const auto it = blocks.find((char*)at);
  if (it == blocks.end()) wrong("memory freed that was not allocated, or freed twice");
  munmap(at, it->second.mapped + kPage);
  blocks.erase(it);
}

cudaError_t state() {
  if (getpid() != process) return cudaErrorInitializationError;  // as after a fork
  return (cudaError_t)setting("P2P_FAKE_ERROR", 0);
}

}  // namespace

cudaError_t cudaGetLastError() { return std::exchange(latest, cudaSuccess); }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheFake";
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "out of memory" : "an error"; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = (int)setting("P2P_FAKE_DRIVER", 13000);
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = state() == cudaSuccess ? (int)setting("P2P_FAKE_DEVICES", 1) : 0;
  return state() == cudaSuccess ? cudaSuccess : fails(state());
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  const size_t shared = (size_t)shared_of_block();
  *found = {"fibers", capability() / 10, capability() % 10, 132, (size_t)setting("P2P_FAKE_MEMORY", 4l << 30), shared + 1024,
            shared, capability() >= 90};
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return state();
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? state() : fails(cudaErrorInvalidValue); }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  found->ptxVersion = (int)setting("P2P_FAKE_PTX", capability());
  return (cudaError_t)setting("P2P_FAKE_IMAGE", 0);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const Guard guard(lock());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > shared_of_block()) return fails(cudaErrorInvalidValue);
  allowed()[function] = value;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** result, size_t bytes) {
  const Guard guard(lock());
  if (device_bytes + bytes > (size_t)setting("P2P_FAKE_MEMORY", 4l << 30)) return fails(cudaErrorMemoryAllocation);
  const cudaError_t error = allocate(device_blocks, result, bytes, kDevicePoison);
  if (error != cudaSuccess) return error;
  device_bytes += bytes;
  if (open_depth == 0) mprotect(*result, device_blocks[(char*)*result].mapped, PROT_NONE);
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  const Guard guard(lock());
  if (state() != cudaSuccess) wrong("cudaFree in a forked child");
  // The real one waits for the device first. Here work that is still pending meets memory that is gone, and says so.
  device_bytes -= device_blocks.count((char*)at) ? device_blocks[(char*)at].bytes : 0;
  release(device_blocks, at);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** result, size_t bytes) {
  const Guard guard(lock());
  return allocate(pinned_blocks, result, bytes, kPinnedPoison);
}
cudaError_t cudaFreeHost(void* at) {
  const Guard guard(lock());
  release(pinned_blocks, at);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* at) {
  const Guard guard(lock());
  *found = {holder(device_blocks, at, 1)   ? cudaMemoryTypeDevice
            : holder(pinned_blocks, at, 1) ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered,
            0};
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Guard guard(lock());
  finish(known(nullptr));
  if (kind == cudaMemcpyHostToDevice) {  // of pageable memory: it is read now, and lands when somebody waits for this stream
    const auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    known(nullptr)->work.push_back({[=] { copy(to, staged->data(), bytes, kind, false); }});
    return cudaSuccess;
  }
  copy(to, from, bytes, kind, false);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Guard guard(lock());
  known(stream)->work.push_back({[=] { copy(to, from, bytes, kind, true); }});
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  const Guard guard(lock());
  known(stream)->work.push_back({[=] {
    if (!holder(device_blocks, at, bytes)) wrong("a memset outside device memory");
    const Open open;
    std::memset(at, value, bytes);
  }});
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Guard guard(lock());
  streams().insert(*stream = new FakeStream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Guard guard(lock());
  finish(known(stream));
  streams().erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Guard guard(lock());
  ++counts.waits;
  finish(known(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Guard guard(lock());
  known(stream)->work.push_back({nullptr, event->latest});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Guard guard(lock());
  *event = new FakeEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Guard guard(lock());
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Guard guard(lock());
  const auto record = event->latest = std::make_shared<Record>(Record{known(stream)});
  record->stream->work.push_back({[record] {
    record->passed = true;
    record->when = std::chrono::steady_clock::now();
  }});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Guard guard(lock());
  ++counts.waits;
  if (event->latest && !event->latest->passed) finish(event->latest->stream);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  const Guard guard(lock());
  for (cudaEvent_t event : {from, to})
    if (!event->latest || !event->latest->passed) wrong("the time of an event that has not passed");
  *ms = std::chrono::duration<float, std::milli>(to->latest->when - from->latest->when).count();
  return cudaSuccess;
}

namespace {

// What a launch's attribute says, 0 for one that no device takes.
int cluster_of(cudaLaunchAttributeID id, const cudaLaunchAttributeValue& value, dim3 grid) {
  const auto& c = value.clusterDim;
  const bool known_one = id == cudaLaunchAttributeClusterDimension && c.x >= 1 && c.x <= 8 && c.y == 1 && c.z == 1;
  return known_one && grid.x % c.x == 0 && capability() >= 90 ? (int)c.x : 0;
}

}  // namespace

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  const Guard guard(lock());
  int cluster = 0;
  if (c->numAttrs > 1) return fails(cudaErrorInvalidValue);
  if (c->numAttrs == 1 && !(cluster = cluster_of(c->attrs->id, c->attrs->val, c->gridDim))) return fails(cudaErrorInvalidValue);
  known(c->stream)->work.push_back(
      {[launch = launch_of(function, c->gridDim, c->blockDim, c->dynamicSmemBytes, arguments), cluster] {
        const Open open;
        run_kernel(launch, cluster);
      }});
  return cudaSuccess;
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new FakeGraph;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  for (FakeNode* node : graph->nodes) node->gone = true;
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* before, size_t count,
                                   const cudaKernelNodeParams* p) {
  graph->nodes.push_back(*node = new FakeNode{launch_of(p->func, p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams),
                                              nullptr, {before, before + count}, 0});
  return cudaSuccess;
}
cudaError_t cudaGraphKernelNodeSetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID id, const cudaLaunchAttributeValue* value) {
  if (node->copy) return fails(cudaErrorInvalidValue);
  node->cluster = cluster_of(id, *value, dim3((unsigned)node->launch.grid_x));
  return node->cluster ? cudaSuccess : fails(cudaErrorInvalidValue);
}
cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* before, size_t count,
                                     void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  graph->nodes.push_back(*node = new FakeNode{{}, [=] { copy(to, from, bytes, kind, true); }, {before, before + count}, 0});
  return cudaSuccess;
}
cudaError_t cudaGraphAddDependencies(cudaGraph_t, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const cudaGraphEdgeData* edges, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (edges && edges[i].type == cudaGraphDependencyTypeProgrammatic) {
      if (from[i]->copy || to[i]->copy || edges[i].from_port != cudaGraphKernelNodePortProgrammatic || edges[i].to_port != 0)
        return fails(cudaErrorInvalidValue);
      ++counts.programmatic;
    }
    to[i]->before.push_back(from[i]);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const Guard guard(lock());
  *exec = new FakeGraphExec;
  for (FakeNode* node : graph->nodes) {
    (*exec)->nodes[node] = *node;
    (*exec)->order.push_back(node);
  }
  ++counts.graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const Guard guard(lock());
  --counts.graphs;
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node, const cudaKernelNodeParams* p) {
  const Guard guard(lock());
  if (node->gone) wrong("a node whose graph was destroyed");
  FakeNode& held = exec->nodes.at(node);
  const Launch launch = launch_of(p->func, p->gridDim, p->blockDim, p->sharedMemBytes, p->kernelParams);
  if (held.copy || launch.kind != held.launch.kind) return fails(cudaErrorInvalidValue);
  held.launch = launch;
  ++counts.updates;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Guard guard(lock());
  ++counts.graph_launches;
  known(stream)->work.push_back({[graph = *exec] {
    const Open open;
    run_graph(graph);
  }});
  return cudaSuccess;
}

// For the tests, by ctypes: device memory and a stream as a caller would have them.
#define P2P_EXPORT extern "C" __attribute__((visibility("default")))
P2P_EXPORT void* fake_malloc(size_t bytes) {
  void* at = nullptr;
  cudaMalloc(&at, bytes);
  return at;
}
P2P_EXPORT void fake_free(void* at) { cudaFree(at); }
P2P_EXPORT void fake_write(void* to, const void* from, size_t bytes) {
  cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
  cudaStreamSynchronize(nullptr);
}
P2P_EXPORT void fake_read(void* to, const void* from, size_t bytes) { cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost); }
P2P_EXPORT void* fake_stream() {
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  return stream;
}
P2P_EXPORT void fake_finish(void* stream) { cudaStreamSynchronize((cudaStream_t)stream); }
P2P_EXPORT long fake_pending(void* stream) {
  const Guard guard(lock());
  return (long)known((cudaStream_t)stream)->work.size();
}
P2P_EXPORT void fake_counts(long* to) { std::memcpy(to, &counts, sizeof(counts)); }
P2P_EXPORT long fake_device_bytes() { return (long)device_bytes; }
