// Products on the tiles of Intel's matrix units (AMX), which multiply bfloat16 numbers and sum in float32.
//
// A float32 x is the sum of three bfloat16 numbers, exactly; a bfloat16 weight is one, and so is a code of 8 or 4 bits. So
//
//     y[row][j] = sum over groups of scale[j] * sum over the group's i of (x0 + x1 + x2)[row][i] * code[j][i]
//
// has float32's precision in three products of tiles, at several times the speed of float32's. Matrices that are stored in float32
// are not for this. The rows and sums of a tile do not see one another: a row has the same bits in every batch.

#pragma once

#include "panels.h"

#ifdef MS_OMNI_AMX

namespace {

constexpr i64 kTile = 16;               // rows of a tile, each of 64 bytes
constexpr i64 kStep = 32;               // inputs of a tile
constexpr i64 kParts = 3;               // bfloat16 numbers that make a float32
constexpr i64 kTileHalves = kTile * kStep;
static_assert(kLanes == kTile && kSum % kStep == 0);

// Sets all eight tiles of this thread to 16 rows of 64 bytes, for as long as it lives.
class Tiles {
 public:
  Tiles() {
    struct {
      uint8_t palette = 1, start = 0, none[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof shape == 64);
    __asm__ volatile("" ::"m"(shape));
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles &) = delete;
};

// x0, x1, x2 of vectors of neighbours, as parts[which] of kStep numbers.
inline void split(vec low, vec high, Bfloat16 *const *parts) {
  const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17,
                                         15, 13, 11, 9, 7, 5, 3, 1);
  for (int part = 0; part < kParts; ++part) {
    _mm512_storeu_si512(parts[part], _mm512_permutex2var_epi16((__m512i)low, upper, (__m512i)high));
    low -= (vec)((words)low & 0xffff0000u);
    high -= (vec)((words)high & 0xffff0000u);
  }
}

// Whether `TileRows` is for such a matrix `[.., out, in]`, or `[.., in, out]` in bfloat16.
inline bool suits_tiles(const Matrix &m, i64 in) {
  const bool whole = !m.scales || m.group == in || m.group % kStep == 0;
  return (m.kind == kBfloat16 || m.kind == kInt8 || m.kind == kInt4) && whole && has_tiles();
}

// The inputs from `i` on, `k` of them at most, that share a scale.
inline i64 run_of(const Matrix &m, i64 i, i64 k) { return m.scales ? std::min(k, m.group - i % m.group) : k; }

// Columns of a matrix, at most kTogether kWide, for kSum steps: tiles of pairs of inputs for kTile columns, with the scales and shifts of
// their runs.
class TilePanels {
 public:
  const Bfloat16 *at(i64 column, i64 step) const { return halves_ + (column / kTile * (kSum / kStep) + step / kStep) * kTileHalves; }
  vec scale(i64 run, i64 column) const { return load(scales_[run] + column); }
  vec shift(i64 run, i64 column) const { return load(shifts_[run] + column); }

  // Inputs [begin, begin + k) of rows [row, row + columns) of m `[.., in]`.
  void pack(const Matrix &m, i64 in, i64 row, i64 columns, i64 begin, i64 k) {
    const i64 distance = row_bytes(m, in), bytes = row_bytes(m, k);
    clear_rest(columns, k);
    for (i64 first = 0; first < columns; first += kTile) {
      const i64 count = std::min(kTile, columns - first);
      const char *from = static_cast<const char *>(m.numbers) + (row + first) * distance + row_bytes(m, begin);
      // These rows' next inputs, or the next rows' first.
      fetch(begin + k < in ? from + bytes : from + columns * distance - row_bytes(m, begin), distance, count, bytes);
      pack_tiles(m.kind, from, distance, count, bytes, to(first));
      if (m.scales) pack_scales(m, in, row, first, count, begin, k);
    }
  }

  // k rows of `columns` numbers in bfloat16, n numbers from one to the next.
  void pack_columns(const Bfloat16 *from, i64 n, i64 columns, i64 k) {
    clear_rest(columns, k);
    for (i64 i = 0; i < k; i += 2, from += 2 * n)
      for (i64 first = 0; first < columns; first += kTile) {
        const Bfloat16 *even = from + first, *odd = even + n;
        __builtin_prefetch(even + 8 * n);  // rows lie in pages of their own, which nobody sees coming
        __builtin_prefetch(odd + 8 * n);
        Bfloat16 part[2][kTile] = {};
        if (columns - first < kTile || i + 1 == k) {
          std::copy_n(even, std::min(kTile, columns - first), part[0]);
          if (i + 1 < k) std::copy_n(odd, std::min(kTile, columns - first), part[1]);
          even = part[0], odd = part[1];
        }
        store(to(first) + i * kTile, (words)load(odd) | (words)load(even) >> 16);
      }
  }

 private:
  // The last tiles' rows behind input k.
  void clear_rest(i64 columns, i64 k) {
    for (i64 first = 0; first < columns && k % kStep; first += kTile)
      std::fill_n(to(first) + k / kStep * kTileHalves, kTileHalves, Bfloat16(0));
  }

  Bfloat16 *to(i64 column) { return halves_ + column / kTile * (kSum / kStep) * kTileHalves; }
  static void store(Bfloat16 *to, words pairs) { _mm512_storeu_si512(to, (__m512i)pairs); }

  static void pack_tiles(i64 kind, const char *from, i64 distance, i64 count, i64 bytes, Bfloat16 *to) {
    for (; bytes > 0; from += 4 * kLanes, bytes -= 4 * kLanes) {
      vec t[kLanes];
      load_words(from, distance, count, bytes, t);
      const words *word = reinterpret_cast<const words *>(t);
      const i64 words_here = std::min<i64>(kLanes, (bytes + 3) / 4);
      if (kind == kBfloat16) {  // pairs as they are
        for (i64 w = 0; w < words_here; ++w, to += 2 * kTile) store(to, word[w]);
      } else if (kind == kInt8) {
        for (i64 w = 0; w < words_here; ++w, to += 4 * kTile) {
          const words codes = word[w] ^ 0x80808080u;  // counted from 0
          store(to, halves(codes & 255u, codes >> 8 & 255u));
          store(to + 2 * kTile, halves(codes >> 16 & 255u, codes >> 24));
        }
      } else {  // blocks of 32: the lower halves of 16 bytes come first
        for (i64 w = 0; w < words_here; w += 4)
          for (int half = 0; half < 8; half += 4)
            for (int i = 0; i < 4; ++i, to += 4 * kTile) {
              const words codes = word[w + i] >> half;
              store(to, nibbles((codes & 15u) | (codes & 0xf00u) << 8));
              store(to + 2 * kTile, nibbles((codes >> 16 & 15u) | (codes >> 8 & 0xf0000u)));
            }
      }
    }
  }

  // Codes of 8 bits that are counted from 0, less 128, as pairs of bfloat16. 2^23 and a code are the bits of a number beside one another.
  static words halves(words even, words odd) {
    const vec low = (vec)(even | 0x4b000000u) - 8388736.f, high = (vec)(odd | 0x4b000000u) - 8388736.f;
    return (words)low >> 16 | ((words)high & 0xffff0000u);
  }

  static words nibbles(words pairs) {  // codes less 8
    static const Bfloat16 table[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                                   0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    return (words)_mm512_permutexvar_epi16((__m512i)pairs, _mm512_loadu_si512(table));
  }

  void pack_scales(const Matrix &m, i64 in, i64 row, i64 first, i64 count, i64 begin, i64 k) {
    const i64 groups = in / m.group, from = (row + first) * groups + begin / m.group;
    const i64 runs = (begin + k - 1) / m.group - begin / m.group + 1;
    float lanes[kSum / kStep][kLanes];
    gather_lanes(m.scales, m.scale_kind, from, groups, count, runs, lanes);
    for (i64 run = 0; run < runs; ++run) std::copy_n(lanes[run], kLanes, scales_[run] + first);
    if (!m.offsets) return;
    gather_lanes(m.offsets, m.offset_kind, from, groups, count, runs, lanes);
    for (i64 run = 0; run < runs; ++run) std::copy_n(lanes[run], kLanes, shifts_[run] + first);
  }

  alignas(64) Bfloat16 halves_[kTogether * kWide * kSum];
  float scales_[kSum / kStep][kTogether * kWide], shifts_[kSum / kStep][kTogether * kWide];
};

// Rows of A in three parts, in tiles.
class TileRows {
 public:
  static constexpr i64 kBlock = 2 * kTile;

  TileRows(i64 count, i64 k)
      : k_(k), steps_((k + kStep - 1) / kStep), halves_((count + kTile - 1) / kTile * steps_ * kParts * kTileHalves) {}

  // Rows [begin, end), begin a multiple of kBlock.
  void pack(const float *const *rows, i64 begin, i64 end) {
    for (i64 row = begin; row < (end + kTile - 1) / kTile * kTile; ++row)
      for (i64 i = 0; i < k_; i += kStep) {
        Bfloat16 *to = halves_.get() + place(row / kTile * kTile, i) + row % kTile * kStep;
        Bfloat16 *const parts[] = {to, to + kTileHalves, to + 2 * kTileHalves};
        float rest[kStep] = {};
        const float *from = row < end ? rows[row] + i : rest;
        if (row < end && k_ - i < kStep) from = std::copy_n(from, k_ - i, rest) - (k_ - i);
        split(load(from), load(from + kLanes), parts);
      }
  }

  // c[row][column .. column + columns) = start + a[row] . (columns of b) for rows [begin, end), begin a multiple of kBlock; columns: at most
  // kTogether kWide; rows: where the rows of A lie in float32. b.pack(column, columns, i, k, panels) packs inputs [i, i + k) of b.m.
  template <class Columns>
  void multiply(const Columns &b, const float *const *rows, i64 begin, i64 end, float *const *c, i64 column, i64 columns,
                const float *start) const {
    const Tiles tiles;
    const Space<TilePanels> panels(1);
    for (i64 i = 0; i < k_; i += kSum) {
      const i64 k = std::min(kSum, k_ - i);
      b.pack(column, columns, i, k, panels[0]);
      for (i64 row = begin; row < end; row += kBlock)
        for (i64 j = 0; j < columns; j += 2 * kTile) {
          const bool wide = columns - j > kTile, high = end - row > kTile;
          const auto run = high ? wide ? &TileRows::sums<2, 2> : &TileRows::sums<2, 1> : wide ? &TileRows::sums<1, 2> : &TileRows::sums<1, 1>;
          for (i64 at = 0, number = 0, length; at < k; at += length, ++number) {
            length = run_of(b.m, i + at, k - at);
            const float *before = i + at ? nullptr : start ? start + column + j : zeros();
            (this->*run)(b.m, rows, row, end, i + at, length, c, column + j, std::min(2 * kTile, columns - j), before, panels[0], j, at, number);
          }
        }
    }
  }

 private:
  static const float *zeros() {
    static const float none[2 * kTile] = {};
    return none;
  }
  i64 place(i64 row, i64 i) const { return (row / kTile * steps_ + i / kStep) * kParts * kTileHalves; }

  // c[row + r][column + l] = before + scale sum over [i, i + k) + shift (sum of a): Rows by Columns tiles. before: null for what is in c.
  template <int Rows, int Columns>
  void sums(const Matrix &m, const float *const *rows, i64 row, i64 end, i64 i, i64 k, float *const *c, i64 column, i64 width,
            const float *before, const TilePanels &panels, i64 j, i64 at, i64 run) const {
    const Bfloat16 *low = halves_.get() + place(row, i), *high = Rows > 1 ? halves_.get() + place(row + kTile, i) : low;
    __asm__ volatile("" ::: "memory");  // what was packed lies in memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (i64 step = 0; step < k; step += kStep) {
      _tile_loadd(6, panels.at(j, at + step), 64);
      if (Columns > 1) _tile_loadd(7, panels.at(j + kTile, at + step), 64);
      for (int part = 0; part < kParts; ++part, low += kTileHalves, high += kTileHalves) {
        _tile_loadd(4, low, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (Columns > 1) _tile_dpbf16ps(1, 4, 7);
        if (Rows == 1) continue;
        _tile_loadd(5, high, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (Columns > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
    alignas(64) float sum[4][kTile][kTile];
    _tile_stored(0, sum[0], 64);
    if (Columns > 1) _tile_stored(1, sum[1], 64);
    if (Rows > 1) _tile_stored(2, sum[2], 64);
    if (Rows > 1 && Columns > 1) _tile_stored(3, sum[3], 64);
    __asm__ volatile("" ::: "memory");
    for (i64 r = 0; r < std::min<i64>(Rows * kTile, end - row); ++r) {
      const float whole = m.offsets ? ::sum(rows[row + r] + i, k) : 0.f;
      for (int v = 0; v < Columns; ++v) {
        const i64 count = std::min(kTile, width - v * kTile);
        float *to = c[row + r] + column + v * kTile;
        const float *from = before ? before + v * kTile : to;
        vec y = count == kTile ? load(from) : load(from, count), total = load(sum[r / kTile * 2 + v][r % kTile]);
        if (m.scales) total = total * panels.scale(run, j + v * kTile);
        if (m.offsets) total = fma(whole, panels.shift(run, j + v * kTile), total);
        y += total;
        if (count == kTile) store(to, y);
        else store(to, y, count);
      }
    }
  }

  i64 k_, steps_;
  Space<Bfloat16> halves_;
};

}  // namespace

#endif
