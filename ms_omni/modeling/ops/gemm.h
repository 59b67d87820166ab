// Matrix products of float32 in tiles that stay in registers.
//
//     c[row][j] = sum over i of a[row][i] * b[i][j]        kRows rows by kVectors vectors of columns at a time
//
// B passes by as a panel: `kWide` columns side by side, one step of i behind the other, packed by the caller so that
// reading it is sequential. A is read in place, one scalar per row and step. Every element is summed in the same order,
// kSum steps at a time, whatever stands beside it: a row has the same bits in every batch.

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
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) in[v] = load(panel + i * stride + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += row[r][i] * in[v];
  }
  for (int r = 0; r < R; ++r) {
    float edge[V * kLanes] = {}, *to = c[r] + column;
    const bool whole = columns == V * kLanes;
    const float *before = begins ? start : to;
    if (before && !whole) before = std::copy(before, before + columns, edge) - columns;
    for (int v = 0; v < V; ++v) {
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
#ifdef __AVX512F__
  return vectors == 4 ? tile_of<4>(rows) : vectors == 3 ? tile_of<3>(rows) : vectors == 2 ? tile_of<2>(rows) : tile_of<1>(rows);
#else
  return vectors == 2 ? tile_of<2>(rows) : tile_of<1>(rows);
#endif
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

template <int Step>
inline void exchange(vec *t) {
  integers low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = lane & Step ? kLanes + lane - Step : lane;
    high[lane] = lane & Step ? kLanes + lane : lane + Step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Step) continue;
    const vec a = t[i], b = t[i + Step];
    t[i] = __builtin_shuffle(a, b, low);
    t[i + Step] = __builtin_shuffle(a, b, high);
  }
}

inline void transpose(vec *t) {  // kLanes vectors
  exchange<1>(t);
  exchange<2>(t);
  exchange<4>(t);
  if (kLanes == 16) exchange<kLanes / 2>(t);
}

// panel[i][r] = x[r][i] for `rows` rows that lie `distance` apart, zero for those up to the next whole vector.
inline void pack_rows(const float *x, i64 distance, i64 rows, i64 k, float *panel, i64 stride) {
  for (i64 first = 0; first < rows; first += kLanes) {
    const i64 count = std::min<i64>(kLanes, rows - first);
    const float *from = x + first * distance;
    i64 i = 0;
    for (; i + kLanes <= k; i += kLanes) {
      vec t[kLanes];
      for (int r = 0; r < kLanes; ++r) t[r] = r < count ? load(from + r * distance + i) : vec{};
      transpose(t);
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
