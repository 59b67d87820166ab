// Panels (see gemm.h) of matrices as they are stored: bfloat16 numbers are widened and codes are dequantised while they are
// packed, so that a product is one of float32 whatever its matrix is stored as.

#pragma once

#include "gemm.h"
#include "stored.h"

namespace {

inline float widen(Float16 x) {
  const Float16 all_lanes[kLanes] = {x};
  return load(all_lanes)[0];
}

// to[g][lane] = from[lane][g] for `groups` groups of `rows` rows that lie `distance` apart, zero in the other lanes.
template <class T>
inline void gather_lanes(const T *from, i64 distance, i64 rows, i64 groups, float (*to)[kLanes]) {
  for (i64 g = 0; g < groups; ++g)
    for (i64 lane = 0; lane < kLanes; ++lane) to[g][lane] = lane < rows ? widen(from[lane * distance + g]) : 0.f;
}

inline void gather_lanes(const void *from, i64 kind, i64 begin, i64 distance, i64 rows, i64 groups, float (*to)[kLanes]) {
  if (kind == kFloat32) gather_lanes(static_cast<const float *>(from) + begin, distance, rows, groups, to);
  else if (kind == kBfloat16) gather_lanes(static_cast<const Bfloat16 *>(from) + begin, distance, rows, groups, to);
  else gather_lanes(static_cast<const Float16 *>(from) + begin, distance, rows, groups, to);
}

// Scales and shifts (as in stored.h) of kLanes rows in the groups that some inputs are in; nothing where there are no scales.
class LaneScales {
 public:
  // Rows from `row` on of which there are `rows`, inputs [begin, begin + k), at most kSum.
  LaneScales(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k) {
    if (!m.scales) return;
    const i64 groups = in / m.group, first = begin / m.group, count = (begin + k - 1) / m.group - first + 1;
    gather_lanes(m.scales, m.scale_kind, row * groups + first, groups, rows, count, scale_);
    if (m.offsets) gather_lanes(m.offsets, m.offset_kind, row * groups + first, groups, rows, count, shift_);
    for (i64 g = 0; g < count; ++g) {
      const vec offset = m.offsets ? load(shift_[g]) : vec{};
      store(shift_[g], m.kind == kInt4 ? fma(-8.f, load(scale_[g]), offset) : offset);
      const i64 from = std::max((first + g) * m.group - begin, i64{0});
      std::fill(group_ + from, group_ + std::min((first + g + 1) * m.group - begin, k), g);
    }
    std::fill(group_ + k, group_ + std::min(k + 3, kSum), 0);  // of the word that the last input is in
  }
  vec operator()(i64 i, integers codes) const {
    const i64 g = group_[i];
    return fma(__builtin_convertvector(codes, vec), load(scale_[g]), load(shift_[g]));
  }

 private:
  float scale_[kSum][kLanes], shift_[kSum][kLanes];
  uint8_t group_[kSum];
};

// each(t, i, scales, to): to(i, numbers), to(i + 1, numbers), ... for a block of kNumbers inputs of kLanes rows, in order. t: the kWords
// words of four bytes that hold them, transposed, one lane for a row; i: the first of them, counted from the first that `scales` has.
template <class W>
struct Words;

template <>
struct Words<float> {
  static constexpr i64 kWords = 1, kNumbers = 1;
  template <class To>
  static MS_OMNI_INLINE void each(const words *t, i64 i, const LaneScales &, const To &to) { to(i, (vec)t[0]); }
};

template <>
struct Words<Bfloat16> {
  static constexpr i64 kWords = 1, kNumbers = 2;
  template <class To>
  static MS_OMNI_INLINE void each(const words *t, i64 i, const LaneScales &, const To &to) {
    to(i, (vec)(t[0] << 16));
    to(i + 1, (vec)(t[0] & 0xffff0000u));
  }
};

template <>
struct Words<int8_t> {
  static constexpr i64 kWords = 1, kNumbers = 4;
  template <class To>
  static MS_OMNI_INLINE void each(const words *t, i64 i, const LaneScales &scales, const To &to) {
    MS_OMNI_UNROLL for (int byte = 0; byte < 4; ++byte) to(i + byte, scales(i + byte, (integers)(t[0] << (24 - 8 * byte)) >> 24));
  }
};

template <>
struct Words<Nibbles> {
  static constexpr i64 kWords = kBlock / 8, kNumbers = kBlock;
  template <class To>
  static MS_OMNI_INLINE void each(const words *t, i64 i, const LaneScales &scales, const To &to) {
    for (int half = 0; half < 2; ++half)
      for (int word = 0; word < kWords; ++word, i += 4)
        MS_OMNI_UNROLL for (int byte = 0; byte < 4; ++byte)
          to(i + byte, scales(i + byte, (integers)(t[word] >> (8 * byte + 4 * half) & 15u)));
  }
};

// t[word][lane]: the words of up to kLanes rows whose bytes lie `distance` apart, 4 kLanes or `bytes` of each.
inline void load_words(const char *from, i64 distance, i64 rows, i64 bytes, vec *t) {
  if (rows == kLanes && bytes >= 4 * kLanes && distance % 4 == 0)
    return load_turned(reinterpret_cast<const float *>(from), distance / 4, t);
  float part[kLanes][kLanes] = {};
  for (i64 r = 0; r < rows; ++r) std::memcpy(part[r], from + r * distance, std::min<i64>(4 * kLanes, bytes));
  MS_OMNI_UNROLL for (int r = 0; r < kLanes; ++r) t[r] = load(part[r]);
  transpose(t);
}

// panel[i][lane] of up to kLanes rows.
template <class W>
void pack_words(const char *from, i64 distance, i64 rows, i64 bytes, const LaneScales &scales, float *panel, i64 stride) {
  using Block = Words<W>;
  for (i64 i = 0; bytes > 0; from += 4 * kLanes, bytes -= 4 * kLanes) {
    vec t[kLanes];
    load_words(from, distance, rows, bytes, t);
    const i64 count = std::min<i64>(kLanes, (bytes + 3) / 4);
    for (i64 word = 0; word < count; word += Block::kWords, i += Block::kNumbers)
      Block::each(reinterpret_cast<const words *>(t) + word, i, scales,
                  [=](i64 step, vec numbers) { store(panel + step * stride, numbers); });
  }
}

// Fetches what is packed next of rows that lie `distance` apart: too little of each to be seen coming.
inline void fetch(const char *from, i64 distance, i64 rows, i64 bytes) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch(from + r * distance + at);
}

// Inputs [begin, begin + k) of rows [row, row + rows) of m `[.., in]`, at most kWide: panel[input][row]. begin: a multiple of kSum.
inline void pack_panel(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k, float *panel) {
  if (m.kind == kFloat32) return pack_rows(static_cast<const float *>(m.numbers) + row * in + begin, in, rows, k, panel, kWide);
  const auto bytes = [&](i64 inputs) { return row_bytes(m, inputs); };
  for (i64 first = 0; first < rows; first += kLanes) {
    const i64 count = std::min<i64>(kLanes, rows - first);
    const char *from = static_cast<const char *>(m.numbers) + (row + first) * bytes(in) + bytes(begin);
    if (begin + k < in) fetch(from + bytes(k), bytes(in), count, bytes(kSum));
    const LaneScales scales(m, in, row + first, count, begin, k);
    with_numbers(m, [&](auto *numbers) {
      pack_words<std::remove_const_t<std::remove_pointer_t<decltype(numbers)>>>(from, bytes(in), count, bytes(k), scales,
                                                                                panel + first, kWide);
    });
  }
}

// Of any number of rows, a panel behind the other.
inline void pack_turned(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k, float *space) {
  for (i64 first = 0; first < rows; first += kWide)
    pack_panel(m, in, row + first, std::min<i64>(kWide, rows - first), begin, k, space + first * kSum);
}

}  // namespace
