// Products of a few rows with weights that do not fit in a cache: every weight is fetched once and used for all rows.
//
// `W` is the type of the stored weights: float, or Half for bfloat16 numbers that are widened as they arrive.

#pragma once

#include "gemm.h"
#include "half.h"
#include "team.h"

namespace {

constexpr i64 kFetch = 64 * 1024;  // bytes of weights per task: long enough to be fetched at full speed
constexpr int kRowTile = 6;        // rows of x whose sums stay in registers
constexpr int kOutputs = kVectors;  // outputs that share what is loaded of x

// y = x w^T (+ bias), or y += x w^T: a `Product` is one linear layer, w `[out, in]`, bias `[out]` or null.
template <class W>
struct Product {
  const W *w;
  const float *bias;
  i64 out;
  float *y;  // `[rows, out]`
  bool add = false;
};

// Outputs [j, j + Outputs) of Rows rows. An output is summed in the same order in every tile.
template <int Rows, int Outputs, class W>
void dot_tile(const float *x, i64 in, const Product<W> &p, i64 j, i64 row) {
  vec sum[Outputs][Rows] = {};
  const W *w = p.w + j * in;
  i64 i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    vec part[Rows];
    MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) part[r] = load(x + r * in + i);
    MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) {
      const vec weights = load(w + o * in + i);
      MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) sum[o][r] = fma(part[r], weights, sum[o][r]);
    }
  }
  float totals[Outputs][Rows];
  MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o)
    MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) totals[o][r] = total(sum[o][r]);
  for (int o = 0; o < Outputs; ++o)
    for (int r = 0; r < Rows; ++r) {
      float value = totals[o][r];
      for (i64 tail = i; tail < in; ++tail) value = fma(x[r * in + tail], widen(w[o * in + tail]), value);
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

}  // namespace
