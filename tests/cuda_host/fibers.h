// The device words of csrc/cuda/device.cuh for the host compiler. A block's threads are fibers that switch at barriers and
// at warp-wide instructions; blocks run one after another, those of a cluster together. It is strict where hardware is lenient:
//   shared memory starts as NaN; thread, warp and block order are shuffled by a seed
//   copy_async lands at its wait and not before
//   two threads at one word of shared memory, one writing, without a barrier between: an error
//   every access to global memory must lie in a buffer that the driver has allowed, aligned
//   two threads of a block at one word of global memory, one having written it, without a barrier between: an error
//   a block may touch what another block of the launch wrote only if that one fenced and arrived at a counter afterwards,
//   and this one arrived later and fenced; it reads it by load_of_blocks
//   before grid_wait a thread may read weights and nothing else; no thread may end without it, or with a copy on its way
//   a barrier or warp-wide instruction that some thread never reaches: an error
//   shared memory of another block of the cluster: only after a cluster barrier at which that block had begun, and that block
//   touches what was written, and ends, only after one at which the writer had finished
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "kernels.h"

#define P2P_CLUSTERS 1
#define P2P_DEVICE inline
#define P2P_KERNEL void

namespace p2p::cuda {

struct Vec16 {
  uint32_t word[4];
};

namespace host {

struct Place {
  int32_t thread, block[3], blocks[3];
};
extern Place place;  // of the running fiber
extern char* shared;  // of the running fiber's block

[[noreturn]] void fail(const char* message);
void check_global(const void* at, int64_t bytes, bool write, bool of_blocks = false);
void wait_for_grid();
void fence_all();
uint32_t arrive_at(uint32_t* counter);
void check_shared(const void* at, int64_t bytes, bool write);
void barrier();
int32_t rank_in_cluster();
void arrive_in_cluster();
void wait_for_cluster();
// Where `at` lies in the shared memory of block `rank`.
char* in_block(const void* at, int64_t bytes, int32_t rank);
void issue_copy(char* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int32_t pending);
// Gathers one pointer of each lane; the last lane runs `all` over them. `what` must be the same in all lanes.
void together(int32_t what, void* mine, void (*all)(void* const* lanes));
float half_table(uint16_t bits);

struct Ldmatrix {
  uint32_t* r;
  const char* row;
};
void ldmatrix_all(void* const* lanes);
struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
void mma_f16_all(void* const* lanes);
void mma_bf16_all(void* const* lanes);

}  // namespace host

inline int32_t thread_index() { return host::place.thread; }
inline int32_t block_x() { return host::place.block[0]; }
inline int32_t block_y() { return host::place.block[1]; }
inline int32_t block_z() { return host::place.block[2]; }
inline int32_t blocks_x() { return host::place.blocks[0]; }
inline int32_t blocks_y() { return host::place.blocks[1]; }
inline char* shared_memory() { return host::shared; }

inline Vec16 load16(const void* from) {
  host::check_global(from, 16, false);
  Vec16 v;
  std::memcpy(&v, from, 16);
  return v;
}
inline void store16(void* to, Vec16 v) {
  host::check_global(to, 16, true);
  std::memcpy(to, &v, 16);
}
template <class T>
T load(const T* from) {
  host::check_global(from, sizeof(T), false);
  return *from;
}
template <class T>
void store(T* to, T value) {
  host::check_global(to, sizeof(T), true);
  *to = value;
}
inline float load_of_blocks(const float* from) {
  host::check_global(from, 4, false, true);
  return *from;
}

inline void shared_store16(char* to, Vec16 v) {
  host::check_shared(to, 16, true);
  std::memcpy(to, &v, 16);
}
inline Vec16 shared_load16(const char* from) {
  host::check_shared(from, 16, false);
  Vec16 v;
  std::memcpy(&v, from, 16);
  return v;
}
inline float shared_get(const float* from) {
  host::check_shared(from, 4, false);
  return *from;
}
inline void shared_set(float* to, float value) {
  host::check_shared(to, 4, true);
  *to = value;
}

inline void sync_block() { host::barrier(); }
inline void fence() { host::fence_all(); }
inline uint32_t arrive(uint32_t* counter) { return host::arrive_at(counter); }
inline void grid_wait() { host::wait_for_grid(); }
inline void grid_release() {}

inline int32_t cluster_rank() { return host::rank_in_cluster(); }
inline void cluster_arrive() { host::arrive_in_cluster(); }
inline void cluster_wait() { host::wait_for_cluster(); }
inline void cluster_set2(float* at, int32_t rank, float first, float second) {
  const float two[2] = {first, second};
  std::memcpy(host::in_block(at, 8, rank), two, 8);
}

inline void copy_async(char* to, const void* from, bool valid) { host::issue_copy(to, from, valid); }
inline void copy_commit() { host::commit_copies(); }
template <int kPending>
void copy_wait() { host::wait_copies(kPending); }

inline void ldmatrix_x4(uint32_t (&r)[4], const char* row) {
  host::check_shared(row, 16, false);
  host::Ldmatrix mine{r, row};
  host::together(1, &mine, host::ldmatrix_all);
}
template <DType kType>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  host::Mma mine{d, a, {b0, b1}};
  host::together(2, &mine, kType == DType::kF16 ? host::mma_f16_all : host::mma_bf16_all);
}

template <DType kType>
void unpack(uint32_t pair, float* two) {
  for (int i = 0; i < 2; ++i) {
    const uint16_t bits = (uint16_t)(pair >> 16 * i);
    two[i] = kType == DType::kF16 ? host::half_table(bits) : from_bf16(bits);
  }
}
template <DType kType>
uint32_t pack(float low, float high) {
  if constexpr (kType == DType::kF16) return to_f16(low) | (uint32_t)to_f16(high) << 16;
  return to_bf16(low) | (uint32_t)to_bf16(high) << 16;
}
inline uint32_t float_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline float min_of(float a, float b) { return std::fmin(a, b); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float root(float v) { return std::sqrt(v); }
inline float tanh_of(float v) { return std::tanh(v); }
inline float nearest_even(float v) { return std::nearbyint(v); }

}  // namespace p2p::cuda
