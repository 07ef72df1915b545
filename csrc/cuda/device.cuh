// The words in which kernels speak to the machine. They exist twice: here for nvcc, in tests/cuda_host/fibers.h for the
// host compiler, which runs the same kernels as fibers on a machine without a GPU. Kernels use no other device word.
//
//   load16 / store16        16 bytes of global memory         copy_async / copy_commit / copy_wait   global -> shared
//   shared_load16 / _store  16 bytes of shared memory         ldmatrix_x4, mma_16816                 fragments
//   load, store, shared_get, shared_set: one scalar           sync_block, fence, arrive              order
//   grid_wait, grid_release: programmatic dependent launch    unpack, pack: pairs of 16-bit floats
//   cluster_rank, cluster_arrive, cluster_wait, cluster_set2: the blocks of a cluster, only where P2P_CLUSTERS is 1
#pragma once
#include <cstdint>

#include "kernels.h"

#ifndef __CUDACC__
#include "fibers.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if __CUDA_ARCH__ >= 900
#define P2P_CLUSTERS 1
#else
#define P2P_CLUSTERS 0
#endif
#define P2P_DEVICE __device__ __forceinline__
#define P2P_KERNEL __global__ void __launch_bounds__(::p2p::cuda::kThreads, 1)

namespace p2p::cuda {

struct Vec16 {
  uint32_t word[4];
};

P2P_DEVICE int32_t thread_index() { return threadIdx.x; }
P2P_DEVICE int32_t block_x() { return blockIdx.x; }
P2P_DEVICE int32_t block_y() { return blockIdx.y; }
P2P_DEVICE int32_t block_z() { return blockIdx.z; }
P2P_DEVICE int32_t blocks_x() { return gridDim.x; }
P2P_DEVICE int32_t blocks_y() { return gridDim.y; }

P2P_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// Global memory. Never the read-only path: another kernel of the same graph may have written these bytes just now.
P2P_DEVICE Vec16 load16(const void* from) {
  const uint4 v = *(const uint4*)from;
  return {{v.x, v.y, v.z, v.w}};
}
P2P_DEVICE void store16(void* to, Vec16 v) { *(uint4*)to = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]); }
template <class T>
P2P_DEVICE T load(const T* from) { return *from; }
template <class T>
P2P_DEVICE void store(T* to, T value) { *to = value; }
// What another block of this kernel wrote: from L2, past this SM's cache.
P2P_DEVICE float load_of_blocks(const float* from) { return __ldcg(from); }

P2P_DEVICE void shared_store16(char* to, Vec16 v) { store16(to, v); }
P2P_DEVICE Vec16 shared_load16(const char* from) { return load16(from); }
P2P_DEVICE float shared_get(const float* from) { return *from; }
P2P_DEVICE void shared_set(float* to, float value) { *to = value; }

P2P_DEVICE void sync_block() { __syncthreads(); }
P2P_DEVICE void fence() { __threadfence(); }
P2P_DEVICE uint32_t arrive(uint32_t* counter) { return atomicAdd(counter, 1u); }

P2P_DEVICE void grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
P2P_DEVICE void grid_release() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#if P2P_CLUSTERS
P2P_DEVICE int32_t cluster_rank() {
  int32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// A barrier of all threads of the cluster in two halves: what a thread wrote before it arrives is seen by whoever has waited.
P2P_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
P2P_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// Two floats to where `at` lies in this block's shared memory, in that of block `rank`.
P2P_DEVICE void cluster_set2(float* at, int32_t rank, float first, float second) {
  uint32_t address = (uint32_t)__cvta_generic_to_shared(at);
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(first), "f"(second) : "memory");
}
#endif

// 16 bytes from global to shared memory, zeros where not `valid`. Before sm_80 an ordinary copy, at once.
P2P_DEVICE void copy_async(char* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
  *(uint4*)to = valid ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
P2P_DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kPending` of this thread's latest groups are still on their way.
template <int kPending>
P2P_DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit values; lane i names row i % 8 of matrix i / 8.
P2P_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const char* row) {
  const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d (16x8) += a (16x16) b (16x8), float32 accumulation.
template <DType kType>
P2P_DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kType == DType::kF16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // sm_75: two halves of k, f16 only (the host refuses bf16 there)
  if constexpr (kType == DType::kF16) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
  }
#endif
}

template <DType kType>
P2P_DEVICE void unpack(uint32_t pair, float* two) {
  float2 v;
  if constexpr (kType == DType::kF16) v = __half22float2(*(const __half2*)&pair);
  else v = {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
  two[0] = v.x;
  two[1] = v.y;
}
template <DType kType>
P2P_DEVICE uint32_t pack(float low, float high) {
  uint32_t pair;
  if constexpr (kType == DType::kF16) {
    const __half2 v = __floats2half2_rn(low, high);
    pair = *(const uint32_t*)&v;
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    pair = *(const uint32_t*)&v;
  }
  return pair;
}
P2P_DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
P2P_DEVICE float bits_float(uint32_t v) { return __uint_as_float(v); }
P2P_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
P2P_DEVICE float min_of(float a, float b) { return fminf(a, b); }
P2P_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
P2P_DEVICE float root(float v) { return sqrtf(v); }
P2P_DEVICE float tanh_of(float v) { return tanhf(v); }
P2P_DEVICE float nearest_even(float v) { return rintf(v); }

}  // namespace p2p::cuda
#endif
