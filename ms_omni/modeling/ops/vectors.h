// Vectors of floats in the compiler's own vector types, as wide as the processor has them, and functions of them.
//
// What these files promise about bits rests on the source alone: build.py lets a compiler neither fuse nor reorder, so an
// expression is rounded as it stands. Where a product is to be added without being rounded first, it says `fma`.
// A function gives a number the same bits in every lane, and the last numbers of an array the same as those before.

#pragma once

#include "aot.h"

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 9
#error this is g++ older than 9, which lacks conversions of vectors: CXX names a newer one, or clang++
#endif

#if defined(__AVX__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)  // every such processor has NEON with fused multiply-adds
#define MS_OMNI_NEON
#include <arm_neon.h>
#endif

#ifdef __clang__
#define MS_OMNI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define MS_OMNI_UNROLL _Pragma("unroll")
#else
#define MS_OMNI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, integers{__VA_ARGS__})
#define MS_OMNI_UNROLL _Pragma("GCC unroll 16")
#endif
#define MS_OMNI_INLINE inline __attribute__((always_inline))

namespace {

// Floats per vector, and vectors whose sums stay in registers side by side.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;
#elif defined(MS_OMNI_NEON)
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr int kLanes = 4, kVectors = 2;
#endif
typedef float vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(kLanes * sizeof(uint32_t)), aligned(4), may_alias));
using Places = std::make_integer_sequence<int, kLanes>;

// Memory that begins with a cache line: a vector that lies in two of them takes several times as long to be loaded. Large blocks are
// kept for the next call: the system would clear every page of a new one, which takes longer than most products.
class Blocks {
 public:
  static void *take(size_t bytes) {
    auto &all = instance();
    if (bytes >= kLarge) {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      for (auto &block : all.kept_)
        if (bytes <= size_of(block) && size_of(block) <= 2 * bytes) {
          void *found = block;
          all.bytes_ -= size_of(found);
          block = all.kept_.back();
          all.kept_.pop_back();
          return found;
        }
    }
    char *made = static_cast<char *>(::operator new(bytes + kLine, std::align_val_t(kLine))) + kLine;
    size_of(made) = bytes;
    return made;
  }

  static void give(void *block) {
    auto &all = instance();
    const size_t bytes = size_of(block);
    if (bytes >= kLarge) {
      const std::lock_guard<std::mutex> lock(all.mutex_);
      if (all.bytes_ + bytes <= kKept) {
        all.kept_.push_back(block);
        all.bytes_ += bytes;
        return;
      }
    }
    ::operator delete(static_cast<char *>(block) - kLine, std::align_val_t(kLine));
  }

 private:
  static constexpr size_t kLine = 64, kLarge = 1 << 16, kKept = 48 << 20;

  static size_t &size_of(void *block) { return *reinterpret_cast<size_t *>(static_cast<char *>(block) - kLine); }
  static Blocks &instance() {
    static Blocks &all = *new Blocks;  // threads may outlive what is destroyed at the end
    return all;
  }

  std::mutex mutex_;
  std::vector<void *> kept_;
  size_t bytes_ = 0;
};

template <class T>
struct Lines {
  using value_type = T;
  Lines() = default;
  template <class U>
  Lines(const Lines<U> &) {}
  T *allocate(size_t n) { return static_cast<T *>(Blocks::take(n * sizeof(T))); }
  void deallocate(T *p, size_t) { Blocks::give(p); }
  void operator()(T *p) { Blocks::give(p); }
  template <class U>
  bool operator==(const Lines<U> &) const { return true; }
  template <class U>
  bool operator!=(const Lines<U> &) const { return false; }
};

using Floats = std::vector<float, Lines<float>>;

// Room for n numbers that are not set.
template <class T = float>
class Space : public std::unique_ptr<T[], Lines<T>> {
 public:
  Space() = default;
  explicit Space(i64 n) : std::unique_ptr<T[], Lines<T>>(Lines<T>().allocate(n)) {}
};

inline vec load(const float *x) { return *reinterpret_cast<const vec *>(x); }
inline void store(float *y, vec x) { *reinterpret_cast<vec *>(y) = x; }
inline vec all(float x) { return x - vec{}; }  // not a sum with zero: that would have to be done, for the sake of -0

inline vec load(const float *x, i64 count) {  // zeros behind the first `count` numbers
  float part[kLanes] = {};
  std::copy(x, x + count, part);
  return load(part);
}

inline void store(float *y, vec x, i64 count) {
  float part[kLanes];
  store(part, x);
  std::copy(part, part + count, y);
}

// a b + c, rounded once. Processors without that instruction round the product too, here as everywhere.
#if defined(__AVX512F__)
inline vec fma(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__FMA__)
inline vec fma(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(MS_OMNI_NEON)
inline vec fma(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
#define MS_OMNI_NO_FMA
inline vec fma(vec a, vec b, vec c) { return a * b + c; }
#endif
inline vec fma(float a, vec b, vec c) { return fma(all(a), b, c); }
inline vec fma(vec a, vec b, float c) { return fma(a, b, all(c)); }

inline float fma(float a, float b, float c) {
#ifdef MS_OMNI_NO_FMA
  return a * b + c;
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// ---- all lanes of a vector -----------------------------------------------------------------------------------------

template <int Step, int... Lane>
inline vec exchanged(vec x, std::integer_sequence<int, Lane...>) {
  return MS_OMNI_SHUFFLE(x, x, (Lane ^ Step)...);
}

// Lanes i and i ^ kLanes / 2 first, neighbours last.
template <int Step = kLanes / 2, class Function>
inline float reduce(vec x, const Function &function) {
  x = function(x, exchanged<Step>(x, Places()));
  if constexpr (Step > 1) return reduce<Step / 2>(x, function);
  return x[0];
}

inline float total(vec x) { return reduce(x, [](vec a, vec b) { return a + b; }); }
inline vec larger(vec a, vec b) { return a > b ? a : b; }
inline float largest(vec x) { return reduce(x, larger); }

// ---- functions of one number ---------------------------------------------------------------------------------------

inline integers nearest(vec x) { return __builtin_convertvector(x + (x < 0 ? all(-0.5f) : all(0.5f)), integers); }

template <class... Coefficients>
inline vec polynomial(vec x, float highest, Coefficients... rest) {
  vec p = all(highest);
  ((p = fma(p, x, rest)), ...);
  return p;
}

// 2^n e^r with |r| <= ln(2)/2, relative error 1e-7; zero below the normal numbers, limited above them.
inline vec exponential(vec x) {
  constexpr float large = 3 << 22;  // a sum with it has the nearest whole number in its last bits
  const vec limited = x > 88.3f ? all(88.3f) : x, shifted = fma(1.44269504f, limited, all(large)), n = shifted - large;
  const vec r = fma(2.12194440e-4f, n, fma(-0.693359375f, n, limited));
  const vec p = polynomial(r, 1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f);
  const words power = ((words)shifted << 23) + (127u << 23);  // of numbers far below, whatever comes out
  return x < -87.3f ? vec{} : p * (vec)power;
}

inline vec logistic(vec x) { return 1.f / (1.f + exponential(-x)); }
inline vec sigmoid_linear(vec x) { return x * logistic(x); }

// x Phi(x); erfc by the Chebyshev fit of Press et al., Numerical Recipes 6.2, relative error 1.2e-7.
inline vec gaussian_linear(vec x) {
  const vec z = (x < 0 ? -x : x) * 0.70710678f, t = 1.f / fma(0.5f, z, all(1.f));
  const vec p = polynomial(t, 0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                           0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f);
  const vec half = 0.5f * t * exponential(fma(-z, z, p));
  return x * (x > 0 ? 1.f - half : half);
}

inline vec gaussian_tanh(vec x) { return x * logistic(1.59576912f * fma(0.044715f * x * x, x, x)); }

// sin^2: the argument less a multiple of pi, in parts of which all but the last are taken off exactly. 0 where float32 does not
// tell the turns of a circle apart any more.
inline vec squared_sine(vec y) {
  constexpr float turns = 26353589.f;  // 2^23 pi
  y = ((y < turns) & (y > -turns)) ? y : vec{};
  const vec n = __builtin_convertvector(nearest(y * 0.318309886f), vec);
#ifdef MS_OMNI_NO_FMA
  const vec r = ((y - n * 3.140625f) - n * 9.67502594e-4f) - n * 1.50995799e-7f;
#else
  const vec r = fma(8.74227766e-8f, n, fma(-3.14159274f, n, y));
#endif
  const vec s = r * r;
  const vec p = polynomial(s, 1.f / 6227020800, -1.f / 39916800, 1.f / 362880, -1.f / 5040, 1.f / 120, -1.f / 6, 1.f);
  return s * p * p;
}

// ---- arrays --------------------------------------------------------------------------------------------------------

// y[i] = function(x[i], ...) for i in [0, n); y may be one of the x.
template <class Function, class... Inputs>
inline void map(i64 n, float *y, const Function &function, const Inputs *...x) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, function(load(x + i)...));
  if (i < n) store(y + i, function(load(x + i, n - i)...), n - i);
}

// The sum of function(x[i], sum so far) in four parts that take turns, so that none waits for the one before.
template <class Function, class... Inputs>
inline float accumulate(i64 n, const Function &function, const Inputs *...x) {
  vec part[4] = {};
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    MS_OMNI_UNROLL for (int p = 0; p < 4; ++p) part[p] = function(part[p], load(x + i + p * kLanes)...);
  for (; i + kLanes <= n; i += kLanes) part[0] = function(part[0], load(x + i)...);
  if (i < n) part[1] = function(part[1], load(x + i, n - i)...);
  return total((part[0] + part[1]) + (part[2] + part[3]));
}

inline float sum(const float *x, i64 n) {
  return accumulate(n, [](vec so_far, vec x) { return so_far + x; }, x);
}

inline float dot(const float *a, const float *b, i64 n) {
  return accumulate(n, [](vec so_far, vec a, vec b) { return fma(a, b, so_far); }, a, b);
}

inline float largest(const float *x, i64 n) {  // n > 0; in four parts, as `accumulate`
  vec top[4] = {all(x[0]), all(x[0]), all(x[0]), all(x[0])};
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    MS_OMNI_UNROLL for (int p = 0; p < 4; ++p) top[p] = larger(load(x + i + p * kLanes), top[p]);
  for (; i + kLanes <= n; i += kLanes) top[0] = larger(load(x + i), top[0]);
  for (; i < n; ++i) top[1] = larger(all(x[i]), top[1]);
  return largest(larger(larger(top[0], top[1]), larger(top[2], top[3])));
}

inline void add_scaled(float *y, const float *x, float factor, i64 n) {
  map(n, y, [=](vec y, vec x) { return fma(factor, x, y); }, y, x);
}

// Softmax of one row, in place.
inline void softmax(float *x, i64 n) {
  const float top = n ? largest(x, n) : 0.f;
  map(n, x, [=](vec x) { return exponential(x - top); }, x);
  const float all_of_it = sum(x, n);
  map(n, x, [=](vec x) { return x / all_of_it; }, x);
}

}  // namespace
