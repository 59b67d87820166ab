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

inline float number(const void *from, i64 kind, i64 place) {
  if (kind == kFloat32) return static_cast<const float *>(from)[place];
  if (kind == kBfloat16) return widen(static_cast<const Half *>(from)[place]);
  return widen(static_cast<const Float16 *>(from)[place]);
}

// Scales and shifts (as in stored.h) of kLanes rows in the groups that some inputs are in.
class LaneScales {
 public:
  // Rows from `row` on of which there are `rows`, inputs [begin, begin + k), at most kSum.
  LaneScales(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k) {
    const i64 groups = in / m.group, first = begin / m.group, last = (begin + k - 1) / m.group;
    for (i64 g = first; g <= last; ++g)
      for (int lane = 0; lane < kLanes; ++lane) {
        const i64 place = (row + lane) * groups + g;
        const float scale = lane < rows ? number(m.scales, m.scale_kind, place) : 0.f;
        const float offset = lane < rows && m.offsets ? number(m.offsets, m.offset_kind, place) : 0.f;
        scale_[g - first][lane] = scale;
        shift_[g - first][lane] = m.kind == kInt4 ? fma(-8.f, scale, offset) : offset;
      }
    for (i64 i = 0, g = 0, left = (first + 1) * m.group - begin; i < k; ++i, --left) {
      if (!left) ++g, left = m.group;
      group_[i] = g;
    }
  }
  vec operator()(i64 i, integers codes) const {
    const i64 g = group_[i];
    return fma(__builtin_convertvector(codes, vec), load(scale_[g]), load(shift_[g]));
  }

 private:
  float scale_[kSum][kLanes], shift_[kSum][kLanes];
  uint8_t group_[kSum];
};

// The numbers of a word of four bytes are put apart: panel[input][lane]. word: its place behind the first one, of lanes that
// stand for rows. Inputs from k on do not exist.
inline void spread(const Half *, words w, i64 word, i64 k, const LaneScales *, float *panel, i64 stride) {
  store(panel + 2 * word * stride, (vec)(w << 16));
  if (2 * word + 1 < k) store(panel + (2 * word + 1) * stride, (vec)(w & 0xffff0000u));
}

inline void spread(const int8_t *, words w, i64 word, i64 k, const LaneScales *scales, float *panel, i64 stride) {
  MS_OMNI_UNROLL for (int byte = 0; byte < 4; ++byte) {
    const i64 i = 4 * word + byte;
    if (i < k) store(panel + i * stride, (*scales)(i, (integers)(w << (24 - 8 * byte)) >> 24));
  }
}

inline void spread(const Nibbles *, words w, i64 word, i64, const LaneScales *scales, float *panel, i64 stride) {
  MS_OMNI_UNROLL for (int byte = 0; byte < 4; ++byte) {
    const i64 low = word / 4 * kBlock + word % 4 * 4 + byte, high = low + kBlock / 2;
    store(panel + low * stride, (*scales)(low, (integers)(w >> (8 * byte) & 15u)));
    store(panel + high * stride, (*scales)(high, (integers)(w >> (8 * byte + 4) & 15u)));
  }
}

// panel[i][lane] of up to kLanes rows, whose bytes begin at `from` and lie `distance` bytes apart. Words of four bytes are turned
// before their numbers are put apart, which are two, four or eight to a word.
template <class W>
void pack_words(const char *from, i64 distance, i64 rows, i64 bytes, i64 k, const LaneScales *scales, float *panel, i64 stride) {
  constexpr i64 width = 4 * kLanes;
  for (i64 at = 0; at < bytes; at += width) {
    vec t[kLanes];
    const i64 count = std::min(width, bytes - at);
    if (rows == kLanes && count == width && distance % 4 == 0) {
      load_turned(reinterpret_cast<const float *>(from + at), distance / 4, t);
    } else {
      float part[kLanes][kLanes] = {};
      for (i64 r = 0; r < rows; ++r) std::memcpy(part[r], from + r * distance + at, count);
      MS_OMNI_UNROLL for (int r = 0; r < kLanes; ++r) t[r] = load(part[r]);
      transpose(t);
    }
    for (i64 word = 0; word < (count + 3) / 4; ++word)
      spread(static_cast<const W *>(nullptr), (words)t[word], at / 4 + word, k, scales, panel, stride);
  }
}

// Inputs [begin, begin + k) of rows [row, row + rows) of m `[.., in]`, at most kWide: panel[input][row]. begin: a multiple of kSum.
inline void pack_panel(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k, float *panel) {
  if (m.kind == kFloat32) return pack_rows(static_cast<const float *>(m.numbers) + row * in + begin, in, rows, k, panel, kWide);
  const auto bytes = [&](i64 inputs) { return row_bytes(m, inputs); };
  for (i64 first = 0; first < rows; first += kLanes) {
    const i64 count = std::min<i64>(kLanes, rows - first);
    const char *from = static_cast<const char *>(m.numbers) + (row + first) * bytes(in) + bytes(begin);
    for (i64 r = 0; r < count && begin + k < in; ++r)  // what is packed next: too little of a row to be seen coming
      for (i64 at = 0; at < bytes(kSum); at += 64) __builtin_prefetch(from + r * bytes(in) + bytes(k) + at);
    float *to = panel + first;
    if (m.kind == kBfloat16) {
      pack_words<Half>(from, bytes(in), count, bytes(k), k, nullptr, to, kWide);
      continue;
    }
    const LaneScales scales(m, in, row + first, count, begin, k);
    if (m.kind == kInt8) pack_words<int8_t>(from, bytes(in), count, bytes(k), k, &scales, to, kWide);
    else pack_words<Nibbles>(from, bytes(in), count, bytes(k), k, &scales, to, kWide);
  }
}

// Of any number of rows, a panel behind the other.
inline void pack_turned(const Matrix &m, i64 in, i64 row, i64 rows, i64 begin, i64 k, float *space) {
  for (i64 first = 0; first < rows; first += kWide)
    pack_panel(m, in, row + first, std::min<i64>(kWide, rows - first), begin, k, space + first * kSum);
}

}  // namespace
