// Products of few rows with codes of 8 or 4 bits that are summed as whole numbers, by AVX-512's products of bytes (VNNI): that takes
// fewer instructions than to widen the codes.
//
// x is written with three digits of 8 bits, base 256, in units that are a power of two for each block of kDigitBlock inputs: with 23
// bits below the block's largest number, where float32 has 24 for each number. A block's sums of digits times codes are exact:
//
//     y[j] = sum over blocks of unit * scale[j] * sum over the block's i of (65536 x0 + 256 x1 + x2)[i] * code[j][i]
//
// A row is written and summed by itself, so it has the same bits in every batch.

#pragma once

#include "stored.h"

#ifdef MS_OMNI_VNNI

namespace {

constexpr i64 kDigitBlock = 128;  // inputs
constexpr int kDigits = 3;
constexpr float kLargest = 127 * 65536 + 127 * 256 + 127;  // that three digits write

// Some inputs of a row, in the order in which codes are loaded: as they stand, or (4 bits) first of their pairs and then second ones.
struct DigitBlock {
  __m512i digits[kDigits][2];  // the highest first
  __m512i start[kDigits];      // makes up for codes whose instruction takes 0 .. 255 or 0 .. 15 (there all digits are in the first)
  float unit;
};

// Whether `Digits` are for such a matrix `[.., out, in]`.
inline bool suits_digits(const Matrix &m, i64 in) {
  const bool whole = m.group == in || m.group % kDigitBlock == 0;
  return has_vnni() && (m.kind == kInt8 ? whole : m.kind == kInt4 && in % kBlock == 0 && (whole || m.group == kBlock || m.group == 2 * kBlock));
}

// x `[n]`, n <= kDigitBlock. What is not finite makes the unit NaN, and with it all sums.
inline void write_digits(const float *x, i64 n, bool pairs, DigitBlock &to) {
  constexpr int kParts = kDigitBlock / kLanes;
  vec part[kParts], top = {}, poison = {};
  MS_OMNI_UNROLL for (int i = 0; i < kParts; ++i) {
    part[i] = n >= (i + 1) * kLanes ? load(x + i * kLanes) : load(x + i * kLanes, std::max<i64>(n - i * kLanes, 0));
    top = (vec)_mm512_max_ps((__m512)top, _mm512_abs_ps((__m512)part[i]));
    poison += part[i] - part[i];  // 0, or NaN
  }
  const float largest = _mm512_reduce_max_ps((__m512)top), nothing = _mm512_reduce_add_ps((__m512)poison);
  uint32_t bits;
  std::memcpy(&bits, &largest, sizeof bits);
  bits &= 0x7f800000u;
  float unit;
  std::memcpy(&unit, &bits, sizeof unit);
  unit = std::max(unit, 0x1p-100f) * 0x1p-22f;
  if (largest > kLargest * unit) unit *= 2;
  if (nothing != 0) unit = 1;
  to.unit = unit + nothing;

  const __m512i half = _mm512_set1_epi32(128);
  const __m512 inverse = _mm512_set1_ps(1 / unit);
  MS_OMNI_UNROLL for (int i = 0; i < kParts; ++i) {
    const int which = pairs ? i % 2 : i / 4, place = pairs ? i / 2 : i % 4;
    __m512i number = nothing != 0 ? __m512i{} : _mm512_cvtps_epi32(_mm512_mul_ps((__m512)part[i], inverse));
    for (int digit = kDigits - 1; digit >= 0; --digit) {  // the low byte is the digit, from -128 to 127
      _mm_storeu_si128(reinterpret_cast<__m128i *>(&to.digits[digit][which]) + place, _mm512_cvtepi32_epi8(number));
      number = _mm512_srai_epi32(_mm512_add_epi32(number, half), 8);
    }
  }
  for (int digit = 0; digit < kDigits; ++digit) {
    const __m512i ones = _mm512_set1_epi8(1), sum = _mm512_dpbusd_epi32(__m512i{}, ones, to.digits[digit][0]);
    to.start[digit] = _mm512_dpbusd_epi32(sum, ones, to.digits[digit][1]);
  }
  if (pairs) {
    const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(to.start[0], 8), to.start[1]);
    to.start[0] = _mm512_slli_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), to.start[2]), 3);
    to.start[0] = _mm512_sub_epi32(__m512i{}, to.start[0]);
  } else {
    for (auto &start : to.start) start = _mm512_sub_epi32(__m512i{}, _mm512_slli_epi32(start, 7));
  }
}

// Rows of x `[rows, in]`, written for matrices of one kind.
class Digits {
 public:
  Digits(const float *x, i64 rows, i64 in, i64 kind) : blocks_((in + kDigitBlock - 1) / kDigitBlock), space_(rows * blocks_) {
    for (i64 row = 0; row < rows; ++row)
      for (i64 b = 0; b < blocks_; ++b)
        write_digits(x + row * in + b * kDigitBlock, std::min(in - b * kDigitBlock, kDigitBlock), kind == kInt4, space_[row * blocks_ + b]);
  }

  const DigitBlock *row(i64 i) const { return space_.get() + i * blocks_; }

 private:
  i64 blocks_;
  Space<DigitBlock> space_;
};

// The codes of a block as numbers from 0 on, of which `bytes` bytes are there (Whole: all).
template <bool Pairs, bool Whole>
MS_OMNI_INLINE void load_codes(const char *from, i64 bytes, __m512i *codes) {
  const auto load = [&](i64 at) {
    if constexpr (Whole) return _mm512_loadu_si512(from + at);
    const i64 there = std::min<i64>(std::max<i64>(bytes - at, 0), 64);
    return _mm512_maskz_loadu_epi8(there == 64 ? ~0ull : (1ull << there) - 1, from + at);
  };
  if constexpr (Pairs) {
    const __m512i pairs = load(0), first = _mm512_set1_epi8(15);
    codes[0] = _mm512_and_si512(pairs, first);
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), first);
  } else {
    for (int i = 0; i < 2; ++i) codes[i] = _mm512_xor_si512(load(64 * i), _mm512_set1_epi8(-128));
  }
}

template <bool Pairs>
MS_OMNI_INLINE vec sum_of_block(const DigitBlock &x, const __m512i *codes) {
  const auto add = [&](__m512i sum, int digit) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, codes[0], x.digits[digit][0]), codes[1], x.digits[digit][1]);
  };
  if constexpr (Pairs) {  // codes up to 15 leave room for all digits in 32 bits
    const __m512i high = add(_mm512_slli_epi32(add(__m512i{}, 0), 8), 1);
    return (vec)_mm512_cvtepi32_ps(_mm512_add_epi32(add(_mm512_slli_epi32(high, 8), 2), x.start[0]));
  }
  const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(add(x.start[1], 1), 8), add(x.start[2], 2));
  return fma((vec)_mm512_cvtepi32_ps(add(x.start[0], 0)), all(65536.f), (vec)_mm512_cvtepi32_ps(low));
}

// The sums of the inputs behind the lanes of `sum_of_block`, in the block's unit.
template <bool Pairs>
MS_OMNI_INLINE vec sum_of_inputs(const DigitBlock &x) {
  const auto start = [&](int digit) { return (vec)_mm512_cvtepi32_ps(x.start[digit]); };
  if constexpr (Pairs) return start(0) * (-1.f / 8);
  return (start(0) * 65536.f + start(1) * 256.f + start(2)) * (-1.f / 128);
}

// Where a block's lanes find their scales among those of a row: lane l of a block of pairs sums inputs 32 (l / 4) to 32 (l / 4) + 31.
class LaneGroups {
 public:
  LaneGroups(i64 groups, i64 group) : groups_(groups), group_(group), count_(groups == 1 ? 1 : std::max<i64>(kDigitBlock / group, 1)) {
    integers which = {};
    for (int lane = 0; count_ > 1 && lane < kLanes; ++lane) which[lane] = lane / 4 * kBlock / group;
    which_ = (__m512i)which;
  }

  // For one block after another, of rows that begin at row, row + groups, ...
  void go(i64 block) {
    first_ = std::min(block * kDigitBlock / group_, groups_ - 1);
    there_ = (1u << std::min(count_, groups_ - first_)) - 1;
  }
  MS_OMNI_INLINE vec of(const float *row) const { return (vec)_mm512_permutexvar_ps(which_, _mm512_maskz_loadu_ps(there_, row + first_)); }

 private:
  i64 groups_, group_, count_, first_ = 0;
  __m512i which_;
  __mmask16 there_ = 1;
};

}  // namespace

#endif
