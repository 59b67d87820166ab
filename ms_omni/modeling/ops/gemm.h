// Matrix products of float32 in tiles that stay in registers.
//
//     c[row][j] = sum over i of a[row][i] * b[i][j]        kRows rows by kVectors vectors of columns at a time
//
// B passes by as a panel: `kWide` columns side by side, one step of i behind the other, packed by the caller so that
// reading it is sequential. A is read in place, one scalar per row and step. Every element is summed in the same order by
// the same fused multiply-adds, kSum steps at a time, whatever stands beside it: a row has the same bits in every batch.

#pragma once

#include "vectors.h"

namespace {

constexpr int kRows = 6;
constexpr i64 kSum = 256;    // steps that are summed before they are added to the rest: short sums round less
constexpr i64 kDepth = 512;  // steps of a panel that are packed at a time; it then stays in the second cache

// c[r][0 .. columns) = (begins ? start : c) + a[r][0 .. k) * panel. start: one row for all, or null for zero.
template <int R, int V>
void tile(const float *const *a, i64 offset, const float *panel, i64 stride, i64 k, float *const *c, i64 column,
          i64 columns, bool begins, const float *start) {
  const float *row[R];
  for (int r = 0; r < R; ++r) row[r] = a[r] + offset;
  vec sum[R][V] = {};
  for (i64 i = 0; i < k; ++i) {
    vec in[V];
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) in[v] = load(panel + i * stride + v * kLanes);
    MS_OMNI_UNROLL for (int r = 0; r < R; ++r)
      MS_OMNI_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = fma(row[r][i], in[v], sum[r][v]);
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

using Tile = void (*)(const float *const *, i64, const float *, i64, i64, float *const *, i64, i64, bool, const float *);

template <int V>
Tile tile_of(i64 rows) {
  static constexpr Tile tiles[kRows] = {tile<1, V>, tile<2, V>, tile<3, V>, tile<4, V>, tile<5, V>, tile<6, V>};
  return tiles[rows - 1];
}

inline Tile tile_of(i64 rows, i64 columns) {
  const i64 vectors = (columns + kLanes - 1) / kLanes;
  if constexpr (kVectors == 4) {
    if (vectors == 4) return tile_of<4>(rows);
    if (vectors == 3) return tile_of<3>(rows);
  }
  return vectors == 2 ? tile_of<2>(rows) : tile_of<1>(rows);
}

// One panel for all rows: c[row][column + j] = (offset ? c : start) + a[row][offset .. offset + k) * panel.
inline void multiply(const float *const *a, i64 rows, i64 offset, const float *panel, i64 stride, i64 k, float *const *c,
                     i64 column, i64 columns, const float *start = nullptr) {
  for (i64 row = 0; row < rows; row += kRows) {
    const Tile run = tile_of(std::min<i64>(kRows, rows - row), columns);
    for (i64 i = 0; i < k; i += kSum)
      run(a + row, offset + i, panel + i * stride, stride, std::min(kSum, k - i), c + row, column, columns,
          offset + i == 0, start);
  }
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

// panel[i][j] = x[i][j] for rows i that lie `distance` apart, zero from `columns` up to the next whole vector.
inline void pack_columns(const float *x, i64 distance, i64 columns, i64 k, float *panel, i64 stride) {
  const i64 padded = (columns + kLanes - 1) / kLanes * kLanes;
  for (i64 i = 0; i < k; ++i) {
    float *to = panel + i * stride;
    std::copy(x + i * distance, x + i * distance + columns, to);
    std::fill(to + columns, to + padded, 0.f);
  }
}

}  // namespace
