// What this back-end uses of the CUDA runtime: its header, errors as exceptions, and owners of what must be freed.
// Host code only, compiled by the host compiler; the tests compile it against a runtime of their own (tests/cuda_host/).
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "../check.h"

namespace p2p::cuda {

// Throws OutOfMemory or std::runtime_error naming the call and the error. CUDA keeps its latest error: it is cleared.
inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  const std::string message = text("CUDA: ", call, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw std::runtime_error(message);
}
#define P2P_CUDA_CALL(function, ...) ::p2p::cuda::check(function(__VA_ARGS__), #function)

// Makes `device` the thread's current one, and the earlier one current again at the end: the caller may use another.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    P2P_CUDA_CALL(cudaGetDevice, &before_);
    if (device != before_) P2P_CUDA_CALL(cudaSetDevice, device);
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// An owner of one handle; errors while freeing are ignored, as there is nobody to tell.
template <class T, cudaError_t (*kFree)(T)>
class Owner {
 public:
  Owner() = default;
  explicit Owner(T handle) : handle_(handle) {}
  ~Owner() {
    if (handle_) kFree(handle_);
  }
  Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, T{})) {}
  Owner& operator=(Owner&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  T get() const { return handle_; }

 private:
  T handle_{};
};

using Graph = Owner<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;
using OwnStream = Owner<cudaStream_t, cudaStreamDestroy>;
using OwnEvent = Owner<cudaEvent_t, cudaEventDestroy>;

inline OwnStream new_stream() {  // one that does not wait for the legacy default stream
  cudaStream_t stream;
  P2P_CUDA_CALL(cudaStreamCreateWithFlags, &stream, cudaStreamNonBlocking);
  return OwnStream(stream);
}
inline OwnEvent new_event(bool timing) {
  cudaEvent_t event;
  P2P_CUDA_CALL(cudaEventCreateWithFlags, &event, timing ? cudaEventDefault : cudaEventDisableTiming);
  return OwnEvent(event);
}

// Bytes of the device, or pinned ones of the host; nothing for 0.
class Bytes {
 public:
  enum Where { kDevice, kPinned };
  Bytes() = default;
  Bytes(Where where, int64_t bytes) : where_(where), bytes_(bytes) {
    if (bytes == 0) return;
    if (where == kDevice) P2P_CUDA_CALL(cudaMalloc, (void**)&data_, (size_t)bytes);
    else P2P_CUDA_CALL(cudaMallocHost, (void**)&data_, (size_t)bytes);
  }
  ~Bytes() {
    if (!data_) return;
    if (where_ == kDevice) cudaFree(data_);
    else cudaFreeHost(data_);
  }
  Bytes(Bytes&& other) noexcept { *this = std::move(other); }
  Bytes& operator=(Bytes&& other) noexcept {
    std::swap(where_, other.where_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  char* data() const { return data_; }
  int64_t size() const { return bytes_; }

 private:
  Where where_ = kDevice;
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace p2p::cuda
