// Products of a few rows with weights that do not fit in a cache: every weight is fetched once and used for all rows.
//
// `W` is the type of the stored weights: float, or Half for bfloat16 numbers that are widened as they arrive.

#pragma once

#include "numeric.h"
#include "half.h"
#include "team.h"

namespace {

constexpr i64 kFetch = 64 * 1024;  // bytes of weights per task: long enough to be fetched at full speed
constexpr int kRowTile = 6;        // rows of x whose sums stay in registers
#ifdef __AVX512F__
constexpr int kOutputs = 4;        // outputs that share what is loaded of x
#else
constexpr int kOutputs = 2;
#endif

inline vec load(const float *p) { return *reinterpret_cast<const vec *>(p); }

inline float total(const vec &x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// y = x w^T (+ bias), or y += x w^T: a `Product` is one linear layer, w `[out, in]`, bias `[out]` or null.
template <class W>
struct Product {
  const W *w;
  const float *bias;
  i64 out;
  float *y;  // `[rows, out]`
  bool add = false;
};

// Outputs [j, j + Outputs) of Rows rows.
template <int Rows, int Outputs, class W>
void dot_tile(const float *x, i64 in, const Product<W> &p, i64 j, i64 row) {
  vec sum[Outputs][Rows] = {};
  const W *w = p.w + j * in;
  i64 i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    vec part[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) part[r] = load(x + r * in + i);
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
      const vec weights = load(w + o * in + i);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[o][r] += part[r] * weights;
    }
  }
  for (int o = 0; o < Outputs; ++o)
    for (int r = 0; r < Rows; ++r) {
      float value = total(sum[o][r]);
      for (i64 tail = i; tail < in; ++tail) value += x[r * in + tail] * widen(w[o * in + tail]);
      float &y = p.y[(row + r) * p.out + j + o];
      y = value + (p.bias ? p.bias[j + o] : 0.f) + (p.add ? y : 0.f);
    }
}

// Outputs [begin, end) of all rows; a single row has its sums in more outputs at a time instead.
template <int Rows, class W>
void dot_rows(const float *x, i64 in, const Product<W> &p, i64 begin, i64 end, i64 row) {
  constexpr int outputs = Rows == 1 ? 2 * kOutputs : kOutputs;
  i64 j = begin;
  for (; j + outputs <= end; j += outputs) dot_tile<Rows, outputs>(x, in, p, j, row);
  for (; j < end; ++j) dot_tile<Rows, 1>(x, in, p, j, row);
}

template <class W>
void dot_block(const float *x, i64 rows, i64 in, const Product<W> &p, i64 begin, i64 end) {
  for (i64 j = begin; j < end; j += 2 * kOutputs) {  // so few weights that they stay in the first cache for all rows
    const i64 stop = rows > kRowTile ? std::min<i64>(j + 2 * kOutputs, end) : end;
    i64 row = 0;
    for (; row + kRowTile <= rows; row += kRowTile) dot_rows<kRowTile>(x + row * in, in, p, j, stop, row);
    const float *rest = x + row * in;
    switch (rows - row) {
      case 5: dot_rows<5>(rest, in, p, j, stop, row); break;
      case 4: dot_rows<4>(rest, in, p, j, stop, row); break;
      case 3: dot_rows<3>(rest, in, p, j, stop, row); break;
      case 2: dot_rows<2>(rest, in, p, j, stop, row); break;
      case 1: dot_rows<1>(rest, in, p, j, stop, row); break;
    }
    if (stop == end) return;
  }
}

// Several linear layers of the same x `[rows, in]`, shared among the team.
template <class W>
void multiply(Team &team, const float *x, i64 rows, i64 in, std::initializer_list<Product<W>> products) {
  const i64 fetch = std::max<i64>(1, kFetch / std::max<i64>(1, in * sizeof(W)) / (2 * kOutputs)) * 2 * kOutputs;
  const auto tasks_of = [=](const Product<W> &p) { return (p.out + fetch - 1) / fetch; };
  i64 tasks = 0;
  for (const auto &p : products) tasks += tasks_of(p);
  team.run(tasks, [&](i64 task) {
    const Product<W> *p = products.begin();
    for (; task >= tasks_of(*p); ++p) task -= tasks_of(*p);
    dot_block(x, rows, in, *p, task * fetch, std::min((task + 1) * fetch, p->out));
  });
}

// c[r] += a[r] B for rows of length k; B `[k, width]` with rows `stride` apart, read once and in order.
template <int Rows>
void add_outer(const float *const *a, i64 i, const float *b, i64 stride, float *const *c, i64 width) {
  constexpr int depth = 8;
  i64 j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    vec part[depth];
#pragma GCC unroll 8
    for (int d = 0; d < depth; ++d) part[d] = load(b + d * stride + j);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      vec even = load(c[r] + j), odd = {};
#pragma GCC unroll 8
      for (int d = 0; d < depth; d += 2) {
        even += a[r][i + d] * part[d];
        odd += a[r][i + d + 1] * part[d + 1];
      }
      *reinterpret_cast<vec *>(c[r] + j) = even + odd;
    }
  }
  for (; j < width; ++j)
    for (int r = 0; r < Rows; ++r)
      for (int d = 0; d < depth; ++d) c[r][j] += a[r][i + d] * b[d * stride + j];
}

inline void add_product(const float *const *a, i64 rows, i64 k, const float *b, i64 stride, float *const *c, i64 width) {
  i64 i = 0;
  for (; i + 8 <= k; i += 8) {
    i64 row = 0;
    for (; row + 4 <= rows; row += 4) add_outer<4>(a + row, i, b + i * stride, stride, c + row, width);
    switch (rows - row) {
      case 3: add_outer<3>(a + row, i, b + i * stride, stride, c + row, width); break;
      case 2: add_outer<2>(a + row, i, b + i * stride, stride, c + row, width); break;
      case 1: add_outer<1>(a + row, i, b + i * stride, stride, c + row, width); break;
    }
  }
  for (; i < k; ++i)
    for (i64 row = 0; row < rows; ++row) add_scaled(c[row], b + i * stride, a[row][i], width);
}

}  // namespace
