// Can this process use a GPU, and if not, why. No CUDA header, so that bindings.cpp may ask.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace p2p::cuda {

struct DeviceInfo {
  std::string name;
  int32_t major, minor;   // compute capability
  int32_t sms;
  int64_t memory_bytes;
  int32_t sm_shared, block_shared;  // bytes of shared memory: of a multiprocessor, of a block at most
  bool clusters;
};

struct DriverState {
  std::string missing;    // "" if device 0 can run the kernels, else one sentence with the cure
  std::string runtime;    // the CUDA that this build was made with, "13.0"
  std::string driver;     // the newest CUDA that the driver speaks; "" without a driver
  std::vector<DeviceInfo> devices;
};

// Asks the driver anew each time (0.2 ms without one; the first time on a machine with a GPU starts CUDA in this process).
DriverState driver_state();

}  // namespace p2p::cuda
