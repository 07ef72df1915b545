// One layer for layer.cpp, field by field as the Layer structure of tests/cuda_shim.py.
#pragma once
#include <cstdint>

struct HostLayer {
  int32_t kind, dtype, tile, n, hi, wi, c0, c1, co, splits;  // tile -1: as the plan chooses for `splits` multiprocessors
  int32_t cluster, stage_slices;  // as LayerShape; with tile -1 bytes of shared memory, of a multiprocessor and of a block
  int32_t patch;                  // 1: a kernel of patch.cuh
  int32_t picture_h, picture_w, pixel_bytes, tanh, norm, dropout0, dropout1, seed;
  float slope, eps;
  const float *src0, *affine0, *src1, *affine1;  // maps [n][hi][wi][c], affines [n][2][c]
  void* picture;                                 // read by kFirst, written by kLast
  const float *weights, *bias, *gamma, *beta;    // weights in PyTorch's order
  const uint64_t* dropout;
  float *out, *affine;                           // [n][ho][wo][stored(co)], [n][2][stored(co)]
  int32_t ran_splits, ran_tile, ran_cluster, ran_stage_slices, ran_patch;  // set here
};

// Returns 0, or 1 with the reason in `error`.
extern "C" int p2p_host_layer(HostLayer* layer, char* error, int error_size);
