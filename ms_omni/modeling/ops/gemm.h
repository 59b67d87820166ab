// Matrix products of float32 in tiles that stay in registers.
//
//     c[row][j] = sum over i of a[row][i] * b[i][j]        kRows rows by kAcross vectors of columns at a time
//
// Both sides are packed, kSum steps at a time, so that every tile reads two streams from its first to its last number: A in
// blocks of kRows rows side by side, B in panels of kWide columns. A panel stays in the first cache for all rows, a few panels
// and kNearRows rows in the second (Goto & van de Geijn 2008). Every element is summed in the same order by the same fused
// multiply-adds, kSum steps before they are added to the rest, whatever stands beside it: a row has the same bits in every batch.

#pragma once

#include "bfloat16.h"

namespace {

// Sums of a tile that leave registers for a step of A and B.
#if defined(__AVX512F__)
constexpr int kRows = 14, kAcross = 2;
#else
constexpr int kRows = 6, kAcross = kVectors;
#endif
constexpr int kWide = kLanes * kAcross;
constexpr i64 kSum = 256;                          // short sums round less
constexpr i64 kNearRows = 120 / kRows * kRows;  // rows of A that stay in the second cache
constexpr i64 kTogether = 8;                       // panels of B that do

// c[r][0 .. columns) = (begins ? start : c) + a[r][0 .. k) * panel. start: one row for all, or null for zero. Row, Step: floats
// from one row of a, and from one step, to the next.
template <int R, int V, i64 Row, i64 Step>
void tile(const float *a, const float *panel, i64 stride, i64 k, float *const *c, i64 column, i64 columns, bool begins,
          const float *start) {
  for (int r = 0; r < R; ++r) __builtin_prefetch(c[r] + column, 1);
  vec sum[R][V] = {};
  for (i64 i = 0; i < k; ++i, a += Step, panel += stride) {
    vec in[V];
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) in[v] = load(panel + v * kLanes);
    MS_OMNI_UNROLL for (int r = 0; r < R; ++r)
      MS_OMNI_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = fma(a[r * Row], in[v], sum[r][v]);
  }
  MS_OMNI_UNROLL for (int r = 0; r < R; ++r) {  // as everywhere: a sum whose place is not a constant would lie in memory
    float edge[V * kLanes] = {}, *to = c[r] + column;
    const bool whole = columns == V * kLanes;
    const float *before = begins ? start : to;
    if (before && !whole) before = std::copy(before, before + columns, edge) - columns;
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) {
      const vec old = before ? load(before + v * kLanes) : vec{};
      store((whole ? to : edge) + v * kLanes, old + sum[r][v]);
    }
    if (!whole) std::copy(edge, edge + columns, to);
  }
}

using Tile = void (*)(const float *, const float *, i64, i64, float *const *, i64, i64, bool, const float *);

template <int V, i64 Row, i64 Step, int... R>
Tile tile_of(i64 rows, std::integer_sequence<int, R...>) {
  static constexpr Tile tiles[] = {tile<R + 1, V, Row, Step>...};
  return tiles[rows - 1];
}

template <i64 Row, i64 Step>
Tile tile_of(i64 rows, i64 columns) {
  constexpr auto all_rows = std::make_integer_sequence<int, kRows>();
  const i64 vectors = (columns + kLanes - 1) / kLanes;
  if constexpr (kAcross == 4) {
    if (vectors == 4) return tile_of<4, Row, Step>(rows, all_rows);
    if (vectors == 3) return tile_of<3, Row, Step>(rows, all_rows);
  }
  return vectors == 2 ? tile_of<2, Row, Step>(rows, all_rows) : tile_of<1, Row, Step>(rows, all_rows);
}

// ---- panels --------------------------------------------------------------------------------------------------------

template <int Step, int Size, int... Lane>
inline void exchange(vec *t, std::integer_sequence<int, Lane...> places) {
  MS_OMNI_UNROLL for (int i = 0; i < Size; ++i) {
    if (i & Step) continue;
    const vec a = t[i], b = t[i + Step];
    t[i] = MS_OMNI_SHUFFLE(a, b, (Lane & Step ? kLanes + Lane - Step : Lane)...);
    t[i + Step] = MS_OMNI_SHUFFLE(a, b, (Lane & Step ? kLanes + Lane : Lane + Step)...);
  }
  if constexpr (2 * Step < Size) exchange<2 * Step, Size>(t, places);
}

inline void transpose(vec *t) { exchange<1, kLanes>(t, Places()); }  // kLanes vectors

// t[i][r] = x[r][i] for kLanes rows that lie `distance` apart and as many steps i.
inline void load_turned(const float *x, i64 distance, vec *t) {
#if defined(__AVX__) && !defined(__AVX512F__)  // the halves of a vector are exchanged as they are loaded, which costs nothing
  MS_OMNI_UNROLL for (int half = 0; half < kLanes; half += kLanes / 2) {
    MS_OMNI_UNROLL for (int r = 0; r < kLanes / 2; ++r) {
      const float *low = x + r * distance + half, *high = low + kLanes / 2 * distance;
      t[half + r] = (vec)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    }
    exchange<1, kLanes / 2>(t + half, Places());
  }
#else
  MS_OMNI_UNROLL for (int r = 0; r < kLanes; ++r) t[r] = load(x + r * distance);
  transpose(t);
#endif
}

// panel[i][r] = x[r][i] for `rows` rows that lie `distance` apart, zero for those up to the next whole vector.
inline void pack_rows(const float *x, i64 distance, i64 rows, i64 k, float *panel, i64 stride) {
  for (i64 first = 0; first < rows; first += kLanes) {
    const i64 count = std::min<i64>(kLanes, rows - first);
    const float *from = x + first * distance;
    i64 i = 0;
    for (; i + kLanes <= k; i += kLanes) {
      vec t[kLanes];
      if (count == kLanes) {
        load_turned(from + i, distance, t);
      } else {
        for (int r = 0; r < kLanes; ++r) t[r] = r < count ? load(from + r * distance + i) : vec{};
        transpose(t);
      }
      for (int r = 0; r < kLanes; ++r) store(panel + (i + r) * stride + first, t[r]);
    }
    for (; i < k; ++i)
      for (int r = 0; r < kLanes; ++r) panel[i * stride + first + r] = r < count ? from[r * distance + i] : 0.f;
  }
}

// panel[i][j] = x[i][j] for rows i that lie `distance` apart, in panels of `wide` columns, `next` floats from one to the next;
// zero from `columns` up to the next whole vector.
template <class W>
void pack_columns(const W *x, i64 distance, i64 columns, i64 k, float *panel, i64 wide, i64 next) {
  for (i64 i = 0; i < k; ++i)
    for (i64 first = 0; first < columns; first += wide) {
      const W *from = x + i * distance + first;
      float *to = panel + first / wide * next + i * wide;
      const i64 count = std::min(wide, columns - first);
      i64 j = 0;
      for (; j + kLanes <= count; j += kLanes) store(to + j, load(from + j));
      __builtin_prefetch(from + 8 * distance);  // rows lie in pages of their own, which nobody sees coming
      if (j == count) continue;
      W part[kLanes] = {};
      std::copy(from + j, from + count, part);
      store(to + j, load(part));
    }
}

// ---- many rows -----------------------------------------------------------------------------------------------------

// to[i][r] = rows[r][i] for up to kRows rows; behind `to` there is room for another vector.
inline void pack_block(const float *const *rows, i64 count, i64 k, float *to) {
  constexpr int parts = (kRows + kLanes - 1) / kLanes;
  const float *from[parts * kLanes];
  for (i64 r = 0; r < parts * kLanes; ++r) from[r] = rows[r < count ? r : 0];
  i64 i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    vec t[parts][kLanes];
    for (int part = 0; part < parts; ++part) {
      MS_OMNI_UNROLL for (int r = 0; r < kLanes; ++r) t[part][r] = load(from[part * kLanes + r] + i);
      transpose(t[part]);
    }
    MS_OMNI_UNROLL for (int s = 0; s < kLanes; ++s)  // what a vector has too much lies where the next one begins
      for (int part = 0; part < parts; ++part) store(to + (i + s) * kRows + part * kLanes, t[part][s]);
  }
  for (; i < k; ++i)
    for (i64 r = 0; r < kRows; ++r) to[i * kRows + r] = from[r][i];
}

// Rows of A, packed.
class Packed {
 public:
  Packed(i64 rows, i64 k) : distance_(kRows * k + kLanes), space_((rows + kRows - 1) / kRows * distance_) {}

  void pack(const float *const *rows, i64 count, i64 k, i64 row = 0) {  // row: the place of the first, a multiple of kRows
    for (i64 r = 0; r < count; r += kRows)
      pack_block(rows + r, std::min<i64>(kRows, count - r), k, block(row + r));
  }
  float *block(i64 row) { return space_.get() + row / kRows * distance_; }
  const float *at(i64 row, i64 step) const { return space_.get() + row / kRows * distance_ + step * kRows; }

 private:
  i64 distance_;
  Space<> space_;
};

// Rows [begin, end) of c, begin a multiple of kRows, in columns [column, column + columns), at most kTogether panels:
// start + a B. pack(i, steps, space) packs steps [i, i + steps) of these columns of B, panels behind one another, kSum * kWide
// floats from one to the next.
template <class Pack>
void multiply(const Packed &a, i64 begin, i64 end, i64 k, float *const *c, i64 column, i64 columns, const float *start,
              const Pack &pack, float *space) {
  for (i64 i = 0; i < k; i += kSum) {
    const i64 steps = std::min(kSum, k - i);
    pack(i, steps, space);
    for (i64 near = begin; near < end; near += kNearRows)
      for (i64 j = 0; j < columns; j += kWide) {
        const i64 width = std::min<i64>(kWide, columns - j);
        for (i64 row = near; row < std::min(near + kNearRows, end); row += kRows)
          tile_of<1, kRows>(std::min<i64>(kRows, end - row), width)(a.at(row, i), space + j * kSum, kWide, steps, c + row,
                                                                  column + j, width, i == 0, start ? start + column + j : start);
      }
  }
}

}  // namespace
