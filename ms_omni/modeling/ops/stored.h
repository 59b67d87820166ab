// Matrices as they are stored, widened to float32 in registers: float32, bfloat16, or codes of 8 or 4 bits with scales and
// offsets, which lie as quantised.py says. Whatever a matrix is stored as, its numbers are those of its dequantised form,
// but for the last bit where there are offsets: code * scale + offset is rounded once here.

#pragma once

#include "bfloat16.h"

namespace {

enum Kind : i64 { kFloat32, kBfloat16, kFloat16, kInt8, kInt4 };  // in the order of KINDS in cpu_table.py

// numbers: or codes, `[..., N, K]`. scales, offsets `[..., N, K / group]`: null where there are none.
#define MS_OMNI_MATRIX(_)                                                              \
  _(const void *, numbers) _(const void *, scales) _(const void *, offsets)            \
  _(i64, kind) _(i64, scale_kind) _(i64, offset_kind) _(i64, group)
STRUCT(Matrix, MS_OMNI_MATRIX);
NAMES(Matrix, Matrix, MS_OMNI_MATRIX)

struct Nibbles { uint8_t pair; };       // two codes of 4 bits
struct Float16 { uint16_t bits; };      // an IEEE number of 16 bits
constexpr i64 kBlock = 32;              // inputs whose codes of 4 bits lie together

// ---- a vector of them ----------------------------------------------------------------------------------------------

typedef int8_t byte_vec __attribute__((vector_size(kLanes), aligned(1), may_alias));
typedef uint8_t ubyte_vec __attribute__((vector_size(kLanes), aligned(1), may_alias));

inline vec load(const int8_t *p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const byte_vec *>(p), integers), vec);
#endif
}

inline vec load(const Float16 *p) {  // the exponent's bias is made right by a product, which is exact
  const words bits = __builtin_convertvector(*reinterpret_cast<const bfloat16_vec *>(p), words);
  const vec rest = (vec)((bits & 0x7fffu) << 13) * 0x1p112f;
  const words infinite = (words)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (vec)((words)rest | infinite | (bits & 0x8000u) << 16);
}

template <class T>
inline void widen_all(const T *from, i64 n, float *to) {
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i == n) return;
  T part[kLanes] = {};
  std::copy(from + i, from + n, part);
  store(to + i, load(part), n - i);
}

// Scales or offsets [begin, begin + n).
inline void widen_all(const void *from, i64 kind, i64 begin, i64 n, float *to) {
  if (kind == kFloat32) std::copy_n(static_cast<const float *>(from) + begin, n, to);
  else if (kind == kBfloat16) widen_all(static_cast<const Bfloat16 *>(from) + begin, n, to);
  else widen_all(static_cast<const Float16 *>(from) + begin, n, to);
}

// ---- codes with a scale and an offset ------------------------------------------------------------------------------

// What makes float32 numbers of a row of W, as it is stored: kParts vectors of neighbours at a time, or a single one.
// shift is what the code 0 of the bits stands for: the offset, and for 4 bits the offset - 8 scale.
template <class W>
struct Widener {  // float, Bfloat16
  static constexpr int kParts = 1;
  static constexpr bool kScaled = false;
  static constexpr i64 place(i64 i) { return i; }  // of input i in a row

  Widener() = default;
  Widener(float, float) {}
  MS_OMNI_INLINE void operator()(const W *row, i64 i, vec *to) const { to[0] = load(row + i); }
  float one(const W *row, i64 i) const { return widen(row[i]); }
};

template <>
struct Widener<int8_t> {
#ifdef MS_OMNI_NEON
  static constexpr int kParts = 4;
#else
  static constexpr int kParts = 1;
#endif
  static constexpr bool kScaled = true;
  static constexpr i64 place(i64 i) { return i; }

  vec scale, shift;
  Widener() = default;
  Widener(float scale, float shift) : scale(all(scale)), shift(all(shift)) {}

  MS_OMNI_INLINE void operator()(const int8_t *row, i64 i, vec *to) const {
#ifdef MS_OMNI_NEON
    const int8x16_t codes = vld1q_s8(row + i);
    const int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_s8(vget_high_s8(codes));
    to[0] = fma((vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), scale, shift);
    to[1] = fma((vec)vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))), scale, shift);
    to[2] = fma((vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), scale, shift);
    to[3] = fma((vec)vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))), scale, shift);
#else
    to[0] = fma(load(row + i), scale, shift);
#endif
  }
  float one(const int8_t *row, i64 i) const { return fma(static_cast<float>(row[i]), scale[0], shift[0]); }
};

template <>
struct Widener<Nibbles> {
  static constexpr int kParts = kBlock / kLanes;
  static constexpr bool kScaled = true;
  static constexpr i64 place(i64 i) { return i >> 1; }

#ifdef __AVX512F__  // what each of the sixteen codes stands for, found by its number
  vec table;
  Widener() = default;
  Widener(float scale, float shift)
      : table(fma(scale, vec{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, all(shift))) {}

  MS_OMNI_INLINE void operator()(const Nibbles *row, i64 i, vec *to) const {
    const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(row + (i >> 1))));
    to[0] = (vec)_mm512_permutexvar_ps(pairs, (__m512)table);  // looks at the last four bits alone
    to[1] = (vec)_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), (__m512)table);
  }
  float one(const Nibbles *row, i64 i) const { return table[code(row, i)]; }
#else
  vec scale, shift;
  Widener() = default;
  Widener(float scale, float shift) : scale(all(scale)), shift(all(shift)) {}

  MS_OMNI_INLINE void operator()(const Nibbles *row, i64 i, vec *to) const {
    const uint8_t *p = &row[i >> 1].pair;
#if defined(__AVX2__)
    MS_OMNI_UNROLL for (int part = 0; part < 2; ++part) {
      const __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p + 8 * part)));
      to[part] = fma((vec)_mm256_cvtepi32_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(15))), scale, shift);
      to[part + 2] = fma((vec)_mm256_cvtepi32_ps(_mm256_srli_epi32(pairs, 4)), scale, shift);
    }
#elif defined(MS_OMNI_NEON)
    const uint8x16_t pairs = vld1q_u8(p), halves[] = {vandq_u8(pairs, vdupq_n_u8(15)), vshrq_n_u8(pairs, 4)};
    MS_OMNI_UNROLL for (int half = 0; half < 2; ++half) {
      const uint16x8_t low = vmovl_u8(vget_low_u8(halves[half])), high = vmovl_u8(vget_high_u8(halves[half]));
      to[4 * half] = fma((vec)vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), scale, shift);
      to[4 * half + 1] = fma((vec)vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))), scale, shift);
      to[4 * half + 2] = fma((vec)vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), scale, shift);
      to[4 * half + 3] = fma((vec)vcvtq_f32_u32(vmovl_u16(vget_high_u16(high))), scale, shift);
    }
#else
    MS_OMNI_UNROLL for (int part = 0; part < kParts / 2; ++part) {
      const integers pairs = __builtin_convertvector(*reinterpret_cast<const ubyte_vec *>(p + kLanes * part), integers);
      to[part] = fma(__builtin_convertvector(pairs & 15, vec), scale, shift);
      to[part + kParts / 2] = fma(__builtin_convertvector(pairs >> 4, vec), scale, shift);
    }
#endif
  }
  float one(const Nibbles *row, i64 i) const { return fma(static_cast<float>(code(row, i)), scale[0], shift[0]); }
#endif

 private:
  static int code(const Nibbles *row, i64 i) {
    const int pair = row[i / kBlock * (kBlock / 2) + i % (kBlock / 2)].pair;
    return i % kBlock < kBlock / 2 ? pair & 15 : pair >> 4;
  }
};

// ---- rows of a matrix ----------------------------------------------------------------------------------------------

inline i64 row_bytes(const Matrix &m, i64 in) {
  return m.kind == kFloat32 ? 4 * in : m.kind == kBfloat16 ? 2 * in : m.kind == kInt8 ? in : in / 2;
}

// function(pointer to the numbers), as what they are.
template <class Function>
inline void with_numbers(const Matrix &m, const Function &function) {
  if (m.kind == kFloat32) function(static_cast<const float *>(m.numbers));
  else if (m.kind == kBfloat16) function(static_cast<const Bfloat16 *>(m.numbers));
  else if (m.kind == kInt8) function(static_cast<const int8_t *>(m.numbers));
  else function(static_cast<const Nibbles *>(m.numbers));
}

// Scales and shifts (see `Widener`) of some rows in a row, in float32.
class Scales {
 public:
  i64 groups = 1, group;
  bool shifted = false;  // whether there are offsets

  explicit Scales(i64 in) : group(in) {}  // none

  Scales(const float *scales, i64 in, i64 rows) : Scales(Matrix{nullptr, scales, nullptr, kInt8, kFloat32, 0, in}, in, 0, rows) {}

  Scales(const Matrix &m, i64 in, i64 row, i64 rows) : group(in) {
    if (!m.scales) return;
    group = m.group, groups = in / group, shifted = m.offsets;
    const i64 n = rows * groups;
    space_ = Space<>(2 * n);
    shifts_ = space_.get() + n;
    widen_all(m.scales, m.scale_kind, row * groups, n, space_.get());
    if (m.offsets) widen_all(m.offsets, m.offset_kind, row * groups, n, shifts_);
    else std::fill_n(shifts_, n, 0.f);
    if (m.kind == kInt4) add_scaled(shifts_, space_.get(), -8.f, n);
  }

  const float *scales(i64 row) const { return space_.get() + row * groups; }
  const float *shifts(i64 row) const { return shifts_ + row * groups; }

  template <class W>
  Widener<W> of(i64 row, i64 g) const {  // row: 0 is the first of them
    if constexpr (!Widener<W>::kScaled) return {1.f, 0.f};
    else return {space_[row * groups + g], shifts_[row * groups + g]};
  }

 private:
  Space<> space_;
  float *shifts_ = nullptr;
};

// to[i] = number begin + i of a row, for i in [0, n). begin: a multiple of 32 where codes have 4 bits.
inline void widen_row(const Matrix &m, i64 in, i64 row, i64 begin, i64 n, float *to, const Scales &scales, i64 place) {
  with_numbers(m, [&](auto *numbers) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(numbers)>>;
    constexpr i64 step = Widener<W>::kParts * kLanes;
    const W *from = numbers + Widener<W>::place(row * in);
    const i64 end = begin + n;
    for (i64 i = begin; i < end;) {
      const i64 g = i / scales.group, stop = std::min((g + 1) * scales.group, end);
      const auto widener = scales.template of<W>(place, g);
      for (; i + step <= stop; i += step) {
        vec part[Widener<W>::kParts];
        widener(from, i, part);
        for (int p = 0; p < Widener<W>::kParts; ++p) store(to + i - begin + p * kLanes, part[p]);
      }
      for (; i < stop; ++i) to[i - begin] = widener.one(from, i);
    }
  });
}

inline void widen_row(const Matrix &m, i64 in, i64 row, float *to) {
  widen_row(m, in, row, 0, in, to, Scales(m, in, row, 1), 0);
}

}  // namespace
