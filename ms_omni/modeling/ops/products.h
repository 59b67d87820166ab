// Products of a few rows with weights that do not fit in a cache: every weight is fetched once, as it is stored, and used for
// all rows.

#pragma once

#include "digits.h"
#include "thread_pool.h"

namespace {

constexpr i64 kLeast = 64 * 1024, kMost = 160 * 1024;  // bytes of weights per task: long enough to be fetched at full speed
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

// A line of the rows of the next tile: of rows so short the processor finds out too late that each is read in order. The first cache
// waits for few lines at a time, fewer than memory could send; so lines further on go to the second one first.
inline void fetch_ahead(const char *line) {
  constexpr i64 kFar = 6144;
  __builtin_prefetch(line);
  __builtin_prefetch(line + kFar, 0, 2);
}

// What is made of the sums of outputs from j on and rows from `row` on.
template <int Outputs, int Rows>
inline void put(const Product &p, i64 row, i64 j, const float (&totals)[Outputs][Rows]) {
  for (int o = 0; o < Outputs; ++o)
    for (int r = 0; r < Rows; ++r) {
      float &y = p.y[(row + r) * p.out + j + o];
      y = totals[o][r] + (p.bias ? p.bias[j + o] : 0.f) + (p.add ? y : 0.f);
    }
}

// Outputs of rows of x `[rows, in]`, some of both at a time; w: the numbers of p.w, scales: of outputs from `first` on. An output is
// summed in the same order in every tile.
template <class W>
struct DotTiles {
  const float *x;
  i64 in;
  const Product &p;
  const W *numbers;
  const Scales &scales;
  i64 first;

  template <int Rows, int Outputs>
  void run(i64 row, i64 j) const {
    constexpr int parts = Widener<W>::kParts;
    const i64 stride = Widener<W>::place(in);
    const W *w = numbers + (p.first + j) * stride;
    const float *from = x + row * in;
    vec sum[Outputs][Rows] = {};
    float rest[Outputs][Rows] = {};
    i64 i = 0;
    const char *next = reinterpret_cast<const char *>(w + Outputs * stride);
    constexpr i64 bytes = Widener<W>::place(parts * kLanes) * sizeof(W) * Outputs;
    for (i64 g = 0; g < scales.groups; ++g) {
      Widener<W> widened[Outputs];
      MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) widened[o] = scales.template of<W>(j - first + o, g);
      const i64 end = i + scales.group;
      for (; i + parts * kLanes <= end; i += parts * kLanes) {
        if constexpr (sizeof(W) < sizeof(float)) {
          MS_OMNI_UNROLL for (i64 line = 0; line < bytes; line += 64) fetch_ahead(next + line);
          next += bytes;
        }
        MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) {
          vec weights[parts];
          widened[o](w + o * stride, i, weights);
          if constexpr (parts > 2) __asm__("" ::: "memory");  // x is read anew: to keep it, compilers would put sums into memory
          MS_OMNI_UNROLL for (int part = 0; part < parts; ++part)
            MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
              sum[o][r] = fma(load(from + r * in + i + part * kLanes), weights[part], sum[o][r]);
        }
      }
      for (; i < end; ++i)
        for (int o = 0; o < Outputs; ++o) {
          const float weight = widened[o].one(w + o * stride, i);
          for (int r = 0; r < Rows; ++r) rest[o][r] = fma(from[r * in + i], weight, rest[o][r]);
        }
    }
    float totals[Outputs][Rows];
    MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o)
      MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) totals[o][r] = total(sum[o][r]) + rest[o][r];
    put(p, row, j, totals);
  }
};

#ifdef MS_OMNI_VNNI
// The same of codes, with x as `Digits`.
template <bool Pairs>
struct DigitTiles {
  const Digits &x;
  i64 in;
  const Product &p;
  const Scales &scales;
  i64 first;

  static constexpr i64 kBytes = Pairs ? kDigitBlock / 2 : kDigitBlock;  // of a row in a block

  template <int Rows, int Outputs>
  void run(i64 row, i64 j) const {
    const i64 stride = row_bytes(p.w, in), groups = scales.groups;
    const char *from = static_cast<const char *>(p.w.numbers) + (p.first + j) * stride, *next = from + Outputs * stride;
    const float *scale = scales.scales(j - first), *shift = scales.shifts(j - first);
    const DigitBlock *inputs[Rows];
    for (int r = 0; r < Rows; ++r) inputs[r] = x.row(row + r);
    LaneGroups lanes(groups, scales.group);
    vec sum[Outputs][Rows] = {};
    const auto add = [&](auto whole, i64 block) __attribute__((always_inline)) {
      lanes.go(block);
      MS_OMNI_UNROLL for (i64 line = 0; line < Outputs * kBytes; line += 64) fetch_ahead(next + block * Outputs * kBytes + line);
      MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o) {
        __m512i codes[2];
        load_codes<Pairs, whole.value>(from + o * stride + block * kBytes, stride - block * kBytes, codes);
        const vec factor = lanes.of(scale + o * groups);
        MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r)
          sum[o][r] = fma(sum_of_block<Pairs>(inputs[r][block], codes), factor * inputs[r][block].unit, sum[o][r]);
      }
      for (int o = 0; scales.shifted && o < Outputs; ++o) {
        const vec rest = lanes.of(shift + o * groups), offset = Pairs ? fma(8.f, lanes.of(scale + o * groups), rest) : rest;
        for (int r = 0; r < Rows; ++r) sum[o][r] = fma(sum_of_inputs<Pairs>(inputs[r][block]), offset * inputs[r][block].unit, sum[o][r]);
      }
    };
    i64 block = 0;
    for (; (block + 1) * kBytes <= stride; ++block) add(std::true_type(), block);
    if (block * kBytes < stride) add(std::false_type(), block);
    float totals[Outputs][Rows];
    MS_OMNI_UNROLL for (int o = 0; o < Outputs; ++o)
      MS_OMNI_UNROLL for (int r = 0; r < Rows; ++r) totals[o][r] = total(sum[o][r]);
    put(p, row, j, totals);
  }
};
#endif

// Outputs [begin, end) of Rows rows. With one or two there is room for the sums of more outputs, but eight streams out of memory are
// slower than four.
template <int Rows, class Tiles>
void run_rows(const Tiles &tiles, i64 row, i64 begin, i64 end) {
  constexpr int outputs = Rows <= 2 ? 4 : kOutputs;
  i64 j = begin;
  for (; j + outputs <= end; j += outputs) tiles.template run<Rows, outputs>(row, j);
  for (; j < end; ++j) tiles.template run<Rows, 1>(row, j);
}

// Outputs [begin, end) of all rows.
template <class Tiles>
void run_tiles(const Tiles &tiles, i64 rows, i64 begin, i64 end) {
  for (i64 j = begin; j < end; j += 2 * kOutputs) {  // so few weights that they stay in the first cache for all rows
    const i64 stop = rows > kRowTile ? std::min<i64>(j + 2 * kOutputs, end) : end;
    i64 row = 0;
    for (; row + kRowTile <= rows; row += kRowTile) run_rows<kRowTile>(tiles, row, j, stop);
    switch (rows - row) {
      case 5: run_rows<5>(tiles, row, j, stop); break;
      case 4: run_rows<4>(tiles, row, j, stop); break;
      case 3: run_rows<3>(tiles, row, j, stop); break;
      case 2: run_rows<2>(tiles, row, j, stop); break;
      case 1: run_rows<1>(tiles, row, j, stop); break;
    }
    if (stop == end) return;
  }
}

// Outputs [begin, end) of x `[rows, in]`; w: the numbers of p.w, scales: of these outputs.
template <class W>
void dot_block(const float *x, i64 rows, i64 in, const Product &p, const W *w, const Scales &scales, i64 begin, i64 end) {
  run_tiles(DotTiles<W>{x, in, p, w, scales, begin}, rows, begin, end);
}

// Rows of x `[rows, in]` as products read them.
class Inputs {
 public:
  Inputs(const float *x, i64 rows, i64 in) : x_(x), rows_(rows), in_(in) {}

  // Before products with matrices that are stored as w is.
  void write_for(const Matrix &w) {
#ifdef MS_OMNI_VNNI
    auto &digits = digits_[w.kind == kInt4];
    if (!digits && suits_digits(w, in_)) digits = std::make_unique<Digits>(x_, rows_, in_, w.kind);
#endif
  }

  // Outputs [begin, end) of p.
  void multiply(const Product &p, i64 begin, i64 end) const {
    const Scales scales(p.w, in_, p.first + begin, end - begin);
#ifdef MS_OMNI_VNNI
    if (suits_digits(p.w, in_)) {
      const Digits &digits = *digits_[p.w.kind == kInt4];
      if (p.w.kind == kInt4) return run_tiles(DigitTiles<true>{digits, in_, p, scales, begin}, rows_, begin, end);
      return run_tiles(DigitTiles<false>{digits, in_, p, scales, begin}, rows_, begin, end);
    }
#endif
    with_numbers(p.w, [&](auto *w) { dot_block(x_, rows_, in_, p, w, scales, begin, end); });
  }

 private:
  const float *x_;
  i64 rows_, in_;
#ifdef MS_OMNI_VNNI
  std::unique_ptr<Digits> digits_[2];  // for codes of 8 and of 4 bits
#endif
};

// Several linear layers of the same x `[rows, in]`, shared among the threads of the pool.
inline void multiply(ThreadPool &pool, const float *x, i64 rows, i64 in, std::initializer_list<Product> products) {
  const auto fetch = [&](const Product &p) {
    const i64 row = std::max<i64>(1, row_bytes(p.w, in)), bytes = std::clamp(row * p.out / (4 * pool.size()), kLeast, kMost);
    return std::max<i64>(1, bytes / row / (2 * kOutputs)) * 2 * kOutputs;
  };
  const auto tasks_of = [&](const Product &p) { return (p.out + fetch(p) - 1) / fetch(p); };
  i64 tasks = 0;
  for (const auto &p : products) tasks += tasks_of(p);
  Inputs inputs(x, rows, in);
  for (const auto &p : products) inputs.write_for(p.w);
  pool.run(tasks, [&](i64 task) {
    const Product *p = products.begin();
    for (; task >= tasks_of(*p); ++p) task -= tasks_of(*p);
    inputs.multiply(*p, task * fetch(*p), std::min((task + 1) * fetch(*p), p->out));
  });
}

}  // namespace
