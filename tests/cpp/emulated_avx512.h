// The instructions of the rooms avx512, avx512bf16 and amx, each as two of AVX2: a build with P2P_EMULATE=ON runs these
// rooms, with all their tests, on a CPU that has none of them. It proves results, not speed. CMake includes it before each
// file of these rooms; what they use and this lacks does not compile.
//
// As Intel's manual: VDPBF16PS rounds after each of its two products, odd before even, reads and writes denormals as zero
// (not emulated: tests have none); VCVTNEPS2BF16 and the tiles' arithmetic are the same.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace emulated {
namespace type {  // of its own, that add(a, b) in a room be the room's
struct alignas(64) V512 {
  __m256 lo, hi;
};
}  // namespace type
using type::V512;

#define P2P_EACH(name, op) \
  static inline V512 name(V512 a, V512 b) { return {op(a.lo, b.lo), op(a.hi, b.hi)}; }
P2P_EACH(add, _mm256_add_ps)
P2P_EACH(sub, _mm256_sub_ps)
P2P_EACH(mul, _mm256_mul_ps)
P2P_EACH(div, _mm256_div_ps)
P2P_EACH(max, _mm256_max_ps)
P2P_EACH(min, _mm256_min_ps)
#undef P2P_EACH

static inline V512 fmadd(V512 a, V512 b, V512 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline V512 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline V512 set1(int32_t x) {
  const __m256 half = _mm256_castsi256_ps(_mm256_set1_epi32(x));
  return {half, half};
}
static inline V512 load(const void* p) { return {_mm256_loadu_ps((const float*)p), _mm256_loadu_ps((const float*)p + 8)}; }
static inline void store(void* p, V512 v) {
  _mm256_storeu_ps((float*)p, v.lo);
  _mm256_storeu_ps((float*)p + 8, v.hi);
}
static inline V512 round_nearest(V512 v) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(v.lo, kNearest), _mm256_round_ps(v.hi, kNearest)};
}

static inline __m256i bits(__m256 v) { return _mm256_castps_si256(v); }
static inline __m256 floats(__m256i v) { return _mm256_castsi256_ps(v); }
static inline V512 integers(V512 v) { return {floats(_mm256_cvtps_epi32(v.lo)), floats(_mm256_cvtps_epi32(v.hi))}; }
static inline V512 add_integers(V512 a, V512 b) {
  return {floats(_mm256_add_epi32(bits(a.lo), bits(b.lo))), floats(_mm256_add_epi32(bits(a.hi), bits(b.hi)))};
}
static inline V512 shift_left(V512 v, int n) {
  return {floats(_mm256_slli_epi32(bits(v.lo), n)), floats(_mm256_slli_epi32(bits(v.hi), n))};
}
static inline V512 both(V512 a, V512 b) {
  return {floats(_mm256_and_si256(bits(a.lo), bits(b.lo))), floats(_mm256_and_si256(bits(a.hi), bits(b.hi)))};
}
static inline V512 either(V512 a, V512 b) {
  return {floats(_mm256_or_si256(bits(a.lo), bits(b.lo))), floats(_mm256_or_si256(bits(a.hi), bits(b.hi)))};
}
static inline V512 from_integers(V512 v) { return {_mm256_cvtepi32_ps(bits(v.lo)), _mm256_cvtepi32_ps(bits(v.hi))}; }
static inline V512 widen(__m256i halves) {
  return {floats(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves))),
          floats(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves, 1)))};
}

// To the nearest bf16, ties to even, in the upper half of each lane; NaN stays NaN.
static inline __m256i nearest_bf16(__m256 v) {
  const __m256i x = bits(v), odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(bits(_mm256_blendv_ps(floats(up), floats(quiet), _mm256_cmp_ps(v, v, _CMP_UNORD_Q))), 16);
}
static inline __m256i to_bf16(V512 v) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(nearest_bf16(v.lo), nearest_bf16(v.hi)), 0xD8);
}

static inline __m256 even(__m256 v) { return floats(_mm256_slli_epi32(bits(v), 16)); }
static inline __m256 odd(__m256 v) { return floats(_mm256_and_si256(bits(v), _mm256_set1_epi32((int)0xFFFF0000))); }
static inline __m256 dot_half(__m256 sum, __m256 a, __m256 b) {
  return _mm256_fmadd_ps(even(a), even(b), _mm256_fmadd_ps(odd(a), odd(b), sum));
}
static inline V512 dot_bf16(V512 sum, V512 a, V512 b) {
  return {dot_half(sum.lo, a.lo, b.lo), dot_half(sum.hi, a.hi, b.hi)};
}

// AMX: eight tiles of a thread, of 16 rows of 64 bytes. Every room's tile is whole; another configuration is refused.
struct alignas(64) Tile {
  char row[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

static inline void check(bool holds) {
  if (!holds) __builtin_trap();
}
static inline void configure(const void* config) {
  const auto* byte = (const uint8_t*)config;
  check(byte[0] == 1 && byte[1] == 0);
  for (int t = 0; t < 8; ++t) check(byte[16 + 2 * t] == 64 && byte[17 + 2 * t] == 0 && byte[48 + t] == 16);
  configured = true;
}
static inline void release() { configured = false; }
static inline void zero(int tile) {
  check(configured);
  tiles[tile] = Tile{};
}
static inline void load_tile(int tile, const void* from, int64_t step) {
  check(configured);
  for (int r = 0; r < 16; ++r) __builtin_memcpy(tiles[tile].row[r], (const char*)from + r * step, 64);
}
static inline void store_tile(int tile, void* to, int64_t step) {
  check(configured);
  for (int r = 0; r < 16; ++r) __builtin_memcpy((char*)to + r * step, tiles[tile].row[r], 64);
}
static inline void dot_tile(int sum, int a, int b) {
  check(configured);
  for (int r = 0; r < 16; ++r) {
    V512 total = load(tiles[sum].row[r]);
    for (int k = 0; k < 16; ++k) {
      int32_t pair;
      __builtin_memcpy(&pair, tiles[a].row[r] + 4 * k, 4);
      total = dot_bf16(total, set1(pair), load(tiles[b].row[k]));
    }
    store(tiles[sum].row[r], total);
  }
}
}  // namespace emulated

#define __m512 emulated::V512
#define __m512i emulated::V512
#define __m512bh emulated::V512
#define _mm512_setzero_ps() emulated::set1(0.0f)
#define _mm512_setzero_si512() emulated::set1(0)
#define _mm512_set1_ps(x) emulated::set1((float)(x))
#define _mm512_set1_epi32(x) emulated::set1((int32_t)(x))
#define _mm512_load_ps(p) emulated::load(p)
#define _mm512_loadu_ps(p) emulated::load(p)
#define _mm512_load_si512(p) emulated::load(p)
#define _mm512_storeu_ps(p, v) emulated::store(p, v)
#define _mm512_store_si512(p, v) emulated::store(p, v)
#define _mm512_add_ps(a, b) emulated::add(a, b)
#define _mm512_sub_ps(a, b) emulated::sub(a, b)
#define _mm512_mul_ps(a, b) emulated::mul(a, b)
#define _mm512_div_ps(a, b) emulated::div(a, b)
#define _mm512_max_ps(a, b) emulated::max(a, b)
#define _mm512_min_ps(a, b) emulated::min(a, b)
#define _mm512_fmadd_ps(a, b, c) emulated::fmadd(a, b, c)
#define _mm512_roundscale_ps(v, mode) emulated::round_nearest(v)  // the one mode that the rooms use
#define _mm512_cvtps_epi32(v) emulated::integers(v)
#define _mm512_cvtepi32_ps(v) emulated::from_integers(v)
#define _mm512_add_epi32(a, b) emulated::add_integers(a, b)
#define _mm512_and_si512(a, b) emulated::both(a, b)
#define _mm512_or_si512(a, b) emulated::either(a, b)
#define _mm512_slli_epi32(v, n) emulated::shift_left(v, n)
#define _mm512_castsi512_ps(v) (v)
#define _mm512_cvtepu16_epi32(v) emulated::widen(v)
#define _mm512_cvtneps_pbh(v) emulated::to_bf16(v)
#define _mm512_dpbf16_ps(sum, a, b) emulated::dot_bf16(sum, a, b)
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::configure(config)
#define _tile_release() emulated::release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, from, step) emulated::load_tile(tile, from, step)
#define _tile_stored(tile, to, step) emulated::store_tile(tile, to, step)
#define _tile_dpbf16ps(sum, a, b) emulated::dot_tile(sum, a, b)
