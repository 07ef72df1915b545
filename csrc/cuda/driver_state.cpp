#include "driver_state.h"

#include "runtime.h"

namespace p2p::cuda {

namespace {

std::string version_text(int version) { return text(version / 1000, ".", version % 1000 / 10); }

// The runtime says "insufficient driver" for a driver that is too old and, with version 0, for none at all.
std::string missing_of(cudaError_t error, int driver, const DriverState& state) {
  if (error == cudaErrorInsufficientDriver && driver == 0)
    return "no driver: this machine has no NVIDIA driver (libcuda.so.1 is not there); install it, or use backend='cpu'";
  if (error == cudaErrorInsufficientDriver)
    return text("driver too old: the NVIDIA driver speaks CUDA ", state.driver, ", this build needs ", state.runtime,
                "; update the driver, or use backend='cpu'");
  if (error == cudaErrorNoDevice || (error == cudaSuccess && state.devices.empty()))
    return "no device: the NVIDIA driver sees no GPU; look at CUDA_VISIBLE_DEVICES and at the container's GPU option, or use "
           "backend='cpu'";
  if (error != cudaSuccess) return text("CUDA does not start: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  const DeviceInfo& device = state.devices.front();
  if (device.major * 10 + device.minor < 75)
    return text("the GPU '", device.name, "' has compute capability ", device.major, ".", device.minor,
                "; the kernels need 7.5 or newer (Turing); use backend='cpu'");
  return "";
}

}  // namespace

DriverState driver_state() {
  DriverState state;
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  state.runtime = version_text(runtime);
  if (driver) state.driver = version_text(driver);
  cudaError_t error = cudaGetDeviceCount(&count);
  for (int i = 0; error == cudaSuccess && i < count; ++i) {
    cudaDeviceProp found;
    error = cudaGetDeviceProperties(&found, i);
    if (error == cudaSuccess)
      state.devices.push_back({found.name, found.major, found.minor, found.multiProcessorCount, (int64_t)found.totalGlobalMem,
                               (int32_t)found.sharedMemPerMultiprocessor, (int32_t)found.sharedMemPerBlockOptin,
                               found.clusterLaunch != 0});
  }
  cudaGetLastError();  // the runtime would report it again to whoever asks next
  state.missing = missing_of(error, driver, state);
  return state;
}

}  // namespace p2p::cuda
