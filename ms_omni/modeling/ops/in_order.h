// Products of a few rows with `[in, out]` weights that do not fit in a cache, which pass by once and in order.
//
// `W` is how they are stored: float, or Bfloat16 for bfloat16 numbers that are widened as they arrive.

#pragma once

#include "gemm.h"
#include "bfloat16.h"

namespace {

// Vectors of c that share what is spread of a, so that all fits into 16 registers.
constexpr int shared_vectors(int rows) { return rows == 1 ? 1 : rows == 2 ? 4 : 3; }

// V vectors of columns: to[r] += factor[r] B.
template <int Rows, int Steps, int V, class W>
inline void add_columns(const float (&factor)[Rows][Steps], const W *b, i64 stride, float *const *to, i64 j) {
  vec sum[Rows][V];
  MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = load(to[r] + j + v * kLanes);
  MS_OMNI_UNROLL for (int s = 0; s < Steps; ++s) {
    vec in[V];
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) in[v] = load(b + s * stride + j + v * kLanes);
    // The next rows of B lie in other pages, where the processor would have to be told twice that they are read in order.
    MS_OMNI_UNROLL for (int v = 0; v < V; v += 2) __builtin_prefetch(b + (s + Steps) * stride + j + v * kLanes);
    MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
      MS_OMNI_UNROLL for (int v = 0; v < V; ++v) sum[r][v] = fma(factor[r][s], in[v], sum[r][v]);
  }
  MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
    MS_OMNI_UNROLL for (int v = 0; v < V; ++v) store(to[r] + j + v * kLanes, sum[r][v]);
}

// c[r][0 .. width) += a[r][i .. i + Steps) B, B `[Steps, width]` with rows `stride` apart.
template <int Rows, int Steps, class W>
void add_outer(const float *const *a, i64 i, const W *b, i64 stride, float *const *c, i64 width) {
  constexpr int V = shared_vectors(Rows);
  float factor[Rows][Steps], *to[Rows];  // read once: what is stored to c might be anything, as far as a compiler knows
  for (int r = 0; r < Rows; ++r) {
    to[r] = c[r];
    for (int s = 0; s < Steps; ++s) factor[r][s] = a[r][i + s];
  }
  i64 j = 0;
  for (; j + V * kLanes <= width; j += V * kLanes) add_columns<Rows, Steps, V>(factor, b, stride, to, j);
  for (; j + kLanes <= width; j += kLanes) add_columns<Rows, Steps, 1>(factor, b, stride, to, j);
  for (; j < width; ++j)
    for (int r = 0; r < Rows; ++r)
      for (int s = 0; s < Steps; ++s) to[r][j] = fma(factor[r][s], widen(b[s * stride + j]), to[r][j]);
}

template <int Steps, class W>
inline void add_steps(const float *const *a, i64 rows, i64 i, const W *b, i64 stride, float *const *c, i64 width) {
  for (; rows >= 4; rows -= 4, a += 4, c += 4) add_outer<4, Steps>(a, i, b, stride, c, width);
  if (rows == 3) add_outer<3, Steps>(a, i, b, stride, c, width);
  if (rows == 2) add_outer<2, Steps>(a, i, b, stride, c, width);
  if (rows == 1) add_outer<1, Steps>(a, i, b, stride, c, width);
}

// c[row] += a[row][begin .. end) B, step after step; b: the row of B for step `begin`.
template <class W>
inline void add_range(const float *const *a, i64 rows, i64 begin, i64 end, const W *b, i64 stride, float *const *c,
                      i64 width) {
  i64 i = begin;
  for (; rows == 1 && i + 8 <= end; i += 8, b += 8 * stride) add_steps<8>(a, rows, i, b, stride, c, width);
  for (; i + 4 <= end; i += 4, b += 4 * stride) add_steps<4>(a, rows, i, b, stride, c, width);
  for (; i < end; ++i, b += stride) add_steps<1>(a, rows, i, b, stride, c, width);
}

// c[row] = a[row] B for rows of length k; B `[k, width]` with rows `stride` apart is read once and in order, because
// fetching it is what takes the time. The sums are those of `multiply`.
template <class W>
inline void product_in_order(const float *const *a, i64 rows, i64 k, const W *b, i64 stride, float *const *c, i64 width) {
  constexpr i64 columns = 1536;  // of B at a time, so that they are near for all rows
  Floats space(k > kSum ? rows * std::min(columns, width) : 0);
  std::vector<float *> to(rows);
  for (i64 column = 0; column < width; column += columns) {
    const i64 n = std::min(columns, width - column);
    for (i64 begin = 0; begin < k || begin == 0; begin += kSum) {
      for (i64 row = 0; row < rows; ++row) {
        to[row] = begin ? space.data() + row * n : c[row] + column;
        std::fill(to[row], to[row] + n, 0.f);
      }
      add_range(a, rows, begin, std::min(begin + kSum, k), b + begin * stride + column, stride, to.data(), n);
      for (i64 row = 0; begin && row < rows; ++row)
        map(n, c[row] + column, [](vec old, vec sum) { return old + sum; }, c[row] + column, to[row]);
    }
  }
}

}  // namespace
