// The border between the backend and the ISA rooms: plain structs and function pointers, no inline functions (an inline
// function compiled with AVX-512 flags is a weak symbol that the linker may give to everybody).
//
// Every convolution of the network runs as matrix products on packed operands, in phases of independent items:
//
//   gather    read NHWC sources, apply norm + activation + padding + Winograd input transform, write packed A
//   multiply  A with packed weights, apply the output transform, bias and statistics, write NHWC `dst`
//
// Two phases: all items gather into `shared`, then all multiply. Where A is large, its parts take turns: some of the rows, or of
// the output phases where each has its own tiles. One phase: every item does both, with an A of its own.
//
// The cut into items depends on the problem alone, never on the thread count: the same bits for any number of threads.
// docs/layouts.md draws the packed layouts. Read next: body/convolution.inl.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace p2p::cpu {

enum class Op : uint8_t { kConvFirst, kConv, kDeconv, kDeconvLast };
// ...Taps: the weights stay plain taps in memory (body/taps.inl); ...Columns: columns of taps, transformed (body/columns.inl).
enum class Algorithm : uint8_t {
  kDirect, kWinograd3, kWinograd2Taps, kWinograd4, kWinograd4Taps, kWinograd4Columns, kWinograd5
};
enum class DType : uint8_t { kF32, kBF16 };

// One 4x4, stride 2, padding 1 convolution (ho = hi / 2) or transposed convolution (ho = 2 * hi) at one size.
struct Problem {
  int32_t hi, wi, ho, wo;
  int32_t ci[2];         // channels of the sources, [skip, decoder]; ci[1] = 0 where there is one source
  int32_t ci_stored[2];  // the same as stored: rounded up to the precision's channel block, the rest zero
  int32_t co, co_stored;
  int32_t threads;     // that will share the items; never changes what is computed
  int32_t tile_block;  // 0: phases that gather and multiply in turn; n > 0: one phase, items of n rows of A (tiles or pixels)
};

// What a kernel needs for a problem, zeros filled in by Kernel::geometry.
struct Geometry {
  int32_t phases;         // 1, or 2 for each turn: the A's of parts of the rows, of output phases, that are there together
  int32_t items[2];       // of the even phases, of the odd ones
  int32_t rows;           // rows of A: Winograd tiles or pixels
  int32_t block_rows;     // of them in one block of registers, the largest
  int32_t item_rows;      // of them that one item multiplies, whose weights the next one reads again; 0: all
  int32_t stat_blocks;    // partial statistics per channel
  int32_t pack_items;     // independent parts of Kernel::pack
  int64_t weight_bytes;   // packed weights of the layer, all of them
  int64_t pass_bytes;     // of them that are read before the first one is read again
  int64_t read_bytes;     // packed weights that one run reads (taps that only see padding are left out)
  int64_t shared_bytes;   // A of one turn
  int64_t row_bytes;      // of one row of A
  int64_t shared_read_bytes;  // of A by all items that multiply
  int64_t transform_bytes;    // of A and C, each once
  int64_t scratch_bytes;  // per thread
  int64_t macs;           // multiply-adds that one run does
};

// NHWC activations before their norm, `ci_stored` channels; the reader applies x * scale[c] + shift[c].
struct Source {
  const void* data;    // 64-byte aligned, the precision's element type
  const float* scale;  // ci_stored values
  const float* shift;
};

// The caller's picture, seen as rows of floats in [-1, 1].
struct Picture {
  void* context;
  // Writes `count` rows, each (wi + 2) * ci floats with a zero pixel on both ends; rows outside the picture are zero.
  void (*load_rows)(const void* context, int32_t first, int32_t count, float* dst);
  // Takes one row of wo * co floats.
  void (*store_row)(const void* context, int32_t row, const float* src);
};

struct Args {
  Source src[2];
  float slope;          // activation on load: max(x, slope * x); 1 = none, 0 = ReLU; slope <= 1
  const void* weights;  // as written by Kernel::pack, 64-byte aligned
  const float* bias;    // co_stored values or null
  void* dst;            // NHWC, co_stored channels, the precision's element type; null for kDeconvLast
  float* stats;         // null, or [stat_blocks][3][co_stored]: mean, sum of squared deviations, count
  void* shared;         // shared_bytes, 64-byte aligned
  Picture picture;      // kConvFirst reads it, kDeconvLast writes it
  bool tanh;            // kDeconvLast: tanh, or identity
};

struct Kernel {
  const char* id;  // "room/op_algorithm_dtype"
  Op op;
  Algorithm algorithm;
  DType dtype;
  void (*geometry)(const Problem&, Geometry*);
  // raw: PyTorch order, conv (co, ci, 4, 4), deconv (ci, co, 4, 4). dst: weight_bytes of zeros, 64-byte aligned.
  void (*pack)(const Problem&, const float* raw, void* dst, int32_t item);
  // scratch: scratch_bytes, 64-byte aligned, private to the calling thread.
  void (*run)(const Problem&, const Args&, int32_t phase, int32_t item, void* scratch);
};

struct KernelTable {
  const Kernel* const* kernels;
  int32_t count;
  const Kernel* plain = nullptr;  // a float32 convolution that shows the room's arithmetic; null: its direct one does
};

}  // namespace p2p::cpu
