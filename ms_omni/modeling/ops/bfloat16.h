// bfloat16 numbers as they lie in memory, widened to float32.

#pragma once

#include "vectors.h"

namespace {

using Bfloat16 = uint16_t;  // the upper half of a float32
typedef Bfloat16 bfloat16_vec __attribute__((vector_size(kLanes * sizeof(Bfloat16)), aligned(2), may_alias));

inline vec load(const Bfloat16 *p) {
#ifdef MS_OMNI_NEON  // one load and one instruction, where GCC makes four of each
  return (vec)vshll_n_u16(vld1_u16(p), 16);
#elif defined(__AVX512F__)
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16);
#elif defined(__AVX2__)
  return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))), 16);
#else
  return (vec)(__builtin_convertvector(*reinterpret_cast<const bfloat16_vec *>(p), words) << 16);
#endif
}
inline float widen(float x) { return x; }
inline float widen(int8_t x) { return x; }
inline float widen(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

}  // namespace
