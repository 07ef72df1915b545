// Lifetimes to offsets in one buffer, and the buffer itself.
#pragma once
#include <cstdint>
#include <vector>

namespace p2p {

struct Lifetime {
  int64_t bytes;
  int32_t first, last;  // steps, both included
};

// Offsets (multiples of `alignment`) such that buffers alive in a common step do not overlap. Greedy by size, lowest fit.
std::vector<int64_t> place(const std::vector<Lifetime>& buffers, int64_t alignment, int64_t* total_bytes);

// Zeroed memory, 64-byte aligned; 2 MB and more by mmap with transparent huge pages asked for (fewer TLB misses on weights
// that are streamed once per picture). Throws OutOfMemory.
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  void touch();  // the system gives pages where they are first written: now; the contents are zeroed

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace p2p
