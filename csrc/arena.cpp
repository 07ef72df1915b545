#include "arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

#include "check.h"

namespace p2p {

std::vector<int64_t> place(const std::vector<Lifetime>& buffers, int64_t alignment, int64_t* total_bytes) {
  std::vector<int32_t> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return buffers[a].bytes > buffers[b].bytes; });

  std::vector<int64_t> offsets(buffers.size(), 0);
  std::vector<int32_t> placed;
  *total_bytes = 0;
  for (int32_t i : order) {
    const Lifetime& wanted = buffers[i];
    std::vector<std::pair<int64_t, int64_t>> taken;  // [begin, end) of buffers alive together with this one
    for (int32_t j : placed)
      if (buffers[j].first <= wanted.last && wanted.first <= buffers[j].last)
        taken.emplace_back(offsets[j], offsets[j] + buffers[j].bytes);
    std::sort(taken.begin(), taken.end());
    int64_t offset = 0;
    for (const auto& [begin, end] : taken) {
      if (offset + wanted.bytes <= begin) break;
      offset = std::max(offset, round_up(end, alignment));
    }
    offsets[i] = offset;
    placed.push_back(i);
    *total_bytes = std::max(*total_bytes, offset + wanted.bytes);
  }
  return offsets;
}

namespace {
constexpr int64_t kHugePage = 2 << 20;

[[noreturn]] void refuse(int64_t bytes) {
  throw OutOfMemory(text("no memory for a block of ", (bytes + 999'999) / 1'000'000,
                         " MB (weights, or a picture's activations): use smaller pictures, or fewer engines at once"));
}
}

Memory::Memory(int64_t bytes) : bytes_(round_up(std::max<int64_t>(bytes, 64), 64)) {
  if (bytes_ >= kHugePage) {
    bytes_ = round_up(bytes_, kHugePage);
    // One page more, cut off again: mmap aligns to 4 KB only, a huge page must start at 2 MB.
    char* raw = (char*)mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) refuse(bytes_);
    data_ = (char*)round_up((int64_t)raw, kHugePage);
    if (data_ != raw) munmap(raw, data_ - raw);
    const int64_t tail = raw + bytes_ + kHugePage - (data_ + bytes_);
    if (tail > 0) munmap(data_ + bytes_, tail);
    madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without huge pages everything still works
  } else {
    data_ = (char*)std::aligned_alloc(64, bytes_);
    if (!data_) refuse(bytes_);
    std::memset(data_, 0, bytes_);
  }
}

Memory::~Memory() {
  if (!data_) return;
  if (bytes_ >= kHugePage) munmap(data_, bytes_);
  else std::free(data_);
}

void Memory::touch() {
  if (data_) std::memset(data_, 0, bytes_);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace p2p
