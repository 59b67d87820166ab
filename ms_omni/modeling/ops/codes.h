// Rows of float32 numbers as codes of 8 bits with a scale each: what a cache of keys and values keeps.

#pragma once

#include "stored.h"

namespace {

// x `[n]` -> the nearest multiples of scale = max |x| / 127. Where x is not finite the scale is not either, so that nothing that is
// made of these codes is.
inline void encode(const float *x, i64 n, int8_t *codes, float &scale) {
  float top = 0, poison = 0;
  for (i64 i = 0; i < n; ++i) {
    top = std::max(top, std::abs(x[i]));
    poison += x[i] - x[i];  // 0, or NaN
  }
  scale = top / 127.f + poison;
  constexpr float large = 3 << 22;  // a sum with it is rounded to the nearest whole number, ties to the even one
  for (i64 i = 0; i < n; ++i) {
    const float code = scale > 0 ? x[i] / scale : 0.f;
    codes[i] = static_cast<int8_t>((std::min(std::max(code, -127.f), 127.f) + large) - large);
  }
}

inline void decode(const int8_t *codes, float scale, i64 n, float *x) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(codes + i) * scale);
  for (; i < n; ++i) x[i] = static_cast<float>(codes[i]) * scale;
}

}  // namespace
