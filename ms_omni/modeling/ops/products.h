// Products of a few rows with weights that do not fit in a cache: every weight is fetched once, as it is stored, and used for
// all rows.

#pragma once

#include "stored.h"
#include "thread_pool.h"

namespace {

constexpr i64 kFetch = 64 * 1024;  // bytes of weights per task: long enough to be fetched at full speed
constexpr int kRowTile = 6;        // rows of x whose sums stay in registers
constexpr int kOutputs = kVectors;  // outputs that share what is loaded of x

// y = x w^T (+ bias), or y += x w^T: a `Product` is one linear layer, w `[out, in]`, bias `[out]` or null.
struct Product {
  Matrix w;
  const float *bias;
  i64 out;
  float *y;  // `[rows, out]`
  bool add = false;
  i64 first = 0;  // the row of w that makes the first output
};

// Outputs [j, j + Outputs) of Rows rows; place: of their scales. An output is summed in the same order in every tile.
template <int Rows, int Outputs, class W>
void dot_tile(const float *x, i64 in, const Product &p, const W *numbers, const Scales &scales, i64 place, i64 j, i64 row) {
  constexpr int parts = Widener<W>::kParts;
  const i64 stride = Widener<W>::place(in);
  const W *w = numbers + (p.first + j) * stride;
  vec sum[Outputs][Rows] = {};
  float rest[Outputs][Rows] = {};
  i64 i = 0;
  // The rows of the next tile: of rows so short the processor finds out too late that each is read in order.
  const char *next = reinterpret_cast<const char *>(w + Outputs * stride);
  constexpr i64 bytes = Widener<W>::place(parts * kLanes) * sizeof(W) * Outputs;
  for (i64 g = 0; g < scales.groups; ++g) {
    Widener<W> widened[Outputs];
    MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) widened[o] = scales.template of<W>(place + o, g);
    const i64 end = i + scales.group;
    for (; i + parts * kLanes <= end; i += parts * kLanes) {
      if constexpr (sizeof(W) < sizeof(float)) {
        MS_OMNI_UNROLL for (i64 line = 0; line < bytes; line += 64) __builtin_prefetch(next + line);
        next += bytes;
      }
      MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) {
        vec weights[parts];
        widened[o](w + o * stride, i, weights);
        if constexpr (parts > 2) __asm__("" ::: "memory");  // x is read anew: to keep it, compilers would put sums into memory
        MS_OMNI_UNROLL for (int part = 0; part < parts; ++part)
          MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
            sum[o][r] = fma(load(x + r * in + i + part * kLanes), weights[part], sum[o][r]);
      }
    }
    for (; i < end; ++i)
      for (int o = 0; o < Outputs; ++o) {
        const float weight = widened[o].one(w + o * stride, i);
        for (int r = 0; r < Rows; ++r) rest[o][r] = fma(x[r * in + i], weight, rest[o][r]);
      }
  }
  float totals[Outputs][Rows];
  MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o)
    MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) totals[o][r] = total(sum[o][r]) + rest[o][r];
  for (int o = 0; o < Outputs; ++o)
    for (int r = 0; r < Rows; ++r) {
      float &y = p.y[(row + r) * p.out + j + o];
      y = totals[o][r] + (p.bias ? p.bias[j + o] : 0.f) + (p.add ? y : 0.f);
    }
}

// Outputs [begin, end) of all rows. With one or two there is room for the sums of more outputs, but eight streams out of memory are
// slower than four.
template <int Rows, class W>
void dot_rows(const float *x, i64 in, const Product &p, const W *w, const Scales &scales, i64 from, i64 begin, i64 end, i64 row) {
  constexpr int outputs = Rows <= 2 ? 4 : kOutputs;
  i64 j = begin;
  for (; j + outputs <= end; j += outputs) dot_tile<Rows, outputs>(x, in, p, w, scales, j - from, j, row);
  for (; j < end; ++j) dot_tile<Rows, 1>(x, in, p, w, scales, j - from, j, row);
}

// Outputs [begin, end) of x `[rows, in]`; w: the numbers of p.w, scales: of these outputs.
template <class W>
void dot_block(const float *x, i64 rows, i64 in, const Product &p, const W *w, const Scales &scales, i64 begin, i64 end) {
  for (i64 j = begin; j < end; j += 2 * kOutputs) {  // so few weights that they stay in the first cache for all rows
    const i64 stop = rows > kRowTile ? std::min<i64>(j + 2 * kOutputs, end) : end;
    i64 row = 0;
    for (; row + kRowTile <= rows; row += kRowTile) dot_rows<kRowTile>(x + row * in, in, p, w, scales, begin, j, stop, row);
    const float *rest = x + row * in;
    switch (rows - row) {
      case 5: dot_rows<5>(rest, in, p, w, scales, begin, j, stop, row); break;
      case 4: dot_rows<4>(rest, in, p, w, scales, begin, j, stop, row); break;
      case 3: dot_rows<3>(rest, in, p, w, scales, begin, j, stop, row); break;
      case 2: dot_rows<2>(rest, in, p, w, scales, begin, j, stop, row); break;
      case 1: dot_rows<1>(rest, in, p, w, scales, begin, j, stop, row); break;
    }
    if (stop == end) return;
  }
}

inline void dot_block(const float *x, i64 rows, i64 in, const Product &p, i64 begin, i64 end) {
  const Scales scales(p.w, in, p.first + begin, end - begin);
  with_numbers(p.w, [&](auto *w) { dot_block(x, rows, in, p, w, scales, begin, end); });
}

// Several linear layers of the same x `[rows, in]`, shared among the threads of the pool.
inline void multiply(ThreadPool &pool, const float *x, i64 rows, i64 in, std::initializer_list<Product> products) {
  const auto fetch = [=](const Product &p) {
    return std::max<i64>(1, kFetch / std::max<i64>(1, row_bytes(p.w, in)) / (2 * kOutputs)) * 2 * kOutputs;
  };
  const auto tasks_of = [=](const Product &p) { return (p.out + fetch(p) - 1) / fetch(p); };
  i64 tasks = 0;
  for (const auto &p : products) tasks += tasks_of(p);
  pool.run(tasks, [&](i64 task) {
    const Product *p = products.begin();
    for (; task >= tasks_of(*p); ++p) task -= tasks_of(*p);
    dot_block(x, rows, in, *p, task * fetch(*p), std::min((task + 1) * fetch(*p), p->out));
  });
}

}  // namespace
