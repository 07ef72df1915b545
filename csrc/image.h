// The border between the caller's pictures and the engine's rows of floats in [-1, 1].
//
// In:  uint8 x / 127.5 - 1, uint16 x / 32767.5 - 1, float32 from [low, high] to [-1, 1].
// Out: the inverse. Integers are clamped and rounded to the nearest, ties to even (reference: np.rint((y + 1) * 127.5)); floats
// stay as they are, so a network without tanh may leave the range and a NaN is seen.
// Sizes that are no multiple of 2^depth are padded by reflection at the bottom and the right and cropped back;
// np.pad(mode="reflect") is the rule (an axis of one pixel repeats it).
#pragma once
#include <cstdint>
#include <vector>

namespace p2p {

enum class PixelType : uint8_t { kU8, kU16, kF32 };

// Any strides, in bytes; negative and zero included.
struct ImageView {
  char* data;
  PixelType type;
  int32_t n, h, w, c;
  int64_t stride_n, stride_h, stride_w, stride_c;
  float low, high;  // value range of floats
};

// source[i] for i < padded: the index that reflection padding of `size` pixels reads.
std::vector<int32_t> reflect_indices(int32_t size, int32_t padded);

// A picture of the batch bound to an executable's padded size.
struct BoundPicture {
  const ImageView* source;
  const ImageView* target;
  int32_t index;                 // place in the batch
  int32_t padded_h, padded_w;
  const int32_t* rows;           // reflect_indices of the two axes
  const int32_t* columns;
};

// The two functions of cpu::Picture; `context` is a BoundPicture.
void load_rows(const void* context, int32_t first, int32_t count, float* dst);
void store_row(const void* context, int32_t row, const float* src);

}  // namespace p2p
