// Vectors of floats in the compiler's own vector types, as wide as the processor has them, and functions of them.
// A function gives a number the same bits in every lane; the compiler must not reorder sums here.

#pragma once

#include "aot.h"

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4;  // floats per vector, vectors side by side in a tile of a product
#else
constexpr int kLanes = 8, kVectors = 2;
#endif
constexpr int kWide = kLanes * kVectors;
typedef float vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));

inline vec load(const float *x) { return *reinterpret_cast<const vec *>(x); }
inline void store(float *y, vec x) { *reinterpret_cast<vec *>(y) = x; }
inline vec all(float x) { return vec{} + x; }

inline integers nearest(vec x) { return __builtin_convertvector(x + (x < 0 ? all(-0.5f) : all(0.5f)), integers); }

// 2^n e^r with |r| <= ln(2)/2, relative error 1e-7; zero below the normal numbers, limited above them.
inline vec exponential(vec x) {
  const vec limited = x < -87.3f ? all(-87.3f) : x > 88.3f ? all(88.3f) : x;
  const integers n = nearest(limited * 1.44269504f);
  const vec whole = __builtin_convertvector(n, vec);
  const vec r = (limited - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec p = all(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = p * r + c;
  const integers bits = (n + 127) << 23;
  const vec y = p * (vec)bits;
  return x < -87.3f ? vec{} : x == x ? y : x;
}

inline vec logistic(vec x) { return 1.f / (1.f + exponential(-x)); }

// x Phi(x); erfc by the Chebyshev fit of Press et al., Numerical Recipes 6.2, relative error 1.2e-7.
inline vec gaussian_linear(vec x) {
  const vec z = (x < 0 ? -x : x) * 0.70710678f, t = 1.f / (1.f + 0.5f * z);
  vec p = all(0.17087277f);
  for (float c : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f, 0.37409196f,
                  1.00002368f, -1.26551223f})
    p = p * t + c;
  const vec half = 0.5f * t * exponential(p - z * z);
  return x * (x > 0 ? 1.f - half : half);
}

inline vec gaussian_tanh(vec x) { return x * logistic(1.59576912f * (x + 0.044715f * x * x * x)); }

// sin^2: the argument less a multiple of pi, which one multiply-add takes off exactly.
inline vec squared_sine(vec y) {
  const vec n = __builtin_convertvector(nearest(y * 0.318309886f), vec);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const vec r = (y - n * 3.14159274f) + n * 8.74227766e-8f, s = r * r;
#else
  const vec r = ((y - n * 3.140625f) - n * 9.67502594e-4f) - n * 1.50995799e-7f, s = r * r;
#endif
  vec p = all(1.f / 6227020800);
  for (float c : {-1.f / 39916800, 1.f / 362880, -1.f / 5040, 1.f / 120, -1.f / 6, 1.f}) p = p * s + c;
  return s * p * p;
}

// y[i] = function(x[i]) for i in [0, n): the last elements go through a vector of their own.
template <class Function>
void map(const float *x, float *y, i64 n, const Function &function) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, function(load(x + i)));
  if (i == n) return;
  float rest[kLanes] = {};
  std::copy(x + i, x + n, rest);
  store(rest, function(load(rest)));
  std::copy(rest, rest + n - i, y + i);
}

}  // namespace
